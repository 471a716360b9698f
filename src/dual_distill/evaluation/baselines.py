"""What one gets without looking at the picture: the line that every vision-language model has to pass.

Two readers of the text alone compete on a held-out part of the training data, never on test: the most frequent answer
to exactly this text, and a logistic regression on word 1-, 2- and 3-grams. The better one is then fitted to all
training rows.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import embedding_bag

_HELD_OUT_SHARE = 0.1
_PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
_MAX_ITERATIONS = 40


@dataclass(frozen=True)
class TextOnlyBaseline:
    """Result of `text_only_baseline`.

    Args:
        accuracy: share of the test rows that the chosen reader gets right, in [0, 1].
        method: the reader that was better on the held-out part.
        held_out_accuracy: reader -> share right on the held-out part of train, in [0, 1].
        predictions: its answers to the test rows.

    Example:
        >>> TextOnlyBaseline(0.5, "exact_text", {"exact_text": 0.6, "ngrams": 0.4}, ("yes", "no")).method
        'exact_text'
    """

    accuracy: float
    method: Literal["exact_text", "ngrams"]
    held_out_accuracy: dict[str, float]
    predictions: tuple[str, ...]


def majority_baseline(train_labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """Accuracy on test of the most frequent training answer; among equals the alphabetically first.

    Args:
        train_labels: at least one answer.
        test_labels: at least one answer.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: one of the two is empty.

    Example:
        >>> majority_baseline(["yes", "yes", "no"], ["yes", "no", "no", "no"])
        0.25
    """
    _check_rows(train_labels, train_labels, test_labels, test_labels)
    answer = majority_answer(train_labels)
    return sum(label == answer for label in test_labels) / len(test_labels)


def majority_answer(train_labels: Sequence[str]) -> str:
    """Return the most frequent training answer; among equals the alphabetically first.

    Example:
        >>> majority_answer(["yes", "no", "no", "yes"])
        'no'
    """
    return _most_frequent(Counter(train_labels))


def text_only_baseline(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    test_texts: Sequence[str],
    test_labels: Sequence[str],
    seed: int = 0,
    train_groups: Sequence[Hashable] | None = None,
) -> TextOnlyBaseline:
    """Accuracy on test of the better of two readers of the text alone.

    Args:
        train_texts: one text a row.
        train_labels: one answer a row.
        test_texts: one text a row.
        test_labels: one answer a row.
        seed: which rows are held out.
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
        >>> text_only_baseline(texts, labels, ["is it red?", "how many?"], ["yes", "3"]).accuracy
        0.5
    """
    _check_rows(train_texts, train_labels, test_texts, test_labels)
    held_out = _held_out_rows(len(train_texts) if train_groups is None else train_groups, len(train_texts), seed)
    fit_texts = [text for text, out in zip(train_texts, held_out, strict=True) if not out]
    fit_labels = [label for label, out in zip(train_labels, held_out, strict=True) if not out]
    check_texts = [text for text, out in zip(train_texts, held_out, strict=True) if out]
    check_labels = [label for label, out in zip(train_labels, held_out, strict=True) if out]

    exact = _share_right(_exact_text_answers(fit_texts, fit_labels, check_texts), check_labels)
    by_penalty = [
        _share_right(answers, check_labels)
        for answers in _ngram_answers(fit_texts, fit_labels, check_texts, _PENALTIES)
    ]
    held_out_accuracy = {"exact_text": exact, "ngrams": max(by_penalty)}
    method: Literal["exact_text", "ngrams"]
    if exact >= max(by_penalty):
        method = "exact_text"
        predictions = _exact_text_answers(train_texts, train_labels, test_texts)
    else:
        method = "ngrams"
        penalties = _PENALTIES[: by_penalty.index(max(by_penalty)) + 1]
        predictions = _ngram_answers(train_texts, train_labels, test_texts, penalties)[-1]
    return TextOnlyBaseline(_share_right(predictions, test_labels), method, held_out_accuracy, tuple(predictions))


def _check_rows(
    train_texts: Sequence[str], train_labels: Sequence[str], test_texts: Sequence[str], test_labels: Sequence[str]
) -> None:
    for split, texts, labels in (("train", train_texts, train_labels), ("test", test_texts, test_labels)):
        if len(texts) != len(labels):
            raise ValueError(f"{split} has {len(texts)} texts and {len(labels)} labels, but each text has one label.")
        if not len(labels):
            raise ValueError(f"{split} has no rows; a baseline needs one or more.")


def _held_out_rows(groups: Sequence[Hashable] | int, num_rows: int, seed: int) -> list[bool]:
    """One truth value a row: whole groups, in an order drawn by the seed, until they hold a tenth of the rows."""
    names: Sequence[Hashable] = range(groups) if isinstance(groups, int) else list(groups)
    if len(names) != num_rows:
        raise ValueError(f"train has {num_rows} rows and {len(names)} groups, but each row has one group.")
    sizes = Counter(names)  # keeps the order of first appearance, so the draw below is reproducible
    if len(sizes) < 2:
        raise ValueError("train has a single group; two or more are needed, since whole groups are held out.")
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    unique = list(sizes)
    chosen: set[Hashable] = set()
    rows = 0
    for index in order[:-1]:  # one group always stays
        chosen.add(unique[index])
        rows += sizes[unique[index]]
        if rows >= _HELD_OUT_SHARE * num_rows:
            break
    return [name in chosen for name in names]


def _share_right(answers: Sequence[str], labels: Sequence[str]) -> float:
    return sum(answer == label for answer, label in zip(answers, labels, strict=True)) / len(labels)


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _exact_text_answers(train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The most frequent answer to exactly this text; for a new text the most frequent of all."""
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text, label in zip(train_texts, train_labels, strict=True):
        by_text[text][label] += 1
    answers = {text: _most_frequent(counts) for text, counts in by_text.items()}
    fallback = _most_frequent(Counter(train_labels))
    return [answers.get(text, fallback) for text in texts]


