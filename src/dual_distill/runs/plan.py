"""What a run would be, found out without weights and without training: `train --dry-run`.

Everything that can go wrong before the first step does so here: paths, columns, images, labels, teacher beside student.
Both models are made of fake tensors, which have shapes and no memory, so ViLT-B/32 costs what a toy costs; what one
step keeps for its backward pass is counted by running a batch of the largest shape through the student. (Torch's `meta`
device would not do: there sdpa falls back on the form of attention that keeps every probability, which no real device
does.)
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_distill.data import answer_coverage
from dual_distill.teachers import empty_teacher
from dual_distill.trainer import DistillationTrainingArguments, check_compatibility, content_problems, is_store

from .arguments import DataArguments, ModelArguments
from .build import resolve
from .data import num_rows
from .duration import LONGEST_TEXT, count_steps, estimate_seconds
from .heads import Batch

_ADAM_STATES = 2
_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class RunPlan:
    """What a run would be.

    Attributes:
        task: its name.
        rows: split -> rows; None for a stream that does not say.
        num_labels: answers or classes of the head; 0 for images with captions.
        label_coverage: share of the validation labels that the head can give, in [0, 1]; None without validation rows.
        student: class of the model that is trained.
        student_parameters: number of its parameters.
        teacher: class of the teacher, the name of a store, or None.
        teacher_parameters: number of its parameters, 0 without one or for a store.
        steps: optimizer steps.
        rows_per_step: rows of all processes and accumulated batches.
        epochs: passes over the training rows; None where their number is not known.
        seconds: rough estimate for the machine that this is computed on.
        memory_bytes: estimate for one process, by what it is for: weights, gradients, optimizer, teacher, activations
            (of the largest batch: longest texts, images of every shape); see `estimate_memory`.
    """

    task: str
    rows: dict[str, int | None]
    num_labels: int
    label_coverage: float | None
    student: str
    student_parameters: int
    teacher: str | None
    teacher_parameters: int
    steps: int
    rows_per_step: int
    epochs: float | None
    seconds: float
    memory_bytes: dict[str, int]

    def __str__(self) -> str:
        """Lay the plan out for reading."""
        rows = [f"{split} {'not known' if rows is None else f'{rows:,}'}" for split, rows in self.rows.items()]
        labels = f"{self.num_labels:,}" if self.num_labels else "none, images with captions"
        if self.label_coverage is not None:
            labels += f" (cover {100 * self.label_coverage:.1f} % of the validation labels)"
        parts = [f"{name} {size / 1e9:,.1f}" for name, size in self.memory_bytes.items() if size]
        epochs = "" if self.epochs is None else f", {self.epochs:.2f} epochs"

        of_teacher = f"{self.teacher_parameters / 1e6:,.1f} M parameters" if self.teacher_parameters else ""
        lines = {
            "task": self.task,
            "rows": ", ".join(rows),
            "labels": labels,
            "model": f"{self.student}, {self.student_parameters / 1e6:,.1f} M parameters",
            "teacher": "none" if self.teacher is None else self.teacher + (f", {of_teacher}" if of_teacher else ""),
            "steps": f"{self.steps:,} of {self.rows_per_step:,} rows{epochs}",
            "time": f"about {self.seconds / 3600:,.1f} hours on this machine, by a rough estimate",
            "memory": f"about {sum(self.memory_bytes.values()) / 1e9:,.1f} GB a process ({', '.join(parts)})",
        }
        return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


def plan_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: DistillationTrainingArguments
) -> RunPlan:
    """Resolve and check a run; nothing is trained and no weights are read.

    Raises:
        ValueError: what would stop the run, in one sentence.
    """
    resolved = resolve((model_arguments, data_arguments, training_arguments))
    data, task, head, config = resolved.data, resolved.data.task, resolved.data.head, resolved.student_config
    teacher: Any = None
    counted: Any = None
    objective, layers, taught_by = None, [], model_arguments.taught_by
    with FakeTensorMode(), no_init_weights():
        student: Any = head.model_class(config)(config)
        if resolved.teacher_config is not None:
            counted = teacher = head.model_class(resolved.teacher_config)(resolved.teacher_config)
            objective = training_arguments.make_objective(head.trainer.objective_class, config, resolved.teacher_config)
            layers = objective.student_layers
        elif taught_by is not None and not is_store(taught_by[0]):
            counted = empty_teacher(*taught_by)

    models = {"student": student, **({} if teacher is None else {"teacher": teacher})}
    found = content_problems(resolved.collator, models, data.splits.values())
    check_compatibility(student, teacher, objective, found)

    # The two forms of which a CPU knows the cost; flex and flash attention keep what sdpa keeps.
    config._attn_implementation = "eager" if model_arguments.attn_implementation == "eager" else "sdpa"
    images = resolved.processor.image_processor
    memory = estimate_memory(type(student), config, layers, images, training_arguments, head.example)
    memory["teacher"] = 0 if counted is None else _FLOAT32 * counted.num_parameters()
    counts = count_steps(data.train_rows, training_arguments)
    rows = counts["steps"] * counts["rows_per_step"]

    column, validation = task.answers_column or task.label_column, data.splits["validation"]
    is_covered = column is not None and len(validation) > 0
    return RunPlan(
        task=task.name,
        rows={split: num_rows(rows) for split, rows in data.splits.items()},
        num_labels=len(resolved.label_names),
        label_coverage=answer_coverage(validation, str(column), resolved.label_names) if is_covered else None,
        student=type(student).__name__,
        student_parameters=student.num_parameters(),
        teacher=model_arguments.teacher if counted is None else type(counted).__name__,
        teacher_parameters=memory["teacher"] // _FLOAT32,
        seconds=estimate_seconds(rows, student, teacher, training_arguments),
        memory_bytes=memory,
        **counts,
    )


def estimate_memory(
    student_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    layers: list[int],
    image_processor: Any,
    arguments: DistillationTrainingArguments,
    example: Callable[[Batch, Any, Any], Batch] = lambda batch, config, arguments: batch,
) -> dict[str, int]:
    """Bytes that one training process needs, by what they are for, a teacher left out.

    Args:
        student_class: of the model that is trained.
        config: its configuration.
        layers: layers whose queries and keys are recorded.
        image_processor: knows the size of the largest image.
        arguments: batch size, precision, optimizer, checkpointing, frozen towers.
        example: makes of a batch of texts and images what a head reads, as `HeadSpec.example`.

    Note:
        Weights and gradients are exact for float32, AdamW's two states too; another optimizer is taken to have none.
        Activations are those that autograd keeps of a padded batch of the longest texts and largest images, in the
        precision of the run, with the kernels that torch takes on a CPU. What the teacher's forward pass holds for a
        moment, the losses, and what allocators and libraries add are left out.
    """
    height, width = largest_images(image_processor, config)
    text = (arguments.train_batch_size, min(config.max_position_embeddings, LONGEST_TEXT))
    with FakeTensorMode(), no_init_weights():
        model = student_class(config)
        arguments.freeze_towers(model.base_model)
        if arguments.gradient_checkpointing or arguments.activation_checkpointing:
            model.activation_checkpointing_enable()
        words = {name: torch.ones(text, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        batch = {**words, **_largest_inputs(config, arguments.train_batch_size, height, width)}
        is_half = arguments.bf16 or arguments.fp16
        kept = _kept_bytes(model, example(batch, config, arguments), layers, is_half)

    gradients = _FLOAT32 * model.num_parameters(only_trainable=True)
    optimizer = _ADAM_STATES * gradients if "adam" in arguments.optim else 0
    weights = _FLOAT32 * model.num_parameters()
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": kept}


def _largest_inputs(config: Any, batch_size: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """The largest images, or as many regions as the model takes."""
    images = (batch_size, config.num_images)
    if getattr(config, "visual_inputs", "patches") != "regions":
        mask = torch.ones(*images, height, width, dtype=torch.bool)
        return {"pixel_values": torch.zeros(*images, 3, height, width), "pixel_mask": mask}
    regions = (*(images if config.num_images > 1 else images[:1]), config.max_regions)
    features, boxes = torch.zeros(*regions, config.region_feature_size), torch.zeros(*regions, 6)
    return {"region_features": features, "region_boxes": boxes, "region_mask": torch.ones(regions, dtype=torch.bool)}


def largest_images(image_processor: Any, config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width in pixels of the largest batch of images that an image processor makes.

    ViLT's keeps the aspect ratio up to a longer side of 1333 / 800 of the shorter, and a portrait and a landscape
    image pad each other to a square of the longer side; others make one fixed size.

    Example:
        >>> from transformers import ViltImageProcessorPil
        >>> from dual_distill.modeling import FusionEncoderConfig
        >>> largest_images(ViltImageProcessorPil(size={"shortest_edge": 384}), FusionEncoderConfig())
        (608, 608)
    """
    size = getattr(image_processor, "crop_size", None) or image_processor.size
    if (most := getattr(image_processor, "max_num_patches", None)) is not None:
        return isqrt(most) * config.patch_size, isqrt(most) * config.patch_size
    if "height" in size:
        return size["height"], size["width"]
    longer = int(1333 / 800 * size["shortest_edge"]) // config.patch_size * config.patch_size
    return longer, longer


def _kept_bytes(model: PreTrainedModel, batch: Batch, layers: list[int], is_half: bool) -> int:
    """Bytes that autograd keeps between forward and backward, weights left out, each storage counted once."""
    # By address of the storage: views share it, and fake tensors have no data to point at.
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held on to, or an address would be used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    def note_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        note(inputs[0])

    with ExitStack() as stack:
        for module in model.modules():
            # What such a layer starts again from is kept by the checkpoint, of which autograd's hooks hear nothing.
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                stack.callback(module.register_forward_pre_hook(note_input).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=is_half))
        try:
            model.train()(**batch, output_query_states=layers or None, output_key_states=layers or None)
        except DataDependentOutputException as error:
            reads = "reads its images' sizes, as SigLIP 2's flexible grids do, which a dry run has not"
            raise ValueError(f"a tower of {type(model).__name__} {reads}; start the run itself.") from error
    return sum(storage.nbytes() for storage in kept.values())
