"""Metrics as `evaluate.Metric` classes, files for evaluation servers, and baselines that do not look at the image."""

from .accuracy import Consistency, GroupedAccuracy, accuracy_of_logits
from .baselines import QuestionOnlyBaseline, majority_answer, majority_baseline, question_only_baseline
from .captioning import CaptionReport, CaptionScores, CiderReward, report_captions
from .retrieval import RECALL_AT, RetrievalRecall, recall_of_vectors, retrieval_ranks, retrieval_recall
from .streaming import StreamedMetric
from .submission import write_captions, write_submission
from .vqa_score import FEWEST_ANSWERS, VQAScore, vqa_score

__all__ = [
    "FEWEST_ANSWERS",
    "RECALL_AT",
    "CaptionReport",
    "CaptionScores",
    "CiderReward",
    "Consistency",
    "GroupedAccuracy",
    "QuestionOnlyBaseline",
    "RetrievalRecall",
    "StreamedMetric",
    "VQAScore",
    "accuracy_of_logits",
    "majority_answer",
    "majority_baseline",
    "question_only_baseline",
    "recall_of_vectors",
    "report_captions",
    "retrieval_ranks",
    "retrieval_recall",
    "vqa_score",
    "write_captions",
    "write_submission",
]
