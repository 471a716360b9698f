"""Metrics that keep sums instead of rows, so that a test split of any length costs the same memory.

`evaluate.Metric` writes every prediction into an Arrow cache and reads all of them back as Python lists in `compute`:
for the ten answers to each of VQA v2's questions that is gigabytes. These metrics take each batch into a few counters
and forget it; they keep the interface (`add`, `add_batch`, `compute`), and whatever is given in many batches gives the
same numbers as in one.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import evaluate
from datasets import Features, Value

LABELS = [Features({"predictions": Value(kind), "references": Value(kind)}) for kind in ("int64", "string")]


class StreamedMetric(evaluate.Metric, ABC):
    """An `evaluate.Metric` without a cache: subclasses keep sums in `_start`, `_update` and `_result`.

    Columns of `row_features` are required; those in `optional_columns` are given in every batch or in none.

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

    row_features: Features | list[Features]  # a list: one of these
    optional_columns: tuple[str, ...] = ()
    _options: set[str] | None  # the optional columns of the batches so far

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process > 1:
            wrong = f"was built for {self.num_process} processes, but its sums live in one"
            raise ValueError(f"{type(self).__name__} {wrong}; gather the predictions and give them to one process.")
        self._clear()

    def __len__(self) -> int:
        return self._num_rows

    def _info(self) -> Any:
        about = (self.__doc__ or "").partition("\n")[0]
        return evaluate.MetricInfo(description=about, citation="", inputs_description=about, features=self.row_features)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Take a batch into the sums.

        Args:
            predictions: one a row.
            references: one a row.
            **kwargs: the metric's further columns, one value a row.
        """
        columns = {"predictions": predictions, "references": references, **kwargs}
        given = {column: values for column, values in columns.items() if values is not None}
        name, required = type(self).__name__, self._feature_names()
        known = [*required, *self.optional_columns]

        if unknown := [column for column in columns if column not in known]:
            raise ValueError(f"{name} has no column {unknown[0]!r}; it takes {', '.join(known)}.")
        if missing := [column for column in required if column not in given]:
            raise ValueError(f"{name} needs the column {missing[0]!r} in every batch, but it was left out.")
        rows = len(given["predictions"])
        for column, values in given.items():
            if len(values) != rows:
                given_rows = f"{len(values)} {column.replace('_', ' ')}"
                raise ValueError(f"There are {rows} predictions and {given_rows}, but each prediction has one.")

        options = given.keys() - set(required)
        if self._options is not None and options != self._options:
            column = min(options ^ self._options)
            raise ValueError(f"The column {column!r} is given in some batches only; give it in every batch or in none.")

        # The sums first: what `_update` refuses leaves no trace.
        self._update(**given)
        self._options = options
        self._num_rows += rows

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Take one row into the sums.

        Args:
            prediction: that of the row.
            reference: that of the row.
            **kwargs: the metric's further columns, each with the row's one value.
        """
        columns = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in columns.items() if value is not None})

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the result over all rows since the last call, and start anew.

        Args:
            predictions: with the other columns, a last batch; None where all rows were added before.
            references: one a row.
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
        """Take columns of equal length, given by name, into the sums, or raise before anything is changed."""

    @abstractmethod
    def _result(self) -> dict[str, Any]:
        """Return the result of the sums; there is one row or more."""


class GroupedMean:
    """Means by group of values that come one after another; memory grows with the groups alone."""

    def __init__(self) -> None:
        self._sums: defaultdict[Any, float] = defaultdict(float)
        self._counts: Counter[Any] = Counter()

    def add(self, values: Iterable[float], groups: Any) -> None:
        """Take values into the sums of their groups."""
        for value, group in zip(values, plain(groups), strict=True):
            self._sums[group] += value
            self._counts[group] += 1

    def means(self) -> dict[Any, float]:
        """Return group -> mean, groups in sorted order."""
        return {group: self._sums[group] / self._counts[group] for group in sorted(self._counts)}


def plain(column: Any) -> Sequence[Any]:
    """Return a column as Python values: arrays and tensors become lists, other sequences stay."""
    values: Sequence[Any] = column.tolist() if hasattr(column, "tolist") else column
    return values
