"""What pre-training and retrieval share: image-text data out of a table or a stream.

A stream of pairs is read by each process for itself and never prepared by accelerate, which would read it in one
process and send the rows around. Its position lies in every checkpoint, so a resumed run goes on at once instead of
running through all rows.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dual_distill.data import ImageTextLoader, ImageTextStream, ImageTextStreamCallback

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import Batch, DistillationTrainer

TEXT_INPUTS, IMAGE_INPUTS = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")


class ImageTextTrainer(DistillationTrainer):
    """A `DistillationTrainer` for batches of `PreTrainingCollator`.

    Args:
        model: as for `DistillationTrainer`.
        args: a `DistillationTrainingArguments`; of a stream, `max_steps` says how long it is trained on, and
            `ignore_data_skip` is set, for its position is restored instead.
        **kwargs: as for `DistillationTrainer`; `train_dataset` may be a `ImageTextStream`.

    Raises:
        ValueError: a stream without `max_steps`.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        **kwargs: Any,
    ):
        if isinstance(kwargs.get("train_dataset"), ImageTextStream):
            steps = -1 if args is None else args.max_steps
            if args is None or steps < 1:
                raise ValueError(f"max_steps is {steps}, but a stream of pairs has no end; say how many to train.")
            args.ignore_data_skip = True
        super().__init__(model, args, **kwargs)
        self._position = ImageTextStreamCallback()
        if isinstance(self.train_dataset, ImageTextStream):
            self.add_callback(self._position)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; a stream goes on from its position in the checkpoint that is resumed from."""
        if isinstance(resume_from_checkpoint, str | Path):
            self._position.checkpoint = resume_from_checkpoint
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process, of a stream those of its own shards."""
        if not isinstance(self.train_dataset, ImageTextStream):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        options: dict[str, Any] = {"pin_memory": self.args.dataloader_pin_memory}
        if workers:
            options["persistent_workers"] = self.args.dataloader_persistent_workers
            options["prefetch_factor"] = self.args.dataloader_prefetch_factor
        stream = self.train_dataset.split(self.args.process_index, self.args.world_size)
        return ImageTextLoader(stream, self.args.train_batch_size, self.data_collator, workers, **options)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that weight decay pulls to 0: not the temperature, for which 0 means nothing."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("logit_scale")]


def image_text_inputs(inputs: Batch) -> dict[str, torch.Tensor]:
    """Return what of a batch a fusion encoder reads of its pairs.

    Args:
        inputs: a batch of `PreTrainingCollator`.

    Example:
        >>> list(image_text_inputs({"input_ids": torch.ones(1, 2), "image_ids": torch.ones(1)}))
        ['input_ids']
    """
    return {name: inputs[name] for name in (*TEXT_INPUTS, *IMAGE_INPUTS) if name in inputs}
