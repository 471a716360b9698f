"""How good captions are: CIDEr-D and BLEU-4 by the code of COCO's own evaluation, and CIDEr-D of one caption as a reward."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf

from .caption_words import caption_words
from .streaming import StreamedMetric

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # of the penalty on lengths
_SCALE = 10.0

Ngrams = Counter[tuple[str, ...]]


class CaptionScores(StreamedMetric):
    """CIDEr-D and BLEU-4 of captions against several references each, as an `evaluate.Metric`.

    `compute(predictions=, references=)` takes one caption and a list of captions a row, and returns `{"cider": value,
    "bleu_4": share}`. CIDEr weighs words by how few of the evaluated *images* have them in their references, so a row
    is an image, the value depends on the set, and sets are not to be averaged; it is printed as it is (1.0 is often
    called 100). Needs pycocoevalcap (`pip install "dual-distill[captions]"`). Captions are kept until `compute`: some
    100 bytes each.

    Raises:
        ValueError: a prediction is no string, or a row has no references.
        ImportError: pycocoevalcap is not installed.

    Note:
        Words are those of `caption_words`, in place of the official Java tokenizer, which is near to equal.

    References:
        Vedantam et al., CVPR 2015, arXiv 1411.5726; Papineni et al., ACL 2002; github.com/salaniz/pycocoevalcap.

    Example:
        >>> CaptionScores().add_batch(predictions=["a dog"], references=[[]])
        Traceback (most recent call last):
        ValueError: Row 0 has no references, but a caption is held against one or more; leave the image out.
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="CIDEr-D and BLEU-4 of captions.",
            citation="",
            inputs_description="predictions: one caption a row; references: a list of captions a row.",
            features=Features({"predictions": Value("string"), "references": ListOf(Value("string"))}),
        )

    def _start(self) -> None:
        self._captions: list[str] = []
        self._references: list[list[str]] = []

    def _update(self, predictions: Any, references: Any) -> None:
        rows = list(zip(predictions, references, strict=True))
        for place, (caption, given) in enumerate(rows):
            if not isinstance(caption, str):
                raise ValueError(f"Row {place} predicts {caption!r}, but a caption is a string.")
            if isinstance(given, str) or not len(given):
                found = "a string" if isinstance(given, str) else "no"
                raise ValueError(
                    f"Row {place} has {found} references, but a caption is held against one or more; leave the image "
                    f"out."
                )
        self._captions += [caption for caption, _ in rows]
        self._references += [list(given) for _, given in rows]

    def _result(self) -> dict[str, Any]:
        bleu_scorer, cider_scorer = _official_scorers()
        # Places stand for images; the official code takes words joined by spaces.
        found = {place: [" ".join(caption_words(caption))] for place, caption in enumerate(self._captions)}
        given = {place: [" ".join(caption_words(one)) for one in row] for place, row in enumerate(self._references)}
        cider, _ = cider_scorer.compute_score(given, found)
        bleu, _ = bleu_scorer.compute_score(given, found, verbose=0)
        return {"cider": float(cider), "bleu_4": float(bleu[3])}


class CiderReward:
    """CIDEr-D of single captions, with words weighed by a corpus that is settled before: what self-critical training
    pays.

    Needs no further library. Over the corpus itself the mean of all rows is `CaptionScores`'s CIDEr.

    Args:
        references: for each image of the corpus (the training split) its captions.

    Raises:
        ValueError: there is no image.

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
            self._documents.update({ngram for caption in row for ngram in _ngrams(caption)})
        if not number:
            raise ValueError("there is no image to weigh words by; give the references of the training split.")
        self._log_images = math.log(number)

    def __call__(self, caption: str, references: Sequence[str]) -> float:
        """Return the CIDEr-D of one caption, >= 0; 10 when it is its only reference and no n-gram of it is everywhere.

        Args:
            caption: as written.
            references: of its image, one or more.
        """
        weighted = self._weigh(_ngrams(caption))
        return (
            _SCALE * sum(self._similarity(weighted, self._weigh(_ngrams(one))) for one in references) / len(references)
        )

    def _weigh(self, ngrams: Ngrams) -> "_Weighted":
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for ngram, count in ngrams.items():
            rarity = self._log_images - math.log(max(1, self._documents[ngram]))
            vectors[len(ngram) - 1][ngram] = count * rarity
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        # The official code takes the number of pairs of words for the length.
        length = sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
        return vectors, norms, length

    @staticmethod
    def _similarity(one: "_Weighted", reference: "_Weighted") -> float:
        vectors, norms, length = one
        other_vectors, other_norms, other_length = reference
        total = 0.0
        for vector, norm, other, other_norm in zip(vectors, norms, other_vectors, other_norms, strict=True):
            if norm and other_norm:
                # A word that is said again and again is paid as often as the reference has it.
                shared = sum(
                    min(value, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, value in vector.items()
                )
                total += shared / (norm * other_norm)
        return total / _LONGEST * math.exp(-((length - other_length) ** 2) / (2 * _SIGMA**2))


_Weighted = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def write_captions(path: str | os.PathLike[str], image_ids: Sequence[int | str], captions: Sequence[str]) -> None:
    """Write captions in COCO's results format, `[{"image_id": ..., "caption": ...}, ...]`; an old file is replaced.

    Args:
        path: where to write; folders are made.
        image_ids: each once; numbers for COCO.
        captions: one an image.

    Raises:
        ValueError: the lengths differ, nothing was given, or an image occurs twice.

    References:
        cocodataset.org/#format-results, image captioning.

    Example:
        >>> write_captions("results.json", [7, 7], ["a dog", "a cat"])
        Traceback (most recent call last):
        ValueError: Image 7 has two captions, but the results format has one an image.
    """
    if len(image_ids) != len(captions) or not len(captions):
        raise ValueError(
            f"There are {len(image_ids)} image ids and {len(captions)} captions; give one caption an image."
        )
    for image_id, count in Counter(image_ids).items():
        if count > 1:
            raise ValueError(f"Image {image_id} has two captions, but the results format has one an image.")
    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in zip(image_ids, captions, strict=True)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


def _ngrams(caption: str) -> Ngrams:
    words = caption_words(caption)
    return Counter(
        tuple(words[start : start + size]) for size in range(1, _LONGEST + 1) for start in range(len(words) - size + 1)
    )


def _official_scorers() -> tuple[Any, Any]:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError(
            'CIDEr and BLEU need pycocoevalcap, which is not installed; pip install "dual-distill[captions]".'
        ) from error
    return Bleu(_LONGEST), Cider(n=_LONGEST, sigma=_SIGMA)


__all__ = ["CaptionScores", "CiderReward", "write_captions"]
