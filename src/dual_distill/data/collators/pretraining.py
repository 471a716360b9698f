"""Image-text rows to one batch for pre-training or retrieval: clean text, masked text, images, and who is who.

What is unusual: a batch says which of its rows show the same image or say the same caption, by hashes of content and
not by ids of the data set, so that duplicates of several sources are known to be no negatives of one another.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from dual_distill.data.tasks import Task

from .base import Batch, ImageTextCollator, Row, image_content
from .masking import WholeWordMasker, masking_key

_BITS = (1 << 63) - 1


class PreTrainingCollator(ImageTextCollator):
    """Makes the batch of pre-training (with `masking`) or of image-text retrieval (without) of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row, any text column. Its labels are left out.
        masking: masks the words, with the processor's tokenizer; None leaves the masked text out.
        **options: further arguments of `ImageTextCollator`: longest text, cache, augmentation.

    Raises:
        ValueError: the task has several images a row, or as for `ImageTextCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> collator = PreTrainingCollator(None, TASKS["coco_retrieval"], masking=None)
        >>> collator([])
        Traceback (most recent call last):
        ValueError: A batch needs at least one row, but the list is empty.
    """

    one_image = True

    def __init__(self, processor: Any, task: Task, masking: WholeWordMasker | None = None, **options: Any) -> None:
        super().__init__(processor, task, **options)
        self.masking = masking

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: B rows with the task's image and text. Rows with `__epoch__` and `__index__` are masked by these, so
                anew in each epoch; others by their caption alone, so alike each time (evaluation).

        Returns:
            `input_ids`, `attention_mask` `(B, T)`; `pixel_values` `(B, 1, 3, H, W)`, `pixel_mask` `(B, 1, H, W)`;
            `image_ids`, `caption_ids` `(B,)` int64, from 0 to 2^63 - 1, equal for equal images and equal captions;
            with `masking` also `masked_input_ids`, `masked_labels` `(B, T)` int64.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no rows, a column is missing, or a text is empty; the message names the row.
        """
        rows = self.read_rows(rows, self.task.text_column)
        batch = self.encode(rows)
        captions = [row[self.task.text_column] for row in rows]
        caption_ids = [caption_content_id(caption) for caption in captions]
        image_ids = [_content_id(image_content(row[self.task.image_columns[0]])) for row in rows]
        batch |= {"image_ids": torch.tensor(image_ids), "caption_ids": torch.tensor(caption_ids)}
        if self.masking is None:
            return batch

        # The batch is as wide as its longest text, cut or not, so cutting there gives the same word pieces again.
        width = batch["input_ids"].shape[1]
        tokenizer = self.processor.tokenizer
        encoding = tokenizer(captions, padding="longest", truncation=True, max_length=width, return_tensors="pt")
        keys = [masking_key(row, caption) for row, caption in zip(rows, caption_ids, strict=True)]
        batch["masked_input_ids"], batch["masked_labels"] = self.masking(encoding, keys)
        return batch


def caption_content_id(caption: str) -> int:
    r"""The first 63 bits of a hash of a caption's words: case and spaces do not count.

    Example:
        >>> caption_content_id("A red  circle\n") == caption_content_id("a red circle")
        True
    """
    return _content_id(" ".join(caption.lower().split()).encode())


def _content_id(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") & _BITS
