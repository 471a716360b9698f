"""Image-text pairs as a stream: sharded by process and worker, shuffled, mixed, and resumable to the very row.

`datasets` does the sharding, the mixing and the counting of rows (`IterableDataset`, `split_dataset_by_node`,
`interleave_datasets`, `state_dict`). Two things are unusual. Its shuffle buffer loses the rows that it holds when a run
is resumed, so rows are shuffled here in blocks that follow one another: a block that was begun is read again and
continued, and nothing is lost or seen twice. And a stream for training has no end: each reader goes on to its next
epoch when it has seen its part, for a process that runs out of rows before the others leaves them waiting for its
gradients.
"""

import copy
import hashlib
import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import get_worker_info

from dual_distill.data.images import MAX_PIXELS, ImageError, decode_image
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN

from .shards import BAD_KINDS, IMAGE_TEXT_FEATURES, read_image_texts
from .sources import FoundShards, find_shards, parse_sources

STOPPING_STRATEGIES = ("all_exhausted_without_replacement", "all_exhausted", "first_exhausted")
"""When an epoch of several sources ends, in the words of `datasets.interleave_datasets`."""

_UNSHUFFLED_BLOCK = 64
_MOST_READERS = 256
_MOST_LOGGED = 20
_logger = logging.getLogger(__name__)


