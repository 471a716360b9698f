"""How good captions are: CIDEr-D and BLEU-4 by COCO's evaluation code, and CIDEr-D of one caption as a reward.

Words are counted as Penn Treebank's, in lower case, without punctuation. The official evaluation starts a Java program
for this; here it is a regular expression, with Java or without, so that a score is the same on every machine. On all
25,014 captions of COCO val2017 the two give the same words. What is unusual: the program reads all captions as one
text, so that a caption that ends with a single letter keeps its full stop or not as the next one begins; here it goes.
Vowel signs, tone marks and joiners are part of a word, which the program, made for English, takes apart.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex
from datasets import Features, Value
from datasets import Sequence as ListOf

from .streaming import StreamedMetric

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # of the penalty on lengths
_SCALE = 10.0
# What the official evaluation drops after tokenisation; brackets stay, as "-lrb-" and so on, because it looks for
# capitals.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|sr|jr|vs|gen|col|capt|lt|sgt|rev|hon|gov|sen|rep|mt|ft|inc|co|corp|ltd|etc|approx|dept|"
    "est|fig|no|jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|"
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|"
    "adm|al|alex|bldg|bros|cie|cmdr|esq|jos|maj|messrs|mlle|mme|ph|pres|pvt|sq|ste|supt|univ|wm|"
    # Small, these are other words.
    "(?-i:A)(?:z|rk)|(?-i:D)el|(?-i:I)ll|(?-i:L)a|(?-i:M)(?:ass|iss)|(?-i:O)re|(?-i:P)a|(?-i:T)ex|(?-i:W)ash"
)
_LETTER = r"[\p{L}\p{M}\p{N}\u200c\u200d]"  # with the marks and joiners of words
_WORDS = regex.compile(
    rf"""
      (?:https?://|www\.)\S+                          # addresses
    | y'(?=all\b)
    | [a-z]+n't\b                                     # don't: cut below
    | [a-z]+'(?!(?:s|d|m|ll|re|ve)\b)[a-z]+           # d'oeuvre
    | '(?:s|d|m|ll|re|ve|em|til|cause|n)\b            # what contractions end in
    | \d+(?:[.,:/]\d+)+(?:st|nd|rd|th|s)?             # 5:30, 1,000, 1/2
    | (?:[a-z]\.){{2,}}(?:[a-z]\b(?!\.))?             # u.s., t.v.
    | \b(?:{_ABBREVIATIONS})\.                        # st., mr.
    | \b[a-z]\.(?=\s+(?!(?-i:An?|The[ny]?)\b)\w)        # W. Centre St., but no end of a sentence
    | {_LETTER}+(?:(?:[-/_]|(?<=[a-z])\.(?=[a-z])){_LETTER}+)*      # t-shirt, black/white, tree.the
    | [#$%&@*+=|~^<>\\/_()\[\]{{}}]                   # signs that are words; other punctuation is dropped
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_CUT_IN_TWO = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"}


def caption_words(caption: str) -> list[str]:
    """Return the words of a caption.

    Args:
        caption: as written, accents composed or not (both are read as Unicode's NFC).

    Example:
        >>> caption_words("A man's T-shirt, size 3/4, isn't red.")
        ['a', 'man', "'s", 't-shirt', 'size', '3/4', 'is', "n't", 'red']
    """
    words: list[str] = []
    composed = unicodedata.normalize("NFC", caption).replace("\u2019", "'").replace("\u2018", "'")
    for word in map(str.lower, _WORDS.findall(composed)):
        if word.endswith("n't") and len(word) > 3:
            words += [word[:-3], "n't"]
        else:
            words += _CUT_IN_TWO.get(word, _BRACKETS.get(word, word)).split()
    return words


class CaptionScores(StreamedMetric):
    """CIDEr-D and BLEU-4 of captions against several references each, as an `evaluate.Metric`.

    `compute(predictions=, references=)` takes one caption and a list of captions a row, and returns `{"cider": value,
    "bleu_4": share}`. CIDEr weighs words by how few of the evaluated *images* have them in their references, so a row
    is an image, the value depends on the set, and sets are not to be averaged; it is printed as it is (1.0 is often
    called 100). Needs pycocoevalcap (`pip install "dual-distill[captions]"`). Captions are kept until `compute`: some
    100 bytes each.

    Raises:
        ValueError: a prediction is no string, a row has no references, or there is one image alone.
        ImportError: pycocoevalcap is not installed.

    Note:
        Words are those of `caption_words`, in place of the official Java tokenizer, equal on COCO val2017.

    References:
        Vedantam et al., CVPR 2015, arXiv 1411.5726; Papineni et al., ACL 2002; github.com/salaniz/pycocoevalcap.

    Example:
        >>> CaptionScores().add_batch(predictions=["a dog"], references=[[]])
        Traceback (most recent call last):
        ValueError: Row 0 has no references, but a caption needs some; leave the image out.
    """

    row_features = Features({"predictions": Value("string"), "references": ListOf(Value("string"))})

    def _start(self) -> None:
        self._captions: list[str] = []
        self._references: list[list[str]] = []

    def _update(self, predictions: Any, references: Any) -> None:
        for row, (caption, given) in enumerate(zip(predictions, references, strict=True)):
            if not isinstance(caption, str):
                raise ValueError(f"Row {row} predicts {caption!r}, but a caption is a string.")
            if isinstance(given, str) or not len(given):
                found = "a string" if isinstance(given, str) else "no"
                raise ValueError(f"Row {row} has {found} references, but a caption needs some; leave the image out.")
        self._captions += predictions
        self._references += [list(given) for given in references]

    def _result(self) -> dict[str, Any]:
        _check_corpus(len(self))
        try:
            from pycocoevalcap.bleu.bleu import Bleu
            from pycocoevalcap.cider.cider import Cider
        except ImportError as error:
            raise ImportError('CIDEr and BLEU need pycocoevalcap, pip install "dual-distill[captions]".') from error

        # Indices stand for images; the official code takes words joined by spaces.
        found = {index: [" ".join(caption_words(caption))] for index, caption in enumerate(self._captions)}
        given = {index: [" ".join(caption_words(one)) for one in row] for index, row in enumerate(self._references)}
        cider, _ = Cider(n=_LONGEST, sigma=_SIGMA).compute_score(given, found)
        bleu, _ = Bleu(_LONGEST).compute_score(given, found, verbose=0)
        return {"cider": float(cider), "bleu_4": float(bleu[3])}


def _check_corpus(num_images: int) -> None:
    """Refuse images by which no word can be weighed: in one alone every word is everywhere, and weighs nothing."""
    if num_images < 2:
        found = f"there {'is one' if num_images else 'are none'}; give two images or more"
        raise ValueError(f"CIDEr weighs words by how few of the images have them, but {found}.")


class CiderReward:
    """CIDEr-D of single captions, with words weighed by a fixed corpus: the reward of self-critical training.

    Needs no further library. Over the corpus itself the mean of all rows is `CaptionScores`'s CIDEr.

    Args:
        references: for each image of the corpus (the training split) its captions.

    Raises:
        ValueError: there are fewer than two images.

    Example:
        >>> reward = CiderReward([["a red circle"], ["a blue square"], ["a red square"]])
        >>> [round(reward(caption, ["a red circle"]), 2) for caption in ("a red circle", "a red square", "a dog")]
        [7.5, 0.91, 0.0]
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        self._documents: Counter[tuple[str, ...]] = Counter()
        number = 0
        for row in references:
            number += 1
            self._documents.update({ngram for caption in row for counts in _ngrams(caption) for ngram in counts})
        _check_corpus(number)
        self._log_images = math.log(number)

    def __call__(self, caption: str, references: Sequence[str]) -> float:
        """Return the CIDEr-D of one caption, >= 0; 10 when it is its only reference and no n-gram of it is everywhere.

        Args:
            caption: as written.
            references: of its image, one or more.
        """
        weighted = self._weigh(caption)
        return _SCALE * sum(_similarity(weighted, self._weigh(one)) for one in references) / len(references)

    def _weigh(self, caption: str) -> tuple[list[dict[Any, float]], int]:
        """The n-grams of a caption by weight, for each n, and its length."""
        ngrams, rarest = _ngrams(caption), self._log_images
        weights = [
            {one: counts[one] * (rarest - math.log(max(1, self._documents[one]))) for one in counts}
            for counts in ngrams
        ]
        # The official code takes the number of pairs of words for the length.
        return weights, ngrams[1].total()


def _similarity(caption: tuple[list[dict[Any, float]], int], reference: tuple[list[dict[Any, float]], int]) -> float:
    total = 0.0
    for ours, theirs in zip(caption[0], reference[0], strict=True):
        norm, their_norm = (math.sqrt(sum(weight * weight for weight in each.values())) for each in (ours, theirs))
        # A word that is said again and again is paid as often as the reference has it.
        shared = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs)
        total += shared / (norm * their_norm) if norm * their_norm else 0.0
    return total / _LONGEST * math.exp(-((caption[1] - reference[1]) ** 2) / (2 * _SIGMA**2))


def _ngrams(caption: str) -> list[Counter[tuple[str, ...]]]:
    """How often a caption has each n-gram, for each n."""
    words = caption_words(caption)
    sizes = range(1, _LONGEST + 1)
    return [Counter(zip(*(words[start:] for start in range(size)), strict=False)) for size in sizes]


@dataclass(frozen=True)
class CaptionReport:
    """What an evaluation of captions found.

    Attributes:
        images: images described.
        captions: captions that they were held against.
        cider: CIDEr-D, as it is (1.0 is often called 100).
        bleu_4: in [0, 1].
        mean_words: mean length of what was written, in words.
    """

    images: int
    captions: int
    cider: float
    bleu_4: float
    mean_words: float


def report_captions(captions: Mapping[int | str, str], references: Mapping[int | str, Sequence[str]]) -> CaptionReport:
    """Score captions.

    Args:
        captions: image id -> what was written.
        references: image id -> its captions.

    Raises:
        ValueError: there is nothing, one image alone, or an image without references.
        ImportError: pycocoevalcap is not installed.
    """
    missing = [image_id for image_id in captions if not references.get(image_id)]
    if missing or not captions:
        first = f" (the first is {missing[0]!r})" if missing else ""
        raise ValueError(f"{len(missing)} of {len(captions)} described images have no references{first}.")

    given = [list(references[image_id]) for image_id in captions]
    return CaptionReport(
        images=len(captions),
        captions=sum(map(len, given)),
        mean_words=sum(len(caption.split()) for caption in captions.values()) / len(captions),
        **CaptionScores().compute(predictions=list(captions.values()), references=given),
    )
