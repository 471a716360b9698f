"""Accuracy, overall and by group: one number hides which kind of question a model cannot answer."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value

from .streaming import StreamedMetric, plain, right_answers


class GroupedAccuracy(StreamedMetric):
    """Share of predictions that equal their reference, overall and in each group, as an `evaluate.Metric`.

    `compute(predictions=, references=, groups=None)` takes labels as strings or as integers, both of one kind, and
    returns `{"accuracy": share}`, with `"accuracy_by_group": {group: share}` where groups are given, groups in sorted
    order. Shares are in [0, 1]. A reference that no class stands for (-100) counts as wrong, as it is for the user who
    asks. `groups=references` gives the accuracy of each class, as SNLI-VE reports it: of the rows of a class, the share
    that was found. Memory grows with the groups, not with the rows.

    Raises:
        ValueError: the lengths differ, or a prediction and its reference are of two kinds.

    Example:
        >>> accuracy = GroupedAccuracy()
        >>> accuracy.compute(predictions=[1, 0, 1, 1], references=[1, 1, 1, 1], groups=["a", "a", "b", "b"])
        {'accuracy': 0.75, 'accuracy_by_group': {'a': 0.5, 'b': 1.0}}
        >>> labels = ["neutral", "entailment", "entailment"]
        >>> accuracy.compute(predictions=["entailment"] * 3, references=labels, groups=labels)["accuracy_by_group"]
        {'entailment': 1.0, 'neutral': 0.0}
    """

    optional_columns = ("groups",)

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference, overall and in each group.",
            citation="",
            inputs_description="predictions and references: integers or strings; groups: one name a prediction.",
            features=[
                Features({"predictions": Value(kind), "references": Value(kind)}) for kind in ("int64", "string")
            ],
        )

    def _start(self) -> None:
        self._num_right = 0
        self._totals: Counter[Any] = Counter()
        self._rights: Counter[Any] = Counter()

    def _update(self, predictions: Any, references: Any, groups: Any = None) -> None:
        is_right = right_answers(predictions, references)
        self._num_right += sum(is_right)
        if groups is not None:
            _count_by_group(is_right, plain(groups), self._totals, self._rights)

    def _result(self) -> dict[str, Any]:
        result: dict[str, Any] = {"accuracy": self._num_right / len(self)}
        if self._totals:
            result["accuracy_by_group"] = _shares(self._totals, self._rights)
        return result


def accuracy_by_group(is_right: Sequence[bool], groups: Sequence[Any]) -> dict[Any, float]:
    """Share of right predictions in each group.

    Args:
        is_right: one truth value a prediction.
        groups: one group a prediction.

    Returns:
        Group -> share in [0, 1], groups in sorted order.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> accuracy_by_group([True, False, True], ["count", "count", "exist"])
        {'count': 0.5, 'exist': 1.0}
    """
    if len(groups) != len(is_right):
        raise ValueError(
            f"There are {len(is_right)} predictions and {len(groups)} groups, but each prediction has one group."
        )
    totals: Counter[Any] = Counter()
    rights: Counter[Any] = Counter()
    _count_by_group(is_right, groups, totals, rights)
    return _shares(totals, rights)


def _count_by_group(
    is_right: Sequence[bool], groups: Sequence[Any], totals: Counter[Any], rights: Counter[Any]
) -> None:
    """Add rows, and those that are right, to the counts of their groups."""
    totals.update(groups)
    rights.update(group for group, right in zip(groups, is_right, strict=True) if right)


def _shares(totals: Counter[Any], rights: Counter[Any]) -> dict[Any, float]:
    return {group: rights[group] / totals[group] for group in sorted(totals)}


__all__ = ["GroupedAccuracy", "accuracy_by_group"]
