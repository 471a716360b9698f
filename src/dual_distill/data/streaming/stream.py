"""Images with texts as a stream: sharded by process and worker, shuffled, mixed, and resumable to the very row.

`datasets` does the sharding, the mixing and the counting of rows (`IterableDataset`, `split_dataset_by_node`,
`interleave_datasets`, `state_dict`). Two things are unusual. Its shuffle buffer loses the rows that it holds when a run
is resumed, so rows are shuffled here in blocks that follow one another: a block that was begun is read again and
continued, and nothing is lost or seen twice. And a stream for training has no end: each reader goes on to its next
epoch when it has seen its part, for a process that runs out of rows before the others leaves them waiting for its
gradients.

In a training loop, Trainer resumes by running through all batches that it has trained on; on a stream without length it
even counts them as one epoch. Here each batch comes with the position that its worker has reached, so that what was
prefetched and never trained on is not lost, and a resumed run goes on at once. (accelerate and `datasets` have this
from `torchdata` alone, which is no longer released.) What a training loop has to do: take its batches from
`ImageTextLoader` without `Accelerator.prepare`, set `max_steps` and `ignore_data_skip=True`, and add
`ImageTextStreamCallback`.
"""

import copy
import hashlib
import itertools
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dual_distill.data.fingerprint import described_fingerprint
from dual_distill.data.images import MAX_PIXELS, ImageError, decode_image
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.shape_grouping import grouped_rows
from dual_distill.sealed import read_json, write_json

from .sources import IMAGE_TEXT_FEATURES, described_sources, file_sizes, find_shards, parse_sources, read_image_texts

# When an epoch of several sources ends, in the words of `datasets.interleave_datasets`.
STOPPING_STRATEGIES = ("all_exhausted_without_replacement", "all_exhausted", "first_exhausted")

