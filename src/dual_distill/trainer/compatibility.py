"""Whether student, teacher and objective go together: found out before the first step, said in one sentence."""

import itertools
from typing import Any

from torch import nn

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForImageTextRetrieval, FusionEncoderForPreTraining
from dual_distill.objectives import Objective, PreTrainingObjective, RankingObjective

_VILT = (
    "transformers' ViLT draws its patches in a random order in every forward pass, so its attention names no patch; "
    "load its weights into a FusionEncoder class (the parameter names are the same), or set attention_weight to 0"
)
# Field of the configuration -> how a side's value is said, and the way out.
_EQUAL = {
    "vocab_size": (
        "a vocabulary of {} word pieces",
        "both must read the same ones: build the student with the teacher's tokenizer, or with `from_fusion_encoder`",
    ),
    "visual_inputs": ("{} as visual_inputs", "image tokens are compared one by one: give both the same visual_inputs"),
    "patch_grid": (
        "a patch grid of {}",
        "attention is compared patch by patch: give the student the teacher's image_size and patch_size",
    ),
    "num_images": ("{} images a row", "set num_images of both to the task's number of images"),
    "region_boxes_id": (
        "regions in the boxes of {!r}",
        "adapt the teacher: train it on its own features at the student's boxes (dual-distill regions ... --boxes)",
    ),
}


def check_compatibility(student: nn.Module, teacher: nn.Module, objective: Objective) -> None:
    """Raise a `ValueError` if this objective cannot compare these two; the sentence names both values and the way out.

    A foreign teacher's configuration may lack a field; what it does not say is not checked.

    Args:
        student: model with a `config`.
        teacher: model with a `config`.
        objective: what will be compared.
    """
    if isinstance(objective, PreTrainingObjective | RankingObjective):
        _check_image_text(student, teacher, objective)
    ours, theirs = student.config, getattr(teacher, "config", None)
    if theirs is None:
        return

    # What must be the same on both sides.
    for name, (words, way_out) in _EQUAL.items():
        mine, its = _field(ours, name), _field(theirs, name)
        if mine is not None and its not in (None, -1, mine):  # ViLT says -1 for "not set"
            _refuse(f"the teacher has {words.format(its)}, the student {words.format(mine)}; {way_out}")
    if objective.soft_label_weight:
        _check_labels(ours, theirs)

    # What the objective needs of each side.
    sides = (
        ("student", ours, objective.student_layers, list(objective.hidden_layers)),
        ("teacher", theirs, objective.teacher_layers, list(objective.hidden_layers.values())),
    )
    for index, (role, config, layers, hidden_layers) in enumerate(sides):
        if objective.one_sequence and getattr(config, "text_config", None) is not None:
            compares = f"a {type(objective).__name__} compares states of one sequence"
            _refuse(f"the {role} has two towers, but {compares}; take a fusion encoder, or method dide")
        sizes, width = objective.hidden_sizes, _field(config, "hidden_size")
        if sizes is not None and width not in (None, sizes[index]):
            built = f"the objective was built for {sizes[index]}"
            _refuse(f"the {role} has width {width}, {built}; give it {role}_size={width}")

        depths = [tower.num_hidden_layers for tower in _towers(config) if hasattr(tower, "num_hidden_layers")]
        for name, named in (("hidden_layers", hidden_layers), ("layer_map", layers)):
            for layer, depth in itertools.product(named, depths):
                if not -depth <= layer < depth:
                    has = f"the {role}, which has {depth} layers"
                    _refuse(f"{name} names layer {layer} of {has}; choose from {-depth} to {depth - 1}")

    if objective.attention_weight:
        if getattr(theirs, "model_type", None) == "vilt":
            _refuse(_VILT)
        _check_heads(ours, theirs, objective.relation_heads)


def _refuse(reason: str) -> None:
    raise ValueError(f"teacher and student cannot be paired: {reason}.")


