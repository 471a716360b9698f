"""A region store's folder: a `ShardedFolder` whose rows are images and whose vectors are their regions'.

| file | content |
|---|---|
| `regions.json` | the manifest: what made the boxes, what made the features, how wide they are |
| `shard-00000.arrow` | one row an image: id, content keys, width, height, boxes, scores, tags |
| `shard-00000.safetensors` | `features` `(regions of all its images, F)` |

The other files are those of every sharded folder.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from dual_distill.data import PlannedShard, RegionSet, ShardedFolder

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_SIZE = 256
FEATURES = "features"
_ROWS = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("pixel_sha256", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(pa.float32()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("whole_image", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class RegionManifest:
    """What a region store says of itself.

    Attributes:
        boxes_id: what made the boxes, for people, with the start of its digest in brackets. Two stores with the same
            `boxes_id` have the same boxes in the same order, image by image.
        features_id: what made the features, likewise.
        feature_size: F, the width of a region's feature vector.
        dtype: of the stored features, "float32" or "float16".
        shard_size: images a shard.
        made_with: settings of the maker, which a continued run must repeat.
        format: version of this layout.
    """

    boxes_id: str
    features_id: str
    feature_size: int
    dtype: str
    shard_size: int
    made_with: dict[str, Any]
    format: int = FORMAT


class StoredImage(NamedTuple):
    """One image's row on its way into a store.

    Attributes:
        id: what the image is found by.
        sha256: of its encoded bytes, or None where they are not known.
        pixel_sha256: of its decoded pixels (`pixel_key`), likewise.
        regions: what was found in it.
    """

    id: str
    sha256: str | None
    pixel_sha256: str | None
    regions: RegionSet


class UnreadableImage(NamedTuple):
    """An image that is left out, and why."""

    id: str
    problem: str


class RegionFolder(ShardedFolder):
    """Reads and writes the files of one region store.

    Example:
        >>> RegionFolder("no/such/store").manifest() is None
        True
    """

    kind = "region store"
    made_by = "dual-distill regions"
    manifest_name = "regions.json"
    version = FORMAT

    def manifest(self) -> RegionManifest | None:
        """Return the manifest, None where there is no store.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        content = self.read_manifest()
        try:
            return None if content is None else RegionManifest(**content)
        except TypeError as error:
            raise ValueError(self.no_manifest(error)) from error

    def begin(self, manifest: RegionManifest) -> None:
        """Make the folder with its manifest, or compare the one that is there.

        Raises:
            ValueError: the store was begun with something else, or the folder holds other things.
        """
        found = self.manifest()
        if found is None:
            self.create(asdict(manifest))
            return
        given = json.loads(json.dumps(asdict(manifest)))
        for name, value in asdict(found).items():
            if given[name] != value:
                before, now = _first_difference(value, given[name])
                raise ValueError(
                    f"The region store {str(self.path)!r} was begun with {name} {before!r}, not {now!r}; repeat the "
                    f"command "
                    "that began it, or write into another folder."
                )

    def plan(self, ids: Sequence[str], shard_size: int, mended: Collection[str] = ()) -> list[PlannedShard]:
        """Return all shards, after ids that are in no plan yet have got one of their own.

        Args:
            ids: in order.
            shard_size: ids a new shard.
            mended: ids that could not be read, and can be now; they are planned again.
        """
        while True:
            shards = self.planned_shards()
            known = {identifier for shard in shards for identifier in shard.ids}
            waiting = {
                identifier for shard in shards if not self.features(shard.number).is_file() for identifier in shard.ids
            }
            known -= set(mended) - waiting
            new = [identifier for identifier in ids if identifier not in known]
            if not new:
                return shards
            if self.add_plan(new, shard_size):
                return self.planned_shards()

    def write_shard(
        self,
        number: int,
        rows: Sequence[StoredImage],
        manifest: RegionManifest,
        unreadable: dict[str, str] | None = None,
    ) -> None:
        """Write one shard, the features last; what a killed run left of it is replaced.

        Args:
            number: of the shard.
            rows: its images, in the order of the plan.
            manifest: of the store; every row is held against it.
            unreadable: id -> problem of the images that are missing among the rows.

        Raises:
            ValueError: a row's regions are not as a store holds them (`RegionSet.checked`).
        """
        checked = [row.regions.checked(f"image {row.id!r}", manifest.feature_size) for row in rows]
        columns = {
            "id": [row.id for row in rows],
            "sha256": [row.sha256 for row in rows],
            "pixel_sha256": [row.pixel_sha256 for row in rows],
            "width": [regions.width for regions in checked],
            "height": [regions.height for regions in checked],
            "boxes": [regions.boxes_px.flatten().numpy().astype(np.float32) for regions in checked],
            "scores": [regions.scores.numpy().astype(np.float32) for regions in checked],
            "tags": [list(regions.tags) for regions in checked],
            "whole_image": [regions.whole_image for regions in checked],
        }
        table = pa.table({name: pa.array(columns[name], _ROWS.field(name).type) for name in _ROWS.names}, schema=_ROWS)
        features = torch.cat([torch.zeros(0, manifest.feature_size), *(regions.features for regions in checked)])
        stored = features.to(DTYPES[manifest.dtype]).contiguous()
        if not stored.isfinite().all():
            raise ValueError(f"A feature is beyond {manifest.dtype}'s largest value; store the regions as float32.")
        problems = [{"id": identifier, "problem": problem} for identifier, problem in (unreadable or {}).items()]
        self.write_files(number, table, {FEATURES: stored}, problems)


