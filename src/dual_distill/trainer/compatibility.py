"""Whether the parts of a run go together: held against each other by what they say, before the first step.

Each problem is one sentence, and all are said at once. What a part does not say (a collator of the user's own, a
teacher without a configuration) is not checked.
"""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from PIL import Image
from torch import nn
from transformers import TrainingArguments

from dual_distill import modeling
from dual_distill.objectives import CrossModalObjective, Objective, PreTrainingObjective, RankingObjective
from dual_distill.teachers import AlignedTeacher, ForeignTeacher, load_processor

from .distillation_config import METHODS, DistillationTrainingArguments, constructor_names

_logger = logging.getLogger(__name__)
_TEXTS = ("what is in the image?", "Two dogs run 12.5 metres past a CAFÉ.")
_OWN_PROCESSOR = "give the run the processor of the {} (processing_class=, data_collator=)"
_NAMELESS = re.compile(r"LABEL_\d+")  # transformers' names of labels that nobody named
_TOLERANCE = 0.02  # of pixels, whose values are about 1
_NO_MASS = 1e-6
_ALWAYS_READ = (
    "preflight",
    "group_by_shape",
    "muon_learning_rate",
    "freeze_text_tower",
    "freeze_vision_tower",
    "vision_cache_mb",
)
_NO_LIMIT = 1_000_000  # from here on, a tokenizer's `model_max_length` stands for none

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


def check_options(
    trainer_class: Any, args: DistillationTrainingArguments, has_teacher: bool, given: Any = None
) -> None:
    """Refuse, by name, options of distillation that were changed and that nothing in a run reads.

    Args:
        trainer_class: a `DistillationTrainer`.
        args: of the run.
        has_teacher: whether there is one; without it nothing is compared.
        given: an objective, which has settings of its own; None: one is made of the arguments.

    Raises:
        ValueError: such an option is set, most often one of another `method`, or one of a teacher that is not there.

    Example:
        >>> from dual_distill.trainer import DistillationTrainer
        >>> args = DistillationTrainingArguments(output_dir="out", attention_weight=2.0)
        >>> check_options(DistillationTrainer, args, has_teacher=False)
        Traceback (most recent call last):
        ValueError: attention_weight is 2.0, but nothing of this run (DistillationTrainer, no teacher) reads that; ...
    """
    read, parts = {*trainer_class.own_options, *_ALWAYS_READ}, [trainer_class.__name__]
    if has_teacher:
        read |= {"cache_teacher", "teacher_cache_dir", "keep_attention_projections"}
        objective = type(given) if given is not None else trainer_class.objective_class or METHODS[args.method]
        parts.append(objective.__name__)
        if given is None:
            read |= {{"pooled": "hidden_pooled"}.get(name, name) for name in constructor_names(objective)}
            read |= set() if trainer_class.objective_class else {"method"}

    usual = {one.name for one in fields(TrainingArguments)}
    ours = [one for one in fields(DistillationTrainingArguments) if one.name not in usual | read]
    idle = [f"{one.name} is {value}" for one in ours if (value := getattr(args, one.name)) != one.default]
    if idle:
        nothing = f"nothing of this run ({', '.join(parts)}{'' if has_teacher else ', no teacher'}) reads that"
        raise ValueError(f"{' and '.join(idle)}, but {nothing}; leave it out.")


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
        "muon_learning_rate": (has_optimizer and args.muon_learning_rate is not None, settled),
        "remove_unused_columns": (loss_of and args.remove_unused_columns, read),
    }
    for name, (is_given, why) in idle.items():
        if is_given:
            raise ValueError(f"{name} is given, but {why}; leave it out.")


def check_compatibility(
    student: nn.Module, teacher: nn.Module | None, objective: Objective | None, found: Iterable[str] = ()
) -> None:
    """Raise a `ValueError` if a run cannot be right: a sentence for each problem, with both values and a way out.

    A foreign teacher's configuration may lack a field; what it does not say is not checked.

    Args:
        student: model with a `config`.
        teacher: model with a `config`, or None.
        objective: what will be compared; None without a teacher.
        found: further problems, those of `content_problems`.
    """
    if isinstance(objective, PreTrainingObjective | RankingObjective):
        _check_image_text(student, teacher, objective)
    if isinstance(teacher, AlignedTeacher) and objective is not None:
        _check_aligned(student.config, teacher, objective)
    theirs: Any = getattr(teacher, "config", None)
    paired = [] if theirs is None or objective is None else list(_problems(student.config, theirs, objective))
    if problems := [*paired, *found]:
        cannot = "teacher and student cannot be paired" if paired else "the parts of this run do not fit"
        raise ValueError(f"{cannot}: {'. '.join(problems)}.")