def _ngram_answers(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], penalties: Sequence[float]
) -> list[list[str]]:
    """Answers of logistic regressions on word 1- to 3-grams, one list for each L2 penalty (strongest first)."""
    names = sorted(set(train_labels))
    label_ids = {name: index for index, name in enumerate(names)}
    unique = {text: index for index, text in enumerate(dict.fromkeys(train_texts))}
    # Equal texts share one row with a count for each label: the same loss, at a fraction of the rows.
    counts = torch.zeros(len(unique), len(names))
    for text, label in zip(train_texts, train_labels, strict=True):
        counts[unique[text], label_ids[label]] += 1
    counts /= len(train_labels)
    columns: dict[str, int] = {}
    train_grams = _ngram_ids(list(unique), columns, grow=True)
    grams = _ngram_ids(list(dict.fromkeys(texts)), columns, grow=False)
    places = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    weight = torch.zeros(len(columns), len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    answers = []
    for penalty in penalties:  # each starts where the stronger one ended
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_MAX_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )

        def loss_and_gradient(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            log_probs = torch.log_softmax(
                embedding_bag(train_grams[0], weight, train_grams[1], mode="sum") + bias, dim=1
            )
            loss: torch.Tensor = -(counts * log_probs).sum() + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(loss_and_gradient)
        with torch.no_grad():
            choices = (embedding_bag(grams[0], weight, grams[1], mode="sum") + bias).argmax(dim=1).tolist()
        answers.append([names[choices[places[text]]] for text in texts])
    return answers


def _ngram_ids(texts: Sequence[str], columns: dict[str, int], grow: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1- to 3-grams of all texts in one row, and where each text starts; unknown n-grams are left out."""
    ids: list[int] = []
    starts: list[int] = []
    for text in texts:
        starts.append(len(ids))
        words = re.findall(r"\w+", text.lower())
        grams = [" ".join(words[start : start + n]) for n in (1, 2, 3) for start in range(len(words) - n + 1)]
        if grow:
            for gram in grams:
                columns.setdefault(gram, len(columns))
        ids.extend(columns[gram] for gram in grams if gram in columns)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(starts, dtype=torch.int64)
