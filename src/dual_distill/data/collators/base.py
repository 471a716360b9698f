"""Rows of a task to one padded batch of texts and images, for every collator of this package, and of their labels.

Decoding and resizing cost more than a small model's forward pass, so prepared images are kept in memory by content, up
to a limit in bytes. What is unusual: a full cache stops taking images in instead of throwing the oldest out. Training
visits every image once an epoch in a new order; if the data is larger than the cache, a least-recently-used cache has
mostly dropped an image by the time it is asked for again, while a fixed set keeps its share of hits, and costs no
bookkeeping. Augmented images differ in each epoch and are not kept.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dual_distill.data.fingerprint import fingerprint
from dual_distill.data.image_content import image_content
from dual_distill.data.images import MAX_PIXELS, JpegSize, decode_image, image_source, resize_image
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.records import InvalidRecordError, Record
from dual_distill.data.region_inputs import MAX_REGIONS, NUM_TAGS, RegionInputs, RegionLookup, tag_texts
from dual_distill.data.tasks import Task
from dual_distill.data.text_spans import text_spans
from dual_distill.vqa_answers import soft_scores

# Columns that name a row in an error, where the data has them.
ID_COLUMNS = ("question_id", "identifier", "scene_id", "pair_id", "image_id", "id")

# Key under which `ImageTextCollator.read_rows` puts what errors call a row.
ROW_NAME = "__name__"

Row = Mapping[str, Any]
Batch = dict[str, Tensor]
# Pixels `(3, H, W)`, and which part of the image they show: `x0 y0 x1 y1` in its unit square.
PreparedImage = tuple[Tensor, tuple[float, float, float, float]]

_UNKNOWN_LABEL = -100  # the index that torch's cross-entropy leaves out
_NO_LIMIT = 1_000_000  # from here on, a tokenizer's `model_max_length` stands for none (transformers writes 1e30)


class ImageTextCollator:
    """Makes the texts and images of a batch: what all collators share.

    Args:
        processor: a `DualDistillProcessor`: `tokenizer`, `prepare_image(image) -> (3, H, W)` and
            `pad_images(images) -> {"pixel_values", "pixel_mask"}`.
        task: which columns are what.
        max_text_length: longest text in tokens; longer ones are cut. None: the tokenizer's own limit, if it has one.
        image_cache_mb: limit of the cache of prepared images in MB (1e6 bytes), in each data-loading process; 0 turns
            it off. With `DataLoader(num_workers > 0)` set `persistent_workers=True`, or the cache ends with the epoch.
        max_pixels: largest accepted image, width x height in pixels.
        augmentation: `(RGB image, key) -> RGB image`, applied after decoding and before resizing to rows of
            `IndexedDataset`, and to no others: training rows are wrapped in it, evaluation rows are not, and one
            collator serves both. `key = (row["__epoch__"], row["__index__"], index of the image column)`, so that it
            can draw the same change for the same key. None changes nothing.
        regions: where the regions of each image are; the batch then holds them in place of pixels, and their tags
            behind the text. None: pixels.
        teacher_regions: the teacher's features of the same boxes, which the batch holds beside them; None: teacher and
            student read the same.
        num_tags: most object tags beside a text, each once; 0: none.
        max_regions: most regions an image, the first of the store.
        max_tag_length: most tokens of the tags, beside those of the text; None: what `max_text_length` leaves.

    Raises:
        ValueError: the task has several images a row where one is needed, a limit is negative, the two stores have
            other boxes, or an augmentation is given beside regions, whose features it cannot change.
    """

    one_image = False  # whether a row of the batch has one image
    # Whether a batch has `student_text_spans` `(B, T, 2)`, the characters of each token, and `student_image_boxes`
    # `(B, 4)`, which part of the image the pixels show.
    gives_spans = False

    def __init__(
        self,
        processor: Any,
        task: Task,
        max_text_length: int | None = None,
        image_cache_mb: float = 512,
        max_pixels: int = MAX_PIXELS,
        augmentation: Callable[[Image.Image, tuple[Any, Any, int]], Image.Image] | None = None,
        regions: RegionLookup | None = None,
        teacher_regions: RegionLookup | None = None,
        num_tags: int = NUM_TAGS,
        max_regions: int = MAX_REGIONS,
        max_tag_length: int | None = None,
    ) -> None:
        if self.one_image and len(task.image_columns) != 1:
            columns = f"{len(task.image_columns)} images a row ({', '.join(task.image_columns)})"
            raise ValueError(f"Task {task.name!r} has {columns}, but a text here is about one; choose another task.")
        if image_cache_mb < 0:
            raise ValueError(f"image_cache_mb is {image_cache_mb}, but must be at least 0 (no cache).")
        if regions is None and teacher_regions is not None:
            raise ValueError("teacher_regions are given without regions; give the student's store as well.")
        if regions is not None and augmentation is not None:
            raise ValueError("an augmentation is given beside regions, which it cannot change; leave one of them out.")

        self.processor, self.task = processor, task
        self.max_text_length, self.max_tag_length = max_text_length, max_tag_length
        self.max_pixels, self.augmentation = max_pixels, augmentation
        self.regions = None if regions is None else RegionInputs(regions, teacher_regions, num_tags, max_regions)
        self._cache = _ImageCache(image_cache_mb * 1e6)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: B rows with the task's columns. `__index__` names a row in errors; without it, its position in the
                batch and the id columns do.

        Returns:
            `input_ids`, `attention_mask` `(B, T)` int64, padded to the longest text; `pixel_values` `(B, N, 3, H, W)`
            float32; `pixel_mask` `(B, N, H, W)`. With `regions`, in place of pixels, `region_features` `(B, R, F)`,
            `region_boxes` `(B, R, 6)`, `region_mask` `(B, R)` bool and `token_type_ids` `(B, T)`, 1 for tags; with
            `teacher_regions` also `teacher_region_features` `(B, R, F')`.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no rows, a column is missing, a text is empty, or a store lacks an image; the message names
                the row.
        """
        return self.encode(self.read_rows(rows, self.task.text_column))

    def encode(self, rows: Sequence[Row]) -> Batch:
        """Tokenize the texts and prepare the images of rows that `read_rows` returned."""
        column, tokenizer = self.task.text_column, self.processor.tokenizer
        for row in rows:
            try:
                Record(row).text(column)
            except InvalidRecordError as problem:
                raise ValueError(f"Row {row[ROW_NAME]}: {problem}; drop the row.") from problem

        max_length, texts = self.max_text_length, [row[column] for row in rows]
        if max_length is None and tokenizer.model_max_length < _NO_LIMIT:
            max_length = tokenizer.model_max_length

        if self.regions is not None:
            return self._tagged(self.regions, rows, texts, max_length)
        cut = {"truncation": max_length is not None, "max_length": max_length}
        encoded = tokenizer(texts, padding="longest", return_tensors="pt", **cut)
        pixels, boxes = self._pixels(rows)
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask")} | pixels
        if self.gives_spans:
            batch |= {"student_text_spans": text_spans(tokenizer, texts, encoded), "student_image_boxes": boxes}
        return batch

    def encode_images(self, rows: Sequence[Row]) -> Batch:
        """Prepare the images of a batch without its texts; for regions with the tags behind empty ones."""
        rows = self.read_rows(rows)
        if self.regions is None:
            return self._pixels(rows)[0]
        return self._tagged(self.regions, rows, [""] * len(rows), None)

    def read_rows(self, rows: Sequence[Row], *columns: str) -> Sequence[Row]:
        """Refuse rows that lack an image column or one of `columns`; name them, and read image files, undecoded.

        Texts in `columns` are composed (NFC): the same words are the same tokens, however they are written.
        """
        if not rows:
            raise ValueError("A batch needs at least one row, but the list is empty.")

        read: list[dict[str, Any]] = []
        for position, row in enumerate(rows):
            # A row is called by its number, or by its position in the batch and by what identifies it.
            ids = ", ".join(f"{column} {row[column]}" for column in ID_COLUMNS if column in row)
            name = str(row.get(INDEX_COLUMN, f"{position} of its batch" + (f" ({ids})" if ids else "")))
            for column in (*self.task.image_columns, *columns):
                if column not in row:
                    found = f"which task {self.task.name!r} needs; it has: {', '.join(row)}"
                    way_out = "In a Trainer, set remove_unused_columns=False."
                    raise ValueError(f"Row {name} has no column {column!r}, {found}. ({way_out})")

            # A file is read once: for the key of its content, for its pixels, and for what a subclass hashes.
            texts = {column: _composed(row[column]) for column in columns}
            read.append({**row, **texts, ROW_NAME: name})
            for column in self.task.image_columns:
                path, source = image_source(row[column], name)
                read[-1][column] = source if isinstance(source, Image.Image) else {"bytes": source, "path": path}
        return read

    def _tagged(self, regions: RegionInputs, rows: Sequence[Row], texts: list[str], max_length: int | None) -> Batch:
        """Texts with the tags of their regions behind them, and the regions."""
        batch, tags = regions([([row[column] for column in self.task.image_columns], row[ROW_NAME]) for row in rows])
        return tag_texts(self.processor.tokenizer, texts, tags, max_length, self.max_tag_length) | batch

    def _pixels(self, rows: Sequence[Row]) -> tuple[Batch, Tensor]:
        """The images of a batch, padded, and which part of the first of each row is seen, `(B, 4)`."""
        # Once a batch: whoever changes the processor between two runs gets images as it prepares them now.
        self._cache.hold(f"{self.processor.image_processor.to_json_string()} {self.processor.jpeg_margin}")
        indices = range(len(self.task.image_columns))
        prepared = [[self._image(row, index) for index in indices] for row in rows]
        batch: Batch = self.processor.pad_images([[pixels for pixels, _ in images] for images in prepared])
        return batch, torch.tensor([images[0][1] for images in prepared])

    def is_augmented(self, row: Row) -> bool:
        """Return whether the images of a row are changed."""
        return self.augmentation is not None and EPOCH_COLUMN in row and INDEX_COLUMN in row

    def decoded(self, row: Row, index: int, jpeg_size: JpegSize | None = None) -> Image.Image:
        """One image of a row that was read, augmented but not resized; a JPEG is whole without `jpeg_size`."""
        image = decode_image(row[self.task.image_columns[index]], row[ROW_NAME], self.max_pixels, jpeg_size)
        if self.augmentation is not None and self.is_augmented(row):
            image = self.augmentation(image, (row[EPOCH_COLUMN], row[INDEX_COLUMN], index))
        return image

    def _image(self, row: Row, index: int) -> PreparedImage:
        """One prepared image: augmented anew, or kept from the last time that its content was seen."""
        value, name = row[self.task.image_columns[index]], row[ROW_NAME]
        augmented = self.is_augmented(row)
        key = "" if augmented else fingerprint(image_content(value))
        if key in self._cache:
            return self._cache[key]

        image = self.decoded(row, index, self.processor.jpeg_size)
        pixels: Tensor = resize_image(self.processor.prepare_image, image, name)
        prepared = pixels, self.processor.seen_region(image)
        if not augmented:
            self._cache.keep(key, prepared)
        return prepared


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
            if self._label_ids.setdefault(_composed(name), index) != index:
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
            batch["labels"] = torch.stack([self._scores(row.get(answers) or [], row[ROW_NAME]) for row in rows])
        elif label is not None and any(label in row for row in rows):
            batch["labels"] = torch.tensor([self._label(row.get(label), row[ROW_NAME]) for row in rows])
        return batch

    def _scores(self, answers: Any, name: str) -> Tensor:
        """Soft scores `(answers,)` of what people answered; all zero for a row without answers."""
        if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
            found = f"the answers in column {self.task.answers_column!r} are {answers!r}"
            raise ValueError(f"Row {name}: {found}, but expected is a list of strings.")

        # What is no class scores nothing, and takes nothing from the others.
        scores = torch.zeros(len(self.label_names))
        for answer, score in soft_scores([_composed(answer) for answer in answers]).items():
            if answer in self._label_ids:
                scores[self._label_ids[answer]] = score
        return scores

    def _label(self, label: Any, name: str) -> int:
        if label is None or isinstance(label, str):
            return self._label_ids.get(_composed(label), _UNKNOWN_LABEL)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.label_names):
            return label
        found = f"the label in column {self.task.label_column!r} is {label!r}"
        raise ValueError(f"Row {name}: {found}, but it is a name, or an index from 0 to {len(self.label_names) - 1}.")


def _composed(text: Any) -> Any:
    return unicodedata.normalize("NFC", text) if isinstance(text, str) else text


class _ImageCache(dict[str, PreparedImage]):
    """Prepared images by content, up to a limit; copies of a collator share it, another process starts with none."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = self.free_bytes = limit_bytes
        self.settings: str | None = None

    def hold(self, settings: str) -> None:
        """Drop what was prepared with other settings, and make room for images prepared with these."""
        if settings != self.settings:
            self.clear()
            self.settings, self.free_bytes = settings, self.limit_bytes

    def keep(self, key: str, image: PreparedImage) -> None:
        """Take an image in, if it fits."""
        if (size := image[0].nbytes) <= self.free_bytes:
            self[key] = image
            self.free_bytes -= size

    def __reduce__(self) -> tuple[Any, ...]:
        return _ImageCache, (self.limit_bytes,)
