"""The training arguments: transformers' own, with the defaults of the paper's recipe and the weights of the objective."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedConfig, TrainingArguments

from dual_distill.objectives import DiDEObjective, DistillVLMObjective, PreTrainingObjective, RankingObjective

from .teacher_cache import KINDS

_HARD_WEIGHTS = ("itc_weight", "itm_weight", "mlm_weight")
"""Weights that a model for pre-training keeps in its configuration, because it computes these losses itself."""


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what distillation adds. Defaults marked "recipe" are those of the authors' release.

    Raises:
        ValueError: a weight, the temperature or the layer map is out of range; the message names it.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723; Fang et al., ICCV 2021, arXiv 2104.02096 (method distillvlm).

    Example:
        >>> args = DistillationTrainingArguments(output_dir="out", layer_map='{"-1": -1, "0": 0}', use_cpu=True)
        >>> args.layer_map, args.adam_beta2, args.remove_unused_columns
        ({-1: -1, 0: 0}, 0.98, False)
    """

    _argument_group_name = "training and distillation"  # the heading in `dual-distill train --help`
    method: Literal["dide", "distillvlm"] = field(
        default="dide",
        metadata={
            "help": "What is distilled: dide (cross-modal attention, for a dual encoder) or distillvlm (whole attention "
            "matrices and hidden states, for a small fusion encoder)."
        },
    )
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
    hidden_weight: float = field(
        default=1.0, metadata={"help": "distillvlm: weight of the hidden states' loss (the paper's is not published)."}
    )
    hidden_loss: Literal["nce", "mse", "none"] = field(
        default="nce", metadata={"help": "distillvlm: noise-contrastive (paper), squared difference, or none."}
    )
    hidden_layers: dict | str | None = field(
        default=None,
        metadata={
            "help": "distillvlm: student layer to teacher layer of the hidden states, as layer_map. Default: last to last."
        },
    )
    hidden_pooled: bool = field(
        default=False,
        metadata={"help": "distillvlm: compare the mean of a row's tokens in place of each token (paper: each)."},
    )
    queue_size: int = field(
        default=4096, metadata={"help": "distillvlm: teacher token states kept as negatives (paper: 4,096)."}
    )
    nce_temperature: float = field(
        default=0.07,
        metadata={"help": "distillvlm: temperature of the noise-contrastive loss (the paper's is not published)."},
    )
    itc_weight: float | None = field(
        default=None,
        metadata={
            "help": "Pre-training, retrieval: weight of the image-text contrastive loss. Default: the model's, 1."
        },
    )
    itm_weight: float | None = field(
        default=None,
        metadata={"help": "Pre-training: weight of image-text matching. Default: the model's, 1. 0 leaves it out."},
    )
    mlm_weight: float | None = field(
        default=None,
        metadata={"help": "Pre-training: weight of masked words. Default: the model's, 1. 0 leaves them out."},
    )
    masking_share: float = field(
        default=0.15, metadata={"help": "Pre-training: share of words that are masked (BERT: 0.15)."}
    )
    itm_distillation_weight: float = field(
        default=1.0,
        metadata={"help": "Pre-training: weight of the teacher's verdict on matched and hard pairs. 0: none."},
    )
    mlm_distillation_weight: float = field(
        default=1.0, metadata={"help": "Pre-training: weight of the teacher's distribution over masked words. 0: none."}
    )
    ranking_weight: float = field(
        default=1.0, metadata={"help": "Retrieval: weight of the teacher's ranking of hard negatives. 0 leaves it out."}
    )
    ranking_negatives: int = field(
        default=4,
        metadata={
            "help": "Retrieval: entries that each text and each image is ranked against; the hardest for a student with a "
            "teacher, drawn ones for a fusion encoder."
        },
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
        metadata={
            "help": "Folder of the teacher cache; runs of one teacher may share it. Default: OUTPUT_DIR/teacher_cache."
        },
    )
    head_learning_rate_factor: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of the head and the shallow interaction over the base rate (recipe: 10 for VQA)."
        },
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
        self.layer_map = _layer_map("layer_map", self.layer_map)
        self.hidden_layers = _layer_map("hidden_layers", self.hidden_layers)
        if self.method not in ("dide", "distillvlm"):
            raise ValueError(f"method is {self.method!r}; give dide or distillvlm.")
        if self.method == "distillvlm" and self.cache_teacher is not None:
            raise ValueError(
                f"cache_teacher is {self.cache_teacher!r}, but a cache keeps what dide compares; leave it out for "
                f"distillvlm."
            )
        if self.cache_teacher not in (None, *KINDS):
            raise ValueError(
                f"cache_teacher is {self.cache_teacher!r}; give one of {', '.join(KINDS)}, or leave it out."
            )
        if self.cache_teacher == "logits" and self.attention_weight:
            raise ValueError(
                f"cache_teacher is 'logits' but attention_weight {self.attention_weight}; cache attention, or set the "
                f"weight "
                "to 0."
            )
        if not self.head_learning_rate_factor > 0:
            raise ValueError(f"head_learning_rate_factor is {self.head_learning_rate_factor}; give a number above 0.")
        if not 0 < self.masking_share <= 1:
            raise ValueError(f"masking_share is {self.masking_share}; give a share of words above 0 and at most 1.")
        if self.ranking_negatives < 1:
            raise ValueError(f"ranking_negatives is {self.ranking_negatives}; give 1 or more.")
        for name in _HARD_WEIGHTS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):  # not: NaN is refused too
                raise ValueError(f"{name} is {value}; give a number >= 0, 0 to leave that loss out.")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for; torch would warn at every epoch
        super().__post_init__()
        self.make_objective(multi_label=False)
        self.make_pretraining_objective()

    def make_objective(
        self, multi_label: bool, student: Any = None, teacher: Any = None
    ) -> DiDEObjective | DistillVLMObjective:
        """Build the objective that these arguments describe; the ranges of its weights are checked there.

        Args:
            multi_label: whether each answer is a yes-or-no of its own.
            student: configuration of the student, whose width the projection of distillvlm takes; None: width 1, to
                check.
            teacher: that of the teacher.
        """
        shared: dict[str, Any] = {
            "attention_weight": self.attention_weight,
            "soft_label_weight": self.soft_label_weight,
            "label_weight": self.label_weight,
            "temperature": self.temperature,
            "layer_map": cast("dict[int, int] | None", self.layer_map),
            "relation_heads": self.relation_heads,
            "multi_label": multi_label,
        }
        if self.method == "dide":
            return DiDEObjective(**shared)
        return DistillVLMObjective(
            student_size=getattr(student, "hidden_size", 1),
            teacher_size=getattr(teacher, "hidden_size", 1),
            hidden_weight=self.hidden_weight,
            hidden_loss=self.hidden_loss,
            hidden_layers=cast("dict[int, int] | None", self.hidden_layers),
            pooled=self.hidden_pooled,
            queue_size=self.queue_size,
            nce_temperature=self.nce_temperature,
            **shared,
        )

    def make_pretraining_objective(self) -> PreTrainingObjective:
        """Build the objective of pre-training that these arguments describe; its ranges are checked there."""
        return PreTrainingObjective(
            attention_weight=self.attention_weight,
            itm_distillation_weight=self.itm_distillation_weight,
            mlm_distillation_weight=self.mlm_distillation_weight,
            temperature=self.temperature,
            layer_map=cast("dict[int, int] | None", self.layer_map),
            relation_heads=self.relation_heads,
        )

    def make_ranking_objective(self) -> RankingObjective:
        """Build the objective of retrieval that these arguments describe; its ranges are checked there."""
        return RankingObjective(
            itc_weight=1.0 if self.itc_weight is None else self.itc_weight,
            ranking_weight=self.ranking_weight,
            attention_weight=self.attention_weight,
            temperature=self.temperature,
            layer_map=cast("dict[int, int] | None", self.layer_map),
            relation_heads=self.relation_heads,
        )

    def write_weights(self, config: PreTrainedConfig) -> None:
        """Write the weights of the hard terms that were given into the configuration of a model for pre-training.

        Raises:
            ValueError: a weight of a term that such a model does not have.
        """
        for name in _HARD_WEIGHTS:
            value = getattr(self, name)
            if value is None:
                continue
            if not hasattr(config, name):
                raise ValueError(
                    f"{name} is {value}, but a {config.model_type} has no such term; leave it out, or pre-train "
                    f"another model."
                )
            setattr(config, name, value)


def _layer_map(name: str, given: dict | str | None) -> dict | None:
    """Read a map of layers that may be given as JSON, whose keys are strings."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{name} is {given!r}, which is no JSON ({error}); write it as '{{\"-1\": -1}}'."
            ) from error
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ValueError(f"{name} is {given!r}; give an object of student layer to teacher layer.")
    return {int(student): int(teacher) for student, teacher in given.items()}


__all__ = ["DistillationTrainingArguments"]
