"""Answer vocabularies: the classes of a question-answering head, counted from training answers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datasets import Dataset


def build_answer_vocabulary(dataset: Dataset, column: str, min_answer_count: int = 1) -> list[str]:
    """The answers that become classes, most frequent first, equal counts in alphabetical order.

    Args:
        dataset: the training split; other splits would leak into the head.
        column: a column of strings, or of lists of strings (VQAv2 has ten answers a question), each of which counts.
        min_answer_count: fewest occurrences of an answer that is kept, >= 1. VQAv2's 3,129 classes come from 9.

    Returns:
        The vocabulary; the index of an answer is its label id.

    Raises:
        KeyError: there is no such column.
        ValueError: the column holds something else than strings, `min_answer_count` is below 1, or no answer
            is frequent enough.

    Example:
        >>> answers = Dataset.from_dict({"answer": ["yes", "red", "no", "yes", "no", "a"]})
        >>> build_answer_vocabulary(answers, "answer", min_answer_count=2)
        ['no', 'yes']
    """
    fewest = min_answer_count
    if fewest < 1:
        raise ValueError(f"min_answer_count is {fewest}, but must be at least 1.")
    counts = Counter(_answers(dataset, column))
    kept = sorted((answer for answer in counts if counts[answer] >= fewest), key=lambda a: (-counts[a], a))
    if not kept:
        found = f"occurs {fewest} times or more (the most frequent: {max(counts.values(), default=0)})"
        raise ValueError(f"No answer in column {column!r} {found}; lower min_answer_count.")
    return kept


def answer_coverage(dataset: Dataset, column: str, vocabulary: Sequence[str]) -> float:
    """Share of the answers in a column that a vocabulary holds: the most a head with this vocabulary gets right.

    Args:
        dataset: any split, usually validation.
        column: a column of strings or of lists of strings; in lists each answer counts.
        vocabulary: the result of `build_answer_vocabulary`.

    Returns:
        Share in [0, 1]; 0 for an empty column.

    Raises:
        KeyError: there is no such column.
        ValueError: the column holds something else than strings.

    Example:
        >>> answers = Dataset.from_dict({"answer": [["yes", "no"], ["red", "yes"]]})
        >>> answer_coverage(answers, "answer", ["yes", "no"])
        0.75
    """
    known = set(vocabulary)
    found = [answer in known for answer in _answers(dataset, column)]
    return sum(found) / len(found) if found else 0.0


def _answers(dataset: Dataset, column: str) -> Iterator[str]:
    values: Iterable[Any] = dataset.with_format(None)[column]
    for row, value in enumerate(values):
        for answer in value if isinstance(value, list) else [value]:
            if not isinstance(answer, str):
                raise ValueError(f"Row {row} of column {column!r} holds {answer!r}, but answers are strings or lists.")
            yield answer
