"""A stream of pairs in a training loop: batches of several workers, and the place of each of them in a checkpoint.

Trainer resumes by running through all batches that it has trained on; on a stream without length it even counts them as
one epoch. `torchdata`'s `StatefulDataLoader` knows instead what each worker had handed out, prefetched batches not
among it, so that a resumed run goes on at once. What a training loop has to do: take its batches from `image_text_loader`
without `Accelerator.prepare`, set `max_steps` and `ignore_data_skip=True`, and add `ImageTextStreamCallback`.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .stream import ImageTextStream

_logger = logging.getLogger(__name__)


def image_text_loader(
    stream: ImageTextStream,
    batch_size: int,
    collator: Callable[[list[dict[str, Any]]], Any],
    num_workers: int = 0,
    **options: Any,
) -> Any:
    """Batches of a stream, whose place can be saved and restored.

    Args:
        stream: the part of this process, `stream.split(rank, world_size)`.
        batch_size: rows of a batch of this process.
        collator: makes a batch of rows.
        num_workers: processes that read and collate; 0: this one does.
        **options: further arguments of a data loader, such as `pin_memory` and `prefetch_factor`.

    Returns:
        A `torchdata.stateful_dataloader.StatefulDataLoader`: iterate it, `state_dict()`, `load_state_dict(state)`. All
        batches of a stream with `repeat=True` are full.

    Raises:
        ImportError: torchdata is missing.
        ValueError: more workers than the stream has shards for.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise ImportError(
            "torchdata is not installed, which resumes a stream of pairs where it was: pip install "
            "'dual-distill[streaming]'."
        ) from error
    per_process = stream.num_shards
    if stream.world_size > 1 and stream.num_shards % stream.world_size == 0:
        per_process //= stream.world_size
    if num_workers > per_process:
        raise ValueError(
            f"{num_workers} workers read the shards of a process, but the source with the fewest has {per_process}; "
            f"take fewer "
            "workers, or cut that source into more files."
        )
    return StatefulDataLoader(stream, batch_size=batch_size, collate_fn=collator, num_workers=num_workers, **options)


def save_place(loader: Any, folder: str | os.PathLike[str]) -> None:
    """Write how far the batches of a loader have been taken, as JSON beside a checkpoint, a file a process.

    Args:
        loader: of `image_text_loader`.
        folder: of the checkpoint.
    """
    stream = loader.dataset
    place = {"world_size": stream.world_size, "num_workers": loader.num_workers, "loader": loader.state_dict()}
    file = _place_file(folder, stream.rank)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(place))
    unfinished.replace(file)


def load_place(loader: Any, folder: str | os.PathLike[str]) -> None:
    """Let the next iteration of a loader go on where `save_place` was called.

    Args:
        loader: of `image_text_loader`, with the same stream, batch size, processes and workers.
        folder: of the checkpoint.

    Raises:
        FileNotFoundError: the checkpoint has no such file for this process.
        ValueError: it was written by other numbers of processes or workers.
    """
    stream = loader.dataset
    file = _place_file(folder, stream.rank)
    if not file.is_file():
        raise FileNotFoundError(
            f"The checkpoint {os.fspath(folder)!r} has no {file.name}, the place in its stream of pairs; it may have "
            f"been "
            "cut off while it was written: remove it, and continue from the one before."
        )
    place = json.loads(file.read_text())
    for name, here in (("world_size", stream.world_size), ("num_workers", loader.num_workers)):
        if place[name] != here:
            raise ValueError(
                f"{str(file)!r} was written with {name} {place[name]}, but here it is {here}; continue with the same "
                f"number, "
                "or start anew."
            )
    loader.load_state_dict(place["loader"])


class ImageTextStreamCallback(TrainerCallback):
    """Saves the place of the stream with each checkpoint of a Trainer, goes on from it, and says what was passed over.

    A Trainer whose training data is no `ImageTextStream` is left alone.

    Args:
        checkpoint: the folder that is resumed from; None: `checkpoint-STEP` in the output folder.
    """

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Go on from the checkpoint, if the run is a resumed one."""
        if not isinstance(train_dataloader.dataset, ImageTextStream):
            return
        if not args.ignore_data_skip:
            raise ValueError(
                "ignore_data_skip is False, but the place in a stream of pairs is restored as it was; set it to True, "
                "or rows "
                "are left out."
            )
        if state.global_step > 0:
            load_place(train_dataloader, self.checkpoint or _checkpoint(args, state))

    def on_save(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Write the place into the checkpoint that was just saved."""
        if isinstance(train_dataloader.dataset, ImageTextStream):
            folder = _checkpoint(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_place(train_dataloader, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Log how many bad rows this process passed over, and why."""
        if isinstance(train_dataloader.dataset, ImageTextStream) and train_dataloader.dataset.skipped:
            counts = ", ".join(f"{number:,} {kind}" for kind, number in train_dataloader.dataset.skipped.items())
            _logger.warning("process %d passed over: %s", train_dataloader.dataset.rank, counts)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _place_file(folder: str | os.PathLike[str], rank: int) -> Path:
    return Path(folder) / f"pair_stream_{rank}.json"


__all__ = ["ImageTextStreamCallback", "image_text_loader", "load_place", "save_place"]
