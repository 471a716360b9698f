"""Inputs by id, decoded ahead by the workers of a data loader, and run through a model in batches of one shape.

What is unusual: nothing is padded. Inputs wait until `batch_size` of one shape are there, in an order that follows from
the plan of the shard alone. So a result depends neither on the size of its neighbours nor on how often the run was
killed.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader

from .images import ImageError
from .sharded_table import PlannedShard

_WAITING_BATCHES = 4
_MOST_WORKERS = 16
_INPUTS_OF_A_WORKER = 16  # fewer are read sooner than another process starts
_AHEAD_OF_A_WORKER = 4


class InputSource(Protocol):
    """Inputs by id, undecoded, such as `open_images` returns them."""

    ids: list[str]

    def value(self, identifier: str) -> Any:
        """Return what `decode_image` accepts, or a text."""


class Prepared(NamedTuple):
    """What is made of an input before a model sees it.

    Attributes:
        values: what the model reads of it.
        known: what is kept beside the result, such as the fingerprint of the content.
    """

    values: torch.Tensor
    known: Any = None


def _prepared(
    source: InputSource, given: Container[str], prepare: Callable[[str, Any], Prepared], identifier: str
) -> Prepared | ImageError:
    """What `prepare` makes of an input; an error is handed over, not raised, so that it crosses processes."""
    if identifier not in given:
        return ImageError(f"row {identifier}: it was planned, but is not among those given now.")
    try:
        return prepare(identifier, source.value(identifier))
    except ImageError as error:
        return error


def _as_numpy(prepare: Callable[[str], Prepared | ImageError], identifier: str) -> Any:
    # An array crosses processes at half the cost of a tensor, which would take shared memory and an open file.
    prepared = prepare(identifier)
    return prepared if isinstance(prepared, ImageError) else (prepared.values.numpy(), prepared.known)


def decode_ahead(
    source: InputSource, ids: Sequence[str], prepare: Callable[[str, Any], Prepared], num_workers: int | None = None
) -> Iterator[Prepared | ImageError]:
    """Yield what becomes of inputs, in their order, a few ahead of the one that is asked for.

    Args:
        source: where the inputs are.
        ids: which of them.
        prepare: id and value -> `Prepared`; raises `ImageError` for what cannot be read.
        num_workers: processes that read and decode, 0 for none; None: one a core, 16 at most, none for few inputs.
    """
    if num_workers is None:
        num_workers = min(_MOST_WORKERS, os.cpu_count() or 1, len(ids) // _INPUTS_OF_A_WORKER)

    made_of = partial(_as_numpy, partial(_prepared, source, frozenset(source.ids), prepare))
    ahead = _AHEAD_OF_A_WORKER if num_workers else None
    # Workers are seeded from a generator of their own, not from that of everyone else.
    own: dict[str, Any] = {"generator": torch.Generator(), "prefetch_factor": ahead, "num_workers": num_workers}
    loader: DataLoader[Any] = DataLoader(list(ids), batch_size=None, collate_fn=made_of, **own)  # type: ignore[arg-type]
    for prepared in loader:
        yield prepared if isinstance(prepared, ImageError) else Prepared(torch.from_numpy(prepared[0]), prepared[1])


def is_readable(source: InputSource, prepare: Callable[[str, Any], Prepared], identifier: str) -> bool:
    """Return whether an input that could not be read can be now."""
    return isinstance(_prepared(source, source.ids, prepare, identifier), Prepared)


def run_by_shape(
    run: Callable[[list[Prepared]], Iterable[Any]], inputs: Iterable[tuple[Any, Prepared]], batch_size: int
) -> Iterator[tuple[Any, Any]]:
    """Run inputs in batches of one shape, and yield keys and results; the order follows from the inputs alone.

    Args:
        run: inputs of one shape -> their results.
        inputs: key and input, one after the other.
        batch_size: inputs a forward pass.

    Example:
        >>> inputs = enumerate(map(Prepared, (torch.ones(2), torch.ones(3), torch.zeros(2))))
        >>> list(run_by_shape(lambda batch: [len(batch) for _ in batch], inputs, batch_size=2))
        [(0, 2), (2, 2), (1, 1)]
    """
    waiting: defaultdict[torch.Size, list[tuple[Any, Prepared]]] = defaultdict(list)

    def run_batch(shape: torch.Size) -> Iterator[tuple[Any, Any]]:
        keys, batch = zip(*waiting.pop(shape), strict=True)
        return zip(keys, run(list(batch)), strict=True)

    for key, prepared in inputs:
        shape = prepared.values.shape
        waiting[shape].append((key, prepared))
        if len(waiting[shape]) == batch_size:
            yield from run_batch(shape)
        # A rare shape would wait for ever, and everything behind it with it.
        elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * batch_size:
            yield from run_batch(max(waiting, key=lambda shape: len(waiting[shape])))

    for shape in list(waiting):
        yield from run_batch(shape)


class FilledShard(NamedTuple):
    """A shard with the results of its inputs, and the problems of those that cannot be read."""

    number: int
    results: dict[str, Any]
    unreadable: dict[str, str]


def fill_shards(
    shards: Sequence[PlannedShard],
    source: InputSource,
    prepare: Callable[[str, Any], Prepared],
    run: Callable[[list[Prepared]], Iterable[Any]],
    batch_size: int,
    strict: bool = False,
    num_workers: int | None = None,
    bar: Any = None,
) -> Generator[FilledShard, None, None]:
    """Yield shards one after the other, filled; inputs are decoded ahead across them.

    Args:
        shards: what is to be filled.
        source: as in `decode_ahead`.
        prepare: likewise.
        run: inputs of one shape -> their results, with what is known of each among them.
        batch_size: inputs a forward pass.
        strict: whether something unreadable ends the run.
        num_workers: as in `decode_ahead`.
        bar: of progress, told of each input.

    Raises:
        ValueError: an input cannot be read, and `strict` is set.
    """
    decoded = decode_ahead(source, [identifier for shard in shards for identifier in shard.ids], prepare, num_workers)
    for shard in shards:
        unreadable: dict[str, str] = {}
        readable = _readable(zip(shard.ids, decoded, strict=False), unreadable, strict, bar)
        found = dict(run_by_shape(run, readable, batch_size))
        yield FilledShard(shard.number, {name: found[name] for name in shard.ids if name in found}, unreadable)


def _readable(decoded: Iterable[tuple[str, Any]], unreadable: dict[str, str], strict: bool, bar: Any) -> Any:
    """The inputs that could be read, by id; what is wrong with the others goes into `unreadable`, or ends the run."""
    for identifier, prepared in decoded:
        if isinstance(prepared, Prepared):
            yield identifier, prepared
        elif strict:
            raise ValueError(f"{prepared} Without strict, it is listed and the run goes on.") from prepared
        else:
            unreadable[identifier] = str(prepared)
        if bar is not None:
            bar.update()
