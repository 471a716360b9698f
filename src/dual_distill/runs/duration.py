"""How long a run will take, roughly and before its first step, so that nobody waits for days without being told."""

import logging
import math
import statistics
import timeit
from typing import Any

import torch
from transformers import PreTrainedModel

from dual_distill.data import ImageTextStream
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

from .data import num_rows

_logger = logging.getLogger(__name__)
LONGEST_TEXT = 512
_LONG = 3600  # seconds
# Of a step over its matrix products; between 2 (wide models) and 5 (narrow ones) on the CPUs where it was compared.
_OVERHEAD = 3.0
_MEASURED_ROWS = 1024


def count_steps(train_rows: Any, arguments: DistillationTrainingArguments) -> dict[str, Any]:
    """Steps of the run, rows a step, and epochs, None where the number of rows is not known."""
    if isinstance(train_rows, ImageTextStream) and arguments.max_steps < 1:
        raise ValueError(f"max_steps is {arguments.max_steps}, but a stream has no end; say how many to train.")

    rows, rows_per_batch = num_rows(train_rows), arguments.train_batch_size * arguments.world_size
    rows_per_step = rows_per_batch * arguments.gradient_accumulation_steps
    if rows is None:
        return {"steps": arguments.max_steps, "rows_per_step": rows_per_step, "epochs": None}

    batches = rows // rows_per_batch if arguments.dataloader_drop_last else math.ceil(rows / rows_per_batch)
    an_epoch = max(1, math.ceil(batches / arguments.gradient_accumulation_steps))
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * an_epoch)
    return {"steps": steps, "rows_per_step": rows_per_step, "epochs": steps / an_epoch}


def estimate_seconds(
    rows: int, student: PreTrainedModel, teacher: Any, arguments: DistillationTrainingArguments
) -> float:
    """Seconds that training on so many rows takes, by arithmetic and the speed of one linear layer on this device.

    Args:
        rows: of all steps.
        student: the model that is trained, of fake tensors too.
        teacher: the model beside it, or None.
        arguments: device, precision, number of processes.
    """
    # The backward pass costs two forward passes; a teacher has none.
    work = 3 * _forward_work(student) + (0 if teacher is None else _forward_work(teacher))
    return _OVERHEAD * rows / arguments.world_size * work / _speed(student.config.hidden_size, arguments)


def warn_if_long(trainer: DistillationTrainer) -> None:
    """Say before the first step that a run would take longer than an hour, and what would be trained on what."""
    counts = count_steps(trainer.train_dataset, trainer.args)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    # What a teacher with tokens of its own costs is not known.
    teacher = trainer.teacher if hasattr(trainer.teacher, "config") else None
    seconds = estimate_seconds(counts["steps"] * counts["rows_per_step"], model, teacher, trainer.args)
    if seconds <= _LONG:
        return

    start = trainer.run_record().start
    weights = f"the weights of {start.name} ({start.revision})" if start else "no checkpoint"
    what = f"{type(model).__name__} of {model.num_parameters() / 1e6:,.1f} M parameters, from {weights}"
    steps = f"{counts['steps']:,} steps of {counts['rows_per_step']:,} rows"
    hours = f"about {seconds / 3600:,.1f} hours on {trainer.args.device}, by a rough estimate"
    _logger.warning("This run would take %s: %s, %s. Ctrl-C ends it.", hours, steps, what)


def _forward_work(model: Any) -> float:
    """FLOPs of one row: two for each weight that a token meets, at the longest text and a whole image."""
    config = model.config
    reads_regions = getattr(config, "visual_inputs", "patches") == "regions"
    image_tokens = config.num_images * (config.max_regions if reads_regions else math.prod(config.patch_grid))
    # In a dual encoder a token passes through one of two towers.
    share = 0.5 if hasattr(config, "text_config") else 1.0
    # Models that read books are given sentences here.
    text_tokens = min(config.max_position_embeddings, LONGEST_TEXT)
    return 2 * share * (text_tokens + image_tokens) * model.num_parameters(exclude_embeddings=True)


def _speed(width: int, arguments: DistillationTrainingArguments) -> float:
    """FLOPs a second of a linear layer of the model's width, on the device and in the precision of the run."""
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    layer = torch.nn.Linear(width, 4 * width, device="meta").to_empty(device=arguments.device).to(dtype)
    # No random numbers, which would move the run's; nor what memory held, which may be numbers too small to be fast.
    for weights in layer.parameters():
        torch.nn.init.ones_(weights)
    inputs = torch.ones(_MEASURED_ROWS, width, device=arguments.device, dtype=dtype)

    @torch.inference_mode()
    def multiply() -> None:
        # The sum is read, so that a GPU has to finish.
        layer(inputs).sum().item()

    multiply()
    seconds = statistics.median(timeit.repeat(multiply, number=1, repeat=3))
    return 2 * _MEASURED_ROWS * 4 * width**2 / seconds
