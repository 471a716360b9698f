"""Metrics as `evaluate.Metric` classes, and the baselines that do not look at the picture."""

from .accuracy import GroupedAccuracy, accuracy_by_group
from .baselines import TextOnlyBaseline, majority_baseline, text_only_baseline
from .consistency import Consistency, consistency

__all__ = [
    "Consistency",
    "GroupedAccuracy",
    "TextOnlyBaseline",
    "accuracy_by_group",
    "consistency",
    "majority_baseline",
    "text_only_baseline",
]
