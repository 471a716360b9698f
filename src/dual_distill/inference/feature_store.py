"""A feature store, opened: vectors by id, by place, or all of them in pieces, read from disk as they are asked for.

Opening reads headers, never vectors: a store of millions opens in a fraction of a second and takes no memory of its
own. The files are memory-mapped; what was read once stays in the system's cache as long as that has room.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from .feature_store_files import POOLED, PROJECTED, Manifest, StoreFolder

_NAMED = 3


class FeatureStore:
    """The vectors that `encode_images` or `encode_texts` wrote; read-only.

    Rows are in the order of the plans: as they were given, later additions behind.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: shards are missing, since the encoding was not finished, or a file is damaged.

    Example:
        >>> FeatureStore("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no feature store 'no/such/store'; `dual-distill encode` makes one.
    """

    manifest: Manifest

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = StoreFolder(path)
        self.path = str(path)
        manifest = self._folder.manifest()
        if manifest is None:
            raise FileNotFoundError(f"There is no feature store {self.path!r}; `dual-distill encode` makes one.")
        self.manifest = manifest
        shards = self._folder.num_planned_shards()
        missing = [number for number in range(shards) if not self._folder.features(number).is_file()]
        if missing or not shards:
            raise ValueError(
                f"The store {self.path!r} lacks {len(missing)} of {shards} shards (the first is number "
                f"{(missing or [0])[0]}): "
                "its encoding was not finished. The same encode command continues it; shards of other machines belong "
                "beside "
                "these."
            )
        # Place of the first row of each shard, and behind the last one the number of all rows.
        self._starts = [0, *accumulate(self._folder.num_rows(number) for number in range(shards))]
        self._known: dict[str, int] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"FeatureStore({self.path!r}, {len(self):,} {manifest.kind}s, {manifest.width} x {manifest.dtype})"

    def pieces(self, name: str | None = None, rows: int = 1024) -> Iterator[tuple[int, torch.Tensor]]:
        """Run through all vectors in constant memory.

        Args:
            name: "pooled", or "projected" where the store has it; "normalised" where a retrieval head made it. None:
                what `manifest.vectors` says.
            rows: most rows a piece.

        Yields:
            The place of the first row, and `(rows, width)` (twice that for projected) in the stored dtype.

        Raises:
            ValueError: the store has no such vectors.
        """
        name = self._checked_name(name)
        for number, start in enumerate(self._starts[:-1]):
            shard_rows = self._starts[number + 1] - start
            for first in range(0, shard_rows, rows):
                yield start + first, self._folder.read(number, name, first, min(first + rows, shard_rows))

    def read(self, places: Sequence[int], name: str | None = None) -> torch.Tensor:
        """Return the vectors at some places, `(places, width)` in the stored dtype, in their order; a place may occur
        twice.

        Raises:
            IndexError: there is no such place.
            ValueError: the store has no such vectors.
        """
        name = self._checked_name(name)
        width = self.manifest.width * (2 if name == PROJECTED else 1)
        found = torch.empty(len(places), width, dtype=getattr(torch, self.manifest.dtype))
        for number, positions in self._by_shard(places).items():
            inside = [places[position] - self._starts[number] for position in positions]
            lowest = min(inside)
            piece = self._folder.read(number, name, lowest, max(inside) + 1)
            found[positions] = piece[[place - lowest for place in inside]]
        return found

    def ids(self, places: Sequence[int] | None = None) -> list[str]:
        """Return the ids at some places, or all of them.

        Raises:
            IndexError: there is no such place.
        """
        if places is None:
            return [
                identifier for number in range(len(self._starts) - 1) for identifier in self._column(number).to_pylist()
            ]
        found = [""] * len(places)
        for number, positions in self._by_shard(places).items():
            column = self._column(number)
            for position in positions:
                found[position] = column[places[position] - self._starts[number]].as_py()
        return found

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return the places of some ids; the first look for an id runs through the ids of the store.

        Raises:
            ValueError: ids are not in the store; the message names some, and says of the unreadable ones why.
        """
        unknown = {identifier for identifier in ids if identifier not in self._known}
        self._known |= self._find(unknown)
        if absent := [identifier for identifier in ids if identifier not in self._known]:
            problems = self._folder.all_unreadable()
            named = "; ".join(problems.get(identifier, repr(identifier)) for identifier in absent[:_NAMED])
            raise ValueError(
                f"The store {self.path!r} lacks {len(absent)} of the {self.manifest.kind}s asked for: {named}. Its "
                f"ids are "
                f"like {', '.join(map(repr, self.ids(range(min(_NAMED, len(self))))))}; encode what is missing first."
            )
        return [self._known[identifier] for identifier in ids]

    def holds(self, ids: Sequence[str]) -> list[bool]:
        """Return for each id whether it is in the store."""
        self._known |= self._find({identifier for identifier in ids if identifier not in self._known})
        return [identifier in self._known for identifier in ids]

    def __getitem__(self, identifier: str) -> torch.Tensor:
        return self.read(self.places([identifier]))[0]

    def content_hashes(self, places: Sequence[int]) -> list[str]:
        """Return the SHA-256 of the content that was encoded, at some places."""
        found = [""] * len(places)
        for number, positions in self._by_shard(places).items():
            column = self._folder.rows(number)["sha256"]
            for position in positions:
                found[position] = column[places[position] - self._starts[number]].as_py()
        return found

    def unreadable(self) -> dict[str, str]:
        """Return id -> problem of what was to be encoded and could not be read."""
        return self._folder.all_unreadable()

    @property
    def has_projections(self) -> bool:
        """Whether the halves of the interaction are stored too."""
        return self.manifest.projected

    def _find(self, ids: set[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        wanted = pa.array(sorted(ids), pa.large_string())
        for number, start in enumerate(self._starts[:-1]):
            if len(found) == len(ids):
                break
            column = self._column(number)
            for place in pc.indices_nonzero(pc.is_in(column, value_set=wanted)).to_pylist():
                found[column[place].as_py()] = start + place
        return found

    def _column(self, number: int) -> Any:
        return self._folder.rows(number)["id"]

    def _by_shard(self, places: Sequence[int]) -> dict[int, list[int]]:
        """Shard -> positions in `places` of the rows that lie in it."""
        shards: dict[int, list[int]] = {}
        for position, place in enumerate(places):
            if not 0 <= place < len(self):
                raise IndexError(
                    f"Place {place} was asked for, but the store {self.path!r} has places 0 to {len(self) - 1}."
                )
            shards.setdefault(bisect_right(self._starts, place) - 1, []).append(position)
        return shards

    def _checked_name(self, name: str | None) -> str:
        names = [self.manifest.vectors, *([PROJECTED] if self.has_projections else [])]
        if name is not None and name not in names:
            how = "encode with projected=True" if name == PROJECTED and POOLED in names else "encode with another head"
            raise ValueError(f"The store {self.path!r} holds {' and '.join(names)} vectors, not {name!r}; {how}.")
        return name or names[0]


__all__ = ["FeatureStore"]
