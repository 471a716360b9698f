"""A region store: the regions of images, found by an image's id or by its content.

| part of a `ShardedTable` | content |
|---|---|
| `regions.json` | the manifest: what made the boxes, what made the features, how wide they are |
| rows | one an image: id, content keys, width, height, boxes, scores, tags |
| vectors | `features` `(regions of all images of the shard, F)` |

What is unusual: an image is found by its *content* too (the encoded bytes, or the decoded pixels), so that rows of any
task find their regions without a column that names them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from dual_distill import data
from dual_distill.data import PlannedShard, RegionSet, ShardedTable, TableStore, fingerprint

DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_SIZE = 256
_NAMED = 3
_ROWS = pa.schema(
    {"id": pa.large_string()}
    | dict.fromkeys(("sha256", "pixel_sha256"), pa.string())
    | dict.fromkeys(("width", "height"), pa.int32())
    | dict.fromkeys(("boxes", "scores"), pa.list_(pa.float32()))
    | {"tags": pa.list_(pa.string()), "whole_image": pa.bool_()}
)


@dataclass(frozen=True)
class RegionManifest:
    """What a region store says of itself.

    Attributes:
        boxes_id: what made the boxes, for people, with the start of its digest in brackets. Two stores with the same
            `boxes_id` have the same boxes in the same order, image by image.
        features_id: what made the features, likewise.
        feature_size: F, the width of a region's feature vector, at least 1.
        dtype: of the stored features, "float32" or "float16".
        shard_size: images a shard, at least 1.
        made_with: settings of the maker, which a continued run must repeat.

    Raises:
        ValueError: a number is below 1, or the dtype is another than float32 or float16.

    Example:
        >>> RegionManifest("by hand", "by hand", 0, "float32", 1, {})
        Traceback (most recent call last):
        ValueError: feature_size is 0, but must be at least 1.
    """

    boxes_id: str
    features_id: str
    feature_size: int
    dtype: str
    shard_size: int
    made_with: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("feature_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but features are stored as {' or '.join(DTYPES)}.")


@dataclass(frozen=True)
class RegionReport:
    """What a store holds, and what a call of `extract_regions` did.

    Attributes:
        store: its folder.
        images: in the store.
        added: images that were added now.
        whole_images: images of the store whose one region is the whole image, since the detector found nothing.
        regions: in the store.
        feature_size: F.
        boxes_id: what made the boxes.
        features_id: what made the features.
        seconds: duration, without loading the model.
        unreadable: id -> problem.
    """

    store: str
    images: int
    added: int
    whole_images: int
    regions: int
    feature_size: int
    boxes_id: str
    features_id: str
    seconds: float
    unreadable: dict[str, str]


class StoredImage(NamedTuple):
    """One image on its way into a store.

    Attributes:
        id: what the image is found by.
        sha256: fingerprint of its encoded bytes, or None where they are not known.
        pixel_sha256: fingerprint of its decoded image, likewise.
        regions: what was found in it.
    """

    id: str
    sha256: str | None
    pixel_sha256: str | None
    regions: RegionSet


class RegionTable(ShardedTable):
    """The files of a region store."""

    kind = "region store"
    made_by = "`dual-distill regions`"
    manifest_name = "regions.json"
    keys = ("id", "sha256", "pixel_sha256")
    names_images = True

    def start(
        self, manifest: RegionManifest, ids: Sequence[str], is_readable: Callable[[str], bool] | None = None
    ) -> list[PlannedShard]:
        """Begin the store or continue it, and return the shards that are to be written."""
        if twice := [name for name, number in Counter(ids).items() if number > 1]:
            problem = f"The id {twice[0]!r} occurs more than once, but an image is found by its id"
            raise ValueError(f"{problem}; give each its own.")

        # What was begun with something else is not continued.
        self.check_settings(self.begin(asdict(manifest)), asdict(manifest))
        return [shard for shard in self.plan(ids, manifest.shard_size, is_readable) if not self.is_done(shard.number)]

    def write_images(
        self, number: int, images: Sequence[StoredImage], manifest: RegionManifest, unreadable: Mapping[str, str]
    ) -> None:
        """Write one shard, after its regions were checked."""
        checked = [image.regions.checked(f"image {image.id!r}", manifest.feature_size) for image in images]

        rows = []
        for image, regions in zip(images, checked, strict=True):
            numbers = {"boxes": regions.boxes_px.flatten().tolist(), "scores": regions.scores.tolist()}
            rows.append(image._asdict() | regions._asdict() | numbers)

        # Regions of all images, one behind the other; their numbers follow from the scores.
        features = torch.cat([torch.zeros(0, manifest.feature_size), *(regions.features for regions in checked)])
        stored = features.to(DTYPES[manifest.dtype])
        if not stored.isfinite().all():
            raise ValueError(f"A feature is beyond {manifest.dtype}'s largest value; store the regions as float32.")
        vectors = pa.table({"features": data.tensor_column(stored)})
        self.write(number, pa.Table.from_pylist(rows, schema=_ROWS), vectors, unreadable)


def fill_store(
    folder: str | os.PathLike[str],
    manifest: RegionManifest,
    ids: Sequence[str],
    describe: Callable[[list[str]], Iterable[StoredImage]],
) -> int:
    """Write a store from a function that describes the images of one shard, in order; finished shards are passed over.

    Args:
        folder: of the store; made, or continued.
        manifest: what the store is to say of itself.
        ids: of all images, each once.
        describe: ids of one shard -> their images, in this order.

    Returns:
        How many images were added now.

    Raises:
        ValueError: the store was begun with something else, an id occurs twice, or regions are not usable.
    """
    table, added = RegionTable(folder), 0
    for shard in table.start(manifest, ids):
        images = list(describe(shard.ids))
        table.write_images(shard.number, images, manifest, unreadable={})
        added += len(images)
    return added


class RegionStore(TableStore):
    """The regions that `dual-distill regions`, `read_region_tsv` or `fill_store` wrote; read-only.

    Opening reads ids' number alone, never features; files are memory-mapped, so a store of a hundred gigabytes opens at
    once, and the workers of a data loader share what the system has read.

    Args:
        path: the folder.

    Attributes:
        boxes_id: what made the boxes: stores with the same one have the same boxes in the same order.
        features_id: what made the features.
        feature_size: F, the width of a region's features.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: shards are missing, since its making was not finished, or a file is damaged.

    Example:
        >>> RegionStore("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no region store 'no/such/store'; `dual-distill regions` makes one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.table = RegionTable(path)
        self.manifest = RegionManifest(**self.table.open())
        self.boxes_id, self.features_id = self.manifest.boxes_id, self.manifest.features_id
        self.feature_size = self.manifest.feature_size
        self._bounds: dict[int, npt.NDArray[np.int64]] = {}

    def __repr__(self) -> str:
        known = f"{len(self):,} images, features {self.feature_size} wide, boxes by {self.boxes_id}"
        return f"RegionStore({self.path!r}, {known})"

    def find(self, key: str | int) -> RegionSet:
        """Return the regions of an image.

        Args:
            key: its id, or the `fingerprint` of its encoded bytes or of its decoded image. A number is the id that is
                written so.

        Raises:
            ValueError: the store lacks the image; the message says why where it is known.
        """
        return self._found(self.table.find(str(key)), str(key))

    def find_unseen(self, name: str) -> RegionSet:
        """Return the regions of an image by its id, where the store knows no content by which to find it.

        Raises:
            ValueError: the store lacks the image, or knows another content under its id.
        """
        if (index := self.table.find(name)) is not None:
            number, inside = self.table.locate(index)
            if self.table.rows(number)["pixel_sha256"][inside].as_py() is not None:
                other = f"the region store {self.path!r} holds another image under this id"
                raise ValueError(f"image {name!r}: {other}; give the same images, or make its regions anew.")
        return self._found(index, name)

    def find_image(self, value: Any, row: int | str = 0) -> RegionSet:
        """Return the regions of an image by its content: the encoded bytes first, then the pixels.

        Args:
            value: what `decode_image` accepts: bytes, a path, `{"bytes": ..., "path": ...}` or a PIL image.
            row: names the image in errors.

        Raises:
            ImageError: the image cannot be read.
            ValueError: the store lacks it.
        """
        name, source = data.image_source(value, row)
        index = None if isinstance(source, Image.Image) else self.table.find(fingerprint(source))
        if index is None:
            # The same pixels in another file.
            index = self.table.find(fingerprint(data.decode_image(source, row)))
        return self._found(index, f"row {row}" + (f" (image {name!r})" if name else ""))

    def _found(self, index: int | None, key: str) -> RegionSet:
        """The regions at an index; where there is none, the sentence that says why."""
        if index is not None:
            return self.read(index)
        problem = self.unreadable().get(key)
        known = ", ".join(map(repr, self.ids()[:_NAMED]))
        store = f"The region store {self.path!r} ({len(self):,} images, boxes by {self.boxes_id}) lacks {key!r}"
        way_out = "make the regions of all images of the data with `dual-distill regions`"
        raise ValueError(f"{store}: {problem or f'its ids are like {known}'}; {way_out}.")

    def read(self, index: int) -> RegionSet:
        """Return the regions of the image at an index, from 0, in the order of `ids()`.

        Raises:
            IndexError: there is no such image.
            ValueError: a file is damaged.
        """
        # One row of small columns, and its part of the features.
        number, inside = self.table.locate(index)
        [row] = self.table.rows(number).slice(inside, 1).to_pylist()
        start, stop = self._region_bounds(number)[inside : inside + 2].tolist()

        return RegionSet(
            features=self.table.tensor(number, "features", start, stop).float(),
            boxes_px=torch.tensor(row["boxes"], dtype=torch.float32).view(-1, 4),
            scores=torch.tensor(row["scores"], dtype=torch.float32),
            **{name: row[name] for name in ("tags", "width", "height", "whole_image")},
        )

    def _region_bounds(self, number: int) -> npt.NDArray[np.int64]:
        """Where each image's regions begin among the features of a shard."""
        if number not in self._bounds:
            lengths = pc.list_value_length(self.table.rows(number)["scores"]).to_numpy()
            self._bounds[number] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return self._bounds[number]


def report_store(store: str | os.PathLike[str], added: int = 0, seconds: float = 0.0) -> RegionReport:
    """Return what a store holds.

    Args:
        store: its folder.
        added: images that were added just now.
        seconds: that this took.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is not finished, or damaged.

    Example:
        >>> report_store("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no region store 'no/such/store'; `dual-distill regions` makes one.
    """
    found = RegionStore(store)
    tables = [found.table.rows(number) for number in range(len(found.table.starts) - 1)]
    whole_images = sum(pc.sum(rows["whole_image"]).as_py() or 0 for rows in tables)
    regions = sum(pc.sum(pc.list_value_length(rows["scores"])).as_py() or 0 for rows in tables)

    made = (found.feature_size, found.boxes_id, found.features_id, seconds, found.unreadable())
    return RegionReport(str(store), len(found), added, whole_images, regions, *made)
