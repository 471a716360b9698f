"""Answer vocabularies: the classes of a question-answering head, counted from training answers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datasets import Dataset


def build_answer_vocabulary(
    dataset: Dataset, column: str, min_count: int = 1, max_answers: int | None = None
) -> list[str]:
    """The answers that become classes, most frequent first, equal counts in alphabetical order.

    Args:
        dataset: the training split; other splits would leak into the head.
        column: a column of strings, or of lists of strings (VQAv2 has ten answers a question), each of which counts.
        min_count: fewest occurrences of an answer that is kept, >= 1. VQAv2's 3,129 classes come from 9.
        max_answers: most answers that are kept, >= 1; None keeps all.

    Returns:
        The vocabulary; the index of an answer is its label id.

    Raises:
        ValueError: the column is missing or holds something else than strings, a limit is below 1, or no answer is
            frequent enough.

    Example:
        >>> answers = Dataset.from_dict({"answer": ["yes", "red", "no", "yes", "no", "a"]})
        >>> build_answer_vocabulary(answers, "answer", max_answers=3)
        ['no', 'yes', 'a']
    """
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}, but must be at least 1.")
    if max_answers is not None and max_answers < 1:
        raise ValueError(f"max_answers is {max_answers}, but must be at least 1.")

    counts = Counter(_answers(dataset, column))
    kept = sorted((answer for answer in counts if counts[answer] >= min_count), key=lambda a: (-counts[a], a))
    if not kept:
        most = max(counts.values(), default=0)
        found = f"occurs {min_count} times or more (the most frequent: {most})"
        raise ValueError(f"No answer in column {column!r} {found}; lower min_count.")
    return kept[:max_answers]


def answer_coverage(dataset: Dataset, column: str, vocabulary: Sequence[str]) -> float:
    """Share of the answers in a column that a vocabulary holds: the most a head with this vocabulary gets right.

    Args:
        dataset: any split, usually validation.
        column: a column of strings or of lists of strings; in lists each answer counts.
        vocabulary: the result of `build_answer_vocabulary`.

    Returns:
        Share in [0, 1]; 0 for an empty column.

    Raises:
        ValueError: the column is missing or holds something else than strings.

    Example:
        >>> answers = Dataset.from_dict({"answer": [["yes", "no"], ["red", "yes"]]})
        >>> answer_coverage(answers, "answer", ["yes", "no"])
        0.75
    """
    known = set(vocabulary)
    found = [answer in known for answer in _answers(dataset, column)]
    return sum(found) / len(found) if found else 0.0


def _answers(dataset: Dataset, column: str) -> Iterator[str]:
    if column not in dataset.column_names:
        raise ValueError(f"There is no column {column!r}; the data has: {', '.join(dataset.column_names)}.")
    values: Iterable[Any] = dataset.with_format(None)[column]
    for row, value in enumerate(values):
        for answer in value if isinstance(value, list) else [value]:
            if not isinstance(answer, str):
                raise ValueError(f"Row {row} of column {column!r} holds {answer!r}, but answers are strings or lists.")
            yield answer
