"""A folder that is filled shard by shard, by one process or several, and continues where it was killed.

| file | content |
|---|---|
| a manifest, in JSON | what the folder holds, and how it was made |
| `plan-00000.arrow` | ids in input order, cut into shards; a later call with new ids adds `plan-00001.arrow` |
| `shard-00000.unreadable.jsonl` | ids of that shard that could not be read, and why; only where there are such |
| `shard-00000.arrow` | one row an id |
| `shard-00000.safetensors` | vectors of the rows; written last: it says "done" |

No file is written by several processes: a plan is created once and never changed, and a shard belongs to one process,
is written whole or made again from its beginning. So a killed run that continues comes out the same, bit for bit, and
what several machines made is merged by lying in one folder.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save_file

_SHARD_SIZE = b"shard_size"
_NAMED = 3


class PlannedShard(NamedTuple):
    """One shard as it was planned: its number, counted over all plans, and its ids in input order."""

    number: int
    ids: list[str]


class ShardedFolder:
    """Reads and writes the files of one such folder; what its manifest and its rows mean is the subclass's.

    Args:
        path: the folder; need not exist yet.

    Attributes:
        kind: of folder, for sentences, such as "feature store".
        made_by: the command that makes it, likewise.
        manifest_name: file of the manifest.

    Example:
        >>> ShardedFolder("no/such/folder").planned_shards()
        []
    """

    kind = "sharded folder"
    made_by = "dual-distill"
    manifest_name = "manifest.json"
    version = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the fields of the manifest, None where there is none.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        file = self.path / self.manifest_name
        if not file.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found = content.get("format")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(self.no_manifest(error)) from error
        if found != self.version:
            raise ValueError(
                f"{str(file)!r} has format {found!r}, but this version reads {self.version}; run `{self.made_by}` "
                f"again into "
                "another folder, or take the version of dual_distill that wrote it."
            )
        return content

    def no_manifest(self, error: Exception) -> str:
        """Return the sentence for a manifest that is none."""
        return (
            f"{str(self.path / self.manifest_name)!r} is not the manifest of a {self.kind} ({error}); give a folder "
            f"that "
            f"`{self.made_by}` wrote."
        )

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder and its manifest.

        Raises:
            ValueError: the folder holds other things.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        ours = (".", self.manifest_name, "plan-", "shard-")
        others = [entry.name for entry in os.scandir(self.path) if not entry.name.startswith(ours)]
        if others:
            raise ValueError(
                f"{str(self.path)!r} is no {self.kind} and is not empty ({', '.join(sorted(others)[:_NAMED])}); give "
                f"a new or "
                "empty folder."
            )
        text = json.dumps(dict(manifest), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        write_whole(self.path / self.manifest_name, lambda file: file.write_text(text, encoding="utf-8"))

    def plans(self) -> list[Path]:
        """Return the files of the plans, oldest first."""
        return sorted(self.path.glob("plan-*.arrow"))

    def num_planned_shards(self) -> int:
        """Return how many shards the plans make; reads no id."""
        tables = [self._open(file) for file in self.plans()]
        return sum(-(-table.num_rows // int(table.schema.metadata[_SHARD_SIZE])) for table in tables)

    def planned_shards(self) -> list[PlannedShard]:
        """Return all shards with their ids."""
        shards: list[PlannedShard] = []
        for file in self.plans():
            table = self._open(file)
            size = int(table.schema.metadata[_SHARD_SIZE])
            for start in range(0, table.num_rows, size):
                shards.append(PlannedShard(len(shards), table["id"].slice(start, size).to_pylist()))
        return shards

    def add_plan(self, ids: Sequence[str], shard_size: int) -> bool:
        """Create the next plan; False when another process just created one, which is then to be read."""
        file = self.path / f"plan-{len(self.plans()):05}.arrow"
        schema = pa.schema([("id", pa.large_string())], metadata={_SHARD_SIZE: str(shard_size).encode()})
        table = pa.table({"id": pa.array(ids, pa.large_string())}, schema=schema)
        try:
            write_whole(file, lambda temporary: _write_arrow(temporary, table), exclusive=True)
        except FileExistsError:
            return False
        return True

    def features(self, number: int) -> Path:
        """Return the file of a shard's vectors; it exists when the shard is done."""
        return self.path / f"shard-{number:05}.safetensors"

    def rows(self, number: int) -> pa.Table:
        """Return the rows of a finished shard, memory-mapped."""
        return self._open(self.path / f"shard-{number:05}.arrow")

    def unreadable(self, number: int) -> list[dict[str, Any]]:
        """Return `id`, `problem` and what else was noted of everything that a shard could not read."""
        file = self.features(number).with_suffix(".unreadable.jsonl")
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]

    def all_unreadable(self) -> dict[str, str]:
        """Return id -> problem of everything that no finished shard could read."""
        found: dict[str, str] = {}
        for number in range(self.num_planned_shards()):
            if not self.features(number).is_file():
                continue
            if found:  # mended since, and read with a later plan
                ids = self.rows(number)["id"]
                for mended in ids.filter(pc.is_in(ids, value_set=pa.array(list(found), ids.type))).to_pylist():
                    del found[mended]
            found |= {entry["id"]: entry["problem"] for entry in self.unreadable(number)}
        return found

    def write_files(
        self, number: int, rows: pa.Table, features: dict[str, torch.Tensor], unreadable: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write one shard, the vectors last; what a killed run left of it is replaced.

        Args:
            number: of the shard.
            rows: with a column `id`.
            features: vectors by name, contiguous, on the CPU.
            unreadable: as `unreadable()` returns it.
        """
        for leftover in self.path.glob(f".shard-{number:05}.*"):
            leftover.unlink(missing_ok=True)
        file = self.features(number)
        problems = file.with_suffix(".unreadable.jsonl")
        if unreadable:
            lines = "".join(json.dumps(dict(entry), ensure_ascii=False) + "\n" for entry in unreadable)
            write_whole(problems, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        else:
            problems.unlink(missing_ok=True)
        write_whole(file.with_suffix(".arrow"), lambda temporary: _write_arrow(temporary, rows))
        write_whole(file, lambda temporary: save_file(features, temporary))

    def _open(self, file: Path) -> pa.Table:
        try:
            return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{str(file)!r} is missing or damaged ({error}); remove the shard's .safetensors and run "
                f"`{self.made_by}` "
                "again, or copy the file again."
            ) from error


def write_whole(file: Path, write: Callable[[Path], object], exclusive: bool = False) -> None:
    """Write under a hidden name and rename, so that a kill leaves the file whole or absent.

    Args:
        file: its final path.
        write: writes the path that it is given.
        exclusive: keep a file that is there.

    Raises:
        FileExistsError: there is one, and `exclusive`.
    """
    temporary = file.with_name(f".{file.stem}.{secrets.token_hex(6)}")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if exclusive:
            os.link(temporary, file)
        else:
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _write_arrow(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


__all__ = ["PlannedShard", "ShardedFolder", "write_whole"]