def load_image_text_stream(
    sources: Any,
    seed: int = 0,
    shuffle_buffer: int = 1000,
    stopping_strategy: str = "all_exhausted_without_replacement",
    skip_bad: bool = False,
    repeat: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> "ImageTextStream":
    """A stream of image-text pairs from one or several sources.

    Args:
        sources: `ImageTextSource`s or objects with their fields, such as `{"path": "cc3m/*.tar", "kind": "webdataset"}`.
        seed: order of shards and rows, and mixture, each drawn anew in each epoch.
        shuffle_buffer: rows that each reader shuffles at once and holds, undecoded; 0 keeps the order of the files.
        stopping_strategy: "all_exhausted_without_replacement": each row of each source once an epoch, mixed by weight
            as long as several sources last; "all_exhausted": until each source was seen whole, smaller ones again and
            again; "first_exhausted": until one is at its end, so that rows of the others are left out.
        skip_bad: pass over bad rows and count them (`ImageTextStream.skipped`) instead of an error at the first. Pictures
            are then decoded on the way, once more than otherwise. A broken shard ends that shard alone.
        repeat: no end, epoch after epoch (training); False: one epoch.
        max_pixels: largest accepted picture, width x height in pixels, where `skip_bad` decodes it.

    Returns:
        The stream; rows have the columns image (undecoded), caption, `__index__` (shard and key) and `__epoch__`.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: an argument or a source is wrong.

    Example:
        >>> load_image_text_stream([{"path": "no/such/*.tar", "kind": "webdataset"}])
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/*.tar' ...
    """
    if stopping_strategy not in STOPPING_STRATEGIES:
        raise ValueError(
            f"stopping_strategy is {stopping_strategy!r}, but expected is {', '.join(STOPPING_STRATEGIES)}."
        )
    if shuffle_buffer < 0:
        raise ValueError(f"shuffle_buffer is {shuffle_buffer} rows, but it is 0 (no shuffling) or more.")
    found = [find_shards(source, skip_bad) for source in parse_sources(sources)]
    for one in found:
        if not one.shards:
            raise ValueError(f"The source {one.source.path!r} has no rows; leave it out.")
    return ImageTextStream(found, seed, shuffle_buffer, stopping_strategy, skip_bad, repeat, max_pixels)


class ImageTextStream(torch.utils.data.IterableDataset):
    """The pairs of some shards, in an order that a seed fixes; made by `load_image_text_stream`.

    Within a data loader each worker reads its own shards. Its place is saved and restored by `state_dict` and
    `load_state_dict`, of each worker through `image_text_loader`.

    Args:
        found: the shards of each source.
        seed: as in `load_image_text_stream`, and so are the following.
        shuffle_buffer: rows.
        stopping_strategy: one of `STOPPING_STRATEGIES`.
        skip_bad: pass over bad rows.
        repeat: no end.
        max_pixels: limit on pictures.
        rank: which process this is.
        world_size: how many there are.
    """

    def __init__(
        self,
        found: list[FoundShards],
        seed: int,
        shuffle_buffer: int,
        stopping_strategy: str,
        skip_bad: bool,
        repeat: bool,
        max_pixels: int = MAX_PIXELS,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.found = found
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.stopping_strategy = stopping_strategy
        self.skip_bad = skip_bad
        self.repeat = repeat
        self.max_pixels = max_pixels
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._position: dict[str, Any] = _start(0)
        self._resumed: dict[str, Any] | None = None
        self._skipped = torch.zeros(_MOST_READERS, len(BAD_KINDS), dtype=torch.int64).share_memory_()

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch of all processes, bad ones included; None where a tar file does not say."""
        counts = [one.num_rows for one in self.found]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def num_shards(self) -> int:
        """Readers (processes times workers) that can have shards of their own: the fewest shards of a source."""
        return min(len(one.shards) for one in self.found)

    @property
    def skipped(self) -> Counter[str]:
        """Kind -> bad rows that were passed over so far, by the workers of this process too; not saved."""
        counts = dict(zip(BAD_KINDS, self._skipped.sum(dim=0).tolist(), strict=True))
        total = Counter({kind: count for kind, count in counts.items() if count})
        for one in self.found:
            total.update(one.skipped)
        return total

    def split(self, rank: int, world_size: int) -> "ImageTextStream":
        """The part of one process of several.

        Whole shards where their number is a multiple of `world_size`; otherwise each process reads all shards and keeps
        one row of `world_size`, which costs reading and no decoding.

        Args:
            rank: from 0.
            world_size: number of processes.

        Returns:
            A new stream at its start.
        """
        return ImageTextStream(
            self.found,
            self.seed,
            self.shuffle_buffer,
            self.stopping_strategy,
            self.skip_bad,
            self.repeat,
            self.max_pixels,
            rank,
            world_size,
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration begins with, where it does not resume.

        Args:
            epoch: from 0.
        """
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The place of this reader, as JSON can hold it: all rows up to the last one that was handed out are done."""
        position = self._position if self._resumed is None else self._resumed
        return {"reader": self._reader(), **copy.deepcopy(position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it is of a stream with other shards, seed, buffer, processes or workers.
        """
        here = self._reader()
        for name, value in state["reader"].items():
            if value != here[name]:
                raise ValueError(
                    f"The place that was saved is of a stream with {name} {value}, but here {name} is {here[name]}; "
                    f"continue "
                    "with the same data and the same numbers of processes and workers, or start anew."
                )
        self._resumed = {name: copy.deepcopy(value) for name, value in state.items() if name != "reader"}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not within the generator, whose first line runs with its first row: a place is asked for before that.
        self._position = _start(self._epoch) if self._resumed is None else self._resumed
        self._resumed = None
        return self._rows()

    def _rows(self) -> Iterator[dict[str, Any]]:
        while not self._position["finished"]:
            yield from self._rest_of_epoch()
            if not self.repeat or not self._position["blocks"]:  # without a block, this worker has no shards
                self._position["finished"] = True
            elif not self._position["usable"]:
                raise ValueError(
                    f"No row of epoch {self._position['epoch']} could be used by this reader; passed over were "
                    f"{dict(self.skipped)}."
                )
            else:
                self._position = _start(self._position["epoch"] + 1)

    def _rest_of_epoch(self) -> Iterator[dict[str, Any]]:
        position = self._position
        dataset = self._one_epoch(position["epoch"])
        if position["before_block"] is not None:
            dataset.load_state_dict(position["before_block"])
        rows = iter(dataset)
        while block := list(itertools.islice(rows, self.shuffle_buffer or _UNSHUFFLED_BLOCK)):
            after_block = dataset.state_dict()
            if self.shuffle_buffer:
                block = _shuffled(block, f"rows/{self.seed}/{position['epoch']}/{position['blocks']}")
            for row in block[position["taken"] :]:
                position["taken"] += 1
                if self._is_usable(row):
                    position["usable"] += 1
                    yield {
                        "image": row["image"],
                        "caption": row["caption"],
                        INDEX_COLUMN: row["place"],
                        EPOCH_COLUMN: position["epoch"],
                    }
            position |= {"before_block": after_block, "blocks": position["blocks"] + 1, "taken": 0}

    def _one_epoch(self, epoch: int) -> datasets.IterableDataset:
        """All rows of all sources, before shuffling; what of it this process and worker read, `datasets` decides."""
        parts = []
        for one in self.found:
            shards = list(one.shards)
            if self.shuffle_buffer:
                shards = _shuffled(shards, f"shards/{self.seed}/{epoch}/{one.source.name}")
            # IterableDataset.from_generator would do, but makes a builder with a cache folder, each time.
            examples = ExamplesIterable(read_image_texts, {"shards": shards, "skip_bad": self.skip_bad})
            parts.append(datasets.IterableDataset(examples, info=datasets.DatasetInfo(features=IMAGE_TEXT_FEATURES)))
        dataset = parts[0]
        if len(parts) > 1:
            weights = [one.source.weight for one in self.found]
            mixture = int.from_bytes(
                hashlib.blake2b(f"mixture/{self.seed}/{epoch}".encode(), digest_size=4).digest(), "big"
            )
            dataset = datasets.interleave_datasets(
                parts,
                probabilities=[weight / sum(weights) for weight in weights],
                seed=mixture,
                stopping_strategy=self.stopping_strategy,
            )
        if self.world_size > 1:
            dataset = split_dataset_by_node(dataset, rank=self.rank, world_size=self.world_size)
        return dataset

    def _is_usable(self, row: dict[str, Any]) -> bool:
        """Whether a row can be used; a bad one is counted, or is an error."""
        kind, why = row["bad"], row["why"]
        if kind is None and self.skip_bad:
            try:
                decode_image(row["image"], row["place"], self.max_pixels)
            except ImageError as error:
                kind, why = "unusable image", str(error)
        if kind is None:
            return True
        if not self.skip_bad:
            raise ValueError(
                f"{row['place']}: {why}; mend it, or leave such rows out with skip_bad=True, which counts them."
            )
        worker = get_worker_info()
        counts = self._skipped[(0 if worker is None else worker.id) % _MOST_READERS]
        counts[BAD_KINDS.index(kind)] += 1
        if counts.sum() <= _MOST_LOGGED:
            _logger.warning("passed over, %s: %s: %s", kind, row["place"], why)
        return False

    def _reader(self) -> dict[str, Any]:
        worker = get_worker_info()
        return {
            "shards": [len(one.shards) for one in self.found],
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "stopping_strategy": self.stopping_strategy,
            "rank": self.rank,
            "world_size": self.world_size,
            "worker": None if worker is None else worker.id,
            "num_workers": 0 if worker is None else worker.num_workers,
        }


def _start(epoch: int) -> dict[str, Any]:
    """The place before the first row of an epoch."""
    return {"epoch": epoch, "before_block": None, "blocks": 0, "taken": 0, "usable": 0, "finished": False}


def _shuffled(values: list[Any], key: str) -> list[Any]:
    # A string seed goes through SHA-512, and `random()` is the one method whose numbers Python promises to keep.
    numbers = random.Random(key)
    order = sorted((numbers.random(), place) for place in range(len(values)))
    return [values[place] for _, place in order]


__all__ = ["STOPPING_STRATEGIES", "ImageTextStream", "load_image_text_stream"]