_UNSHUFFLED_BLOCK = 64
_MOST_LOGGED = 20
_logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class ImageTextStream(IterableDataset[dict[str, Any]]):
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
    group: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Find the shards, and begin at the first row of epoch 0."""
        if self.stopping_strategy not in STOPPING_STRATEGIES:
            known = ", ".join(STOPPING_STRATEGIES)
            raise ValueError(f"stopping_strategy is {self.stopping_strategy!r}, but expected is {known}.")
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer} rows, but must be at least 0 (no shuffling).")

        self.shards = [find_shards(source, self.skip_bad) for source in parse_sources(self.sources)]
        self._described = described_sources(self.shards)
        # What its rows are known by: the bytes of each file on this machine among it.
        self.content = described_fingerprint("; ".join(self._described), file_sizes(self.shards))
        self._epoch, self._position, self._resumes = 0, _start(0), False

    @property
    def num_rows(self) -> int | None:
        """Rows of an epoch of all processes, bad ones included; None where a tar file does not say."""
        counts = [shard.num_rows for shards in self.shards for shard in shards]
        return None if None in counts else sum(filter(None, counts))

    @property
    def num_shards(self) -> int:
        """Readers (processes times workers) that can have shards of their own: the fewest shards of a source."""
        return min(map(len, self.shards))

    @property
    def skipped(self) -> Counter[str]:
        """Kind -> bad rows that were passed over in this iteration; of workers: `ImageTextLoader.skipped`.

        Bad records of a caption file are not among them: they were listed when it was read.
        """
        return Counter(self._position["skipped"])

    def split(self, rank: int, world_size: int, group: int = 0) -> "ImageTextStream":
        """The part of one process of several.

        Whole shards where their number is a multiple of `world_size`; otherwise each process reads all shards and keeps
        one row of `world_size`, which costs reading and no decoding.

        Args:
            rank: from 0.
            world_size: number of processes.
            group: rows of a batch in which those of like shape, by their headers, stand together, as far as they are
                shuffled at once; 0: wherever they fall.

        Returns:
            A new stream at its start.
        """
        part = copy.copy(self)
        part.rank, part.world_size, part.group = rank, world_size, group
        part._epoch, part._position, part._resumes = 0, _start(0), False
        return part

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration begins with, where it does not resume.

        Args:
            epoch: from 0.
        """
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The position of this reader, as JSON can hold it: all rows up to the last one that it gave are done."""
        return {"stream": self.identity(), **copy.deepcopy(self._position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it is of a stream with other sources, shards, seed, buffer, or processes.
        """
        _refuse_other_stream({"group": 0, **state["stream"]}, self.identity())
        self._position = {name: copy.deepcopy(value) for name, value in state.items() if name != "stream"}
        self._resumes = True

    def identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same rows."""
        names = ("seed", "shuffle_buffer", "stopping_strategy", "rank", "world_size", "group")
        described = {"shards": list(map(len, self.shards)), "sources": self._described}
        return described | {name: getattr(self, name) for name in names}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not within the generator, whose first line runs with its first row: a position is asked for before that.
        if not self._resumes:
            self._position = _start(self._epoch)
        self._resumes = False
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

        # Whole batches, where they are grouped.
        size = self.shuffle_buffer or _UNSHUFFLED_BLOCK
        size = max(size - size % self.group, self.group) if self.group and self.shuffle_buffer else size
        rows = iter(dataset)
        while block := list(itertools.islice(rows, size)):
            after_block = dataset.state_dict()
            if self.shuffle_buffer:
                drawn_by = f"rows/{self.seed}/{position['epoch']}/{position['blocks']}"
                block = grouped_rows(block, self.group, drawn_by) if self.group else _shuffled(block, drawn_by)

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
        for shards in self.shards:
            if self.shuffle_buffer:
                shards = _shuffled(shards, f"shards/{self.seed}/{epoch}/{shards[0].source.name}")
            # IterableDataset.from_generator would do, but makes a builder with a cache folder, each time.
            examples = ExamplesIterable(read_image_texts, {"shards": shards, "skip_bad": self.skip_bad})
            # Named to mix them; of one source alone `datasets` would take each row apart and put it together again.
            features = IMAGE_TEXT_FEATURES if len(self.shards) > 1 else None
            parts.append(datasets.IterableDataset(examples, info=datasets.DatasetInfo(features=features)))

        dataset = parts[0]
        if len(parts) > 1:
            weights = [shards[0].source.weight for shards in self.shards]
            mixture = hashlib.blake2b(f"mixture/{self.seed}/{epoch}".encode(), digest_size=4).digest()
            shares, seed = [weight / sum(weights) for weight in weights], int.from_bytes(mixture, "big")
            dataset = datasets.interleave_datasets(parts, shares, seed, stopping_strategy=self.stopping_strategy)

        # After mixing, so that each process has its share of each source.
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


class ImageTextLoader(DataLoader[Any]):
    """Batches of a stream, whose position can be saved and restored.

    Each iteration begins anew, or where `load_state_dict` says. All batches of a stream with `repeat=True` are full.

    Args:
        stream: the part of this process, `stream.split(rank, world_size)`.
        batch_size: rows of a batch of this process.
        collator: makes a batch of rows.
        num_workers: processes that read and collate; 0: this one does.
        **options: further arguments of `torch.utils.data.DataLoader`, such as `pin_memory` and `prefetch_factor`.

    Raises:
        ValueError: more workers than the stream has shards for.
    """

    def __init__(
        self, stream: ImageTextStream, batch_size: int, collator: Any, num_workers: int = 0, **options: Any
    ) -> None:
        # A worker without a shard of its own would read nothing, and its turn would be empty.
        per_process = stream.num_shards
        if stream.world_size > 1 and stream.num_shards % stream.world_size == 0:
            per_process //= stream.world_size
        if num_workers > per_process:
            found = f"{num_workers} workers share the shards of a process, but the source with the fewest has"
            raise ValueError(f"{found} {per_process}; take fewer workers, or cut that source into more files.")

        self.stream = stream
        self._state, self._resumes = self._start(num_workers), False
        self._batches = _Batches(stream, batch_size, collator, self._state)
        # Workers are seeded from a generator of their own, so that dropout draws the same whether they start or not.
        options |= {"num_workers": num_workers, "generator": torch.Generator().manual_seed(stream.seed)}
        super().__init__(self._batches, batch_size=None, collate_fn=tuple, **options)

    @staticmethod
    def _start(num_workers: int) -> dict[str, Any]:
        return {"num_workers": num_workers, "next_worker": 0, "positions": [None] * max(num_workers, 1)}

    @property
    def skipped(self) -> Counter[str]:
        """Kind -> bad rows that were passed over on the way to the batches that were handed out."""
        positions = [position for position in self._state["positions"] if position is not None]
        return sum((Counter(position["skipped"]) for position in positions), Counter())

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self._resumes:
            self._state = self._start(self.num_workers)
        self._resumes = False
        self._batches.state = copy.deepcopy(self._state)  # which the workers get with the data set
        for batch, worker, position in super().__iter__():
            self._state["positions"][worker] = position
            if batch is not None:
                self._state["next_worker"] = (worker + 1) % len(self._state["positions"])
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where each worker was when its last batch was handed out, as JSON can hold it."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from there.

        Raises:
            ValueError: it is of another number of workers, or of another stream.
        """
        _refuse_other_stream({"num_workers": state["num_workers"]}, {"num_workers": self.num_workers})
        for position in filter(None, state["positions"]):
            _refuse_other_stream({"group": 0, **position["stream"]}, self.stream.identity())
        self._state, self._resumes = copy.deepcopy(dict(state)), True

    def save_position(self, folder: str | os.PathLike[str]) -> None:
        """Write how far the batches have been taken, as JSON beside a checkpoint, a file a process.

        Args:
            folder: of the checkpoint.
        """
        write_json(self._position_file(folder), self.state_dict())

    def load_position(self, folder: str | os.PathLike[str]) -> None:
        """Let the next iteration go on where `save_position` was called.

        Args:
            folder: of the checkpoint, written with the same stream, batch size, processes and workers.

        Raises:
            FileNotFoundError: the checkpoint has no such file for this process.
            ValueError: it was written by other numbers of processes or workers, or of another stream.
        """
        file = self._position_file(folder)
        if not file.is_file():
            found = f"The checkpoint {os.fspath(folder)!r} has no {file.name}, the position in its stream"
            way_out = "it is incomplete (take the one before), or of an old version (start anew)"
            raise FileNotFoundError(f"{found}: {way_out}.")
        self.load_state_dict(read_json(file))

    def _position_file(self, folder: str | os.PathLike[str]) -> Path:
        return Path(folder) / f"image_text_stream_{self.stream.rank}.json"


