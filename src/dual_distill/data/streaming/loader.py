"""A stream of images with texts in a training loop: batches of several workers, and the position of each of them.

Trainer resumes by running through all batches that it has trained on; on a stream without length it even counts them as
one epoch. Here each batch comes with the position that its worker has reached, so that what was prefetched and never
trained on is not lost, and a resumed run goes on at once. (accelerate and `datasets` have this from `torchdata` alone,
which is no longer released.) What a training loop has to do: take its batches from `ImageTextLoader` without
`Accelerator.prepare`, set `max_steps` and `ignore_data_skip=True`, and add `ImageTextStreamCallback`.
"""

import copy
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .stream import ImageTextStream, refuse_other_stream

Collator = Callable[[list[dict[str, Any]]], Any]

_logger = logging.getLogger(__name__)


class ImageTextLoader(DataLoader):
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
        self, stream: ImageTextStream, batch_size: int, collator: Collator, num_workers: int = 0, **options: Any
    ) -> None:
        per_process = stream.num_shards
        if stream.world_size > 1 and stream.num_shards % stream.world_size == 0:
            per_process //= stream.world_size
        if num_workers > per_process:
            found = f"{num_workers} workers share the shards of a process, but the source with the fewest has"
            raise ValueError(f"{found} {per_process}; take fewer workers, or cut that source into more files.")

        self.stream = stream
        self._state = self._start(num_workers)
        self._resumed: dict[str, Any] | None = None
        self._batches = _Batches(stream, batch_size, collator, self._state)
        super().__init__(self._batches, batch_size=None, collate_fn=_unchanged, num_workers=num_workers, **options)

    @staticmethod
    def _start(num_workers: int) -> dict[str, Any]:
        return {"num_workers": num_workers, "next_worker": 0, "positions": [None] * max(num_workers, 1)}

    @property
    def skipped(self) -> Counter[str]:
        """Kind -> bad rows that were passed over on the way to the batches that were handed out."""
        positions = [position or {"skipped": {}} for position in self._state["positions"]]
        return sum((Counter(position["skipped"]) for position in positions), self.stream.skipped_records)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._state, self._resumed = self._resumed or self._start(self.num_workers), None
        self._batches.state = copy.deepcopy(self._state)  # which the workers get with the data set
        for batch, worker, position in super().__iter__():
            self._state["positions"][worker] = position
            if batch is not None:
                self._state["next_worker"] = (worker + 1) % len(self._state["positions"])
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where each worker was when its last batch was handed out, as JSON can hold it."""
        return self._resumed or self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from there.

        Raises:
            ValueError: it is of another number of workers, or of another stream.
        """
        refuse_other_stream({"num_workers": state["num_workers"]}, {"num_workers": self.num_workers})
        for position in filter(None, state["positions"]):
            refuse_other_stream(position["stream"], self.stream.identity())
        self._resumed = copy.deepcopy(dict(state))


class _Batches(IterableDataset):
    """In a worker: batches, each with the worker and with the position behind it."""

    def __init__(self, stream: ImageTextStream, batch_size: int, collator: Collator, state: dict[str, Any]) -> None:
        super().__init__()
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


def _unchanged(made: Any) -> Any:
    return made


def save_position(loader: ImageTextLoader, folder: str | os.PathLike[str]) -> None:
    """Write how far the batches of a loader have been taken, as JSON beside a checkpoint, a file a process.

    Args:
        loader: an `ImageTextLoader`.
        folder: of the checkpoint.
    """
    file = _position_file(folder, loader)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(loader.state_dict()))
    unfinished.replace(file)


def load_position(loader: ImageTextLoader, folder: str | os.PathLike[str]) -> None:
    """Let the next iteration of a loader go on where `save_position` was called.

    Args:
        loader: an `ImageTextLoader` with the same stream, batch size, processes and workers.
        folder: of the checkpoint.

    Raises:
        FileNotFoundError: the checkpoint has no such file for this process.
        ValueError: it was written by other numbers of processes or workers, or of another stream.
    """
    file = _position_file(folder, loader)
    if not file.is_file():
        found = f"The checkpoint {os.fspath(folder)!r} has no {file.name}, the position in its stream"
        raise FileNotFoundError(f"{found}: it is incomplete (take the one before), or of an old version (start anew).")
    loader.load_state_dict(json.loads(file.read_text()))


class ImageTextStreamCallback(TrainerCallback):
    """Saves the position of the stream with each checkpoint, goes on from it, and says what was passed over.

    A Trainer whose training data is no `ImageTextStream` is left alone.

    Args:
        checkpoint: the folder that is resumed from; None: `checkpoint-STEP` in the output folder.
    """

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Go on from the checkpoint, if the run is a resumed one."""
        if not isinstance(train_dataloader, ImageTextLoader):
            return
        if not args.ignore_data_skip:
            raise ValueError("ignore_data_skip is False, but a stream is restored as it was; set it to True.")
        if state.global_step > 0:
            load_position(train_dataloader, self.checkpoint or _checkpoint(args, state))

    def on_save(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Write the position into the checkpoint that was just saved."""
        if isinstance(train_dataloader, ImageTextLoader):
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_position(train_dataloader, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Log how many bad rows this process passed over, and why."""
        if isinstance(train_dataloader, ImageTextLoader) and (skipped := train_dataloader.skipped):
            counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(skipped.items()))
            _logger.warning("process %d passed over: %s", train_dataloader.stream.rank, counts)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _position_file(folder: str | os.PathLike[str], loader: ImageTextLoader) -> Path:
    return Path(folder) / f"image_text_stream_{loader.stream.rank}.json"
