"""Images with texts as a stream: sharded by process and worker, shuffled, mixed, and resumable to the very row.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import ExamplesIterable

from dual_distill.data.images import MAX_PIXELS, ImageError, decode_image
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN

from .shards import IMAGE_TEXT_FEATURES, read_image_texts
from .sources import find_shards, parse_sources

STOPPING_STRATEGIES = ("all_exhausted_without_replacement", "all_exhausted", "first_exhausted")
"""When an epoch of several sources ends, in the words of `datasets.interleave_datasets`."""

_UNSHUFFLED_BLOCK = 64
_MOST_LOGGED = 20
_logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class ImageTextStream(torch.utils.data.IterableDataset):
    """A stream of images with texts from one or several sources, in an order that a seed fixes.

    Rows have the columns image (undecoded), caption, `__index__` (shard and key) and `__epoch__`. Within a data loader
    each worker reads its own shards. The position is saved and restored by `state_dict` and `load_state_dict`, that of
    each worker through `ImageTextLoader`.

    Args:
        sources: `ImageTextSource`s or objects with their fields, `{"path": "cc3m/*.tar", "kind": "webdataset"}`.
        seed: order of shards and rows, and mixture, each drawn anew in each epoch.
        shuffle_buffer: rows that each reader shuffles at once and holds, undecoded; 0 keeps the order of the files.
        stopping_strategy: "all_exhausted_without_replacement": each row of each source once an epoch, mixed by weight
            as long as several sources last; "all_exhausted": until each source was seen whole, smaller ones again and
            again; "first_exhausted": until one is at its end, so that rows of the others are left out.
        skip_bad: pass over bad rows and count them (`skipped`) instead of an error at the first. Images are then
            decoded on the way, once more than otherwise. A broken shard ends that shard alone.
        repeat: no end, epoch after epoch (training); False: one epoch.
        max_pixels: largest accepted image, width x height in pixels, where `skip_bad` decodes it.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: an argument or a source is wrong.

    Example:
        >>> ImageTextStream([{"path": "no/such/*.tar", "kind": "webdataset"}])
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/*.tar' ...
    """

    sources: Any
    seed: int = 0
    shuffle_buffer: int = 1000
    stopping_strategy: str = "all_exhausted_without_replacement"
    skip_bad: bool = False
    repeat: bool = True
    max_pixels: int = MAX_PIXELS
    rank: int = field(default=0, init=False)
    world_size: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        """Find the shards, and begin at the first row of epoch 0."""
        if self.stopping_strategy not in STOPPING_STRATEGIES:
            known = ", ".join(STOPPING_STRATEGIES)
            raise ValueError(f"stopping_strategy is {self.stopping_strategy!r}, but expected is {known}.")
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer} rows, but must be at least 0 (no shuffling).")

        self.found = [find_shards(source, self.skip_bad) for source in parse_sources(self.sources)]
        if empty := [one.source.path for one in self.found if not one.shards]:
            raise ValueError(f"The source {empty[0]!r} has no rows; leave it out.")
        self._epoch = 0
        self._position: dict[str, Any] = _start(0)
        self._resumed: dict[str, Any] | None = None

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch of all processes, bad ones included; None where a tar file does not say."""
        counts = [one.num_rows for one in self.found if one.num_rows is not None]
        return sum(counts) if len(counts) == len(self.found) else None

    @property
    def num_shards(self) -> int:
        """Readers (processes times workers) that can have shards of their own: the fewest shards of a source."""
        return min(len(one.shards) for one in self.found)

    @property
    def skipped(self) -> Counter[str]:
        """Kind -> bad rows that were passed over in this iteration; of workers: `ImageTextLoader.skipped`."""
        return self.skipped_records + Counter(self._position["skipped"])

    @property
    def skipped_records(self) -> Counter[str]:
        """Kind -> entries of caption files that were passed over when these were read."""
        return sum((one.skipped for one in self.found), Counter())

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
        part = copy.copy(self)
        part.rank, part.world_size = rank, world_size
        part._epoch, part._position, part._resumed = 0, _start(0), None
        return part

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration begins with, where it does not resume.

        Args:
            epoch: from 0.
        """
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The position of this reader, as JSON can hold it: all rows up to the last one that it gave are done."""
        position = self._position if self._resumed is None else self._resumed
        return {"stream": self.identity(), **copy.deepcopy(position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it is of a stream with other shards, seed, buffer, or processes.
        """
        refuse_other_stream(state["stream"], self.identity())
        self._resumed = {name: copy.deepcopy(value) for name, value in state.items() if name != "stream"}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same rows."""
        names = ("seed", "shuffle_buffer", "stopping_strategy", "rank", "world_size")
        return {"shards": [len(one.shards) for one in self.found], **{name: getattr(self, name) for name in names}}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not within the generator, whose first line runs with its first row: a position is asked for before that.
        self._position = _start(self._epoch) if self._resumed is None else self._resumed
        self._resumed = None
        return self._rows()

    def _rows(self) -> Iterator[dict[str, Any]]:
        while not self._position["finished"]:
            yield from self._rest_of_epoch()

            if not self.repeat or not self._position["blocks"]:  # without a block, this worker has no shards
                self._position["finished"] = True
            elif not self._position["usable"]:
                found = f"No row of epoch {self._position['epoch']} could be used by this reader"
                raise ValueError(f"{found}; passed over were {dict(self.skipped)}.")
            else:
                self._position = _start(self._position["epoch"] + 1) | {"skipped": self._position["skipped"]}

    def _rest_of_epoch(self) -> Iterator[dict[str, Any]]:
        position = self._position
        # What `datasets` knows is the position before a block; within it we count ourselves.
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
                    own = {INDEX_COLUMN: row["name"], EPOCH_COLUMN: position["epoch"]}
                    yield {"image": row["image"], "caption": row["caption"], **own}
            position |= {"before_block": after_block, "blocks": position["blocks"] + 1, "taken": 0}

    def _one_epoch(self, epoch: int) -> datasets.IterableDataset:
        """All rows of all sources, before shuffling; what of it this process and worker read, `datasets` decides."""
        parts = []
        for one in self.found:
            shards = one.shards
            if self.shuffle_buffer:
                shards = _shuffled(shards, f"shards/{self.seed}/{epoch}/{one.source.name}")
            # IterableDataset.from_generator would do, but makes a builder with a cache folder, each time.
            examples = ExamplesIterable(read_image_texts, {"shards": shards, "skip_bad": self.skip_bad})
            parts.append(datasets.IterableDataset(examples, info=datasets.DatasetInfo(features=IMAGE_TEXT_FEATURES)))

        dataset = parts[0]
        if len(parts) > 1:
            weights = [one.source.weight for one in self.found]
            mixture = hashlib.blake2b(f"mixture/{self.seed}/{epoch}".encode(), digest_size=4).digest()
            shares, seed = [weight / sum(weights) for weight in weights], int.from_bytes(mixture, "big")
            dataset = datasets.interleave_datasets(parts, shares, seed, stopping_strategy=self.stopping_strategy)
        if self.world_size > 1:
            dataset = split_dataset_by_node(dataset, rank=self.rank, world_size=self.world_size)
        return dataset

    def _is_usable(self, row: dict[str, Any]) -> bool:
        """Whether a row can be used; a bad one is counted, or is an error."""
        kind, why = row["bad"], row["why"]
        if kind is None and self.skip_bad:
            try:
                decode_image(row["image"], row["name"], self.max_pixels)
            except ImageError as error:
                kind, why = "unusable image", str(error)
        if kind is None:
            return True

        if not self.skip_bad:
            way_out = "mend it, or leave such rows out with skip_bad=True, which counts them"
            raise ValueError(f"{row['name']}: {why}; {way_out}.")

        skipped = self._position["skipped"]
        skipped[kind] = skipped.get(kind, 0) + 1
        if sum(skipped.values()) <= _MOST_LOGGED:
            _logger.warning("passed over, %s: %s: %s", kind, row["name"], why)
        return False


def refuse_other_stream(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a position that was saved with other settings than the present ones."""
    for name, value in saved.items():
        if value != here[name]:
            found = f"The position that was saved is of a stream with {name} {value}, but here {name} is {here[name]}"
            way_out = "continue with the same data and the same numbers of processes and workers, or start anew"
            raise ValueError(f"{found}; {way_out}.")


def _start(epoch: int) -> dict[str, Any]:
    """The position before the first row of an epoch."""
    position = {"epoch": epoch, "before_block": None, "blocks": 0, "taken": 0, "usable": 0, "finished": False}
    return {**position, "skipped": {}}


def _shuffled(values: list[Any], key: str) -> list[Any]:
    # A string seed goes through SHA-512, and of `random()` alone does Python promise to keep the numbers.
    numbers = random.Random(key)
    order = sorted((numbers.random(), index) for index in range(len(values)))
    return [values[index] for _, index in order]


load_image_text_stream = ImageTextStream  # the name that goes with `load_task`
