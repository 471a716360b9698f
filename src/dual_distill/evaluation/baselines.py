"""What one gets without looking at the image: the line that every vision-language model has to pass.

Two readers of the question (or sentence) alone compete on a held-out part of the training data, never on test: the most
frequent answer to exactly this text, and a logistic regression on word 1-, 2- and 3-grams. The better one is then
fitted to all training rows.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding_bag

_HELD_OUT_SHARE = 0.1
_PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)


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
    ngrams = [_share_right(answers, check_labels) for answers in _ngram_answers(fit, check_texts, _PENALTIES)]

    if exact >= max(ngrams):
        method, predictions = "exact_text", _exact_text_answers(rows, test_texts)
    else:
        # Each penalty starts where the stronger one ended, so all that come before the best are fitted again.
        penalties = _PENALTIES[: ngrams.index(max(ngrams)) + 1]
        method, predictions = "ngrams", _ngram_answers(rows, test_texts, penalties)[-1]
    held_out_accuracy = {"exact_text": exact, "ngrams": max(ngrams)}
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


def _ngram_answers(
    rows: Sequence[tuple[str, str]], texts: Sequence[str], penalties: Sequence[float]
) -> list[list[str]]:
    """Answers of logistic regressions on word 1- to 3-grams, one list for each L2 penalty (strongest first)."""
    # Equal texts share one row with a count for each label: the same loss, at a fraction of the rows.
    names = sorted({label for _, label in rows})
    label_ids = {name: index for index, name in enumerate(names)}
    row_of = {text: index for index, text in enumerate(dict.fromkeys(text for text, _ in rows))}
    counts = torch.zeros(len(row_of), len(names))
    for (text, label), count in Counter(rows).items():
        counts[row_of[text], label_ids[label]] = count
    counts /= len(rows)

    unique = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    columns = {gram: index for index, gram in enumerate(dict.fromkeys(g for text in row_of for g in _ngrams(text)))}
    train_grams, grams = _bags(row_of, columns), _bags(unique, columns)
    weight = torch.zeros(len(columns), len(names), requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)

    def logits(bags: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return embedding_bag(bags[0], weight, bags[1], mode="sum") + bias

    def loss(penalty: float) -> torch.Tensor:
        return -(counts * logits(train_grams).log_softmax(dim=1)).sum() + penalty / 2 * weight.square().sum()

    answers = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, history_size=10, line_search_fn="strong_wolfe")

        def closure(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            (value := loss(penalty)).backward()
            return value

        # Each starts where the stronger one ended.
        optimizer.step(closure)
        choices = logits(grams).argmax(dim=1).tolist()
        answers.append([names[choices[unique[text]]] for text in texts])
    return answers


def _ngrams(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[start : start + n]) for n in (1, 2, 3) for start in range(len(words) - n + 1)]


def _bags(texts: Iterable[str], columns: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns of all texts' n-grams in one row, and where each text starts; unknown n-grams are left out."""
    ids: list[int] = []
    starts: list[int] = []
    for text in texts:
        starts.append(len(ids))
        ids += [columns[gram] for gram in _ngrams(text) if gram in columns]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(starts, dtype=torch.int64)
