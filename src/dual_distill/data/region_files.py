"""A region store's folder: which files there are, what each holds, and how each appears whole or not at all.

| file | content |
|---|---|
| `regions.json` | the manifest: what made the boxes, what made the features, how wide they are |
| `plan-00000.arrow` | ids in input order, cut into shards; a later call with new images adds `plan-00001.arrow` |
| `shard-00000.unreadable.jsonl` | images of that shard that could not be read, and why; only where there are such |
| `shard-00000.arrow` | one row an image: id, content keys, width, height, boxes, scores, tags |
| `shard-00000.safetensors` | `features` `(regions of all its images, F)`; written last: it says "done" |

A plan is created once and never changed, and a shard is written whole or made again from its beginning: a run that was killed
continues with the same call, and comes out the same, bit for bit.
"""

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from .region_set import RegionSet

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_SIZE = 256
FEATURES = "features"
_MANIFEST = "regions.json"
_SHARD_SIZE = b"shard_size"
_NAMED = 3
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


class PlannedShard(NamedTuple):
    """One shard as it was planned: its number, counted over all plans, and its ids in input order."""

    number: int
    ids: list[str]


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


class RegionFolder:
    """Reads and writes the files of one region store.

    Args:
        path: the folder; need not exist yet.

    Example:
        >>> RegionFolder("no/such/store").manifest() is None
        True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def manifest(self) -> RegionManifest | None:
        """Return the manifest, None where there is no store.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        file = self.path / _MANIFEST
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.get("format") != FORMAT:
                raise ValueError(
                    f"{str(file)!r} has format {content.get('format')!r}, but this version reads {FORMAT}; make the regions "
                    "again in another folder, or take the version of dual_distill that wrote it."
                )
            return RegionManifest(**content)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{str(file)!r} is not the manifest of a region store ({error}); give a folder that `dual-distill regions` "
                "wrote."
            ) from error

    def begin(self, manifest: RegionManifest) -> None:
        """Make the folder with its manifest, or compare the one that is there.

        Raises:
            ValueError: the store was begun with something else, or the folder holds other things.
        """
        found = self.manifest()
        if found is None:
            self._write_manifest(manifest)
            return
        given = json.loads(json.dumps(asdict(manifest)))
        for name, value in asdict(found).items():
            if given[name] != value:
                before, now = _first_difference(value, given[name])
                raise ValueError(
                    f"The region store {str(self.path)!r} was begun with {name} {before!r}, not {now!r}; repeat the command "
                    "that began it, or write into another folder."
                )

    def _write_manifest(self, manifest: RegionManifest) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in self.path.iterdir()]
        others = [name for name in names if not name.startswith((".", _MANIFEST, "plan-", "shard-"))]
        if others:
            raise ValueError(
                f"{str(self.path)!r} is no region store and is not empty ({', '.join(sorted(others)[:_NAMED])}); give a new or "
                "empty folder."
            )
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        write_whole(self.path / _MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))

    def plan(self, ids: Sequence[str], shard_size: int, mended: Collection[str] = ()) -> list[PlannedShard]:
        """Return all shards, after ids that are in no plan yet have got one of their own.

        Args:
            ids: in order.
            shard_size: ids a new shard.
            mended: ids that could not be read, and can be now; they are planned again.
        """
        shards = self.planned_shards()
        known = {identifier for shard in shards for identifier in shard.ids}
        waiting = {identifier for shard in shards if not self.features(shard.number).is_file() for identifier in shard.ids}
        known -= set(mended) - waiting
        new = [identifier for identifier in ids if identifier not in known]
        if not new:
            return shards
        file = self.path / f"plan-{len(self._plans()):05}.arrow"
        schema = pa.schema([("id", pa.large_string())], metadata={_SHARD_SIZE: str(shard_size).encode()})
        table = pa.table({"id": pa.array(new, pa.large_string())}, schema=schema)
        write_whole(file, lambda temporary: _write_arrow(temporary, table))
        return self.planned_shards()

    def planned_shards(self) -> list[PlannedShard]:
        """Return all shards with their ids."""
        shards: list[PlannedShard] = []
        for file in self._plans():
            table = _open_arrow(file)
            size = int(table.schema.metadata[_SHARD_SIZE])
            for start in range(0, table.num_rows, size):
                shards.append(PlannedShard(len(shards), table["id"].slice(start, size).to_pylist()))
        return shards

    def num_planned_shards(self) -> int:
        """Return how many shards the plans make; reads no id."""
        tables = [_open_arrow(file) for file in self._plans()]
        return sum(-(-table.num_rows // int(table.schema.metadata[_SHARD_SIZE])) for table in tables)

    def features(self, number: int) -> Path:
        """Return the file of a shard's features; it exists when the shard is done."""
        return self.path / f"shard-{number:05}.safetensors"

    def rows(self, number: int) -> pa.Table:
        """Return the rows of a finished shard, memory-mapped."""
        return _open_arrow(self.path / f"shard-{number:05}.arrow")

    def unreadable(self) -> dict[str, str]:
        """Return id -> problem of what was to be described and could not be read, and was not since."""
        found: dict[str, str] = {}
        for number in range(self.num_planned_shards()):
            if not self.features(number).is_file():
                continue
            for identifier in set(self.rows(number)["id"].to_pylist()).intersection(found) if found else ():
                del found[identifier]
            file = self.features(number).with_suffix(".unreadable.jsonl")
            for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else ():
                if line:
                    entry = json.loads(line)
                    found[entry["id"]] = entry["problem"]
        return found

    def write_shard(
        self, number: int, rows: Sequence[StoredImage], manifest: RegionManifest, unreadable: dict[str, str] | None = None
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
        for leftover in self.path.glob(f".shard-{number:05}.*"):
            leftover.unlink(missing_ok=True)
        checked = [row.regions.checked(f"image {row.id!r}", manifest.feature_size) for row in rows]
        file = self.features(number)
        problems = file.with_suffix(".unreadable.jsonl")
        if unreadable:
            entries = [{"id": identifier, "problem": problem} for identifier, problem in unreadable.items()]
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            write_whole(problems, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        else:
            problems.unlink(missing_ok=True)
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
        write_whole(file.with_suffix(".arrow"), lambda temporary: _write_arrow(temporary, table))
        features = torch.cat([torch.zeros(0, manifest.feature_size), *(regions.features for regions in checked)])
        stored = features.to(DTYPES[manifest.dtype]).contiguous()
        if not stored.isfinite().all():
            raise ValueError(f"A feature is beyond {manifest.dtype}'s largest value; store the regions as float32.")
        write_whole(file, lambda temporary: save_file({FEATURES: stored}, temporary))

    def _plans(self) -> list[Path]:
        return sorted(self.path.glob("plan-*.arrow"))


def fill_store(
    folder: str | os.PathLike[str],
    manifest: RegionManifest,
    ids: Sequence[str],
    describe: Callable[[list[str]], Iterable[StoredImage | UnreadableImage]],
    mended: Collection[str] = (),
) -> int:
    """Write a store from a function that describes the images of one shard, in order; shards that are done are passed over.

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


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write under a hidden name and rename, so that a kill leaves the file whole or absent.

    Args:
        file: its final path.
        write: writes the path that it is given.
    """
    temporary = file.with_name(f".{file.stem}.{secrets.token_hex(6)}")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _first_difference(before: Any, now: Any) -> tuple[Any, Any]:
    """What differs: of two settings, the first entry that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                return {name: before.get(name)}, {name: now.get(name)}
    return before, now


def _open_arrow(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{str(file)!r} is missing or damaged ({error}); remove the shard's .safetensors and run the command that made the "
            "store again, or copy the file again."
        ) from error


def _write_arrow(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


__all__ = [
    "DTYPES",
    "FEATURES",
    "SHARD_SIZE",
    "PlannedShard",
    "RegionFolder",
    "RegionManifest",
    "StoredImage",
    "UnreadableImage",
    "check_manifest",
    "fill_store",
    "write_whole",
]
