"""Rows of like images side by side: a batch is padded to its largest image, and photographs have many shapes.

What is unusual: nothing is decoded. A row is sorted by what the headers of its images say, so that a few seconds for a
whole data set save a third of the patches of each batch. Where the processor makes all images alike, or they are alike,
nothing is reordered.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import Sampler

from .collators.base import ImageTextCollator
from .fingerprint import fingerprint
from .image_content import DECODING_ERRORS

ShapeKey = tuple[tuple[int, ...], int]

_WINDOW = 50  # batches within which training sorts: of larger windows the patches fall by a hundredth more
_STEPS = 16  # of the logarithm of width over height: images of one step have one shape, or the next
_SAMPLE = 256
_EXIF, _ORIENTATION, _FIRST_ON_ITS_SIDE = "exif", 0x0112, 5


def shape_key(images: Sequence[Any], text: Any, known: dict[str, int] | None = None) -> ShapeKey:
    """Return what a row is sorted by: the shapes of its images, then the length of its text.

    Args:
        images: what `decode_image` takes; of one that cannot be read nothing is said here.
        text: that of the row.
        known: path -> shape of files that were looked at before.

    Example:
        >>> shape_key([Image.new("RGB", (64, 32)), Image.new("RGB", (32, 64))], "a dog")
        ((16, -16), 5)
    """
    return tuple(_shape(image, {} if known is None else known) for image in images), len(str(text))


def varies_in_shape(processor: Any) -> bool:
    """Return whether what a processor makes of an image has the image's shape."""
    wide, high = (processor.prepare_image(Image.new("RGB", size)) for size in ((64, 32), (32, 64)))
    return bool(wide.shape != high.shape)


def shape_keys(collator: Any, rows: Any) -> list[ShapeKey] | None:
    """Return a key a row to sort by; None where batches are not padded, or nothing is known of the images.

    Args:
        collator: makes batches.
        rows: a `datasets.Dataset`, or an `IndexedDataset` of one.
    """
    collator, rows = getattr(collator, "collator", collator), getattr(rows, "dataset", rows)
    if not isinstance(collator, ImageTextCollator) or not isinstance(rows, datasets.Dataset):
        return None
    images, text = collator.task.image_columns, collator.task.text_column
    if collator.regions is not None or not {*images, text} <= {*rows.column_names}:
        return None

    # Undecoded. A few rows tell whether all are alike.
    rows = rows.select_columns([*images, text])
    for column in images:
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    known: dict[str, int] = {}
    few = rows.select(range(0, len(rows), math.ceil(len(rows) / _SAMPLE))) if len(rows) else rows
    if len({shape_key([row[column] for column in images], "", known) for row in few}) < 2:
        return None
    if not varies_in_shape(collator.processor):
        return None
    return [shape_key([row[column] for column in images], row[text], known) for row in rows]


def grouped_order(keys: Sequence[ShapeKey] | None, num_rows: int) -> list[int]:
    """Return the rows in the order of their keys; without keys as they stand."""
    return list(range(num_rows)) if keys is None else sorted(range(num_rows), key=keys.__getitem__)


def in_order(order: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Return values that were found in an order of rows in that of the rows.

    Example:
        >>> in_order([2, 0, 1], ["c", "a", "b"])
        ['a', 'b', 'c']
    """
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda one: one[0])]


class ShapeGroupedSampler(Sampler[int]):
    """Draws rows in an order that an epoch and a seed fix, like ones in one batch.

    Rows are shuffled, sorted within windows of 50 batches, and the batches of a window are shuffled: each row comes
    once an epoch, and a batch is of one shape by the draw alone.

    Args:
        keys: those of the rows, in order.
        batch_size: rows of all processes that are computed at a time.
        seed: of the order.

    Example:
        >>> sampler = ShapeGroupedSampler([((0,), 1), ((9,), 1)] * 4, batch_size=2, seed=0)
        >>> sorted(sampler), [{row % 2 for row in rows} for rows in zip(*[iter(sampler)] * 2)]
        ([0, 1, 2, 3, 4, 5, 6, 7], [{1}, {1}, {0}, {0}])
    """

    def __init__(self, keys: Sequence[ShapeKey], batch_size: int, seed: int) -> None:
        self.keys, self.batch_size, self.seed, self.epoch = keys, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[int]:
        draw, size = torch.Generator().manual_seed(self.seed + self.epoch), self.batch_size
        order = torch.randperm(len(self.keys), generator=draw).tolist()
        for start in range(0, len(order), _WINDOW * size):
            rows = sorted(order[start : start + _WINDOW * size], key=self.keys.__getitem__)
            for batch in torch.randperm(len(rows) // size, generator=draw).tolist():
                yield from rows[batch * size : (batch + 1) * size]
            # Of the last window what fills no batch.
            yield from rows[len(rows) // size * size :]


def grouped_rows(rows: Sequence[Any], batch_size: int, drawn_by: str) -> list[Any]:
    """Rows of a stream, with image and caption, in an order that a text draws, like ones in one batch."""
    keys = [shape_key([row["image"]], row["caption"]) for row in rows]
    seed = int(fingerprint(drawn_by)[:8], 16)
    return [rows[index] for index in ShapeGroupedSampler(keys, batch_size, seed)]


def _shape(image: Any, known: dict[str, int]) -> int:
    """Width over height in logarithmic steps, from the header; 0 of what cannot be read, which is said elsewhere."""
    path = None
    if isinstance(image, dict):
        path, image = image.get("path"), image.get("bytes")
    if isinstance(image, str | Path):
        path, image = str(image), None
    if image is None and path in known:
        return known[path]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            width, height = image.size if isinstance(image, Image.Image) else _header(image, path)
            step = round(_STEPS * math.log2(width / height))
        except (*DECODING_ERRORS, ZeroDivisionError):
            step = 0  # the collator says what is wrong with it, or leaves it out
    if image is None and path is not None:
        known[path] = step
    return step


def _header(content: bytes | None, path: Any) -> tuple[int, int]:
    """Width and height of an encoded image, upright."""
    # A named pipe would be waited for.
    if content is None and not Path(path).is_file():
        raise FileNotFoundError(path)
    with Image.open(path if content is None else io.BytesIO(content)) as image:
        turned = _EXIF in image.info and image.getexif().get(_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE
        return (image.height, image.width) if turned else image.size
