"""Rows with an id in a folder, shard by shard: what feature stores, region stores and teacher caches are made of.

| file | content |
|---|---|
| the manifest, in JSON | what the table holds and how it was made, with a SHA-256 of its own |
| `plan-00000.arrow` | an Arrow stream: ids in input order, cut into shards; new ids later are `plan-00001.arrow` |
| `shard-00000.arrow` | two Arrow streams: one row an id (with what could not be read, and why), and the vectors |

Behind its streams an .arrow file has their lengths, rows and SHA-256. It is memory-mapped; a digest is compared when
its stream is first read, so opening is quick and a damaged shard is named, never read as good. A shard is written
whole or made again from its beginning, so a killed run that continues comes out the same, bit for bit.

What is unusual: any number of processes may write one table. None waits, and none removes a file of another one that
lives (`sealed.write_file`).
"""

import json
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dual_distill.sealed import remove_leftovers, write_file

from .fingerprint import fingerprint
from .images import other_names

FORMAT = 2
_SEAL = struct.Struct("<QQ32s")  # of a stream: bytes, rows, SHA-256
_SHARD_SIZE = b"shard_size"
_UNREADABLE = b"unreadable"
_NAMED = 3


class PlannedShard(NamedTuple):
    """One shard as it was planned: its number, counted over all plans, and its ids in input order."""

    number: int
    ids: list[str]


