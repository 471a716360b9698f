"""Metrics as `evaluate.Metric` classes, the submission file of VQA, and the baselines that do not look at the picture."""

from .accuracy import GroupedAccuracy, accuracy_by_group
from .baselines import TextOnlyBaseline, majority_answer, majority_baseline, text_only_baseline
from .captioning import CaptionScores, CiderReward, write_captions
from .consistency import Consistency, consistency
from .retrieval import RECALL_AT, RetrievalRecall, retrieval_ranks, retrieval_recall
from .streaming import StreamedMetric
from .submission import write_submission
from .vqa_score import FEWEST_ANSWERS, VQAScore, vqa_score

__all__ = [
    "FEWEST_ANSWERS",
    "RECALL_AT",
    "CaptionScores",
    "CiderReward",
    "Consistency",
    "GroupedAccuracy",
    "RetrievalRecall",
    "StreamedMetric",
    "TextOnlyBaseline",
    "VQAScore",
    "accuracy_by_group",
    "consistency",
    "majority_answer",
    "majority_baseline",
    "retrieval_ranks",
    "retrieval_recall",
    "text_only_baseline",
    "vqa_score",
    "write_captions",
    "write_submission",
]