def _check_image_text(student: Any, teacher: Any, objective: Objective) -> None:
    """Refuse a teacher that cannot say what is asked about pairs of text and image, or is asked nothing."""
    if isinstance(objective, PreTrainingObjective):
        teachers: tuple[type, ...] = (FusionEncoderForPreTraining,)
        way_out = "but pre-training asks a FusionEncoderForPreTraining; pre-train a fusion encoder first"
    else:
        teachers = (FusionEncoderForImageTextRetrieval, FusionEncoderForPreTraining)
        way_out = "which scores no pairs; give a fusion encoder with head image_text_retrieval or pretraining"
        if student.config.model_type == FusionEncoderConfig.model_type:
            learns = "a fusion encoder, which learns retrieval from the data itself"
            raise ValueError(f"a teacher was given for {learns}; leave it out, or train a dual encoder.")

    if not isinstance(teacher, teachers):
        raise ValueError(f"the teacher is a {type(teacher).__name__}, {way_out}.")
    if not objective.needs_teacher:
        names = " and ".join(name for name, weight in objective.weights.items() if not weight)
        raise ValueError(f"a teacher was given, but {names} are 0; give one of them, or leave the teacher out.")

    # A term of weight 0 is not computed, and leaves nothing to compare.
    for term in ("itm", "mlm"):
        for role, config in (("student", student.config), ("teacher", getattr(teacher, "config", None))):
            if objective.weights.get(f"{term}_distillation_weight") and not getattr(config, f"{term}_weight"):
                lacks = f"the {role}'s configuration has {term}_weight 0 and computes no logits; set both or none"
                raise ValueError(f"{term}_distillation_weight is above 0, but {lacks}.")


def _towers(config: Any) -> list[Any]:
    """The configurations of both towers, or that of a fusion encoder."""
    towers = [getattr(config, "text_config", None), getattr(config, "vision_config", None)]
    return [tower for tower in towers if tower] or [config]


def _field(config: Any, name: str) -> Any:
    """What a configuration says, or one of its towers' does; None: nothing."""
    if name == "patch_grid":
        patch, size = _field(config, "patch_size"), _field(config, "image_size")
        if not isinstance(patch, int) or size is None or _field(config, "visual_inputs") == "regions":
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return f"{height // patch} x {width // patch} patches of {patch} pixels"
    default = "patches" if name == "visual_inputs" else None
    values = (getattr(part, name, None) for part in (config, *_towers(config)))
    return next((value for value in values if value is not None), default)


def _check_labels(ours: Any, theirs: Any) -> None:
    student, teacher = ours.id2label, getattr(theirs, "id2label", None)
    if teacher is None or student == teacher:
        return

    way_out = "train the teacher on the student's answers in the same order, or set soft_label_weight to 0"
    if len(student) != len(teacher):
        _refuse(f"the teacher has {len(teacher)} answers, the student {len(student)}; {way_out}")
    index = next(index for index in teacher if student.get(index) != teacher[index])
    has = f"the teacher has answer {index} = {teacher[index]!r}, the student answer {index} = {student.get(index)!r}"
    _refuse(f"{has}; {way_out}")


def _check_heads(ours: Any, theirs: Any, relation_heads: int | None) -> None:
    student, teacher = _field(ours, "num_attention_heads"), _field(theirs, "num_attention_heads")
    if relation_heads is None and student is not None and teacher not in (None, student):
        way_out = "set relation_heads to a number that divides both widths, or attention_weight to 0"
        _refuse(f"the teacher has {teacher} attention heads, the student {student}; {way_out}")
    for role, config in (("teacher", theirs), ("student", ours)):
        width = _field(config, "hidden_size")
        if relation_heads is not None and width is not None and width % relation_heads:
            does = f"does not divide the {role}'s width {width}"
            _refuse(f"relation_heads is {relation_heads}, which {does}; choose a number that divides both widths")
