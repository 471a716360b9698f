"""How well a model does on a split: accuracy, overall and by group, with what the text alone can do beside it."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel

from dual_distill.data import DistillationCollator, Task
from dual_distill.metrics import accuracy_by_group, consistency, majority_baseline, text_only_baseline


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found; shares are in [0, 1].

    Attributes:
        rows: rows evaluated.
        accuracy: share answered right.
        accuracy_by_group: the same for each value of the task's group column.
        consistency: share of sentences all of whose images were judged right; None where the task has none.
        text_only: accuracy of the better text-only reader; None where there are no training rows.
        text_only_method: which reader that was.
        majority: accuracy of the most frequent training answer; None where there are no training rows.
    """

    rows: int
    accuracy: float
    accuracy_by_group: dict[str, float] = field(default_factory=dict)
    consistency: float | None = None
    text_only: float | None = None
    text_only_method: str | None = None
    majority: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes."""
        return asdict(self)


def accuracy_of_logits(prediction: EvalPrediction) -> dict[str, float]:
    """Return the accuracy of predicted classes `(B,)` against `label_ids` `(B,)`, as Trainer's `compute_metrics`.

    A label of -100 (an answer that the vocabulary lacks) counts as wrong.

    Example:
        >>> accuracy_of_logits(EvalPrediction(np.array([1, 0]), np.array([1, -100])))
        {'accuracy': 0.5}
    """
    return {"accuracy": float(np.mean(np.asarray(prediction.predictions) == np.asarray(prediction.label_ids)))}


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
    """
    labels = [str(label) for label in dataset[task.label_column]]
    is_right = [answer == label for answer, label in zip(answers, labels, strict=True)]
    groups = dataset[task.group_column] if task.group_column else None
    sentences = dataset[task.consistency_column] if task.consistency_column else None
    baseline = majority = None
    if train is not None:
        train_labels = [str(label) for label in train[task.label_column]]
        majority = majority_baseline(train_labels, labels)
        baseline = text_only_baseline(
            list(train[task.text_column]),
            train_labels,
            list(dataset[task.text_column]),
            labels,
            seed=seed,
            # All rows of one sentence on one side of the held-out part, or memory would look like skill.
            train_groups=list(train[task.consistency_column]) if task.consistency_column else None,
        )
    return EvaluationReport(
        rows=len(labels),
        accuracy=sum(is_right) / len(is_right),
        accuracy_by_group=accuracy_by_group(is_right, list(groups)) if groups is not None else {},
        consistency=consistency(is_right, list(sentences)) if sentences is not None else None,
        text_only=baseline.accuracy if baseline else None,
        text_only_method=baseline.method if baseline else None,
        majority=majority,
    )


__all__ = ["EvaluationReport", "accuracy_of_logits", "predict_answers", "report_answers"]
