"""Metrics that keep sums instead of rows, so that a test split of any length costs the same memory.

`evaluate.Metric` writes every prediction into an Arrow cache and reads all of them back as Python lists in `compute`:
for the ten answers to each of VQA v2's questions that is gigabytes. The metrics of this room take each batch into a few
counters and forget it; they keep the interface (`add`, `add_batch`, `compute`), and whatever is given in many batches
gives the same numbers as in one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from typing import Any

import evaluate


class StreamedMetric(evaluate.Metric, ABC):
    """An `evaluate.Metric` without a cache: subclasses keep sums in `_start`, `_update` and `_result`.

    Columns of `_info().features` are required; those in `optional_columns` are given in every batch or in none.

    Args:
        **kwargs: as for `evaluate.Metric`; `keep_in_memory` and `cache_dir` change nothing, since nothing is cached.

    Raises:
        ValueError: `num_process` is above 1: gather the predictions first, as Trainer does.

    Example:
        >>> from dual_distill.evaluation import GroupedAccuracy
        >>> accuracy = GroupedAccuracy()
        >>> accuracy.add_batch(predictions=[1, 0], references=[1, 1])
        >>> accuracy.add(prediction=1, reference=1)
        >>> len(accuracy), accuracy.compute()["accuracy"] == 2 / 3, len(accuracy)
        (3, True, 0)
    """

    optional_columns: tuple[str, ...] = ()
    _options: frozenset[str] | None  # the optional columns of the batches so far

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise ValueError(
                f"{type(self).__name__} was built for {self.num_process} processes, but its sums live in one; gather "
                f"the "
                "predictions and give them to the metric of one process."
            )
        self._clear()

    def __len__(self) -> int:
        return self._num_rows

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Take a batch into the sums.

        Args:
            predictions: one entry a row.
            references: one entry a row.
            **kwargs: the metric's further columns, one entry a row.
        """
        columns = {"predictions": predictions, "references": references, **kwargs}
        required = self._feature_names()
        for name in columns:
            if name not in required and name not in self.optional_columns:
                known = ", ".join([*required, *self.optional_columns])
                raise ValueError(f"{type(self).__name__} has no column {name!r}; it takes {known}.")
        given = {name: column for name, column in columns.items() if column is not None}
        for name in required:
            if name not in given:
                raise ValueError(
                    f"{type(self).__name__} needs the column {name!r} in every batch, but it was left out."
                )
        num_rows = len(given["predictions"])
        for name, column in given.items():
            _check_length(name, column, num_rows)
        options = frozenset(given) - frozenset(required)
        if self._options is not None and options != self._options:
            name = min(options ^ self._options)
            raise ValueError(f"The column {name!r} is given in some batches only; give it in every batch, or in none.")
        self._update(**given)
        self._options = options
        self._num_rows += num_rows

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Take one row into the sums.

        Args:
            prediction: that of the row.
            reference: that of the row.
            **kwargs: the metric's further columns, each with the row's one entry.
        """
        columns = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [entry] for name, entry in columns.items() if entry is not None})

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the result over all rows since the last call, and start anew.

        Args:
            predictions: with the other columns, a last batch; None where all rows were added before.
            references: one entry a row.
            **kwargs: the metric's further columns.
        """
        columns = {"predictions": predictions, "references": references, **kwargs}
        if any(column is not None for column in columns.values()):
            self.add_batch(**columns)
        if not self._num_rows:
            raise ValueError(f"{type(self).__name__} needs one row or more, but there is none.")
        result = self._result()
        self._clear()
        return result

    def _clear(self) -> None:
        self._num_rows = 0
        self._options = None
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Set the sums to nothing."""

    @abstractmethod
    def _update(self, *args: Any, **columns: Any) -> None:
        """Take a batch of columns of equal length, given by name, into the sums, or raise before anything is changed."""

    @abstractmethod
    def _result(self) -> dict[str, Any]:
        """Return the result of the sums; there is one row or more."""


def plain(column: Any) -> Sequence[Any]:
    """Return a column as Python values: arrays and tensors become lists, other sequences stay.

    Example:
        >>> import numpy as np
        >>> plain(np.array([1, 2])), plain(["a"])
        ([1, 2], ['a'])
    """
    values: Sequence[Any] = column.tolist() if hasattr(column, "tolist") else column
    return values


def right_answers(predictions: Any, references: Any) -> list[bool]:
    """One truth value a row: prediction equals reference.

    Args:
        predictions: labels, as integers or as strings.
        references: labels of the same kind.

    Returns:
        One truth value a row.

    Raises:
        ValueError: a label is neither integer nor string, or a prediction is of another kind than its reference, which
            would count as wrong without a word.

    Example:
        >>> right_answers([1, 0], [1, 1])
        [True, False]
    """
    is_right = []
    for row, (prediction, reference) in enumerate(zip(plain(predictions), plain(references), strict=True)):
        if not any(isinstance(prediction, kind) and isinstance(reference, kind) for kind in (str, int)):
            raise ValueError(
                f"Row {row} predicts {prediction!r} where the reference is {reference!r}, but both must be integers "
                f"or both "
                "strings; translate one of them with the model's id2label."
            )
        is_right.append(prediction == reference)
    return is_right


def _check_length(name: str, column: Sized, num_rows: int) -> None:
    if len(column) != num_rows:
        words = name.replace("_", " ")
        raise ValueError(f"There are {num_rows} predictions and {len(column)} {words}, but each prediction has one.")


__all__ = ["StreamedMetric", "plain", "right_answers"]
