"""What one gets without looking at the image: the line that every vision-language model has to pass.

Two readers of the question (or sentence) alone compete on a held-out part of the training data, never on test: the most
frequent answer to exactly this text, and a linear classifier of word 1-, 2- and 3-grams. The better one is then fitted
to all training rows. What is unusual: n-grams are hashed into a fixed number of buckets with narrow vectors, so that
VQA v2's 444 thousand questions and 3,129 answers fit into a few hundred megabytes.
"""

import itertools
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import regex
import torch
from torch.nn.functional import cross_entropy, embedding_bag, linear
from tqdm.auto import tqdm

_HELD_OUT_SHARE = 0.1
_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}_\u200c\u200d]+")
_WIDTH, _MOST_BUCKETS, _LEARNING_RATE = 64, 1 << 18, 3e-3
_SMALLEST_BATCH, _LARGEST_BATCH, _FEWEST_STEPS = 8, 1024, 25
# Passes over few rows are cheap; what is read in all is bounded.
_FEWEST_PASSES, _MOST_PASSES, _MOST_ROWS, _PATIENCE = 2, 30, 1_500_000, 3
_SHOWN_ROWS = 20_000


@dataclass(frozen=True)
class QuestionOnlyBaseline:
    """Result of `question_only_baseline`.

    Args:
        accuracy: share of the test rows that the chosen reader gets right, in [0, 1].
        method: the reader that was better on the held-out part.
        held_out_accuracy: reader -> share right on the held-out part of train, in [0, 1].
        predictions: its answers to the test rows.

    Example:
        >>> QuestionOnlyBaseline(0.5, "exact_text", {"exact_text": 0.6, "ngrams": 0.4}, ("yes", "no")).method
        'exact_text'
    """

    accuracy: float
    method: str
    held_out_accuracy: dict[str, float]
    predictions: tuple[str, ...]


def majority_answer(train_labels: Iterable[str]) -> str:
    """Return the most frequent training answer; among equals the alphabetically first.

    Example:
        >>> majority_answer(["yes", "no", "no", "yes"])
        'no'
    """
    counts = Counter(train_labels)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def question_only_baseline(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    test_texts: Sequence[str],
    test_labels: Sequence[str],
    seed: int = 0,
    train_groups: Sequence[Hashable] | None = None,
) -> QuestionOnlyBaseline:
    """Accuracy on test of the better of two readers of the question alone.

    Args:
        train_texts: one text a row.
        train_labels: one answer a row.
        test_texts: one text a row.
        test_labels: one answer a row.
        seed: which rows are held out, and how the reader of n-grams starts.
        train_groups: rows of one group are held out together; None makes each row its own group. Give it where one text
            comes with several copies of one label, as in NLVR (`directory`): memory would look like understanding.

    Returns:
        The accuracy, which reader, and both held-out accuracies.

    Raises:
        ValueError: a side is empty, its lengths differ, or train has fewer than two groups.

    Note:
        An accuracy on test far above the majority's says that the data set leaks its answers through the text.

    Example:
        >>> texts, labels = ["is it red?", "how many?"] * 20, ["yes", "2"] * 20
        >>> question_only_baseline(texts, labels, ["is it red?", "how many?"], ["yes", "3"]).accuracy
        0.5
    """
    for split, texts, labels in (("train", train_texts, train_labels), ("test", test_texts, test_labels)):
        if len(texts) != len(labels):
            raise ValueError(f"{split} has {len(texts)} texts and {len(labels)} labels, but each text has one label.")
        if not len(labels):
            raise ValueError(f"{split} has no rows; a baseline needs one or more.")

    rows = list(zip(train_texts, train_labels, strict=True))
    held_out = _held_out_rows(range(len(rows)) if train_groups is None else list(train_groups), len(rows), seed)
    fit = [row for row, out in zip(rows, held_out, strict=True) if not out]
    check_texts, check_labels = zip(*(row for row, out in zip(rows, held_out, strict=True) if out), strict=True)
    exact = _share_right(_exact_text_answers(fit, check_texts), check_labels)
    ngrams, predictions = _ngram_answers(rows, held_out, test_texts, seed)
    method = "exact_text" if exact >= ngrams else "ngrams"
    if method == "exact_text":
        predictions = _exact_text_answers(rows, test_texts)
    held_out_accuracy = {"exact_text": exact, "ngrams": ngrams}
    return QuestionOnlyBaseline(_share_right(predictions, test_labels), method, held_out_accuracy, tuple(predictions))


def _held_out_rows(groups: Sequence[Hashable], num_rows: int, seed: int) -> list[bool]:
    """One truth value a row: whole groups, in an order drawn by the seed, until they hold a tenth of the rows."""
    if len(groups) != num_rows:
        raise ValueError(f"train has {num_rows} rows and {len(groups)} groups, but each row has one group.")
    # In the order of first appearance, so that the draw is reproducible.
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise ValueError("train has a single group; two or more are needed, since whole groups are held out.")

    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    filled = torch.tensor(list(sizes.values()))[order].cumsum(0)
    number = int((filled < _HELD_OUT_SHARE * num_rows).sum()) + 1
    # One group always stays.
    unique = list(sizes)
    chosen = {unique[index] for index in order[: min(number, len(sizes) - 1)].tolist()}
    return [group in chosen for group in groups]


