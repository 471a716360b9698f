"""Rows of a task to one padded batch; teacher and student see the same tensors, or the same regions in features of
their own.

Decoding and resizing cost more than a small model's forward pass, so prepared pictures are kept in memory by content,
up to a limit in bytes. What is unusual: a full cache stops taking pictures in instead of throwing the oldest out.
Training visits every picture once an epoch in a new order; if the data is larger than the cache, a least-recently-used
cache has mostly dropped a picture by the time it is asked for again, while a fixed set keeps its share of hits, and
costs no bookkeeping. Pictures that are augmented differ in each epoch and are not kept.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dual_distill.data.images import MAX_PIXELS, ImageError, decode_image, image_source
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.region_set import RegionLookup, RegionSet
from dual_distill.data.tasks import Task
from dual_distill.vqa_answers import soft_scores

from .region_inputs import MAX_REGIONS, NUM_TAGS, distinct_tags, pad_regions, tag_texts

_UNKNOWN_LABEL = -100
"""The index that torch's cross-entropy leaves out."""

_NO_LIMIT = 1_000_000
"""From here on, a tokenizer's `model_max_length` stands for none (transformers writes 1e30)."""

ID_COLUMNS = ("question_id", "identifier", "scene_id", "pair_id", "image_id", "id")
"""Columns that name a row in an error, where the data has them."""


