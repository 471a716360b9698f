"""Metrics as `evaluate.Metric` classes, files for evaluation servers, and baselines that do not look at the image."""

from .answers import FEWEST_ANSWERS, Consistency, GroupedAccuracy, VQAEdition, VQAScore, accuracy_of_logits, vqa_score
from .baselines import majority_answer, question_only_baseline
from .captioning import CaptionReport, CaptionScores, CiderReward, report_captions
from .retrieval import RetrievalRecall, recall_of_vectors, retrieval_recall
from .submission import write_captions, write_submission
