"""The training arguments: transformers' own, with the paper's defaults and the weights of the objective."""

import inspect
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

import torch
from transformers import PreTrainedConfig, TrainingArguments
from transformers.integrations import is_deepspeed_available

from dual_distill.objectives import DiDEObjective, DistillVLMObjective, Objective, PreTrainingObjective, Settings

from .teacher_cache import KINDS

METHODS: dict[str, type[Objective]] = {"dide": DiDEObjective, "distillvlm": DistillVLMObjective}
"""Word of `method` -> what is compared where a head has labels."""


def _option(default: Any, description: str) -> Any:
    """Return a field of the arguments, with what the command line says about it."""
    return field(default=default, metadata={"help": description})


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
    method: Literal["dide", "distillvlm"] = _option(
        "dide", "Distill cross-modal attention (dide) or whole attention matrices and hidden states (distillvlm)."
    )
    attention_weight: float = _option(1.0, "Weight of attention distillation (recipe: 1). 0 leaves it out.")
    soft_label_weight: float = _option(1.0, "Weight of the teacher's soft labels (recipe: 1). 0 leaves them out.")
    label_weight: float = _option(0.0, "Weight of hard labels beside the teacher (recipe: 0); without one all.")
    interaction_attention_weight: float = _option(
        0.0, "Weight of attention distillation into the student's interaction layers (needs some). 0 leaves it out."
    )
    interaction_hidden_weight: float = _option(
        0.0, "Weight of the teacher's last hidden states for what interaction layers give (needs some). 0: left out."
    )
    temperature: float = _option(1.0, "Temperature of the soft labels (recipe: 1).")
    layer_map: dict | str | None = field(
        default=None,
        metadata={"help": "JSON, student to teacher layer, '{\"5\": 11}'. Default: last to last (recipe)."},
    )
    relation_heads: int | None = _option(None, "Heads over which attention is compared where heads or widths differ.")
    count_padded_queries: bool = _option(False, "dide: average attention over padded queries too (authors' release).")
    hidden_weight: float = _option(1.0, "distillvlm: weight of the hidden states' loss (the paper's is not published).")
    hidden_loss: Literal["nce", "mse", "none"] = _option("nce", "distillvlm: noise-contrastive (paper), MSE, or none.")
    hidden_layers: dict | str | None = field(default=None, metadata={"help": "distillvlm: the same of hidden states."})
    hidden_pooled: bool = _option(False, "distillvlm: compare the mean of a row's tokens (paper: each token).")
    queue_size: int = _option(4096, "distillvlm: teacher token states kept as negatives (paper: 4,096).")
    nce_temperature: float = _option(0.07, "distillvlm: temperature of the noise-contrastive loss (not published).")
    itc_weight: float | None = _option(None, "Weight of the image-text contrastive loss. Default: the model's, 1.")
    itm_weight: float | None = _option(None, "Pre-training: weight of image-text matching. Default: the model's, 1.")
    mlm_weight: float | None = _option(None, "Pre-training: weight of masked words. Default: the model's, 1.")
    masking_share: float = _option(0.15, "Pre-training: share of words that are masked (BERT: 0.15).")
    itm_distillation_weight: float = _option(1.0, "Pre-training: weight of the teacher's matching logits. 0: none.")
    mlm_distillation_weight: float = _option(1.0, "Pre-training: weight of the teacher's masked words. 0: none.")
    ranking_weight: float = _option(1.0, "Retrieval: weight of the teacher's ranking of hard negatives. 0: none.")
    match_weight: float | None = _option(
        None, "Retrieval: weight of the score by which interaction layers re-rank. Default: 1 with such layers, else 0."
    )
    ranking_negatives: int = _option(4, "Retrieval: negatives of each text and image; a teacher ranks the hardest.")
    freeze_text_tower: bool = _option(False, "Dual encoder: leave the text tower as it is.")
    freeze_vision_tower: bool = _option(False, "Dual encoder: leave the image tower as it is.")
    vision_cache_mb: float = _option(
        0.0, "Memory for what a frozen image tower gives, in MB: each image is run once. 0: none."
    )
    keep_attention_projections: bool = _option(
        False, "Save what makes queries and keys of towers whose own do not fit: the student's attention can be drawn."
    )
    cache_teacher: str | None = _option(None, "Keep what the teacher says on disk: logits, or attention too.")
    teacher_cache_dir: str | None = _option(None, "Folder of the teacher cache. Default: OUTPUT_DIR/teacher_cache.")
    group_by_shape: bool = _option(True, "Draw images of like shape into one batch, which is padded to its largest.")
    preflight: bool = _option(True, "Before a run say what teacher, words alone and the student's start answer right.")
    head_learning_rate_factor: float = _option(1.0, "Learning rate of the classifier over the base one (VQA: 10).")

    muon_learning_rate: float | None = _option(
        None, "Peak learning rate of Muon, for the matrices inside layers; AdamW has the rest. Default: AdamW alone."
    )
    learning_rate: float = _option(1e-4, "Peak learning rate of AdamW (recipe: 1e-4).")
    weight_decay: float = _option(0.01, "Weight decay of AdamW (recipe: 0.01).")
    adam_beta2: float = _option(0.98, "Beta2 of AdamW (recipe: 0.98).")
    warmup_steps: float = _option(0.1, "Warm-up in steps, below 1 as a share of them (recipe: 0.1); then linear decay.")
    remove_unused_columns: bool = _option(False, "The collator reads raw columns (text, images, label): all are kept.")

    def __post_init__(self) -> None:
        """Check the ranges before anything is built."""
        self.layer_map = _layer_map("layer_map", self.layer_map)
        self.hidden_layers = _layer_map("hidden_layers", self.hidden_layers)

        # Words and ranges that no objective checks; an objective checks those of its weights itself.
        above = "give a number above 0"
        allowed = {
            "method": (self.method in METHODS, f"give {' or '.join(METHODS)}"),
            "cache_teacher": (self.cache_teacher in (None, *KINDS), f"give {' or '.join(KINDS)}, or leave it out"),
            "head_learning_rate_factor": (self.head_learning_rate_factor > 0, above),
            "muon_learning_rate": (self.muon_learning_rate is None or self.muon_learning_rate > 0, above),
            "masking_share": (0 < self.masking_share <= 1, "give a share of words above 0 and at most 1"),
            "vision_cache_mb": (0 <= self.vision_cache_mb < float("inf"), "give a number >= 0, 0 for no cache"),
            "ranking_negatives": (self.ranking_negatives >= 1, "it must be at least 1"),
        }
        # NaN, too, is no number below infinity.
        weight = "give a number >= 0, 0 to leave that loss out"
        allowed |= {name: (0 <= value < float("inf"), weight) for name, value in self._hard_weights().items()}
        for name, (is_allowed, way_out) in allowed.items():
            if not is_allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; {way_out}.")
        for name in ("attention_weight", "interaction_attention_weight"):
            if self.cache_teacher == "logits" and getattr(self, name):
                weight = f"{name} {getattr(self, name)}"
                raise ValueError(f"cache_teacher is 'logits' but {weight}; cache attention, or set the weight to 0.")

        if self.cache_teacher == "attention" and self.count_padded_queries:
            raise ValueError("count_padded_queries is set, but a cache keeps no padding; leave cache_teacher out.")

        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # nothing to pin for; torch would warn at every epoch
        if self.deepspeed and not is_deepspeed_available():
            raise ImportError("deepspeed needs the package of that name: pip install deepspeed; or leave it out.")
        super().__post_init__()
        for objective in (METHODS[self.method], PreTrainingObjective):
            self.make_objective(objective)

    def make_objective(
        self, objective: type[Objective] | None = None, student: Any = None, teacher: Any = None
    ) -> Objective:
        """Build an objective from the fields that its constructor names, and what it must know of both models.

        Args:
            objective: its class; None: that of `method`.
            student: its configuration.
            teacher: its configuration; None: a foreign teacher has none.

        Example:
            >>> args = DistillationTrainingArguments(output_dir="out", temperature=2.0, use_cpu=True)
            >>> args.make_objective(DiDEObjective).temperature
            2.0
        """
        objective = objective or METHODS[self.method]
        made: Any = objective(**self.objective_arguments(objective, student, teacher))

        # Towers without queries and keys that fit each other are given as many heads as they are compared with.
        if made.attention_weight and getattr(student, "records_tokens", False):
            heads = self.relation_heads or getattr(teacher and teacher.get_text_config(), "num_attention_heads", 1)
            made.add_projections(student.hidden_size, heads)
        return made

    def objective_arguments(self, objective: type[Objective], student: Any, teacher: Any) -> dict[str, Any]:
        """Return what `make_objective` builds an objective from."""
        given = vars(self) | {
            "pooled": self.hidden_pooled,
            "multi_label": getattr(student, "problem_type", None) == "multi_label_classification",
            "student_size": getattr(student, "hidden_size", 1),
            "teacher_size": getattr(teacher, "hidden_size", 1),
        }

        names = constructor_names(objective)
        if "match_weight" in names:
            given["match_weight"] = self.weight_of_matches(student)
        return {name: given[name] for name in names if given.get(name) is not None}

    def weight_of_matches(self, student: Any) -> float:
        """Return `match_weight`, by default 1 for a student whose configuration has interaction layers.

        Raises:
            ValueError: a weight was given for a student without such layers.
        """
        has_layers = bool(getattr(student, "interaction_layers", 0))
        if self.match_weight and not has_layers:
            lacks = "the student has no interaction layers"
            raise ValueError(f"match_weight is {self.match_weight}, but {lacks}; leave it out.")
        return float(has_layers) if self.match_weight is None else self.match_weight

    def freeze_towers(self, body: Any) -> None:
        """Leave those towers of a model without its head as they are that these arguments name.

        Raises:
            ValueError: it has no towers.
        """
        for tower in ("text", "vision"):
            if not getattr(self, f"freeze_{tower}_tower"):
                continue
            if not hasattr(body, f"{tower}_model"):
                lacks = f"a {type(body).__name__} has no towers"
                raise ValueError(f"freeze_{tower}_tower is set, but {lacks}; leave it out.")
            part = getattr(body, f"{tower}_model")
            # What makes a tower of others fit is trained.
            getattr(part, "model", part).requires_grad_(False)

    def write_weights(self, config: PreTrainedConfig) -> None:
        """Write the weights of the hard terms that were given into the configuration of a model for pre-training.

        Raises:
            ValueError: a weight of a term that such a model does not have.
        """
        for name, value in self._hard_weights().items():
            if not hasattr(config, name):
                raise ValueError(f"{name} is {value}, but a {config.model_type} has no such term; leave it out.")
            setattr(config, name, value)

    def _hard_weights(self) -> dict[str, float]:
        """Weights that were given of losses which a model for pre-training computes itself."""
        names = ("itc_weight", "itm_weight", "mlm_weight")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def constructor_names(objective: type[Objective]) -> list[str]:
    """Return the arguments of an objective, those that all objectives take among them."""
    named = inspect.signature(objective).parameters
    return [*named, *(get_type_hints(Settings) if "settings" in named else ())]


def _layer_map(name: str, given: dict | str | None) -> dict | None:
    """Read a map of layers that may be given as JSON, whose keys are strings."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is {given!r}, which is no JSON ({error}); write '{{\"-1\": -1}}'.") from error
    if not isinstance(given, dict | None):
        raise ValueError(f"{name} is {given!r}; give an object of student layer to teacher layer.")
    return given and {int(student): int(teacher) for student, teacher in given.items()}