def fill_store(
    folder: str | os.PathLike[str],
    manifest: RegionManifest,
    ids: Sequence[str],
    describe: Callable[[list[str]], Iterable[StoredImage | UnreadableImage]],
    mended: Collection[str] = (),
) -> int:
    """Write a store from a function that describes the images of one shard, in order; shards that are done are passed
    over.

    Args:
        folder: of the store; made, or continued.
        manifest: what the store is to say of itself.
        ids: of all images, each once.
        describe: ids of one shard -> their rows, in this order.
        mended: ids that could not be read, and can be now.

    Returns:
        How many images were added now.

    Raises:
        ValueError: the store was begun with something else, an id occurs twice, or a row is not as a store holds it.
    """
    check_manifest(manifest)
    if len(set(ids)) < len(ids):
        twice = next(identifier for place, identifier in enumerate(ids) if identifier in ids[:place])
        raise ValueError(f"The id {twice!r} occurs more than once, but an image is found by its id; give each its own.")
    store = RegionFolder(folder)
    store.begin(manifest)
    added = 0
    for shard in store.plan(ids, manifest.shard_size, mended):
        if not store.features(shard.number).is_file():
            rows = list(describe(shard.ids))
            images = [row for row in rows if isinstance(row, StoredImage)]
            unreadable = {row.id: row.problem for row in rows if isinstance(row, UnreadableImage)}
            store.write_shard(shard.number, images, manifest, unreadable)
            added += len(images)
    return added


def check_manifest(manifest: RegionManifest) -> None:
    """Refuse settings that no store can have.

    Raises:
        ValueError: a number is below 1, or the dtype is another than float32 or float16.

    Example:
        >>> check_manifest(RegionManifest("by hand", "by hand", 0, "float32", 1, {}))
        Traceback (most recent call last):
        ValueError: feature_size is 0, but it counts 1 or more.
    """
    for name in ("feature_size", "shard_size"):
        if getattr(manifest, name) < 1:
            raise ValueError(f"{name} is {getattr(manifest, name)}, but it counts 1 or more.")
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype is {manifest.dtype!r}, but features are stored as {' or '.join(DTYPES)}.")


def _first_difference(before: Any, now: Any) -> tuple[Any, Any]:
    """What differs: of two settings, the first entry that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                return {name: before.get(name)}, {name: now.get(name)}
    return before, now


__all__ = [
    "DTYPES",
    "FEATURES",
    "SHARD_SIZE",
    "RegionFolder",
    "RegionManifest",
    "StoredImage",
    "UnreadableImage",
    "check_manifest",
    "fill_store",
]
