"""One training run from its arguments: data, processor, model, teacher and trainer put together.

A recipe is three dataclasses side by side (`ModelArguments`, `DataArguments`, `DistillationTrainingArguments`), so a
YAML file, the command line and Python share their words. `resolve` finds out everything that needs no weights;
`make_run` adds them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViltImageProcessorPil, ViTImageProcessorPil, set_seed

from dual_distill.data import ImageTextStream, RandAugment, answer_coverage, identify_data, train_tokenizer
from dual_distill.hub_cards import DataOrigin, origin_of
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig, dual_config_from_fusion
from dual_distill.teachers import load_config, load_model, load_processor
from dual_distill.trainer import (
    DistillationTrainer,
    DistillationTrainingArguments,
    StoredTeacher,
    check_options,
    differing_fields,
    open_teacher,
    reads_student_tokens,
)

from .arguments import DataArguments, ModelArguments
from .continuation import processor_of_run
from .data import RunData, asked_head, list_labels, prepare_data

_SHORTEST_TEXT = 4
_CHECKED_ROWS = 16
_PIECE = 10_000
_TOKENIZER_ROWS = 20_000
# What a model from nothing takes over as it is.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
_SHAPE = (*_SIZES, "initializer_range", "embedding_initializer_range")
# What a start may bring along in another way than was asked for, and which model it is built for.
_NEW_DUAL = "a dual_encoder from random weights, two towers or a fusion_encoder"
_COMES_WITH = dict.fromkeys(("interaction_layers", "projection_dim"), _NEW_DUAL)
_COMES_WITH |= dict.fromkeys(("text_layers", "vision_layers"), "a dual_encoder from a fusion_encoder")
_COMES_WITH |= dict.fromkeys(("text_pooling", "vision_pooling"), "a dual_encoder from two towers")
_COMES_WITH["norm_first"] = "a fusion_encoder from random weights"

RunArguments = tuple[ModelArguments, DataArguments, DistillationTrainingArguments]


@dataclass(frozen=True)
class Resolved:
    """A run without its weights.

    Attributes:
        data: what is trained on, and with which head.
        label_names: answers in the order of the logits; none for heads without labels.
        processor: serves teacher and student.
        collator: makes batches for training, evaluation and teacher alike.
        student_config: of the model that is trained.
        teacher_config: of the teacher, or None.
    """

    data: RunData
    label_names: list[str]
    processor: DualDistillProcessor
    collator: Any
    student_config: PreTrainedConfig
    teacher_config: PreTrainedConfig | None


def make_run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
    data: DatasetDict | None = None,
    processor: DualDistillProcessor | None = None,
    overwrite: bool = False,
) -> DistillationTrainer:
    """Put a run together: its trainer, ready to train.

    Args:
        model_arguments: the model and its start.
        data_arguments: the task.
        training_arguments: everything the trainer takes.
        data: the task's splits, if they are at hand already.
        processor: a processor, if one is at hand already; None: the checkpoint's, or that of an earlier start of this
            run, or one built for the task.
        overwrite: as for `train`: nothing of an earlier run is taken over.

    Raises:
        ValueError: the arguments do not fit each other, the task, or the checkpoints; the message says how to mend it.
    """
    set_seed(training_arguments.seed)
    if processor is None and not (model_arguments.start or model_arguments.taught_by or overwrite):
        processor = processor_of_run(training_arguments.output_dir)
    resolved = resolve((model_arguments, data_arguments, training_arguments), data, processor)
    head, rows, teacher = resolved.data.head, resolved.data, None
    if model_arguments.taught_by is not None:
        name, revision = model_arguments.taught_by
        may_align = head.has_labels and training_arguments.method == "dide"
        told: dict[str, Any] = {"attn_implementation": model_arguments.attn_implementation}
        ours, classes = resolved.student_config, head.classes
        teacher, _ = open_teacher(name, ours, resolved.processor, revision, classes, may_align, **told)

    # Again, so that a student starts from the same random weights with a teacher and without one.
    set_seed(training_arguments.seed)
    model = build_model(model_arguments, resolved)

    trainer_class = head.trainer_class(data_arguments.caption_training)
    is_rewarded = trainer_class is head.reward_trainer
    told = {"train_dataset": rows.train_rows, "eval_dataset": None if is_rewarded else rows.eval_rows}
    told |= {"data_collator": resolved.collator, "processing_class": resolved.processor, **head.metrics(model)}
    trainer = trainer_class(model, training_arguments, teacher=teacher, **told)

    used = {"start": model_arguments.start, "teacher": model_arguments.taught_by}
    if isinstance(teacher, StoredTeacher):
        del used["teacher"]  # the trainer says whose views are stored
    known: dict[str, Any] = {split: identify_data(rows.splits, rows.task, split) for split in rows.splits}
    origins = {role: origin_of(*checkpoint) for role, checkpoint in used.items() if checkpoint}
    trainer.describe_run(
        {**differing_fields(model_arguments, data_arguments), **_inputs(model_arguments, rows)},
        data=DataOrigin(rows.task.name, content=known.pop("train"), splits=known),
        **origins,
    )
    return trainer


def _inputs(arguments: ModelArguments, rows: RunData) -> dict[str, str]:
    """Which towers and regions were given, by their content: the paths of this machine say nothing of it."""
    stores = {name: rows.regions.get(name) for name in ("regions", "teacher_regions")}
    found = {name: f"boxes: {store.boxes_id}; features: {store.features_id}" for name, store in stores.items() if store}
    towers = {"vision_tower": arguments.vision_tower, "text_tower": arguments.text_tower}
    return found | {name: str(origin_of(tower)) for name, tower in towers.items() if tower is not None}


def resolve(
    arguments: RunArguments, splits: Mapping[str, Any] | None = None, processor: DualDistillProcessor | None = None
) -> Resolved:
    """Find out all of a run that needs no weights; arguments and errors are those of `make_run`."""
    model_arguments, data_arguments, training_arguments = arguments
    head, start, taught_by = asked_head(data_arguments), model_arguments.start, model_arguments.taught_by
    check_options(head.trainer_class(data_arguments.caption_training), training_arguments, taught_by is not None)
    # A teacher with tokens of its own lends the student neither labels nor a processor.
    lends = taught_by is not None and reads_student_tokens(*taught_by)
    teacher_config = load_config(*taught_by, head.classes) if taught_by and lends else None

    # Labels of the checkpoint whose head is used, else the teacher's, else the task's, else those of the data.
    keeps_head = start is not None and not model_arguments.new_head
    labelled = load_config(*start, head.classes) if start and keeps_head else teacher_config
    spelled = [labelled.id2label[index] for index in range(len(labelled.id2label))] if labelled else None
    data = prepare_data(data_arguments, training_arguments.seed, splits, training_arguments.data_seed, spelled)
    fewest, train_rows = data_arguments.min_answer_count, data.splits["train"]
    label_names = list_labels(data.task, train_rows, fewest, labelled) if head.has_labels else []

    saved = start or (taught_by if lends else None)
    if processor is None:
        if towers := model_arguments.vision_text:
            processor = DualDistillProcessor.from_vision_text_pretrained(**towers)
        elif saved:
            processor = load_processor(*saved)
        else:
            processor = build_processor(model_arguments, _tokenizer_texts(data, data_arguments.tokenizer_texts))

    config = _student_config(model_arguments, data, label_names, len(processor.tokenizer))
    if head.has_own_losses:
        training_arguments.write_weights(config)

    # Texts share the positions of the model with the tags.
    positions = config.max_position_embeddings
    longest = min(positions - data.tag_tokens, model_arguments.max_text_length)
    if longest < _SHORTEST_TEXT:
        left = f"{longest} of {positions} positions for the text"
        raise ValueError(f"max_tag_length {data.tag_tokens} leaves {left}; give a smaller max_tag_length.")
    told = head.collator_input(processor.tokenizer, label_names, training_arguments)
    augmentation = RandAugment(seed=training_arguments.seed) if data_arguments.augmentation != "none" else None
    images = {"image_cache_mb": data_arguments.image_cache_mb, "augmentation": augmentation, **data.regions}
    collator = head.collator(processor, data.task, told, max_text_length=longest, **images)
    _check_rows(data, label_names, collator)
    return Resolved(data, label_names, processor, collator, config, teacher_config)


def build_processor(arguments: ModelArguments, texts: Any) -> DualDistillProcessor:
    """Build a processor for a model that starts from nothing: a tokenizer trained on `texts`, an image processor."""
    told: dict[str, Any] = {"image_mean": [arguments.image_mean] * 3, "image_std": [arguments.image_std] * 3}
    if arguments.resize == "fixed":
        size = {"height": arguments.image_height, "width": arguments.image_width}
        images: Any = ViTImageProcessorPil(size=size, **told)
    else:
        size = {"shortest_edge": arguments.image_height}
        images = ViltImageProcessorPil(size=size, size_divisor=arguments.patch_size, **told)
    return DualDistillProcessor(images, train_tokenizer(texts, arguments.vocab_size, arguments.max_text_length))


def build_model(arguments: ModelArguments, resolved: Resolved) -> PreTrainedModel:
    """Build the model that is trained, from a checkpoint or from nothing, in float32."""
    config, data = resolved.student_config, resolved.data
    model_class: Any = data.head.model_class(config)

    if not (arguments.start or arguments.vision_text):
        config._attn_implementation = arguments.attn_implementation
        model: Any = model_class(config)
    else:
        if arguments.vision_text:
            fields = _of_towers(arguments, data, resolved.label_names)
            model = model_class.from_vision_text_pretrained(**arguments.vision_text, **fields)
        else:
            told = _new_head(arguments, data, resolved.label_names)
            told["attn_implementation"] = arguments.attn_implementation
            name, revision = cast("tuple[str, str | None]", arguments.start)
            model = load_model(name, revision, data.head.classes, **told).model
        if not isinstance(model, model_class):
            model = model_class.from_fusion_encoder(model, **arguments.towers)
        _configure(model.config, arguments, data)
        for module in model.modules():
            if isinstance(module, nn.Dropout) and arguments.hidden_dropout_prob is not None:
                module.p = arguments.hidden_dropout_prob

    if data.head.prepare is not None:
        data.head.prepare(model, resolved.processor.tokenizer)
    return model


def _new_head(arguments: ModelArguments, data: RunData, label_names: list[str]) -> dict[str, Any]:
    """Return what loading is told of a newly initialized head."""
    num_images = len(data.task.image_columns)
    told = {"label_names": label_names or None, "num_images": num_images if num_images > 1 else None}
    return {"new_head": True, **told} if arguments.new_head else {}


def _student_config(
    arguments: ModelArguments, data: RunData, label_names: list[str], vocab_size: int
) -> PreTrainedConfig:
    """Return the configuration of the model that is trained: its checkpoint's, or one of the sizes in `arguments`."""
    config: Any
    if arguments.vision_text:
        fields = _of_towers(arguments, data, label_names)
        config = DualEncoderConfig.from_vision_text_pretrained(**arguments.vision_text, **fields)
    elif arguments.start is None:
        config = _config_of_sizes(arguments, data, label_names, vocab_size)
    else:
        config = load_config(*arguments.start, data.head.classes, **_new_head(arguments, data, label_names))

    is_fusion, wants_fusion = isinstance(config, FusionEncoderConfig), arguments.architecture == "fusion_encoder"
    if wants_fusion and not is_fusion:
        raise ValueError(f"init_from {arguments.init_from!r} is a dual_encoder, which cannot start a fusion_encoder.")
    takes_layers = is_fusion and not wants_fusion
    if takes_layers:
        config = dual_config_from_fusion(config, **arguments.towers)
    _check_shape(config, arguments, takes_layers)

    _configure(config, arguments, data)
    columns = data.task.image_columns
    if config.num_images != len(columns):
        given, way_out = f"{len(columns)} images ({', '.join(columns)})", "name other columns, or set new_head"
        raise ValueError(f"a row of the data has {given}, but the model reads {config.num_images}; {way_out}.")
    return config