class _Batches(IterableDataset[Any]):
    """In a worker: batches, each with the worker and with the position behind it."""

    def __init__(self, stream: ImageTextStream, batch_size: int, collator: Any, state: dict[str, Any]) -> None:
        self.stream, self.batch_size, self.collator, self.state = stream, batch_size, collator, state

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        position = self.state["positions"][worker]
        if position is not None:
            self.stream.load_state_dict(position)

        # A data loader asks worker 0 first: those whose batch of this round was handed out before let it pass.
        if worker < self.state["next_worker"]:
            yield None, worker, position
        rows = iter(self.stream)
        while batch := list(itertools.islice(rows, self.batch_size)):
            yield self.collator(batch), worker, self.stream.state_dict()
        yield None, worker, self.stream.state_dict()  # bad rows may have followed the last batch


class ImageTextStreamCallback(TrainerCallback):
    """Saves the position of the stream with each checkpoint, goes on from it, and says what was passed over.

    A Trainer whose training data is no `ImageTextStream` is left alone.
    """

    checkpoint: str | os.PathLike[str] | None = None
    """What is resumed from, where it does not lie in the output folder."""

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Go on from the checkpoint, if the run is a resumed one."""
        if not isinstance(train_dataloader, ImageTextLoader):
            return
        if not args.ignore_data_skip:
            raise ValueError("ignore_data_skip is False, but a stream is restored as it was; set it to True.")
        if state.global_step > 0:
            train_dataloader.load_position(self.checkpoint or _checkpoint(args, state))

    def on_save(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Write the position into the checkpoint that was just saved."""
        if isinstance(train_dataloader, ImageTextLoader):
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            # A trainer that seals its checkpoints has written it with them.
            if not train_dataloader._position_file(folder).is_file():
                train_dataloader.save_position(folder)

    def on_train_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Log how many bad rows this process passed over, and why."""
        if isinstance(train_dataloader, ImageTextLoader) and (skipped := train_dataloader.skipped):
            counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(skipped.items()))
            _logger.warning("process %d passed over: %s", train_dataloader.stream.rank, counts)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _refuse_other_stream(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
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
