"""Images with captions to one batch for learning to write: `[CLS] caption [SEP] tags [SEP]`, some words of the caption
masked.

What is unusual: the `[SEP]` that ends a caption may be masked like a word, for it is how writing learns to stop. As in
pre-training, which words are masked depends on a seed, the epoch and the row alone; teacher and student share the
batch, so they are asked for the same words.
"""

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from dual_distill.data.images import MAX_PIXELS
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.region_set import RegionLookup
from dual_distill.data.tasks import Task

from .distillation import DistillationCollator, row_names
from .region_inputs import MAX_REGIONS, NUM_TAGS, tag_texts

_IGNORED = -100
"""The index that torch's cross-entropy leaves out."""

CAPTION_LENGTH = 40
"""Longest caption in tokens, [CLS] and [SEP] among them, as the models have it."""

TAG_LENGTH = 30
"""Most tokens of the tags."""


class CaptionMasker:
    """Masks 15 % of the tokens of each caption, one at least and three at most, the `[SEP]` at its end among them.

    A drawn token becomes the mask token (80 %), a random word piece (10 %) or stays (10 %).

    Args:
        tokenizer: has a mask token.
        share: of the tokens behind `[CLS]`, above 0 and at most 1.
        max_masked: most tokens a caption.
        seed: which masking; another seed draws everything anew.

    Raises:
        ValueError: the tokenizer has no mask token, or a number is out of range.

    Note:
        Share and most tokens are those of Oscar's captioning code, which DistillVLM builds on.

    Example:
        >>> from dual_distill.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red circle"])
        >>> ids = torch.tensor([tokenizer("a red circle")["input_ids"]])
        >>> masked, labels = CaptionMasker(tokenizer, seed=3)(ids, torch.ones_like(ids), [(0, "row 7")])
        >>> tokenizer.convert_ids_to_tokens(masked[0]), (labels != -100).sum().item()
        (['[CLS]', '[MASK]', 'red', 'circle', '[SEP]'], 1)
    """

    def __init__(self, tokenizer: Any, share: float = 0.15, max_masked: int = 3, seed: int = 0) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token, which captions are learned with; add one.")
        if not 0 < share <= 1 or max_masked < 1:
            raise ValueError(
                f"share is {share}, max_masked {max_masked}; give a share above 0 and at most 1, and 1 or more."
            )
        self.mask_token_id = tokenizer.mask_token_id
        self.share = share
        self.max_masked = max_masked
        self.seed = seed
        special = set(tokenizer.all_special_ids)
        self._ordinary = [index for index in range(len(tokenizer)) if index not in special]

    def __call__(
        self, input_ids: torch.Tensor, caption_mask: torch.Tensor, keys: Sequence[Sequence[Hashable]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask one batch.

        Args:
            input_ids: `(B, T)`, captions from `[CLS]` to `[SEP]`, tags and padding behind them.
            caption_mask: `(B, T)`, 1 for the tokens of the caption, `[CLS]` and `[SEP]` among them.
            keys: B keys, each such as `(epoch, row)`; equal key and caption give equal masking.

        Returns:
            Masked ids, and labels with the token that belongs where one was drawn, -100 elsewhere; both `(B, T)` int64.
        """
        masked, labels = input_ids.clone(), torch.full_like(input_ids, _IGNORED)
        for row, key in enumerate(keys):
            places = caption_mask[row].nonzero()[:, 0].tolist()[1:]
            # A string seed goes through SHA-512, and `random()` is the one method whose numbers Python promises to
            # keep.
            numbers = random.Random(f"caption/{self.seed}/" + "/".join(repr(part) for part in key))
            count = min(self.max_masked, len(places), max(1, round(self.share * len(places))))
            for _, place in sorted((numbers.random(), place) for place in places)[:count]:
                kind = numbers.random()
                labels[row, place] = input_ids[row, place]
                if kind < 0.8:
                    masked[row, place] = self.mask_token_id
                elif kind < 0.9:
                    masked[row, place] = self._ordinary[int(numbers.random() * len(self._ordinary))]
        return masked, labels


class CaptioningCollator:
    """Makes a batch to learn captions from (with `masking`), or to write captions about (without), of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row.
        masking: masks the captions; None: the batch holds no caption, and goes to `generate`.
        max_caption_length: longest caption in tokens; longer ones are cut.
        max_tag_length: most tokens of the tags, beside those of the caption.
        image_cache_mb: as in `DistillationCollator`.
        max_pixels: as in `DistillationCollator`.
        augmentation: as in `DistillationCollator`.
        regions: as in `DistillationCollator`.
        teacher_regions: as in `DistillationCollator`.
        num_tags: as in `DistillationCollator`.
        max_regions: as in `DistillationCollator`.

    Raises:
        ValueError: the task has several images a row, or as for `DistillationCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> CaptioningCollator(None, TASKS["nlvr2"])
        Traceback (most recent call last):
        ValueError: Task 'nlvr2' has 2 images a row (image_0, image_1), but a caption is about one; choose another task.
    """

    def __init__(
        self,
        processor: Any,
        task: Task,
        masking: CaptionMasker | None = None,
        max_caption_length: int = CAPTION_LENGTH,
        max_tag_length: int = TAG_LENGTH,
        image_cache_mb: float = 512,
        max_pixels: int = MAX_PIXELS,
        augmentation: Callable[[Image.Image, tuple[int, int, int]], Image.Image] | None = None,
        regions: RegionLookup | None = None,
        teacher_regions: RegionLookup | None = None,
        num_tags: int = NUM_TAGS,
        max_regions: int = MAX_REGIONS,
    ) -> None:
        if len(task.image_columns) != 1:
            raise ValueError(
                f"Task {task.name!r} has {len(task.image_columns)} images a row ({', '.join(task.image_columns)}), "
                f"but a "
                "caption is about one; choose another task."
            )
        self.processor = processor
        self.task = task
        self.masking = masking
        self.augmentation = augmentation
        self.pairs = DistillationCollator(
            processor,
            replace(task, label_column=None, answers_column=None),
            (),
            max_caption_length,
            image_cache_mb,
            max_pixels,
            augmentation,
            regions,
            teacher_regions,
            num_tags,
            max_regions,
            max_tag_length,
        )

    def without_captions(self) -> "CaptioningCollator":
        """Return a collator of the same images whose batches hold no caption, for `generate`; the image cache is shared."""
        other = object.__new__(CaptioningCollator)
        other.__dict__.update(self.__dict__, masking=None)
        return other

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            rows: B rows with the task's image, and with `masking` its caption. Rows with `__epoch__` and `__index__`
                are masked by these, so anew in each epoch; others by their caption alone, so alike each time
                (evaluation).

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` `(B, T)`: `[CLS] caption [SEP] tags [SEP]` with masked
            words, 1 for tags; `labels` `(B, T)`, the word piece where one was masked, -100 elsewhere; images as
            `DistillationCollator` gives them. Without `masking` the caption is left out, `[CLS] [SEP] tags [SEP]`, and
            there are no labels.

        Raises:
            ImageError: a picture cannot be used.
            ValueError: no rows, a column is missing, a caption is empty, or a store lacks an image; the message names
            the row.
        """
        if self.masking is None:
            return self._context(rows)
        batch = self.pairs(rows)
        segments = batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))
        caption_mask = batch["attention_mask"].bool() & (segments == 0)
        keys = [_masking_key(row, row[self.task.text_column]) for row in rows]
        batch["input_ids"], batch["labels"] = self.masking(batch["input_ids"], caption_mask, keys)
        return batch

    def _context(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("A batch needs at least one row, but the list is empty.")
        images, tags = self.pairs.read_images(rows, row_names(rows))
        images.pop("teacher_region_features", None)
        if not tags:
            return images
        tokenizer, limit = self.processor.tokenizer, self.pairs.max_tag_length
        return tag_texts(tokenizer, [""] * len(rows), tags, max_tag_length=limit) | images


def _masking_key(row: Mapping[str, Any], caption: str) -> tuple[Any, ...]:
    if EPOCH_COLUMN in row and INDEX_COLUMN in row:
        return (row[EPOCH_COLUMN], row[INDEX_COLUMN])
    return ("caption", caption)


__all__ = ["CAPTION_LENGTH", "TAG_LENGTH", "CaptionMasker", "CaptioningCollator"]
