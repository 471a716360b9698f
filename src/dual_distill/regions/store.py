"""A region store, opened: the regions of an image by its id or by its content, read from disk as they are asked for.

Opening reads headers, never features; files are memory-mapped, so a store of a hundred gigabytes opens at once, and the
workers of a data loader share what the system has read. What is unusual: an image is found by its *content* too (the
encoded bytes, or the decoded pixels), so that rows of any task find their regions without a column that names them.
"""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from dual_distill.data import RegionSet, content_key, decode_image, image_source, pixel_key

from .files import FEATURES, RegionFolder, RegionManifest

_OPEN_FILES = 32
_NAMED = 3
_KEYS = ("id", "sha256", "pixel_sha256")


class RegionStore:
    """The regions that `dual-distill regions` or a TSV reader wrote; read-only.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: shards are missing, since its making was not finished, or a file is damaged.

    Example:
        >>> RegionStore("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no region store 'no/such/store'; `dual-distill regions` makes one.
    """

    manifest: RegionManifest

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self._folder = RegionFolder(path)
        manifest = self._folder.manifest()
        if manifest is None:
            raise FileNotFoundError(f"There is no region store {self.path!r}; `dual-distill regions` makes one.")
        self.manifest = manifest
        shards = self._folder.num_planned_shards()
        missing = [number for number in range(shards) if not self._folder.features(number).is_file()]
        if missing or not shards:
            raise ValueError(
                f"The region store {self.path!r} lacks {len(missing)} of {shards} shards (the first is number "
                f"{(missing or [0])[0]}): its making was not finished. The same command continues it."
            )
        self._rows = [self._folder.rows(number) for number in range(shards)]
        # Place of the first image of each shard, and behind the last one the number of all images.
        self._starts = [0, *accumulate(rows.num_rows for rows in self._rows)]
        self._index: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None = None
        self._bounds: dict[int, npt.NDArray[np.int64]] = {}
        self._opened: OrderedDict[int, Any] = OrderedDict()

    @property
    def boxes_id(self) -> str:
        """What made the boxes: stores with the same one have the same boxes in the same order."""
        return self.manifest.boxes_id

    @property
    def features_id(self) -> str:
        """What made the features."""
        return self.manifest.features_id

    @property
    def feature_size(self) -> int:
        """F, the width of a region's features."""
        return self.manifest.feature_size

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"RegionStore({self.path!r}, {len(self):,} images, features {self.feature_size} wide, boxes by {self.boxes_id})"

    def __reduce__(self) -> tuple[type["RegionStore"], tuple[str]]:
        return type(self), (self.path,)  # open files do not travel to other processes; the store is opened there again

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | int) and self._place(str(key)) is not None

    def ids(self) -> list[str]:
        """Return the ids of all images, in the order in which they were given."""
        return [identifier for rows in self._rows for identifier in rows["id"].to_pylist()]

    def counts(self) -> tuple[int, int]:
        """Return how many images have the whole image as their one region, and how many regions there are."""
        whole = sum(pc.sum(rows["whole_image"]).as_py() or 0 for rows in self._rows)
        return whole, sum(int(self._region_bounds(number)[-1]) for number in range(len(self._rows)))

    def unreadable(self) -> dict[str, str]:
        """Return id -> problem of images that were to be described and could not be read."""
        return self._folder.all_unreadable()

    def find(self, key: str | int) -> RegionSet:
        """Return the regions of an image.

        Args:
            key: its id, or the SHA-256 of its encoded bytes (`content_key`) or of its pixels (`pixel_key`). A number is
                the id that is written so.

        Raises:
            ValueError: the store lacks the image; the message says why where it is known.
        """
        place = self._place(str(key))
        if place is None:
            raise ValueError(self._absence(str(key)))
        return self.read(place)

    def find_image(self, value: Any, row: int | str = 0) -> RegionSet:
        """Return the regions of an image by its content: the encoded bytes first, then the pixels.

        Args:
            value: what `decode_image` accepts: bytes, a path, `{"bytes": ..., "path": ...}` or a PIL image.
            row: names the image in errors.

        Raises:
            ImageError: the image cannot be read.
            ValueError: the store lacks it.
        """
        name, source = image_source(value, row)
        place = None if isinstance(source, Image.Image) else self._place(content_key(source))
        if place is None:
            place = self._place(pixel_key(decode_image(source, row)))
        if place is None:
            raise ValueError(self._absence(f"row {row}" + (f" (image {name!r})" if name else "")))
        return self.read(place)

    def read(self, place: int) -> RegionSet:
        """Return the regions of the image at a place, from 0, in the order of `ids()`.

        Raises:
            IndexError: there is no such place.
            ValueError: a file is damaged.
        """
        if not 0 <= place < len(self):
            raise IndexError(
                f"Place {place} was asked for, but the region store {self.path!r} has places 0 to {len(self) - 1}."
            )
        number = bisect_right(self._starts, place) - 1
        inside = place - self._starts[number]
        rows = self._rows[number]
        bounds = self._region_bounds(number)
        return RegionSet(
            features=self._features(number, int(bounds[inside]), int(bounds[inside + 1])),
            boxes_px=torch.from_numpy(rows["boxes"][inside].values.to_numpy().reshape(-1, 4).copy()),
            scores=torch.from_numpy(rows["scores"][inside].values.to_numpy().copy()),
            tags=rows["tags"][inside].as_py(),
            width=rows["width"][inside].as_py(),
            height=rows["height"][inside].as_py(),
            whole_image=rows["whole_image"][inside].as_py(),
        )

    def _features(self, number: int, start: int, stop: int) -> torch.Tensor:
        """Read some rows of a shard's features; the files used last stay open."""
        try:
            if number not in self._opened:
                self._opened[number] = safe_open(self._folder.features(number), "pt")
                if len(self._opened) > _OPEN_FILES:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(number)
            features: torch.Tensor = self._opened[number].get_slice(FEATURES)[start:stop]
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{str(self._folder.features(number))!r} is damaged ({error}); remove it and run the command that "
                f"made the "
                "store again, which makes that shard anew."
            ) from error
        return features.float()

    def _region_bounds(self, number: int) -> npt.NDArray[np.int64]:
        """Where each image's regions begin among the features of a shard."""
        if number not in self._bounds:
            lengths = pc.list_value_length(self._rows[number]["scores"]).to_numpy()
            self._bounds[number] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return self._bounds[number]

    def _place(self, key: str) -> int | None:
        """The place of an image by its id or one of its content keys: looked up by 64 bits, then compared whole."""
        hashes, places = self._index or self._make_index()
        wanted = np.uint64(_short_hash(key))
        first = int(np.searchsorted(hashes, wanted))
        for candidate in range(first, len(hashes)):
            if hashes[candidate] != wanted:
                break
            place = int(places[candidate])
            number = bisect_right(self._starts, place) - 1
            if any(self._rows[number][column][place - self._starts[number]].as_py() == key for column in _KEYS):
                return place
        return None

    def _make_index(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Sorted hashes of all keys: 16 bytes a key, so that a million images fit and workers share the pages."""
        hashes: list[int] = []
        places: list[int] = []
        for column in _KEYS:  # an id wins over a content that happens to be written like it
            for rows, start in zip(self._rows, self._starts, strict=False):
                keys: pa.ChunkedArray = rows[column]
                for inside, key in enumerate(keys.to_pylist()):
                    if key is not None:
                        hashes.append(_short_hash(key))
                        places.append(start + inside)
        order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
        self._index = np.array(hashes, dtype=np.uint64)[order], np.array(places, dtype=np.int64)[order]
        return self._index

    def _absence(self, key: str) -> str:
        problem = self.unreadable().get(key)
        known = ", ".join(repr(identifier) for identifier in self._rows[0]["id"].slice(0, _NAMED).to_pylist())
        return (
            f"The region store {self.path!r} ({len(self):,} images, boxes by {self.boxes_id}) lacks {key!r}: "
            f"{problem or f'its ids are like {known}'}; make the regions of all images of the data with `dual-distill "
            f"regions`."
        )


def _short_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


__all__ = ["RegionStore"]