class ShardedTable:
    """Reads and writes the files of one table; what its manifest and its columns mean is the subclass's.

    Args:
        path: the folder; need not exist yet.

    Attributes:
        kind: of table, for sentences, such as "feature store".
        made_by: what makes it, likewise.
        manifest_name: file of the manifest.
        keys: columns of the rows by whose values `find` finds one.
        names_images: whether these name images.

    Example:
        >>> ShardedTable("no/such/folder").planned_shards()
        []
    """

    kind = "sharded table"
    made_by = "dual-distill"
    manifest_name = "manifest.json"
    keys: tuple[str, ...] = ("id",)
    names_images = False
    starts: list[int]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._read: dict[tuple[Path, int], pa.Table] = {}

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the fields of the manifest, None where there is none.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        file = self.path / self.manifest_name
        if not file.is_file():
            return None

        name, again = repr(str(file)), f"repeat {self.made_by} into another folder"
        try:
            text = file.read_text(encoding="utf-8")
            content: dict[str, Any] = json.loads(text)
            found, _ = content.pop("format", None), content.pop("sha256", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{name} is not the manifest of a {self.kind} ({error}); {again}.") from error

        if found != FORMAT:
            raise ValueError(f"{name} has format {found!r}, but this version reads {FORMAT}; {again}.")
        if text != _manifest_text(content):
            raise ValueError(f"{name} is damaged: its content does not fit its sha256; copy it again, or {again}.")
        return content

    def begin(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make the folder and its manifest, and return it; or return the one that is there.

        Raises:
            ValueError: the folder holds other things.
        """
        if (found := self.read_manifest()) is not None:
            # Files that are there are not written again, with which those of killed writers would go.
            remove_leftovers(self.path)
            return found

        names = [self.path.name] if self.path.is_file() else [file.name for file in self.path.glob("*")]
        others = sorted(name for name in names if not name.startswith((".", self.manifest_name, "plan-", "shard-")))
        if others:
            problem = f"{str(self.path)!r} is no {self.kind} and is not empty ({', '.join(others[:_NAMED])})"
            raise ValueError(f"{problem}; give a new or empty folder.")

        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / self.manifest_name, _manifest_text(manifest), exclusive=True)
        # Another process may have been faster, and its manifest holds.
        return self.begin(manifest)

    def check_settings(self, manifest: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Refuse to continue a table that was begun with other settings than those given.

        Raises:
            ValueError: they differ; the message gives both values of each.
        """
        as_read = json.loads(json.dumps(given))  # tuples are lists there, keys are strings
        if differences := "; ".join(_differences(manifest, as_read)):
            begun = f"The {self.kind} {str(self.path)!r} was begun with other settings ({differences})"
            raise ValueError(f"{begun}; repeat those that began it, or give another folder.")

    def planned_shards(self) -> list[PlannedShard]:
        """Return all shards with their ids."""
        plans = [(plan["id"], start, size) for plan, size in self._plans() for start in range(0, len(plan), size)]
        return [PlannedShard(n, ids.slice(start, size).to_pylist()) for n, (ids, start, size) in enumerate(plans)]

    def _plans(self) -> list[tuple[pa.Table, int]]:
        """The plans, oldest first, and how many ids of each make a shard."""
        plans = [self._stream(file, 0, streams=1) for file in sorted(self.path.glob("plan-*.arrow"))]
        return [(plan, int(plan.schema.metadata[_SHARD_SIZE])) for plan in plans]

    def plan(
        self, ids: Sequence[str], shard_size: int, is_readable: Callable[[str], bool] | None = None
    ) -> list[PlannedShard]:
        """Return all shards, after ids that are in no plan yet have got one of their own.

        Args:
            ids: in order.
            shard_size: ids a new shard.
            is_readable: asked of ids that could not be read; those that can be now are planned once more.
        """
        while True:
            # Counted before the plans are read: one that another process adds after that takes this number.
            number = len(list(self.path.glob("plan-*.arrow")))
            shards = self.planned_shards()
            waiting = {name for shard in shards if not self.is_done(shard.number) for name in shard.ids}
            # Looked up anew in each round, since another process may have read them since.
            repeated = {name for name in self.unreadable() if name not in waiting and is_readable and is_readable(name)}
            known = {name for shard in shards for name in shard.ids} - repeated
            new = [name for name in ids if name not in known]

            if not new:
                return shards

            plan = pa.table({"id": pa.array(new, pa.large_string())})
            plan = plan.replace_schema_metadata({_SHARD_SIZE: str(shard_size)})
            write_file(self.path / f"plan-{number:05}.arrow", _sealed(plan), exclusive=True)

    def shard_file(self, number: int) -> Path:
        """Return the file of a shard; it exists when the shard is done."""
        return self.path / f"shard-{number:05}.arrow"

    def is_done(self, number: int) -> bool:
        """Return whether a shard is written."""
        return self.shard_file(number).is_file()

    def write(
        self, number: int | None, rows: pa.Table, vectors: pa.Table, unreadable: Mapping[str, str] | None = None
    ) -> int:
        """Write one shard, and return its number.

        Args:
            number: of the shard; None: the next one that no process has written.
            rows: with a column `id`.
            vectors: columns by name (`tensor_column`); may have another number of rows.
            unreadable: id -> problem of what is missing among the rows.
        """
        problems = json.dumps(dict(unreadable or {}), ensure_ascii=False)
        content = _sealed(rows.replace_schema_metadata({_UNREADABLE: problems}), vectors)

        # Whoever fills a planned shard writes the same bytes; without a plan, each file is somebody's own.
        if number is not None:
            write_file(self.shard_file(number), content)
            return number

        number = len(list(self.path.glob("shard-*.arrow")))
        while not write_file(self.shard_file(number), content, exclusive=True):
            number += 1
        return number

    def num_rows(self, number: int) -> int:
        """Return the rows of a finished shard without reading them."""
        return int(_SEAL.unpack(self._seals(number)[0])[1])

    def _seals(self, number: int) -> tuple[bytes, bytes]:
        """What a finished shard is sealed with: its rows, and its vectors."""
        file = self.shard_file(number)
        try:
            with file.open("rb") as source:
                source.seek(-2 * _SEAL.size, os.SEEK_END)
                return source.read(_SEAL.size), source.read(_SEAL.size)
        except OSError as error:
            raise ValueError(self._damaged(file, error)) from error

    def rows(self, number: int) -> pa.Table:
        """Return the rows of a finished shard, memory-mapped."""
        return self._stream(self.shard_file(number), 0)

    def vectors(self, number: int) -> pa.Table:
        """Return the columns of vectors of a finished shard, memory-mapped."""
        return self._stream(self.shard_file(number), 1)

    def tensor(self, number: int, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows `start` to `stop` of a column of vectors, `(rows, width)` in the stored dtype.

        Of a column of lists (`tensor_column` with lengths), the vectors of these rows one behind the other.
        """
        return torch.from_numpy(np.concatenate(self.arrays(number, name, start, stop)))

    def arrays(self, number: int, name: str, start: int = 0, stop: int | None = None) -> list[npt.NDArray[Any]]:
        """Return what `tensor` returns as the mapped file holds it: without a copy, read-only, in one piece or none."""
        column = self.vectors(number)[name]
        # Slices of Arrow share its buffers.
        pieces, vector = column.slice(start, None if stop is None else stop - start).chunks, column.type
        if pa.types.is_large_list(vector):
            pieces, vector = [piece.flatten() for piece in pieces], vector.value_type

        nothing = np.empty((0, vector.list_size), vector.value_type.to_pandas_dtype())
        return [piece.flatten().to_numpy().reshape(-1, vector.list_size) for piece in pieces] or [nothing]

    def content(self) -> str:
        """Return the fingerprint of an open table, from its manifest and what seals each shard; reads no row."""
        numbers = range(len(self.starts) - 1)
        return fingerprint(self.read_manifest(), *(b"".join(self._seals(number)) for number in numbers))

    def unreadable(self) -> dict[str, str]:
        """Return id -> problem of everything that no finished shard could read."""
        found: dict[str, str] = {}
        for shard in self.planned_shards():
            if self.is_done(shard.number):
                # Whatever was planned once more has been read since, or is listed again.
                for name in shard.ids if found else ():
                    found.pop(name, None)
                found |= json.loads(self.rows(shard.number).schema.metadata[_UNREADABLE])
        return found

    def open(self) -> dict[str, Any]:
        """Return the manifest of a finished table, and learn where its shards begin; reads no row.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: shards are missing, or a file is damaged.
        """
        manifest = self.read_manifest()
        if manifest is None:
            raise FileNotFoundError(f"There is no {self.kind} {str(self.path)!r}; {self.made_by} makes one.")

        numbers = range(sum(-(-len(plan) // size) for plan, size in self._plans()))
        missing = [number for number in numbers if not self.is_done(number)]
        if missing or not numbers:
            lacks = f"lacks {len(missing)} of {len(numbers)} shards (the first is number {(missing or [0])[0]})"
            way_out = "The same command continues it; shards of other machines belong beside these"
            raise ValueError(f"The {self.kind} {str(self.path)!r} {lacks}: it is not finished. {way_out}.")

        # The index of the first row of each shard, and behind the last one the number of all rows.
        self.starts = [0, *accumulate(map(self.num_rows, numbers))]
        return manifest

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a row of an open table, and its index in there.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < self.starts[-1]:
            found = f"the {self.kind} {str(self.path)!r} has indices 0 to {self.starts[-1] - 1}"
            raise IndexError(f"Index {index} was asked for, but {found}.")

        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]

    def find(self, key: str) -> int | None:
        """Return the index of the row of an open table that has this value in one of its `keys`, or None.

        An image is found with and without its file extension, unless several images are called so.
        """
        if (found := self._find(key)) is not None or not self.names_images:
            return found
        others = [index for index in map(self._find, other_names(key)) if index is not None]
        return others[0] if len(others) == 1 else None

    def _find(self, name: str) -> int | None:
        hashes, indices = self._index
        # Looked up by 64 bits, then compared whole.
        first, last = np.searchsorted(hashes, hash(name)), np.searchsorted(hashes, hash(name), side="right")
        for index in indices[first:last].tolist():
            number, inside = self.locate(index)
            if any(self.rows(number)[column][inside].as_py() == name for column in self.keys):
                return int(index)
        return None

    @cached_property
    def _index(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Sorted hashes of all keys and their rows: 16 bytes a key, so that a million images fit in every worker."""
        hashes: list[int] = []
        indices: list[int] = []
        # Column by column, and the sort is stable: an id wins over a content that happens to be written like it.
        for column in self.keys:
            for number, start in enumerate(self.starts[:-1]):
                found = self.rows(number)[column].to_pylist()
                hashes += [hash(key) for key in found if key is not None]
                indices += [start + inside for inside, key in enumerate(found) if key is not None]
        both = np.array([hashes, indices], dtype=np.int64)
        sorted_hashes, of_rows = both[:, np.argsort(both[0], kind="stable")]
        return sorted_hashes, of_rows

    def _stream(self, file: Path, which: int, streams: int = 2) -> pa.Table:
        """One stream of a file that holds one or two; its digest is compared the first time."""
        if (file, which) not in self._read:
            try:
                with pa.memory_map(str(file)) as source:
                    content = memoryview(source.read_buffer())

                seals = list(_SEAL.iter_unpack(content[-streams * _SEAL.size :]))
                length, num_rows, digest = seals[which]
                stream = content[seals[0][0] * which :][:length]
                if bytes.fromhex(fingerprint(stream)) != digest:
                    raise ValueError("its content does not fit its SHA-256")
                table = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
                if table.num_rows != num_rows:
                    raise ValueError(f"it has {table.num_rows} rows, not {num_rows}")
            except (pa.ArrowInvalid, OSError, struct.error, IndexError, ValueError) as error:
                raise ValueError(self._damaged(file, error)) from error
            self._read[file, which] = table
        return self._read[file, which]

    def _damaged(self, file: Path, error: Exception) -> str:
        way_out = f"copy it again, or remove it and repeat {self.made_by}, which makes it anew"
        return f"{str(file)!r} is missing or damaged ({error}); {way_out}."


class TableStore:
    """A finished table, read-only: what its subclasses share, which open `table` and say what its columns mean."""

    path: str
    table: ShardedTable

    def __len__(self) -> int:
        return self.table.starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapped files do not travel to other processes, which open the store again.
        return type(self), (self.path,)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | int) and self.table.find(str(key)) is not None

    def ids(self, indices: Sequence[int] | None = None) -> list[str]:
        """Return the ids at some indices, or all of them, in the order in which they were given.

        Args:
            indices: from 0; they may repeat.
        """
        if indices is not None:
            return [self._id_column(number)[inside].as_py() for number, inside in map(self.table.locate, indices)]
        shards = range(len(self.table.starts) - 1)
        return [identifier for number in shards for identifier in self.table.rows(number)["id"].to_pylist()]

    def _id_column(self, number: int) -> Any:
        """The ids of a shard; kept, since a search names its hits one by one."""
        if number not in self._id_columns:
            self._id_columns[number] = self.table.rows(number)["id"].combine_chunks()
        return self._id_columns[number]

    @cached_property
    def _id_columns(self) -> dict[int, Any]:
        return {}

    def unreadable(self) -> dict[str, str]:
        """Return id -> problem of what was to be stored and could not be read."""
        return self.table.unreadable()


def tensor_column(tensor: torch.Tensor, lengths: Sequence[int] | None = None) -> pa.Array:
    """Return the rows of a `(rows, width)` tensor on the CPU as a column of `ShardedTable.vectors`.

    With `lengths`, each entry of the column is a list of as many of these rows.
    """
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(tensor.contiguous().view(-1).numpy()), tensor.shape[1])
    if lengths is None:
        return vectors
    return pa.LargeListArray.from_arrays(pa.array([0, *accumulate(lengths)], pa.int64()), vectors)


def _sealed(*tables: pa.Table) -> list[Any]:
    """What a file holds: two streams, then their seals."""
    streams, seals = [], b""
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        streams.append(memoryview(sink.getvalue()))
        seals += _SEAL.pack(len(streams[-1]), table.num_rows, bytes.fromhex(fingerprint(streams[-1])))
    return [*streams, seals]


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    sealed = {**manifest, "format": FORMAT, "sha256": fingerprint(manifest)}
    return json.dumps(sealed, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = sorted({*before, *now})
        prefix = f"{name}." if name else ""
        return [one for key in names for one in _differences(before.get(key), now.get(key), f"{prefix}{key}")]
    return [] if before == now else [f"{name}: {before!r} there, {now!r} now"]