def content_problems(collator: Any, models: Mapping[str, Any], datasets: Iterable[Any]) -> Iterator[str]:
    """Say what the parts of a run read in different ways: word pieces, pixels, answers, lengths.

    Args:
        collator: makes the batches.
        models: role -> each model that reads these batches.
        datasets: rows, for training and evaluation.
    """
    names, processor = getattr(collator, "label_names", None), getattr(collator, "processor", None)
    if names:
        yield from _label_problems(list(names), collator, models["student"].config, datasets)
    if not isinstance(processor, modeling.DualDistillProcessor):
        return

    # One colour shows the order of channels and what is subtracted and divided by, at any size.
    probe = Image.new("RGB", (96, 64), (200, 100, 50))
    pixels = processor.prepare_image(probe)
    for role, model in models.items():
        yield from _limit_problems(role, model, collator, processor.tokenizer, pixels)
        if (own := _saved_processor(model)) is not None:
            yield from _word_piece_problems(role, own.tokenizer, processor.tokenizer)
            # What learns may change what it reads; a teacher that reads regions reads no pixels.
            if role == "teacher" and _field(model.config, "visual_inputs") == "patches":
                yield from _pixel_problems(own.prepare_image(probe), pixels)


def _saved_processor(model: Any) -> Any:
    """Return the processor that lies beside the weights that a model was loaded from; None: there is none to see."""
    folder = getattr(getattr(model, "config", None), "_name_or_path", None)
    try:
        return load_processor(folder) if folder and Path(folder).is_dir() else None
    except ValueError:  # saved without one
        return None


def _limit_problems(role: str, model: Any, collator: Any, tokenizer: Any, pixels: torch.Tensor) -> Iterator[str]:
    """Texts that are cut later than a model has positions, images that are no whole patches."""
    config: Any = getattr(model, "config", None)
    positions, patch = _field(config, "max_position_embeddings"), _field(config, "patch_size")
    longest, regions = collator.max_text_length or tokenizer.model_max_length, collator.regions
    if positions is not None:
        positions -= (collator.max_tag_length or 0) if regions is not None and regions.num_tags else 0
        writes = hasattr(model, "can_generate") and model.can_generate()
        positions = min(positions, config.max_caption_tokens) if writes else positions
        if longest > positions:
            cut = f"texts are cut at {longest} tokens" if longest < _NO_LIMIT else "texts are not cut"
            way_out = f"give the collator max_text_length={positions}, or the tokenizer model_max_length={positions}"
            yield f"{cut}, but the {role} has positions for {positions}; {way_out}"

    height, width = pixels.shape[-2:]
    # Of its own size a tower leaves out what fills no patch.
    size = _field(config, "image_size")
    is_own = [height, width] == ([size, size] if isinstance(size, int) else list(size or ()))
    if isinstance(patch, int) and regions is None and not is_own and (height % patch or width % patch):
        makes = f"the processor makes {height} x {width} pixels of an image of 64 x 96"
        yield f"{makes}, which are no whole patches of {patch} as the {role} reads; let it resize to multiples"