def _check_shape(config: Any, arguments: ModelArguments, takes_layers: bool) -> None:
    """Refuse what is asked of the shape where the start brings its own; sizes alone are those of a model from nothing.

    Raises:
        ValueError: the model has another number of interaction layers, ..., than was asked for.
    """
    whole = "all of them"
    built = {
        "interaction_layers": getattr(config, "interaction_layers", 0),  # a fusion encoder has none
        **{name: getattr(config, name, "none") for name in ("projection_dim", "text_pooling", "vision_pooling")},
        "text_layers": arguments.text_layers if takes_layers else whole,
        "vision_layers": arguments.vision_layers if takes_layers else whole,
        # True is the default, so that it asks for nothing; towers of ours are always so.
        "norm_first": arguments.norm_first or getattr(config, "norm_first", True),
    }
    for name, value in built.items():
        if (asked := getattr(arguments, name)) not in (None, value):
            way_out = f"leave it out, or train {_COMES_WITH[name]}"
            raise ValueError(f"{name} is {asked}, but this {arguments.architecture} has {value}; {way_out}.")


def _of_towers(arguments: ModelArguments, data: RunData, label_names: list[str]) -> dict[str, Any]:
    """Return what a dual encoder of two models is told beside their names."""
    fields: dict[str, Any] = {
        "interaction_layers": arguments.interaction_layers or 0,
        "num_images": len(data.task.image_columns),
    }
    fields["attn_implementation"] = arguments.attn_implementation
    told = {name: getattr(arguments, name) for name in ("projection_dim", "text_pooling", "vision_pooling")}
    return fields | {name: value for name, value in told.items() if value is not None} | _labels(label_names)


