"""Metrics as `evaluate.Metric` classes, files for evaluation servers, and baselines that do not look at the image."""

from .accuracy import Consistency, GroupedAccuracy, accuracy_of_logits
from .baselines import majority_answer, question_only_baseline
from .captioning import CaptionReport, CaptionScores, CiderReward, report_captions
from .retrieval import RetrievalRecall, recall_of_vectors, retrieval_recall
from .submission import write_captions, write_submission
from .vqa_score import FEWEST_ANSWERS, VQAScore, vqa_score
