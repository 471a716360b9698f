"""Whether student, teacher and objective go together: found out before the first step, said in one sentence."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForImageTextRetrieval, FusionEncoderForPreTraining
from dual_distill.objectives import CrossModalObjective, Objective, PreTrainingObjective, RankingObjective
from dual_distill.teachers import AlignedTeacher

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


def check_arguments(trainer: Any, args: Any, teacher: Any, given: Mapping[str, Any]) -> None:
    """Refuse, by name, arguments of `Trainer` and of the run that would change nothing.

    Args:
        trainer: its class says what computes the loss.
        args: of the run.
        teacher: or None.
        given: the arguments of `Trainer`.
    """
    loss_of = "the objective" if teacher is not None else trainer.own_loss
    computed = f"the loss is computed by {loss_of}, which does not know it"
    settled, losses = "the groups of the optimizer that was given are settled", "an evaluation here gives losses alone"
    read = "teacher and collator read columns that the student does not"
    alone, has_optimizer = not trainer.gives_predictions, given.get("optimizers", (None, None))[0] is not None

    idle = {
        "compute_loss_func": (loss_of and given.get("compute_loss_func"), computed),
        "label_smoothing_factor": (loss_of and args.label_smoothing_factor, computed),
        "use_liger_kernel": (loss_of and args.use_liger_kernel, computed),
        "compute_metrics": (alone and given.get("compute_metrics"), losses),
        "preprocess_logits_for_metrics": (alone and given.get("preprocess_logits_for_metrics"), losses),
        "head_learning_rate_factor": (has_optimizer and args.head_learning_rate_factor != 1, settled),
        "remove_unused_columns": (loss_of and args.remove_unused_columns, read),
    }
    for name, (is_given, why) in idle.items():
        if is_given:
            raise ValueError(f"{name} is given, but {why}; leave it out.")


def check_compatibility(student: nn.Module, teacher: nn.Module, objective: Objective) -> None:
    """Raise a `ValueError` if this objective cannot compare these two: a sentence each, with both values and a way out.

    A foreign teacher's configuration may lack a field; what it does not say is not checked.

    Args:
        student: model with a `config`.
        teacher: model with a `config`.
        objective: what will be compared.
    """
    if isinstance(objective, PreTrainingObjective | RankingObjective):
        _check_image_text(student, teacher, objective)
    if isinstance(teacher, AlignedTeacher):
        _check_aligned(student.config, teacher, objective)
    theirs = getattr(teacher, "config", None)
    problems = [] if theirs is None else list(_problems(student.config, theirs, objective))
    if problems:
        raise ValueError(f"teacher and student cannot be paired: {'. '.join(problems)}.")


def _problems(ours: Any, theirs: Any, objective: Objective) -> Iterator[str]:
    # What must be the same on both sides; ViLT says -1 for "not set".
    for name, (words, way_out) in _EQUAL.items():
        mine, its = _field(ours, name), _field(theirs, name)
        if mine is not None and its not in (None, -1, mine):
            yield f"the teacher has {words.format(its)}, the student {words.format(mine)}; {way_out}"

    mine, its = ours.id2label, getattr(theirs, "id2label", None)
    if objective.soft_label_weight and its not in (None, mine):
        differ = f"the teacher has {len(its)} answers, the student {len(mine)}"
        if len(its) == len(mine):
            index = next(index for index in its if mine.get(index) != its[index])
            other = f"the student answer {index} = {mine.get(index)!r}"
            differ = f"the teacher has answer {index} = {its[index]!r}, {other}"
        way_out = "train the teacher on the student's answers in the same order, or set soft_label_weight to 0"
        yield f"{differ}; {way_out}"

    for name in ("interaction_attention_weight", "interaction_hidden_weight"):
        weight = getattr(objective, name)
        if weight and not getattr(ours, "interaction_layers", 0):
            lacks = "the student has no interaction layers"
            yield f"{name} is {weight}, but {lacks}; give it some (interaction_layers), or set it to 0"

    # What the objective needs of each side.
    sides = (
        ("student", ours, objective.student_layers, list(objective.hidden_layers)),
        ("teacher", theirs, objective.teacher_layers, list(objective.hidden_layers.values())),
    )
    for index, (role, config, layers, hidden_layers) in enumerate(sides):
        if objective.one_sequence and getattr(config, "text_config", None) is not None:
            compares = f"a {type(objective).__name__} compares states of one sequence"
            yield f"the {role} has two towers, but {compares}; take a fusion encoder, or method dide"
        sizes, width = objective.hidden_sizes, _field(config, "hidden_size")
        if sizes is not None and width not in (None, sizes[index]):
            built = f"the objective was built for {sizes[index]}"
            yield f"the {role} has width {width}, {built}; give it {role}_size={width}"

        depths = [tower.num_hidden_layers for tower in _towers(config) if hasattr(tower, "num_hidden_layers")]
        for name, named in (("hidden_layers", hidden_layers), ("layer_map", layers)):
            for layer, depth in itertools.product(named, depths):
                if not -depth <= layer < depth:
                    has = f"the {role}, which has {depth} layers"
                    yield f"{name} names layer {layer} of {has}; choose from {-depth} to {depth - 1}"

        heads = objective.relation_heads
        if objective.teacher_layers and heads is not None and width is not None and width % heads:
            does = f"does not divide the {role}'s width {width}"
            yield f"relation_heads is {heads}, which {does}; choose a number that divides both widths"

    mine, its = _field(ours, "num_attention_heads"), _field(theirs, "num_attention_heads")
    if getattr(ours, "records_tokens", False):
        mine = None
        if objective.attention_weight and objective.attention_projections is None:
            lacks = "the queries and keys of the student's towers do not fit each other"
            yield f"{lacks}; call objective.add_projections(width, heads), or set attention_weight to 0"
    if objective.teacher_layers and getattr(theirs, "model_type", None) == "vilt":
        yield _VILT
    elif objective.teacher_layers and objective.relation_heads is None and mine and its not in (None, mine):
        way_out = "set relation_heads to a number that divides both widths, or attention_weight to 0"
        yield f"the teacher has {its} attention heads, the student {mine}; {way_out}"


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


def _check_aligned(config: Any, teacher: AlignedTeacher, objective: Objective) -> None:
    """Refuse what cannot be compared with a teacher that has tokens of its own."""
    depth = teacher.num_layers
    layers = ", ".join(str(layer) for layer in objective.teacher_layers if not -depth <= layer < depth)
    problems = {
        f"a {type(objective).__name__} compares more than attention and answers; take method dide": not isinstance(
            objective, CrossModalObjective
        ),
        "interaction_hidden_weight compares states token by token; set it to 0": bool(objective.hidden_layers),
        "the student reads several images a row, or regions": config.num_images != 1
        or _field(config, "visual_inputs") == "regions",
        f"layer_map names layer {layers} of {depth}": bool(layers),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(f"{teacher.name} has other tokens than the student, and {problem}.")


def reads_otherwise(ours: Any, theirs: Any) -> bool:
    """Return whether a teacher of this package has another vocabulary or grid of patches than a student."""
    pairs = [(_field(ours, name), _field(theirs, name)) for name in ("vocab_size", "patch_grid")]
    return any(mine is not None and its not in (None, -1, mine) for mine, its in pairs)


def patch_size(config: Any) -> int:
    """Return the pixels along a side of a model's patches."""
    size: int = _field(config, "patch_size")
    return size


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