def _labels(label_names: list[str]) -> dict[str, Any]:
    """Return the labels of a head, if it has some, as a configuration has them."""
    ids = {label: index for index, label in enumerate(label_names)}
    return {"id2label": dict(enumerate(label_names)), "label2id": ids} if label_names else {}


def _config_of_sizes(
    arguments: ModelArguments, data: RunData, label_names: list[str], vocab_size: int
) -> FusionEncoderConfig:
    """Return the configuration of a new fusion encoder, of whose shape a new dual encoder's towers are, too."""
    fields: dict[str, Any] = {name: getattr(arguments, name) for name in _SHAPE}
    if arguments.architecture == "fusion_encoder":
        fields["norm_first"] = arguments.norm_first
    fields |= _labels(label_names)
    if data.store is not None:
        fields |= {"visual_inputs": "regions", "region_feature_size": data.store.feature_size}

    longest, num_images = arguments.max_text_length, len(data.task.image_columns)
    fields |= {"max_position_embeddings": longest + data.tag_tokens, "max_caption_tokens": longest}
    fields |= {"num_images": num_images, "modality_type_vocab_size": 1 + num_images, "vocab_size": vocab_size}
    fields |= {"image_size": [arguments.image_height, arguments.image_width]}
    return FusionEncoderConfig(**fields, intermediate_size=arguments.intermediate_size or 4 * arguments.hidden_size)


