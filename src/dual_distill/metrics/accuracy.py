"""Accuracy, overall and by group: one number hides which kind of question a model cannot answer."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import evaluate
from datasets import Features, Value


class GroupedAccuracy(evaluate.Metric):
    """Share of predictions that equal their reference, overall and in each group, as an `evaluate.Metric`.

    `compute(predictions=, references=, groups=None)` takes labels as strings or as integers, both of one kind, and
    returns `{"accuracy": share}`, with `"accuracy_by_group": {group: share}` where groups are given, groups in sorted
    order. Shares are in [0, 1]. A reference that no class stands for (-100) counts as wrong, as it is for the user who
    asks.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> accuracy = GroupedAccuracy(keep_in_memory=True)
        >>> accuracy.compute(predictions=[1, 0, 1, 1], references=[1, 1, 1, 1], groups=["a", "a", "b", "b"])
        {'accuracy': 0.75, 'accuracy_by_group': {'a': 0.5, 'b': 1.0}}
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference, overall and in each group.",
            citation="",
            inputs_description="predictions and references: integers or strings; groups: one name a prediction.",
            features=[Features({"predictions": Value(kind), "references": Value(kind)}) for kind in ("int64", "string")],
        )

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], groups: Sequence[Hashable] | None = None
    ) -> dict[str, Any]:
        is_right = [prediction == reference for prediction, reference in zip(predictions, references, strict=True)]
        result: dict[str, Any] = {"accuracy": sum(is_right) / len(is_right)}
        if groups is not None:
            result["accuracy_by_group"] = accuracy_by_group(is_right, groups)
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
        raise ValueError(f"There are {len(is_right)} predictions and {len(groups)} groups, but each prediction has one group.")
    totals, rights = Counter(groups), Counter(group for group, right in zip(groups, is_right, strict=True) if right)
    return {group: rights[group] / totals[group] for group in sorted(totals)}
