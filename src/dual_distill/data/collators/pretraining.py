"""Image-caption pairs to one batch for pre-training or retrieval: clean text, masked text, pictures, and who is who.

What is unusual: a batch says which of its rows show the same picture or say the same caption, by hashes of content and
not by ids of the data set, so that duplicates of several sources are known to be no negatives of one another.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from dual_distill.data.images import MAX_PIXELS, image_source
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.tasks import Task

from .distillation import DistillationCollator
from .masking import WholeWordMasker

_BITS = (1 << 63) - 1


class PreTrainingCollator:
    """Makes the batch of pre-training (with `masking`) or of image-text retrieval (without) of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row, any text column. Its labels are left out.
        masking: masks the words, with the processor's tokenizer; None leaves the masked text out.
        max_text_length: longest text in tokens, longer ones are cut; None: the tokenizer's own limit.
        image_cache_mb: as in `DistillationCollator`.
        max_pixels: as in `DistillationCollator`.
        augmentation: as in `DistillationCollator`: for rows with `__epoch__` and `__index__` alone.

    Raises:
        ValueError: the task has several images a row, or a limit is negative.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> collator = PreTrainingCollator(None, TASKS["coco_retrieval"], masking=None)
        >>> collator([])
        Traceback (most recent call last):
        ValueError: A batch needs at least one row, but the list is empty.
    """

    def __init__(
        self,
        processor: Any,
        task: Task,
        masking: WholeWordMasker | None = None,
        max_text_length: int | None = None,
        image_cache_mb: float = 512,
        max_pixels: int = MAX_PIXELS,
        augmentation: Callable[[Image.Image, tuple[int, int, int]], Image.Image] | None = None,
    ) -> None:
        if len(task.image_columns) != 1:
            raise ValueError(
                f"Task {task.name!r} has {len(task.image_columns)} images a row ({', '.join(task.image_columns)}), "
                f"but a pair "
                "is one image and one text; choose another task."
            )
        self.processor = processor
        self.task = task
        self.masking = masking
        self.pairs = DistillationCollator(
            processor,
            replace(task, label_column=None, answers_column=None),
            (),
            max_text_length,
            image_cache_mb,
            max_pixels,
            augmentation,
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            rows: B rows with the task's image and text. Rows with `__epoch__` and `__index__` are masked by these, so
                anew in each epoch; others by their caption alone, so alike each time (evaluation).

        Returns:
            `input_ids`, `attention_mask` `(B, T)`; `pixel_values` `(B, 1, 3, H, W)`, `pixel_mask` `(B, 1, H, W)`;
            `image_ids`, `caption_ids` `(B,)` int64, from 0 to 2^63 - 1, equal for equal pictures and equal captions;
            with `masking` also `masked_input_ids`, `masked_labels` `(B, T)` int64.

        Raises:
            ImageError: a picture cannot be used.
            ValueError: no rows, a column is missing, or a text is empty; the message names the row.
        """
        (column,) = self.task.image_columns
        read = [self._with_bytes(row, column, position) for position, row in enumerate(rows)]
        batch = self.pairs(read)
        captions = [row[self.task.text_column] for row in read]
        batch["image_ids"] = torch.tensor([image_content_id(row[column]) for row in read], dtype=torch.int64)
        batch["caption_ids"] = torch.tensor([caption_content_id(caption) for caption in captions], dtype=torch.int64)
        if self.masking is not None:
            # The batch is as wide as its longest text, cut or not, so cutting there gives the same word pieces again.
            encoding = self.processor.tokenizer(
                captions,
                padding="longest",
                truncation=True,
                max_length=batch["input_ids"].shape[1],
                return_tensors="pt",
            )
            keys = [_masking_key(row, int(caption)) for row, caption in zip(read, batch["caption_ids"], strict=True)]
            batch["masked_input_ids"], batch["masked_labels"] = self.masking(encoding, keys)
        return batch

    def _with_bytes(self, row: Mapping[str, Any], column: str, position: int) -> Mapping[str, Any]:
        """The row with its picture in memory, so that a file is read once for its hash and its pixels."""
        if column not in row:
            return row  # the inner collator says which row lacks what
        path, source = image_source(row[column], str(row.get(INDEX_COLUMN, f"{position} of its batch")))
        return {**row, column: source if isinstance(source, Image.Image) else {"bytes": source, "path": path}}


def image_content_id(image: Mapping[str, Any] | Image.Image) -> int:
    """The id of a picture by what it holds: its bytes, or the pixels of a picture in memory.

    Args:
        image: `{"bytes": ..., "path": ...}` with its bytes, or a PIL image.

    Returns:
        The first 63 bits of a BLAKE2b hash.

    Example:
        >>> image_content_id({"bytes": b"a", "path": "x.jpg"}) == image_content_id({"bytes": b"a", "path": None})
        True
    """
    if isinstance(image, Image.Image):
        return _content_id(repr((image.mode, image.size)).encode() + image.tobytes())
    return _content_id(image["bytes"])


def caption_content_id(caption: str) -> int:
    r"""The id of a caption by its words: case and spaces do not count.

    Args:
        caption: a text.

    Returns:
        The first 63 bits of a BLAKE2b hash.

    Example:
        >>> caption_content_id("A red  circle\n") == caption_content_id("a red circle")
        True
    """
    return _content_id(" ".join(caption.lower().split()).encode())


def _content_id(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") & _BITS


def _masking_key(row: Mapping[str, Any], caption_id: int) -> tuple[Any, ...]:
    if EPOCH_COLUMN in row and INDEX_COLUMN in row:
        return (row[EPOCH_COLUMN], row[INDEX_COLUMN])
    return ("caption", caption_id)


__all__ = ["PreTrainingCollator", "caption_content_id", "image_content_id"]