def _configure(config: PreTrainedConfig, arguments: ModelArguments, data: RunData) -> None:
    """Write into a configuration what the run says about it, whatever checkpoint it came from.

    A teacher is adapted by training it on another store: the student's boxes, in features of its own backbone.

    Raises:
        ValueError: the model reads pixels and a store is given, or the other way round, or features of another width.
    """
    if data.task.answers_column is not None:
        config.problem_type = "multi_label_classification"
    for part in (config, getattr(config, "text_config", config), getattr(config, "vision_config", config)):
        if arguments.hidden_dropout_prob is not None and hasattr(part, "hidden_dropout_prob"):
            part.hidden_dropout_prob = arguments.hidden_dropout_prob

    reads_regions, store = getattr(config, "visual_inputs", "patches") == "regions", data.store
    if reads_regions != (store is not None):
        way_out = "give regions, a folder of `dual-distill regions`" if reads_regions else "leave regions out"
        reads = "regions" if reads_regions else "pixels"
        raise ValueError(f"the model reads {reads}, but the region store is {store!r}; {way_out}.")
    if store is None:
        return

    if config.region_feature_size != store.feature_size:
        wide = f"{config.region_feature_size} wide, but those of {store!r} are {store.feature_size}"
        raise ValueError(f"the model reads region features {wide}; give the store of the model's own backbone.")
    config.region_boxes_id, config.region_features_id = store.boxes_id, store.features_id


def _first_rows(split: Any, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a split, table or stream; of a stream nothing is used up, and no row given twice."""
    if isinstance(split, ImageTextStream):
        split = split.split(0, 1)
        split.repeat = False
        return list(itertools.islice(split, count))
    return [split[index] for index in range(min(count, len(split)))]


def _tokenizer_texts(data: RunData, files: Sequence[str]) -> Any:
    """Return what a tokenizer is trained on: all texts of a table, the first 20,000 of a stream, the lines of files."""
    train, column = data.splits["train"], data.task.text_column
    is_stream = isinstance(train, ImageTextStream)
    texts = [row[column] for row in _first_rows(train, _TOKENIZER_ROWS)] if is_stream else train[column]
    for file in files:
        texts = [*texts, *Path(file).read_text(encoding="utf-8").splitlines()]
    return texts


def _check_rows(data: RunData, label_names: Sequence[str], collator: Callable[[Sequence[Any]], object]) -> None:
    """Look at columns, images and labels of the first rows before any model is loaded.

    Raises:
        ValueError: the head can give none of the labels, as one of a checkpoint for other answers; or what the collator
            raises.
    """
    if data.head.has_labels:
        column, rows = str(data.task.answers_column or data.task.label_column), data.splits["train"]
        # In pieces, the first of which says yes in any data that fits: all of VQA v2 would take ten seconds.
        pieces = (rows.select(range(at, min(at + _PIECE, len(rows)))) for at in range(0, len(rows), _PIECE))
        if not any(answer_coverage(piece, column, label_names) for piece in pieces):
            given = f"the {len(label_names):,} that the head gives ({str(list(label_names)[:3])[1:-1]}, ...)"
            way_out = "start from a model for this data, or set new_head and leave the teacher out"
            raise ValueError(f"none of the labels in column {column!r} is among {given}; {way_out}.")
    for split in ("train", "validation"):
        collator(_first_rows(data.splits[split], _CHECKED_ROWS))
