"""Rows of a task to one batch with labels: one class a row, or soft scores of what several people answered."""

from collections.abc import Sequence
from typing import Any

import torch

from dual_distill.data.tasks import Task
from dual_distill.vqa_answers import soft_scores

from .base import ROW_NAME, Batch, ImageTextCollator, Row

_UNKNOWN_LABEL = -100  # the index that torch's cross-entropy leaves out


class DistillationCollator(ImageTextCollator):
    """Makes `input_ids, attention_mask, pixel_values, pixel_mask, labels` of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what.
        label_names: the answers in the order of the logits; `task.label_names` or a vocabulary built from the training
            answers; empty for a task without label.
        **options: further arguments of `ImageTextCollator`: longest text, cache, augmentation, regions.

    Raises:
        ValueError: `label_names` holds a name twice, or as for `ImageTextCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> collator = DistillationCollator(None, TASKS["nlvr"], ["false", "true"])
        >>> collator([])
        Traceback (most recent call last):
        ValueError: A batch needs at least one row, but the list is empty.
    """

    def __init__(self, processor: Any, task: Task, label_names: Sequence[str], **options: Any) -> None:
        super().__init__(processor, task, **options)
        self.label_names = tuple(label_names)
        self._label_ids: dict[str | None, int] = {}
        for index, name in enumerate(self.label_names):
            if self._label_ids.setdefault(name, index) != index:
                raise ValueError(f"label_names holds {name!r} more than once, but each label has one logit.")

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: as for `ImageTextCollator`; the label column may be absent from all of them.

        Returns:
            What `ImageTextCollator` returns, and `labels` `(B,)` int64, -100 where the answer is none of `label_names`.
            Where the task has an `answers_column` and a row holds it, `labels` are soft scores `(B, answers)` float32
            in [0, 1]; an answer that is none of `label_names` scores nothing, so that a row may be all zero, and is
            then trained to give no answer.

        Raises:
            ImageError: an image cannot be used.
            ValueError: a label is neither a string nor an index of `label_names`, answers are not a list of strings,
                or as for `ImageTextCollator`.
        """
        rows = self.read_rows(rows, self.task.text_column)
        batch = self.encode(rows)

        answers, label = self.task.answers_column, self.task.label_column
        if answers is not None and any(answers in row for row in rows):
            batch["labels"] = torch.stack([self._scores(row.get(answers), row[ROW_NAME]) for row in rows])
        elif label is not None and any(label in row for row in rows):
            batch["labels"] = torch.tensor([self._label(row.get(label), row[ROW_NAME]) for row in rows])
        return batch

    def _scores(self, answers: Any, name: str) -> torch.Tensor:
        """Soft scores `(answers,)` of what people answered; all zero for a row without answers."""
        answers = [] if answers is None else answers
        if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
            found = f"the answers in column {self.task.answers_column!r} are {answers!r}"
            raise ValueError(f"Row {name}: {found}, but expected is a list of strings.")

        scores = torch.zeros(len(self.label_names))
        for answer, score in soft_scores(answers).items():
            if answer in self._label_ids:
                scores[self._label_ids[answer]] = score
        return scores

    def _label(self, label: Any, name: str) -> int:
        if label is None or isinstance(label, str):
            return self._label_ids.get(label, _UNKNOWN_LABEL)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.label_names):
            return label
        found = f"the label in column {self.task.label_column!r} is {label!r}"
        raise ValueError(f"Row {name}: {found}, but it is a name, or an index from 0 to {len(self.label_names) - 1}.")