class DistillationCollator:
    """Makes `input_ids, attention_mask, pixel_values, pixel_mask, labels` of a list of rows.

    Args:
        processor: a `DualDistillProcessor`: `tokenizer`, `prepare_image(image) -> (3, H, W)` and
            `pad_images(images) -> {"pixel_values", "pixel_mask"}`.
        task: which columns are what.
        label_names: the answers in the order of the logits; `task.label_names` or a vocabulary built from the training
            answers; empty for a task without label.
        max_text_length: longest text in tokens, its tags among them; longer ones are cut, the tags first. None: the
            tokenizer's own limit, if it has one.
        image_cache_mb: limit of the cache of prepared images in MB (1e6 bytes), in each data-loading process; 0 turns
            it off. With `DataLoader(num_workers > 0)` set `persistent_workers=True`, or the cache ends with the epoch.
        max_pixels: largest accepted picture, width x height in pixels.
        augmentation: `(RGB picture, key) -> RGB picture`, applied after decoding and before resizing to rows of
            `IndexedDataset`, and to no others: training rows are wrapped in it, evaluation rows are not, and one collator
            serves both. `key = (row["__epoch__"], row["__index__"], place of the image column)`, so that it can draw
            the same change for the same key; augmented pictures are not cached. None changes nothing.
        regions: where the regions of each image are; the batch then holds them in place of pixels, and their tags
            behind the text. None: pixels.
        teacher_regions: the teacher's features of the same boxes, which the batch holds beside them; None: teacher and
            student read the same.
        num_tags: most object tags beside a text, each once; 0: none.
        max_tag_length: most tokens of the tags, beside those of the text; None: what `max_text_length` leaves.
        max_regions: most regions an image, the first of the store.

    Raises:
        ValueError: `label_names` holds a name twice, a limit is negative, the two stores have other boxes, or an
            augmentation is given beside regions, whose features it cannot change.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> collator = DistillationCollator(None, TASKS["nlvr"], ["false", "true"])
        >>> collator([])
        Traceback (most recent call last):
        ValueError: A batch needs at least one row, but the list is empty.
    """

    def __init__(
        self,
        processor: Any,
        task: Task,
        label_names: Sequence[str],
        max_text_length: int | None = None,
        image_cache_mb: float = 512,
        max_pixels: int = MAX_PIXELS,
        augmentation: Callable[[Image.Image, tuple[int, int, int]], Image.Image] | None = None,
        regions: RegionLookup | None = None,
        teacher_regions: RegionLookup | None = None,
        num_tags: int = NUM_TAGS,
        max_regions: int = MAX_REGIONS,
        max_tag_length: int | None = None,
    ) -> None:
        if len(set(label_names)) < len(label_names):
            twice = next(name for name in label_names if list(label_names).count(name) > 1)
            raise ValueError(f"label_names holds {twice!r} more than once, but each label has one place in the logits.")
        if image_cache_mb < 0:
            raise ValueError(f"image_cache_mb is {image_cache_mb}, but a limit is 0 (no cache) or more.")
        _check_stores(regions, teacher_regions, augmentation is not None)
        self.regions = regions
        self.teacher_regions = teacher_regions
        self.num_tags = num_tags
        self.max_regions = max_regions
        self.max_tag_length = max_tag_length
        self.processor = processor
        self.task = task
        self.label_names = tuple(label_names)
        self.max_text_length = max_text_length
        self.image_cache_mb = image_cache_mb
        self.max_pixels = max_pixels
        self.augmentation = augmentation
        self._label_ids = {name: index for index, name in enumerate(self.label_names)}
        self._cache: dict[bytes, torch.Tensor] = {}
        self._cached_bytes = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            rows: B rows with the task's columns; the label column may be absent from all of them. An entry `__index__`
                names the row in errors; without it, the place in the batch and the id columns do.

        Returns:
            `input_ids`, `attention_mask` `(B, T)` int64, padded to the longest text; `pixel_values` `(B, N, 3, H, W)`
            float32; `pixel_mask` `(B, N, H, W)`; `labels` `(B,)` int64, -100 where the answer is none of `label_names`.
            Where the task has an `answers_column` and a row holds it, `labels` are soft scores `(B, answers)` float32
            in [0, 1]; an answer that is none of `label_names` scores nothing, so that a row may be all zero, and is
            then trained to give no answer. With `regions`, in place of pixels, `region_features` `(B, R, F)`,
            `region_boxes` `(B, R, 6)`, `region_mask` `(B, R)` bool and `token_type_ids` `(B, T)`, 1 for tags; with
            `teacher_regions` also `teacher_region_features` `(B, R, F')`.

        Raises:
            ImageError: a picture cannot be used.
            ValueError: no rows, a column is missing, a text is empty, a store lacks an image, a label is neither a
                string nor an index of `label_names`, or answers are not a list of strings.
        """
        if not rows:
            raise ValueError("A batch needs at least one row, but the list is empty.")
        columns = (*self.task.image_columns, self.task.text_column)
        for position, row in enumerate(rows):
            for column in columns:
                if column not in row:
                    raise ValueError(
                        f"Row {_row_name(row, position)} has no column {column!r}, which task {self.task.name!r} "
                        f"needs; it has: {', '.join(row)}. (In a Trainer, set remove_unused_columns=False.)"
                    )
        max_length = self.max_text_length
        if max_length is None and self.processor.tokenizer.model_max_length < _NO_LIMIT:
            max_length = self.processor.tokenizer.model_max_length
        names = row_names(rows)
        texts = [self._text(row, name) for row, name in zip(rows, names, strict=True)]
        images, tags = self.read_images(rows, names)
        batch = self._encode(texts, tags, max_length) | images
        if self.task.answers_column is not None and any(self.task.answers_column in row for row in rows):
            batch["labels"] = torch.stack(
                [self._scores(row.get(self.task.answers_column), _row_name(row, i)) for i, row in enumerate(rows)]
            )
        elif self.task.label_column is not None and any(self.task.label_column in row for row in rows):
            labels = [self._label(row, _row_name(row, position)) for position, row in enumerate(rows)]
            batch["labels"] = torch.tensor(labels, dtype=torch.int64)
        return batch

    def read_images(
        self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        """Return what a batch holds of its images, pixels or regions, and the object tags of each row (none for
        pixels).

        Args:
            rows: with the task's image columns.
            names: of the rows, in errors.

        Raises:
            ImageError: a picture cannot be used.
            ValueError: a store lacks an image.
        """
        if self.regions is None:
            return self.processor.pad_images(
                [self._images(row, name) for row, name in zip(rows, names, strict=True)]
            ), []
        regions = [self._find_regions(self.regions, row, name) for row, name in zip(rows, names, strict=True)]
        tags = [distinct_tags(row, self.num_tags) for row in regions]
        return pad_regions(regions) | self._teacher_features(rows, names, regions), tags

    def _encode(self, texts: list[str], tags: list[list[str]], max_length: int | None) -> dict[str, torch.Tensor]:
        if self.regions is not None:
            together = max_length if self.max_tag_length is None else None
            return tag_texts(self.processor.tokenizer, texts, tags, together, max_length, self.max_tag_length)
        text = self.processor.tokenizer(
            texts, padding="longest", truncation=max_length is not None, max_length=max_length, return_tensors="pt"
        )
        return {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}

    def _find_regions(self, store: RegionLookup, row: Mapping[str, Any], name: str) -> list[RegionSet]:
        return [store.find_image(row[column], name).first(self.max_regions) for column in self.task.image_columns]

    def _teacher_features(
        self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], regions: Sequence[Sequence[RegionSet]]
    ) -> dict[str, torch.Tensor]:
        """`teacher_region_features` of a batch; nothing where teacher and student read the same."""
        if self.teacher_regions is None:
            return {}
        theirs = [self._find_regions(self.teacher_regions, row, name) for row, name in zip(rows, names, strict=True)]
        for name, ours, found in zip(names, regions, theirs, strict=True):
            for one, other in zip(ours, found, strict=True):
                if len(one.boxes_px) != len(other.boxes_px):
                    raise ValueError(
                        f"Row {name}: {self.regions!r} has {len(one.boxes_px)} regions, {self.teacher_regions!r} "
                        f"{len(other.boxes_px)}; make the teacher's anew at the student's boxes (--boxes)."
                    )
        return {"teacher_region_features": pad_regions(theirs)["region_features"]}

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        text = row[self.task.text_column]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"Row {name}: the text in column {self.task.text_column!r} is {text!r}, but a text has words; drop "
                f"the row."
            )
        return text

    def _scores(self, answers: Any, name: str) -> torch.Tensor:
        """Soft scores `(answers,)` of what people answered; all zero for a row without answers."""
        scores = torch.zeros(len(self.label_names))
        if answers is None:
            return scores
        if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(
                f"Row {name}: the answers in column {self.task.answers_column!r} are {answers!r}, but expected is a "
                f"list of "
                "strings."
            )
        for answer, score in soft_scores(answers).items():
            if answer in self._label_ids:
                scores[self._label_ids[answer]] = score
        return scores

    def _label(self, row: Mapping[str, Any], name: str) -> int:
        label = row.get(str(self.task.label_column))
        if label is None:
            return _UNKNOWN_LABEL
        if isinstance(label, str):
            return self._label_ids.get(label, _UNKNOWN_LABEL)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.label_names):
            return label
        raise ValueError(
            f"Row {name}: the label in column {self.task.label_column!r} is {label!r}, but it is a name, or an index "
            f"from 0 to {len(self.label_names) - 1} into label_names."
        )

    def _images(self, row: Mapping[str, Any], name: str) -> list[torch.Tensor]:
        values = [row[column] for column in self.task.image_columns]
        if self.augmentation is None or not {EPOCH_COLUMN, INDEX_COLUMN} <= set(row):
            return [self._cached(value, name) for value in values]
        keys = [(row[EPOCH_COLUMN], row[INDEX_COLUMN], place) for place in range(len(values))]
        pictures = [decode_image(value, name, self.max_pixels) for value in values]
        return [
            self._prepare(self.augmentation(picture, key), name) for picture, key in zip(pictures, keys, strict=True)
        ]

    def _cached(self, value: Any, name: str) -> torch.Tensor:
        _, source = image_source(value, name)
        key = _content_key(source)
        prepared = self._cache.get(key)
        if prepared is None:
            prepared = self._prepare(decode_image(value, name, self.max_pixels), name)
            size = prepared.numel() * prepared.element_size()
            if self._cached_bytes + size <= self.image_cache_mb * 1e6:
                self._cache[key] = prepared
                self._cached_bytes += size
        return prepared

    def _prepare(self, image: Image.Image, name: str) -> torch.Tensor:
        try:
            prepared: torch.Tensor = self.processor.prepare_image(image)
        except (ValueError, ZeroDivisionError) as error:
            raise ImageError(
                f"row {name}: the picture of {image.width} x {image.height} pixels cannot be resized ({error}); "
                "crop it to a less extreme shape, or drop the row."
            ) from error
        return prepared

    def __getstate__(self) -> dict[str, Any]:
        """Without the cached pictures: a worker process fills its own."""
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0}


def _check_stores(regions: RegionLookup | None, teacher_regions: RegionLookup | None, is_augmented: bool) -> None:
    if regions is None:
        if teacher_regions is not None:
            raise ValueError("teacher_regions are given without regions; give the student's store as well.")
        return
    if is_augmented:
        raise ValueError(
            "an augmentation is given beside regions, whose features do not change with it; leave one of them out."
        )
    if teacher_regions is not None and teacher_regions.boxes_id != regions.boxes_id:
        raise ValueError(
            f"the regions have boxes by {regions.boxes_id!r}, those of the teacher by {teacher_regions.boxes_id!r}, "
            f"but region "
            "i must be the same box on both sides; make the teacher's features at the student's boxes (dual-distill "
            "regions "
            "... --boxes STUDENT_STORE), and train the teacher again on them."
        )


def _content_key(source: bytes | Image.Image) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, Image.Image):
        digest.update(repr((source.mode, source.size, sorted(map(str, source.info.items())))).encode())
        digest.update(source.tobytes())
    else:
        digest.update(source)
    return digest.digest()


def row_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What errors call the rows of a batch: their number, or their place and what identifies them.

    Example:
        >>> row_names([{"__index__": 7}, {"image_id": 3}])
        ['7', '1 of its batch (image_id 3)']
    """
    return [_row_name(row, position) for position, row in enumerate(rows)]


def _row_name(row: Mapping[str, Any], position: int) -> str:
    if INDEX_COLUMN in row:
        return str(row[INDEX_COLUMN])
    ids = ", ".join(f"{column} {row[column]}" for column in ID_COLUMNS if column in row)
    return f"{position} of its batch ({ids})" if ids else f"{position} of its batch"
