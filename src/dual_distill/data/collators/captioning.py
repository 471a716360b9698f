"""Images with captions to one batch for learning to write: `[CLS] caption [SEP] tags [SEP]`, some words masked.

Which words are masked depends on a seed, the epoch and the row alone; teacher and student share the batch, so they are
asked for the same words.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from dual_distill.data.tasks import Task

from .base import Batch, ImageTextCollator, Row
from .masking import CaptionMasker, masking_key

CAPTION_LENGTH = 40
"""Longest caption in tokens, [CLS] and [SEP] among them, as the models have it."""

TAG_LENGTH = 30
"""Most tokens of the tags."""


class CaptioningCollator(ImageTextCollator):
    """Makes a batch to learn captions from (with `masking`), or to write captions about (without), of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row.
        masking: masks the captions; None: the batch holds no caption, and goes to `generate`.
        **options: further arguments of `ImageTextCollator`: cache, augmentation, regions; `max_text_length` is 40 and
            `max_tag_length` 30 where they are not given.

    Raises:
        ValueError: the task has several images a row, or as for `ImageTextCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> CaptioningCollator(None, TASKS["nlvr2"])
        Traceback (most recent call last):
        ValueError: Task 'nlvr2' has 2 images a row (image_0, image_1), but a text here is about one; ...
    """

    one_image = True

    def __init__(self, processor: Any, task: Task, masking: CaptionMasker | None = None, **options: Any) -> None:
        lengths = {"max_text_length": CAPTION_LENGTH, "max_tag_length": TAG_LENGTH}
        super().__init__(processor, task, **{**lengths, **options})
        self.masking = masking

    def without_captions(self) -> "CaptioningCollator":
        """Return a collator of the same images whose batches hold no caption, for `generate`; it shares the cache."""
        other = copy.copy(self)
        other.masking = None
        return other

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: B rows with the task's image, and with `masking` its caption. Rows with `__epoch__` and `__index__`
                are masked by these, so anew in each epoch; others by their caption alone, so alike each time
                (evaluation).

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` `(B, T)`: `[CLS] caption [SEP] tags [SEP]` with masked
            words, 1 for tags; `labels` `(B, T)`, the word piece where one was masked, -100 elsewhere; images as
            `ImageTextCollator` gives them. Without `masking` the caption is left out, `[CLS] [SEP] tags [SEP]`, and
            there are no labels.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no rows, a column is missing, a caption is empty, or a store lacks an image; the message names
                the row.
        """
        if self.masking is None:
            batch = self.encode_images(rows)
            batch.pop("teacher_region_features", None)  # no teacher watches what is written
            return batch

        batch = super().__call__(rows)
        segments = batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))
        caption_mask = batch["attention_mask"].bool() & (segments == 0)
        keys = [masking_key(row, row[self.task.text_column]) for row in rows]
        batch["input_ids"], batch["labels"] = self.masking(batch["input_ids"], caption_mask, keys)
        return batch
