"""Whether a teacher and a student can be paired: found out before the first step, said in one sentence."""

from typing import Any

from torch import nn

from dual_distill.objectives import Objective


def check_compatibility(student: nn.Module, teacher: nn.Module, objective: Objective) -> None:
    """Raise a `ValueError` if this objective cannot compare these two; the sentence names both values and the way out.

    A foreign teacher's configuration may lack a field; what it does not say is not checked.

    Args:
        student: model with a `config`.
        teacher: model with a `config`.
        objective: what will be compared.
    """
    ours, theirs = student.config, getattr(teacher, "config", None)
    if theirs is None:
        return
    _same(
        ours,
        theirs,
        "vocab_size",
        "a vocabulary of {} word pieces",
        "both must read the same word pieces: build the student with the teacher's tokenizer, or with "
        "`from_fusion_encoder`",
    )
    _same_images(ours, theirs)
    _same(ours, theirs, "num_images", "{} images a row", "set num_images of both to the task's number of images")
    if objective.soft_label_weight:
        _same_labels(ours, theirs)
    _comparable_tokens(ours, theirs, objective)
    if objective.attention_weight:
        if getattr(theirs, "model_type", None) == "vilt":
            raise ValueError(
                "teacher and student cannot be paired: transformers' ViLT draws its patches in a random order in "
                "every forward "
                "pass, so its attention names no patch; load its weights into a FusionEncoder class (the parameter "
                "names are "
                "the same), or set attention_weight to 0."
            )
        _comparable_heads(ours, theirs, objective)
        _layers_exist(ours, objective.student_layers, "student")
        _layers_exist(theirs, objective.teacher_layers, "teacher")


def _refuse(teacher_has: str, student_has: str, way_out: str) -> None:
    raise ValueError(
        f"teacher and student cannot be paired: the teacher has {teacher_has}, the student {student_has}; {way_out}."
    )


def _towers(config: Any) -> list[Any]:
    return [
        tower for tower in (getattr(config, "text_config", None), getattr(config, "vision_config", None)) if tower
    ] or [config]


def _field(config: Any, name: str) -> Any:
    values = [getattr(part, name) for part in (config, *_towers(config)) if getattr(part, name, None) is not None]
    return values[0] if values else None


def _same(ours: Any, theirs: Any, name: str, words: str, way_out: str) -> None:
    student, teacher = _field(ours, name), _field(theirs, name)
    # ViLT says -1 for "not set".
    if student is not None and teacher is not None and teacher != -1 and student != teacher:
        _refuse(words.format(teacher), words.format(student), way_out)


def _patches(config: Any) -> tuple[Any, tuple[int, int]] | None:
    patch, size = _field(config, "patch_size"), _field(config, "image_size")
    if not isinstance(patch, int) or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return patch, (height // patch, width // patch)


def _same_images(ours: Any, theirs: Any) -> None:
    """Refuse patches beside regions, unlike patch grids, and regions in boxes of two detectors."""
    student, teacher = (_field(config, "visual_inputs") or "patches" for config in (ours, theirs))
    if student != teacher:
        _refuse(
            f"{teacher} as visual_inputs",
            f"{student}",
            "image tokens are compared one by one: give both the same visual_inputs",
        )
    if student == "patches":
        _same_patches(ours, theirs)
        return
    _same(
        ours,
        theirs,
        "region_boxes_id",
        "regions in the boxes of {!r}",
        "region i must be the same box on both sides: adapt the teacher, that is, train it on its own features at the "
        "student's boxes (dual-distill regions TEACHER_DETECTOR --boxes STUDENT_STORE)",
    )


def _same_patches(ours: Any, theirs: Any) -> None:
    student, teacher = _patches(ours), _patches(theirs)
    if student and teacher and student != teacher:
        words = "a patch grid of {0[0]} x {0[1]} patches of {1} pixels"
        _refuse(
            words.format(teacher[1], teacher[0]),
            words.format(student[1], student[0]),
            "attention is compared patch by patch: give the student the teacher's image_size and patch_size",
        )


def _same_labels(ours: Any, theirs: Any) -> None:
    student, teacher = ours.id2label, getattr(theirs, "id2label", None)
    if teacher is None or student == teacher:
        return
    way_out = "train the teacher on the student's answers in the same order, or set soft_label_weight to 0"
    if len(student) != len(teacher):
        _refuse(f"{len(teacher)} answers", f"{len(student)}", way_out)
    index = next(index for index in teacher if student.get(index) != teacher[index])
    _refuse(f"answer {index} = {teacher[index]!r}", f"answer {index} = {student.get(index)!r}", way_out)


def _comparable_tokens(ours: Any, theirs: Any, objective: Objective) -> None:
    """Refuse what cannot be compared token by token: two towers, unlike depths, another width than the projection's."""
    sides = (
        ("student", ours, list(objective.hidden_layers)),
        ("teacher", theirs, list(objective.hidden_layers.values())),
    )
    for index, (role, config, layers) in enumerate(sides):
        if objective.one_sequence and getattr(config, "text_config", None) is not None:
            raise ValueError(
                f"teacher and student cannot be paired: the {role} has two towers, but a "
                f"{type(objective).__name__} compares states of one sequence of words and regions; take a fusion "
                "encoder, or method dide."
            )
        _layers_exist(config, layers, role, "hidden_layers")
        width = _field(config, "hidden_size")
        if objective.hidden_sizes is not None and width not in (None, objective.hidden_sizes[index]):
            raise ValueError(
                f"teacher and student cannot be paired: the {role} has width {width}, the objective was built for "
                f"{objective.hidden_sizes[index]}; give it {role}_size={width}."
            )


def _comparable_heads(ours: Any, theirs: Any, objective: Objective) -> None:
    student, teacher = _field(ours, "num_attention_heads"), _field(theirs, "num_attention_heads")
    if objective.relation_heads is None:
        if student is not None and teacher is not None and student != teacher:
            _refuse(
                f"{teacher} attention heads",
                f"{student}",
                "set relation_heads to a number that divides both widths, or attention_weight to 0",
            )
        return
    for role, config in (("teacher", theirs), ("student", ours)):
        width = _field(config, "hidden_size")
        if width is not None and width % objective.relation_heads:
            raise ValueError(
                f"teacher and student cannot be paired: relation_heads is {objective.relation_heads}, which does not "
                f"divide "
                f"the {role}'s width {width}; choose a number that divides both widths."
            )


def _layers_exist(config: Any, layers: list[int], role: str, name: str = "layer_map") -> None:
    for tower in _towers(config):
        depth = getattr(tower, "num_hidden_layers", None)
        for layer in layers:
            if depth is not None and not -depth <= layer < depth:
                raise ValueError(
                    f"teacher and student cannot be paired: {name} names layer {layer} of the {role}, which has "
                    f"{depth} "
                    f"layers; choose from {-depth} to {depth - 1}."
                )


__all__ = ["check_compatibility"]
