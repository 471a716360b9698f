"""One process's share of an encoding: plan, decode ahead, forward pass by shape, whole shards.

What is unusual: nothing is padded. Inputs wait until `batch_size` of one shape are there, in an order that follows from
the plan of the shard alone. So a vector depends neither on the size of its neighbours nor on how often the run was
killed: a shard is written whole or made again from its beginning, and comes out the same, bit for bit.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import ImageError, PlannedShard

from .encoding_sources import Source
from .feature_store_files import DTYPES, PROJECTED, Manifest, StoreFolder

_WAITING_BATCHES = 4
_MOST_THREADS = 16
_NAMED = 3
# What threads make of an input: the tensor of a row, and the hash of its content.
Prepared = tuple[torch.Tensor, str]


@dataclass(frozen=True)
class EncodingReport:
    """What a call of `encode_images` or `encode_texts` did.

    Attributes:
        store: its folder.
        kind: "image" or "text".
        rows: rows in the finished shards.
        encoded: rows that this process added now.
        seconds: duration of encoding, without loading the model.
        missing_shards: planned shards that are not there; other processes make them, or were stopped.
        unreadable: id -> problem.
    """

    store: str
    kind: str
    rows: int
    encoded: int
    seconds: float
    missing_shards: int
    unreadable: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return asdict(self)


class ShapedBatches:
    """Rows wait here until enough of one shape are there for a forward pass; the order follows from the rows alone.

    Args:
        forward: rows of one shape -> `(rows, C)`.
        batch_size: rows a forward pass.

    Example:
        >>> batches = ShapedBatches(lambda rows: torch.stack(rows).sum(1, keepdim=True), batch_size=2)
        >>> for place, row in enumerate((torch.ones(2), torch.ones(3), torch.zeros(2))):
        ...     batches.add(place, row)
        >>> batches.finish(width=1).flatten()
        tensor([2., 3., 0.])
    """

    def __init__(self, forward: Callable[[list[torch.Tensor]], torch.Tensor], batch_size: int) -> None:
        self._forward, self._batch_size = forward, batch_size
        self._waiting: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
        self._places: list[int] = []
        self._encoded: list[torch.Tensor] = []

    def add(self, place: int, row: torch.Tensor) -> None:
        """Take a row in, and encode a batch where one is full."""
        self._waiting.setdefault(row.shape, []).append((place, row))
        if len(self._waiting[row.shape]) == self._batch_size:
            self._run(row.shape)
        elif sum(map(len, self._waiting.values())) >= _WAITING_BATCHES * self._batch_size:
            self._run(max(self._waiting, key=lambda shape: len(self._waiting[shape])))

    def _run(self, shape: torch.Size) -> None:
        places, rows = zip(*self._waiting.pop(shape), strict=True)
        self._places += places
        self._encoded.append(self._forward(list(rows)))

    def finish(self, width: int) -> torch.Tensor:
        """Encode what still waits and return all rows `(rows, C)` by their places; a GPU is waited for here alone."""
        for shape in list(self._waiting):
            self._run(shape)
        if not self._encoded:
            return torch.zeros(0, width)
        encoded = torch.cat(self._encoded)
        return encoded[torch.tensor(self._places, device=encoded.device).argsort()]


@dataclass
class EncodingRun:
    """One process's share of the shards of one store.

    Attributes:
        folder: of the store.
        manifest: of the store.
        source: what is to be encoded.
        prepare: id and value -> the tensor of a row and the hash of its content; called in threads. Raises `ImageError`
            for what cannot be read, with the attribute `sha256` where there was content.
        content_hash: id -> the hash alone.
        forward: rows of one shape -> `(rows, width)`.
        project: `(rows, C)` -> `(rows, 2C)`; None: a store without these.
        strict: whether something unreadable ends the run.
        threads: that prepare; None: one a core.
    """

    folder: StoreFolder
    manifest: Manifest
    source: Source
    prepare: Callable[[str, Any], Prepared]
    content_hash: Callable[[str], str]
    forward: Callable[[list[torch.Tensor]], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor] | None
    strict: bool
    threads: int | None

    def __call__(self, model: PreTrainedModel, verify: bool = False, show_progress: bool = False) -> EncodingReport:
        """Plan what is new, and encode what this process owns and is not done."""
        start = time.perf_counter()
        rank, world_size = process_share()
        shards = self._plan()
        if verify:
            self._verify(shards)
        mine = [
            shard
            for shard in shards
            if shard.number % world_size == rank and not self.folder.features(shard.number).is_file()
        ]
        model.eval()
        bar = tqdm(
            total=sum(len(shard.ids) for shard in mine),
            unit=f" {self.manifest.kind}s",
            desc="encode" if world_size == 1 else f"encode {rank + 1}/{world_size}",
            disable=not show_progress or not mine,
            position=rank,
        )
        encoded = 0
        with bar, torch.inference_mode():
            prepared = self._prepared(mine)
            try:
                for shard in mine:
                    encoded += self._encode(shard, islice(prepared, len(shard.ids)), bar)
            finally:
                prepared.close()
        done = [shard.number for shard in shards if self.folder.features(shard.number).is_file()]
        return EncodingReport(
            store=str(self.folder.path),
            kind=self.manifest.kind,
            rows=sum(map(self.folder.num_rows, done)),
            encoded=encoded,
            seconds=time.perf_counter() - start,
            missing_shards=len(shards) - len(done),
            unreadable=self.folder.all_unreadable(),
        )

    def _plan(self) -> list[PlannedShard]:
        """Return all shards, after ids that are not planned yet have got a plan of their own."""
        while True:
            shards = self.folder.planned_shards()
            known: set[str] = set()
            unreadable: dict[str, str | None] = {}
            for shard in shards:
                known.update(shard.ids)
                for identifier in shard.ids if unreadable else ():
                    unreadable.pop(identifier, None)
                if self.folder.features(shard.number).is_file():
                    unreadable |= {entry["id"]: entry["sha256"] for entry in self.folder.unreadable(shard.number)}

            new = [
                identifier
                for identifier in self.source.ids
                if identifier not in known
                or (identifier in unreadable and self._is_mended(identifier, unreadable[identifier]))
            ]
            if not new:
                return shards
            self.folder.add_plan(new, self.manifest.shard_size)

    def _is_mended(self, identifier: str, sha256: str | None) -> bool:
        """Whether something that could not be read is another content by now."""
        try:
            return self.content_hash(identifier) != sha256
        except ImageError:
            return False

    def _verify(self, shards: list[PlannedShard]) -> None:
        """Refuse images whose content is not that of their id in the store."""
        given = set(self.source.ids)
        changed = []
        for shard in shards:
            if self.folder.features(shard.number).is_file():
                rows = self.folder.rows(shard.number)
                for identifier, sha256 in zip(rows["id"].to_pylist(), rows["sha256"].to_pylist(), strict=True):
                    if identifier in given and self.content_hash(identifier) != sha256:
                        changed.append(identifier)
        if changed:
            raise ValueError(
                f"{len(changed)} images are not those that the store {str(self.folder.path)!r} holds under the same "
                f"ids, "
                f"such as {', '.join(map(repr, changed[:_NAMED]))}; give changed images new names, or encode "
                "into another folder."
            )

    def _prepared(self, shards: list[PlannedShard]) -> Generator[tuple[str, Future[Prepared]], None, None]:
        """Yield ids and what threads make of them, in order; a few batches ahead, also across shards."""
        given = set(self.source.ids)
        threads = self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
        ahead: deque[tuple[str, Future[Prepared]]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            for shard in shards:
                for identifier in shard.ids:
                    if identifier in given:
                        # A data set is read in this thread, a file in the other.
                        future = pool.submit(self.prepare, identifier, self.source.value(identifier))
                    else:
                        future = Future()
                        future.set_exception(
                            ImageError(f"row {identifier}: it was planned, but is not among those given now.")
                        )
                    ahead.append((identifier, future))
                    if len(ahead) > 2 * self.manifest.batch_size + threads:
                        yield ahead.popleft()
            yield from ahead
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, shard: PlannedShard, prepared: Iterator[tuple[str, Future[Prepared]]], bar: tqdm) -> int:
        """Encode and write one shard; return its rows."""
        batches = ShapedBatches(self.forward, self.manifest.batch_size)
        ids: list[str] = []
        hashes: list[str] = []
        unreadable: list[dict[str, Any]] = []
        for identifier, future in prepared:
            try:
                row, sha256 = future.result()
            except ImageError as error:
                if self.strict:
                    raise ValueError(f"{error} Without strict, it is listed and the run goes on.") from error
                unreadable.append({"id": identifier, "problem": str(error), "sha256": getattr(error, "sha256", None)})
            else:
                batches.add(len(ids), row)
                ids.append(identifier)
                hashes.append(sha256)
            bar.update()
        pooled = batches.finish(self.manifest.width)
        features: dict[str, torch.Tensor] = {self.manifest.vectors: pooled}
        if self.project is not None:
            features[PROJECTED] = self.project(pooled) if len(ids) else torch.zeros(0, 2 * self.manifest.width)
        stored = {name: tensor.to(DTYPES[self.manifest.dtype]).cpu().contiguous() for name, tensor in features.items()}
        for name, tensor in stored.items():
            if not tensor.isfinite().all():
                first = int((~tensor.isfinite().all(-1)).nonzero()[0])
                raise ValueError(
                    f"The {name} vector of {ids[first]!r} holds NaN or a value beyond {self.manifest.dtype}; is the "
                    f"model "
                    "trained and whole?"
                )
        self.folder.write_shard(shard.number, ids, hashes, stored, unreadable)
        return len(ids)


def process_share() -> tuple[int, int]:
    """Rank and number of processes, as `accelerate launch` and `torchrun` say them."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(
            f"RANK is {rank} and WORLD_SIZE {world_size}, but ranks run from 0 to WORLD_SIZE - 1; set both."
        )
    return rank, world_size


__all__ = ["EncodingReport", "EncodingRun", "ShapedBatches", "process_share"]