def _word_piece_problems(role: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Word pieces with another id, or texts that are cut otherwise."""
    there, here = theirs.get_vocab(), ours.get_vocab()
    moved = sorted((index, piece) for piece, index in there.items() if here.get(piece) != index)
    read = [(piece, index, here.get(piece, "no id")) for index, piece in moved[:1]]
    cut = {"truncation": True, "max_length": 64}
    read += [(text, *(one(text, **cut)["input_ids"] for one in (theirs, ours))) for text in _TEXTS]
    differ = [f"{text!r} as {before}, the run's as {now}" for text, before, now in read if before != now]
    if differ:
        yield f"the {role}'s tokenizer reads {differ[0]}; {_OWN_PROCESSOR.format(role)}"


def _pixel_problems(theirs: torch.Tensor, ours: torch.Tensor) -> Iterator[str]:
    """Pixels of other values for a frozen teacher; another size alone is said, for its positions are interpolated."""
    there, here = (pixels.mean((1, 2)) for pixels in (theirs, ours))
    if (there - here).abs().max() > _TOLERANCE:
        made = [" ".join(f"{value:.2f}" for value in one.tolist()) for one in (there, here)]
        differ = f"of one colour the teacher's processor makes {made[0]}, the run's {made[1]}"
        yield f"{differ}; {_OWN_PROCESSOR.format('teacher')}"
    elif theirs.shape != ours.shape:
        sizes = [tuple(pixels.shape[-2:]) for pixels in (theirs, ours)]
        _logger.warning("of one image the teacher's processor makes %s pixels, the run's %s", *sizes)


def _label_problems(names: list[str], collator: Any, config: Any, datasets: Iterable[Any]) -> Iterator[str]:
    """Answers of another order or number than the student's, in the collator or in a numbered column."""
    own = [config.id2label[index] for index in range(len(config.id2label))]
    if len(names) > len(own):
        yield f"the collator has {len(names)} label_names, the student {len(own)} labels; give it the student's"
    elif not all(map(_NAMELESS.fullmatch, own)) and names != own[: len(names)]:
        index = next(index for index, name in enumerate(names) if name != own[index])
        answers = f"answer {index} is {names[index]!r} for the collator, {own[index]!r} for the student"
        yield f"{answers}; give the collator label_names in the student's order (config.id2label)"

    column = getattr(getattr(collator, "task", None), "label_column", None)
    for dataset in datasets:
        kind = (getattr(getattr(dataset, "dataset", dataset), "features", None) or {}).get(column)
        if isinstance(kind, ClassLabel) and kind.names != names:
            numbers = f"column {column!r} numbers the classes {kind.names}, the model {names}"
            yield f"{numbers}; store their names in place of numbers"
            return


def check_first_batch(trainer: Any, rows: Any) -> None:
    """Compute the loss of a few rows: name the parameters that it does not reach, refuse a teacher that looks nowhere.

    Nothing of the run is used up: no random number, no row, no state of the objective.

    Args:
        trainer: a `DistillationTrainer`.
        rows: of training.

    Raises:
        ValueError: the teacher's attention has no mass in one direction.
    """
    device, objective = trainer.args.device, trainer.distillation_objective
    student = trainer.accelerator.unwrap_model(trainer.model)
    was_training, seen = student.training, []
    hook = None if objective is None else objective.register_forward_pre_hook(lambda _, given: seen.append(given))

    # In eval mode, so that a queue of negatives takes nothing in.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            losses, _ = trainer._losses(student.eval(), trainer._prepare_inputs(trainer.data_collator(rows)))
            losses["loss"].backward()
            own = [(name, one) for name, one in student.named_parameters() if one.requires_grad]
            idle = [name for name, one in own if one.grad is None]
        finally:
            student.train(was_training).zero_grad()
            trainer._not_finite = {}  # the first step says it again
            if hook is not None:
                hook.remove()
                objective.zero_grad()

    if idle and not trainer.leaves_parameters_unused:
        few = ", ".join(idle[:3]) + (", ..." if len(idle) > 3 else "")
        _logger.warning("no loss reaches %d parameters (%s): they stay as they are", len(idle), few)
    if seen and isinstance(objective, CrossModalObjective) and getattr(seen[0][1], "attentions", None):
        _check_mass(objective, *seen[0])


def _check_mass(objective: CrossModalObjective, student_outputs: Any, view: Any, batch: Mapping[str, Any]) -> None:
    """Refuse attention probabilities that are 0 from one modality to the other: rescaled, they would be uniform."""
    text, image = batch["attention_mask"].bool(), student_outputs.image_mask
    text, image = text.repeat_interleave(image.shape[1], dim=0), image.flatten(0, 1)
    masks = {"text to image": (text, image), "image to text": (image, text)}
    for scores in objective.teacher_scores(view, batch["attention_mask"], text.shape[1] + image.shape[1]):
        for (direction, (queries, keys)), block in zip(masks.items(), scores, strict=True):
            mass = (block.exp() * keys[:, None, None]).sum(-1).mean(1)[queries].mean()
            if mass < _NO_MASS:
                looks = f"the teacher's attention from {direction} is 0 (a causal model does not look ahead)"
                raise ValueError(f"{looks}, so it has nothing to teach there; set attention_weight to 0.")


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
        teachers: tuple[type, ...] = (modeling.FusionEncoderForPreTraining,)
        way_out = "but pre-training asks a FusionEncoderForPreTraining; pre-train a fusion encoder first"
    else:
        teachers = (modeling.FusionEncoderForImageTextRetrieval, modeling.FusionEncoderForPreTraining, AlignedTeacher)
        way_out = "which scores no pairs; give a fusion encoder with head image_text_retrieval or pretraining"
        if student.config.model_type == modeling.FusionEncoderConfig.model_type:
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
    is_other = config.num_images != 1 or _field(config, "visual_inputs") == "regions"
    problems = {
        f"a {type(objective).__name__} compares more than attention and answers; take method dide": not isinstance(
            objective, CrossModalObjective
        ),
        "interaction_hidden_weight compares states token by token; set it to 0": bool(objective.hidden_layers),
        "count_padded_queries counts what its attention lacks; leave it out": getattr(
            objective, "count_padded_queries", False
        ),
        "the student reads several images a row, or regions; take a teacher that reads its tokens": is_other,
        f"layer_map names layer {layers} of {depth}": bool(layers),
    }
    # Of a store it is not known whose tokens its teacher had.
    how = "has other tokens than the student" if isinstance(teacher, ForeignTeacher) else "is read from a store"
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(f"{teacher.name} {how}, and {problem}.")


def reads_otherwise(ours: Any, theirs: Any) -> bool:
    """Return whether a teacher of this package has another vocabulary or grid of patches than a student."""
    pairs = [(_field(ours, name), _field(theirs, name)) for name in ("vocab_size", "patch_grid")]
    return any(mine is not None and its not in (None, -1, mine) for mine, its in pairs)


def patch_size(config: Any) -> int:
    """Return the pixels along a side of a model's patches."""
    return _field(config, "patch_size")


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