def _share_right(answers: Sequence[str], labels: Sequence[str]) -> float:
    return sum(answer == label for answer, label in zip(answers, labels, strict=True)) / len(labels)


def _exact_text_answers(rows: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[str]:
    """The most frequent answer to exactly this text; for a new text the most frequent of all."""
    labels_of: defaultdict[str, list[str]] = defaultdict(list)
    for text, label in rows:
        labels_of[text].append(label)
    answers = {text: majority_answer(labels) for text, labels in labels_of.items()}
    fallback = majority_answer(label for _, label in rows)
    return [answers.get(text, fallback) for text in texts]


def _bags(texts: Iterable[str], buckets: int) -> list[Sequence[int]]:
    """The n-grams of each text as numbers of buckets."""
    # Python's own hash differs from process to process.
    return [array("i", [crc32(gram.encode()) % buckets for gram in _ngrams(text)]) for text in texts]


class _NgramReader:
    """A narrow vector a bucket, summed over a text's n-grams, and a logit an answer; learned by Adam in small batches.

    As buckets are few and vectors narrow, memory does not grow with texts or answers; as vectors start from 0, what
    training never saw says nothing.
    """

    def __init__(self, buckets: int, num_answers: int, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.grams = torch.zeros(buckets, _WIDTH, requires_grad=True)
        self.answers = torch.randn(num_answers, _WIDTH, generator=self.draw).div_(_WIDTH**0.5).requires_grad_()
        self.bias = torch.zeros(num_answers, requires_grad=True)
        sparse = torch.optim.SparseAdam([self.grams], lr=_LEARNING_RATE)
        self.optimizers = [sparse, torch.optim.Adam([self.answers, self.bias], lr=_LEARNING_RATE)]

    def logits(self, bags: Sequence[Sequence[int]]) -> torch.Tensor:
        """`(B, answers)` of the buckets of B texts."""
        starts = torch.tensor([0, *itertools.accumulate(map(len, bags))][:-1], dtype=torch.int32)
        numbers = torch.tensor(list(itertools.chain.from_iterable(bags)), dtype=torch.int32)
        return linear(embedding_bag(numbers, self.grams, starts, mode="sum", sparse=True), self.answers, self.bias)

    def learn(self, bags: Sequence[Sequence[int]], texts: torch.Tensor, labels: torch.Tensor, bar: Any) -> None:
        """Pass over rows once, in an order drawn anew."""
        order = torch.randperm(len(texts), generator=self.draw)
        for rows in order.split(max(_SMALLEST_BATCH, min(len(texts) // _FEWEST_STEPS, _LARGEST_BATCH))):
            loss = cross_entropy(self.logits([bags[text] for text in texts[rows].tolist()]), labels[rows])
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            bar.update(len(rows))

    @torch.no_grad()
    def answer(self, bags: Sequence[Sequence[int]]) -> torch.Tensor:
        """The most probable answer to each text, `(texts,)`."""
        starts = range(0, len(bags), _LARGEST_BATCH)
        return torch.cat([self.logits(bags[start : start + _LARGEST_BATCH]).argmax(1) for start in starts])


def _ngram_answers(
    rows: Sequence[tuple[str, str]], held_out: Sequence[bool], texts: Sequence[str], seed: int
) -> tuple[float, list[str]]:
    """The best share of the held-out rows that a reader of n-grams gets right, and its answers to other texts.

    It learns until the held-out rows stop gaining, then anew from all rows, as many passes as were best.
    """
    names = sorted({label for _, label in rows})
    label_ids = {name: index for index, name in enumerate(names)}
    row_of: dict[str, int] = {}
    read = torch.tensor([row_of.setdefault(text, len(row_of)) for text, _ in rows])
    labels, out = torch.tensor([label_ids[label] for _, label in rows]), torch.tensor(held_out)

    # Twice as many buckets as n-grams, up to a limit, so that few of them share one.
    number = sum(len(_ngrams(text)) for text in itertools.islice(row_of, _MOST_BUCKETS))
    buckets = min(_MOST_BUCKETS, 1 << (2 * number).bit_length())
    bags, asked = _bags(row_of, buckets), {text: index for index, text in enumerate(dict.fromkeys(texts))}
    most = max(_FEWEST_PASSES, min(_MOST_PASSES, _MOST_ROWS // len(rows)))

    shares: list[float] = []
    with tqdm(desc="question-only baseline", unit=" rows", unit_scale=True, disable=len(rows) < _SHOWN_ROWS) as bar:
        reader = _NgramReader(buckets, len(names), seed)
        while len(shares) < most and max(shares[-_PATIENCE:], default=1) >= max(shares, default=0):
            reader.learn(bags, read[~out], labels[~out], bar)
            shares.append((reader.answer(bags)[read[out]] == labels[out]).float().mean().item())

        reader = _NgramReader(buckets, len(names), seed)
        for _ in range(shares.index(max(shares)) + 1):
            reader.learn(bags, read, labels, bar)
    choices = reader.answer(_bags(asked, buckets)).tolist()
    return max(shares), [names[choices[asked[text]]] for text in texts]


def _ngrams(text: str) -> list[str]:
    words = _WORDS.findall(unicodedata.normalize("NFC", text).lower())
    return [" ".join(words[start : start + n]) for n in (1, 2, 3) for start in range(len(words) - n + 1)]
