"""The training arguments: transformers' own, with the defaults of the paper's recipe and the weights of the objective."""

import json
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import TrainingArguments

from dual_distill.objectives import DiDEObjective

from .teacher_cache import KINDS


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what distillation adds. Defaults marked "recipe" are those of the authors' release.

    Raises:
        ValueError: a weight, the temperature or the layer map is out of range; the message names it.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.

    Example:
        >>> args = DistillationTrainingArguments(output_dir="out", layer_map='{"-1": -1, "0": 0}', use_cpu=True)
        >>> args.layer_map, args.adam_beta2, args.remove_unused_columns
        ({-1: -1, 0: 0}, 0.98, False)
    """

    attention_weight: float = field(
        default=1.0, metadata={"help": "Weight of cross-modal attention distillation (recipe: 1). 0 leaves it out."}
    )
    soft_label_weight: float = field(
        default=1.0, metadata={"help": "Weight of the teacher's soft labels (recipe: 1). 0 leaves them out."}
    )
    label_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of hard labels beside the teacher (recipe: 0). Without a teacher they are all."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the soft labels (recipe: 1)."})
    layer_map: dict | str | None = field(
        default=None,
        metadata={
            "help": "Student layer to teacher layer as JSON, for instance '{\"5\": 11}'; negative counts from the last. "
            "Default: last to last (recipe)."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Heads over which attention is compared when teacher and student differ in heads or width."},
    )
    cache_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Keep the teacher's results on disk and do not ask again: 'logits', or 'attention' (logits and cross-modal "
            "scores). Default: ask in every step."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the teacher cache; runs of one teacher may share it. Default: OUTPUT_DIR/teacher_cache."},
    )
    head_learning_rate_factor: float = field(
        default=1.0,
        metadata={"help": "Learning rate of the head and the shallow interaction over the base rate (recipe: 10 for VQA)."},
    )

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW (recipe: 1e-4)."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW (recipe: 0.01)."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW (recipe: 0.98)."})
    warmup_steps: float = field(
        default=0.1,
        metadata={"help": "Warm-up as steps, or below 1 as a share of all steps (recipe: 0.1), then linear decay."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator reads raw columns (text, images, label), so they are kept."}
    )

    def __post_init__(self) -> None:
        """Check the ranges before anything is built."""
        if isinstance(self.layer_map, str):
            try:
                self.layer_map = json.loads(self.layer_map)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"layer_map is {self.layer_map!r}, which is no JSON ({error}); write it as '{{\"-1\": -1}}'."
                ) from error
        if self.layer_map is not None:
            if not isinstance(self.layer_map, dict):
                raise ValueError(f"layer_map is {self.layer_map!r}; give an object of student layer to teacher layer.")
            self.layer_map = {int(student): int(teacher) for student, teacher in self.layer_map.items()}
        if self.cache_teacher not in (None, *KINDS):
            raise ValueError(f"cache_teacher is {self.cache_teacher!r}; give one of {', '.join(KINDS)}, or leave it out.")
        if self.cache_teacher == "logits" and self.attention_weight:
            raise ValueError(
                f"cache_teacher is 'logits' but attention_weight {self.attention_weight}; cache attention, or set the weight "
                "to 0."
            )
        if not self.head_learning_rate_factor > 0:
            raise ValueError(f"head_learning_rate_factor is {self.head_learning_rate_factor}; give a number above 0.")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for; torch would warn at every epoch
        super().__post_init__()
        self.make_objective(multi_label=False)

    def make_objective(self, multi_label: bool) -> DiDEObjective:
        """Build the objective that these arguments describe; the ranges of its weights are checked there."""
        return DiDEObjective(
            attention_weight=self.attention_weight,
            soft_label_weight=self.soft_label_weight,
            label_weight=self.label_weight,
            temperature=self.temperature,
            layer_map=cast("dict[int, int] | None", self.layer_map),
            relation_heads=self.relation_heads,
            multi_label=multi_label,
        )


__all__ = ["DistillationTrainingArguments"]
