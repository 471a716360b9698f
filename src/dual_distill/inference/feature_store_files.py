"""A feature store's folder: which files there are, what each holds, and how each appears whole or not at all.

| file | content |
|---|---|
| `store.json` | the manifest: what is stored, with which model, processor and settings |
| `plan-00000.arrow` | ids in input order, cut into shards; a later call with new images adds `plan-00001.arrow` |
| `shard-00000.unreadable.jsonl` | ids of that shard that could not be read, and why; only where there are such |
| `shard-00000.arrow` | `id` and `sha256` of the rows of that shard |
| `shard-00000.safetensors` | `pooled` `(rows, C)`, and `projected` `(rows, 2C)` on request; written last: it says "done" |

Of a model that searches by cosine, the vectors are `normalised` `(rows, P)`, its projections of length 1, in place of both.

What is unusual: there is no file that several processes write. A plan is created once and never changed, a shard belongs to
one process, and so a store of several machines is merged by the files lying in one folder.
"""

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PROJECTED = "projected"
Vectors = Literal["pooled", "normalised"]
POOLED: Vectors = "pooled"
NORMALISED: Vectors = "normalised"
_MANIFEST = "store.json"
_SHARD_SIZE = b"shard_size"
_NAMED = 3


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        kind: what was encoded.
        dtype: of the stored vectors, "float16" or "float32".
        width: C of the pooled vectors, P of normalised ones.
        projected: whether the `2C`-wide halves of the interaction are stored too.
        shard_size: ids a shard.
        batch_size: rows a forward pass.
        model: name, revision, digests of weights and configuration, and the dtype that it computed in.
        processor: settings of the image processor, or the digest of the tokenizer and its limit.
        vectors: what is stored of each row: "pooled" to be asked questions, "normalised" to be searched by cosine.
        format: version of this layout.
    """

    kind: Literal["image", "text"]
    dtype: str
    width: int
    projected: bool
    shard_size: int
    batch_size: int
    model: dict[str, Any]
    processor: dict[str, Any]
    vectors: Vectors = POOLED
    format: int = FORMAT


@dataclass(frozen=True)
class PlannedShard:
    """One shard as it was planned.

    Attributes:
        number: counted over all plans of a store.
        ids: in input order.
    """

    number: int
    ids: list[str]


class StoreFolder:
    """Reads and writes the files of one store.

    Args:
        path: the folder; need not exist yet.

    Example:
        >>> StoreFolder("no/such/store").manifest() is None
        True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def manifest(self) -> Manifest | None:
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
                    f"{str(file)!r} has format {content.get('format')!r}, but this version reads {FORMAT}; encode again into "
                    "another folder, or take the version of dual_distill that wrote it."
                )
            return Manifest(**content)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{str(file)!r} is not the manifest of a feature store ({error}); give a folder that `dual-distill encode` "
                "wrote."
            ) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Make the folder and its manifest.

        Raises:
            ValueError: the folder holds other things.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        others = [
            entry.name for entry in os.scandir(self.path) if not entry.name.startswith((".", _MANIFEST, "plan-", "shard-"))
        ]
        if others:
            raise ValueError(
                f"{str(self.path)!r} is no feature store and is not empty ({', '.join(sorted(others)[:_NAMED])}); give a new "
                "or empty folder."
            )
        text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        _written(self.path / _MANIFEST, lambda file: file.write_text(text, encoding="utf-8"))

    def plans(self) -> list[Path]:
        """Return the files of the plans, oldest first."""
        return sorted(self.path.glob("plan-*.arrow"))

    def num_planned_shards(self) -> int:
        """Return how many shards the plans make; reads no id."""
        return sum(_num_shards(_open_arrow(file)) for file in self.plans())

    def planned_shards(self) -> list[PlannedShard]:
        """Return all shards with their ids."""
        shards: list[PlannedShard] = []
        for file in self.plans():
            table = _open_arrow(file)
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
            _written(file, lambda temporary: _write_arrow(temporary, table), exclusive=True)
        except FileExistsError:
            return False
        return True

    def features(self, number: int) -> Path:
        """Return the file of a shard's vectors; it exists when the shard is done."""
        return self.path / f"shard-{number:05}.safetensors"

    def rows(self, number: int) -> pa.Table:
        """Return `id` and `sha256` of a shard's rows, memory-mapped."""
        return _open_arrow(self.path / f"shard-{number:05}.arrow")

    def unreadable(self, number: int) -> list[dict[str, Any]]:
        """Return `id`, `problem` and `sha256` (None where there were no bytes) of what a shard could not read."""
        file = self.path / f"shard-{number:05}.unreadable.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def all_unreadable(self) -> dict[str, str]:
        """Return id -> problem of everything that no finished shard could read."""
        found: dict[str, str] = {}
        for number in range(self.num_planned_shards()):
            if not self.features(number).is_file():
                continue
            if found:  # mended since, and encoded with a later plan
                ids = self.rows(number)["id"]
                for mended in ids.filter(pc.is_in(ids, value_set=pa.array(list(found), ids.type))).to_pylist():
                    del found[mended]
            found |= {entry["id"]: entry["problem"] for entry in self.unreadable(number)}
        return found

    def write_shard(
        self, number: int, ids: Sequence[str], hashes: Sequence[str], features: dict[str, torch.Tensor], unreadable: list[dict]
    ) -> None:
        """Write one shard, the vectors last; what a killed run left of it is replaced.

        Args:
            number: of the shard.
            ids: one a row.
            hashes: likewise.
            features: the manifest's `vectors` `(rows, width)` and perhaps `projected` `(rows, 2C)`, contiguous, on the CPU.
            unreadable: as `unreadable()` returns it.
        """
        for leftover in self.path.glob(f".shard-{number:05}.*"):
            leftover.unlink(missing_ok=True)
        file = self.features(number)
        if unreadable:
            lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in unreadable)
            _written(file.with_suffix(".unreadable.jsonl"), lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        else:
            file.with_suffix(".unreadable.jsonl").unlink(missing_ok=True)
        table = pa.table({"id": pa.array(ids, pa.large_string()), "sha256": pa.array(hashes, pa.string())})
        _written(file.with_suffix(".arrow"), lambda temporary: _write_arrow(temporary, table))
        _written(file, lambda temporary: save_file(features, temporary))

    def read(self, number: int, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows `start` to `stop` of a shard's vectors of that name, in the stored dtype; the rest is not read.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(self.features(number), "pt") as file:
                return file.get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise ValueError(self._damaged(number, error)) from error

    def num_rows(self, number: int) -> int:
        """Return the rows of a finished shard; reads its header alone.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(self.features(number), "pt") as file:
                return file.get_slice(next(iter(file.keys()))).get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise ValueError(self._damaged(number, error)) from error

    def _damaged(self, number: int, error: Exception) -> str:
        return (
            f"{str(self.features(number))!r} is damaged ({error}); remove it and run the encode command again, which makes "
            "that shard anew."
        )


def _num_shards(table: pa.Table) -> int:
    return -(-table.num_rows // int(table.schema.metadata[_SHARD_SIZE]))


def _open_arrow(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{str(file)!r} is missing or damaged ({error}); remove the shard's .safetensors and run the encode command again, "
            "or copy the file again."
        ) from error


def _write_arrow(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _written(file: Path, write: Callable[[Path], object], exclusive: bool = False) -> None:
    """Write under a hidden name and rename, so that a kill leaves the file whole or absent; `exclusive` keeps an old one."""
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


__all__ = ["DTYPES", "NORMALISED", "POOLED", "PROJECTED", "Manifest", "PlannedShard", "StoreFolder", "Vectors"]
