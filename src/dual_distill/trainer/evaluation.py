"""How well a model does on a split: accuracy, overall and by group, with what the text alone can do beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel

from dual_distill.data import DistillationCollator, Task
from dual_distill.evaluation import (
    FEWEST_ANSWERS,
    RECALL_AT,
    VQAScore,
    accuracy_by_group,
    consistency,
    majority_answer,
    majority_baseline,
    retrieval_recall,
    text_only_baseline,
)


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found; shares are in [0, 1].

    Attributes:
        rows: rows evaluated.
        accuracy: share answered right.
        accuracy_by_group: the same for each value of the task's group column.
        consistency: share of sentences all of whose images were judged right; None where the task has none.
        text_only: accuracy (VQA score, where there is one) of the better text-only reader; None without training rows.
        text_only_method: which reader that was.
        majority: the same of the most frequent training answer; None without training rows.
        vqa_score: the official VQA score, where four people or more answered each question; None elsewhere. `accuracy`
            is then against the most common of their answers.
        vqa_score_by_group: the same for each value of the task's group column.
    """

    rows: int
    accuracy: float
    accuracy_by_group: dict[str, float] = field(default_factory=dict)
    consistency: float | None = None
    text_only: float | None = None
    text_only_method: str | None = None
    majority: float | None = None
    vqa_score: float | None = None
    vqa_score_by_group: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes."""
        return asdict(self)


def accuracy_of_logits(prediction: EvalPrediction) -> dict[str, float]:
    """Return how right predicted classes `(B,)` are, as Trainer's `compute_metrics`.

    Against `label_ids` `(B,)` the accuracy; a label of -100 (an answer that the vocabulary lacks) counts as wrong.
    Against soft scores `(B, labels)` the mean score of the predicted answers, `soft_accuracy`: unlike the official VQA
    score over the vocabulary's answers and by the scores that are trained on. `evaluate` computes the official score.

    Example:
        >>> accuracy_of_logits(EvalPrediction(np.array([1, 0]), np.array([1, -100])))
        {'accuracy': 0.5}
        >>> accuracy_of_logits(EvalPrediction(np.array([1, 0]), np.array([[0.0, 1.0], [0.5, 0.0]])))
        {'soft_accuracy': 0.75}
    """
    chosen, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if labels.ndim == 2:
        return {"soft_accuracy": float(labels[np.arange(len(labels)), chosen].mean())}
    return {"accuracy": float(np.mean(chosen == labels))}


def recall_of_vectors(prediction: EvalPrediction) -> dict[str, float]:
    """Return recall@1, @5 and @10 both ways over a whole split, as Trainer's `compute_metrics` of retrieval.

    Args:
        prediction: `predictions` `(texts (B, P), images (B, P))` of length 1, a row a pair; `label_ids` `(B,)`, equal
            for equal images, of which the gallery holds one.

    Returns:
        `text_to_image_recall@1` to `@10` and `image_to_text_recall@1` to `@10`, and their mean, `mean_recall`, all in
        [0, 1].

    Example:
        >>> texts, images = np.eye(3)[[0, 1, 1]], np.eye(3)[[0, 0, 1]]
        >>> found = recall_of_vectors(EvalPrediction((texts, images), np.array([7, 7, 8])))
        >>> found["text_to_image_recall@1"], found["image_to_text_recall@1"], found["text_to_image_recall@5"]
        (0.6666666666666666, 0.5, 1.0)
    """
    texts, images = (torch.as_tensor(np.asarray(vectors)) for vectors in prediction.predictions)
    _, first, image_of_caption = np.unique(np.asarray(prediction.label_ids), return_index=True, return_inverse=True)
    both = retrieval_recall(images[first] @ texts.T, image_of_caption.reshape(-1).tolist())
    found = {
        f"{way}_recall@{k}": float(both[way][f"recall@{k}"]) for way in sorted(both, reverse=True) for k in RECALL_AT
    }
    return {**found, "mean_recall": sum(found.values()) / len(found)}


@torch.inference_mode()
def predict_answers(
    model: PreTrainedModel,
    dataset: Dataset,
    collator: DistillationCollator,
    batch_size: int = 64,
    description: str = "evaluate",
) -> list[str]:
    """Answer every row of a dataset, in order.

    Args:
        model: with a task head; put into eval mode.
        dataset: rows with the task's columns.
        collator: makes batches and knows the names of the answers.
        batch_size: rows a batch.
        description: text of the progress bar.
    """
    model.eval()
    answers: list[str] = []
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collator)
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch.pop("labels", None)
        logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
        answers.extend(collator.label_names[index] for index in logits.argmax(-1).tolist())
    return answers


def report_answers(
    answers: list[str], dataset: Dataset, task: Task, train: Dataset | None = None, seed: int = 0
) -> EvaluationReport:
    """Hold answers against a split.

    Args:
        answers: one answer a row, in order.
        dataset: the rows.
        task: names the columns.
        train: rows that text-only and majority baselines learn from; None leaves them out.
        seed: of the text-only baseline.

    Raises:
        ValueError: the task has no labels.
    """
    label_column = task.label_column
    if label_column is None:
        raise ValueError(
            f"task {task.name!r} has pairs and no labels to hold answers against; choose a task with answers."
        )
    labels = [str(label) for label in dataset[label_column]]
    is_right = [answer == label for answer, label in zip(answers, labels, strict=True)]
    groups = list(dataset[task.group_column]) if task.group_column else None
    sentences = dataset[task.consistency_column] if task.consistency_column else None
    people = _people(dataset, task)
    scores = None if people is None else _vqa_scores(answers, people, groups)
    report = EvaluationReport(
        rows=len(labels),
        accuracy=sum(is_right) / len(is_right),
        accuracy_by_group=accuracy_by_group(is_right, groups) if groups is not None else {},
        consistency=consistency(is_right, list(sentences)) if sentences is not None else None,
        vqa_score=None if scores is None else scores["vqa_score"],
        vqa_score_by_group=(scores or {}).get("vqa_score_by_answer_type", {}),
    )
    if train is None:
        return report
    train_labels = [str(label) for label in train[label_column]]
    baseline = text_only_baseline(
        list(train[task.text_column]),
        train_labels,
        list(dataset[task.text_column]),
        labels,
        seed=seed,
        # All rows of one sentence on one side of the held-out part, or memory would look like skill.
        train_groups=list(train[task.consistency_column]) if task.consistency_column else None,
    )
    text_only, majority = baseline.accuracy, majority_baseline(train_labels, labels)
    if people is not None:
        text_only = _vqa_scores(baseline.predictions, people)["vqa_score"]
        majority = _vqa_scores([majority_answer(train_labels)] * len(labels), people)["vqa_score"]
    return replace(report, text_only=text_only, text_only_method=baseline.method, majority=majority)


def _people(dataset: Dataset, task: Task) -> list[list[str]] | None:
    """What people answered, a list a row; None where the task has one answer a row, or too few for the official score."""
    if task.answers_column is None:
        return None
    people = list(dataset[task.given_answers_column or task.answers_column])
    return people if min(map(len, people)) >= FEWEST_ANSWERS else None


def _vqa_scores(
    answers: Sequence[str], people: Sequence[list[str]], answer_types: Sequence[str] | None = None
) -> dict[str, Any]:
    scores: dict[str, Any] = VQAScore().compute(predictions=answers, references=people, answer_types=answer_types)
    return scores


__all__ = ["EvaluationReport", "accuracy_of_logits", "predict_answers", "recall_of_vectors", "report_answers"]
