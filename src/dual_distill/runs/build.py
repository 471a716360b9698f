"""One training run from its arguments: data, processor, model, teacher and trainer put together.

A recipe is three dataclasses side by side (`ModelArguments`, `DataArguments`, `DistillationTrainingArguments`), so a
YAML file, the command line and Python share their words. `resolve` finds out everything that needs no weights;
`make_run` adds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViltImageProcessorPil, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dual_distill.data import RandAugment, Task, build_answer_vocabulary, train_tokenizer
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig, dual_config_from_fusion
from dual_distill.teachers import load_config, load_model, load_processor, load_teacher
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

from .arguments import DataArguments, ModelArguments
from .data import RunData, check_rows, prepare_data, tokenizer_texts
from .heads import HEADS, HeadSpec

_SHORTEST_TEXT = 4
_ARCHITECTURES = {FusionEncoderConfig.model_type: "fusion_encoder", DualEncoderConfig.model_type: "dual_encoder"}


@dataclass(frozen=True)
class Resolved:
    """A run without its weights.

    Attributes:
        head: what is trained.
        data: what it is trained on.
        label_names: answers in the order of the logits; none for heads without labels.
        processor: serves teacher and student.
        collator: makes batches for training, evaluation and teacher alike.
        student_config: of the model that is trained.
        teacher_config: of the teacher, or None.
    """

    head: HeadSpec
    data: RunData
    label_names: list[str]
    processor: DualDistillProcessor
    collator: Any
    student_config: PreTrainedConfig
    teacher_config: PreTrainedConfig | None


class Run(NamedTuple):
    """What a recipe was put together to.

    Attributes:
        trainer: ready to train.
        processor: serves teacher and student.
        data: the task's splits.
        task: its columns and head.
        label_names: answers in the order of the logits.
    """

    trainer: DistillationTrainer
    processor: DualDistillProcessor
    data: Mapping[str, Any]
    task: Task
    label_names: list[str]


def make_run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
    data: DatasetDict | None = None,
    processor: DualDistillProcessor | None = None,
) -> Run:
    """Put a run together; nothing is trained yet.

    Args:
        model_arguments: the model and its start.
        data_arguments: the task.
        training_arguments: everything the trainer takes.
        data: the task's splits, if they are at hand already.
        processor: a processor, if one is at hand already; None: the checkpoint's, or one built for the task.

    Raises:
        ValueError: the arguments do not fit each other, the task, or the checkpoints; the message says how to mend it.
    """
    set_seed(training_arguments.seed)
    resolved = resolve(model_arguments, data_arguments, training_arguments, data, processor)
    head, rows = resolved.head, resolved.data

    teacher = None
    if model_arguments.teacher is not None:
        teacher = load_teacher(
            model_arguments.teacher,
            model_arguments.teacher_revision,
            head.classes,
            attn_implementation=model_arguments.attn_implementation,
        ).model

    # Again, so that a student starts from the same random weights with a teacher and without one.
    set_seed(training_arguments.seed)
    model = build_model(model_arguments, resolved)

    is_rewarded = data_arguments.caption_training == "self_critical"
    trainer_class = head.reward_trainer if is_rewarded else head.trainer
    if trainer_class is None:
        raise ValueError(f"caption_training is 'self_critical', but a {head.name} head writes nothing; leave it out.")
    trainer = trainer_class(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=rows.train_rows,
        eval_dataset=None if is_rewarded else rows.eval_rows,
        data_collator=resolved.collator,
        processing_class=resolved.processor,
        **head.metrics(model),
    )
    return Run(trainer, resolved.processor, rows.splits, rows.task, resolved.label_names)


def train(run: Run) -> dict[str, float]:
    """Train, continue from the last checkpoint in the output folder if there is one, and save model and processor.

    Returns:
        The metrics that Trainer reports, with `train_runtime` in seconds.
    """
    args = run.trainer.args
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None and Path(args.output_dir).is_dir():
        checkpoint = get_last_checkpoint(args.output_dir)

    metrics = run.trainer.train(resume_from_checkpoint=checkpoint).metrics
    run.trainer.save_model()
    run.trainer.save_state()
    return metrics


def resolve(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
    splits: Mapping[str, Any] | None = None,
    processor: DualDistillProcessor | None = None,
) -> Resolved:
    """Find out all of a run that needs no weights; arguments and errors are those of `make_run`."""
    data = prepare_data(data_arguments, training_arguments.seed, splits)
    head = HEADS[data.task.head]

    # Labels of the checkpoint whose head is used, else the teacher's, else the task's, else those of the data.
    label_names = _label_names(model_arguments, data_arguments, data) if head.has_labels else []
    if processor is None:
        processor = _processor(model_arguments, data, data_arguments.tokenizer_texts)

    config = _student_config(model_arguments, head, data, label_names, len(processor.tokenizer))
    if head.has_own_losses:
        training_arguments.write_weights(config)
    teacher_config = None
    if model_arguments.teacher is not None:
        teacher_config = load_config(model_arguments.teacher, model_arguments.teacher_revision, head.classes)

    longest_text = _longest_text(config, data, model_arguments.max_text_length)
    collator = head.collator(
        processor,
        data.task,
        head.collator_input(processor.tokenizer, label_names, training_arguments),
        max_text_length=longest_text,
        image_cache_mb=data_arguments.image_cache_mb,
        augmentation=RandAugment(seed=training_arguments.seed) if data_arguments.augmentation != "none" else None,
        **data.regions,
    )
    check_rows(data, label_names, collator)
    return Resolved(head, data, label_names, processor, collator, config, teacher_config)


def build_processor(arguments: ModelArguments, texts: Any) -> DualDistillProcessor:
    """Build a processor for a model that starts from nothing: a tokenizer trained on `texts`, an image processor."""
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.max_text_length)
    normalisation = {"image_mean": [arguments.image_mean] * 3, "image_std": [arguments.image_std] * 3}
    image_processor: Any
    if arguments.resize == "fixed":
        size = {"height": arguments.image_height, "width": arguments.image_width}
        image_processor = ViTImageProcessorPil(size=size, **normalisation)
    else:
        size = {"shortest_edge": arguments.image_height}
        image_processor = ViltImageProcessorPil(size=size, size_divisor=arguments.patch_size, **normalisation)
    return DualDistillProcessor(image_processor, tokenizer)


def build_model(arguments: ModelArguments, resolved: Resolved) -> PreTrainedModel:
    """Build the model that is trained, from a checkpoint or from nothing, in float32."""
    config, head, data = resolved.student_config, resolved.head, resolved.data
    cls: Any = head.model_class(config)

    if arguments.init_from is None:
        config._attn_implementation = arguments.attn_implementation
        model: Any = cls(config)
    else:
        model = load_model(
            arguments.init_from,
            arguments.init_revision,
            head.classes,
            attn_implementation=arguments.attn_implementation,
            **_new_head(arguments, head, data.task, resolved.label_names),
        ).model
        if not isinstance(model, cls):
            model = cls.from_fusion_encoder(model, arguments.text_layers, arguments.vision_layers)
            model.set_attn_implementation(arguments.attn_implementation)
        _configure(model.config, arguments, data)
        if arguments.hidden_dropout_prob is not None:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = arguments.hidden_dropout_prob

    if head.prepare is not None:
        head.prepare(model, resolved.processor.tokenizer)
    return model


def _label_names(model_arguments: ModelArguments, data_arguments: DataArguments, data: RunData) -> list[str]:
    task = data.task
    source, revision = model_arguments.teacher, model_arguments.teacher_revision
    if model_arguments.init_from is not None and not model_arguments.new_head:
        source, revision = model_arguments.init_from, model_arguments.init_revision

    if source is not None:
        id2label = load_config(source, revision, HEADS[task.head].classes).id2label
        return [id2label[index] for index in range(len(id2label))]
    if task.label_names is not None:
        return list(task.label_names)
    fewest = data_arguments.min_answer_count or task.min_answer_count
    return build_answer_vocabulary(data.splits["train"], str(task.label_column), fewest)


def _processor(arguments: ModelArguments, data: RunData, files: Sequence[str]) -> DualDistillProcessor:
    if arguments.init_from is not None:
        return load_processor(arguments.init_from, arguments.init_revision)
    if arguments.teacher is not None:
        return load_processor(arguments.teacher, arguments.teacher_revision)
    return build_processor(arguments, tokenizer_texts(data, files))


def _student_config(
    arguments: ModelArguments, head: HeadSpec, data: RunData, label_names: Sequence[str], vocab_size: int
) -> PreTrainedConfig:
    """Return the configuration of the model that is trained: its checkpoint's, or one of the sizes in `arguments`."""
    if arguments.init_from is None:
        config = _config_of_sizes(arguments, data, label_names, vocab_size)
    else:
        new_head = _new_head(arguments, head, data.task, label_names)
        config = load_config(arguments.init_from, arguments.init_revision, head.classes, **new_head)
        found = _ARCHITECTURES[config.model_type]
        if found != arguments.architecture:
            if found != "fusion_encoder":
                raise ValueError(
                    f"init_from {arguments.init_from!r} is a {found}, which cannot start a {arguments.architecture}; give a "
                    "checkpoint of the same architecture, or a fusion_encoder for a dual_encoder."
                )
            config = dual_config_from_fusion(config, arguments.text_layers, arguments.vision_layers)

    _configure(config, arguments, data)
    columns = data.task.image_columns
    if config.num_images != len(columns):
        raise ValueError(
            f"a row of the data has {len(columns)} images ({', '.join(columns)}), but the model reads {config.num_images} "
            f"with a {head.name} head; name other image columns, or set new_head or another head."
        )
    return config


def _new_head(arguments: ModelArguments, head: HeadSpec, task: Task, label_names: Sequence[str]) -> dict[str, Any]:
    """Return what loading is told of a newly initialized head."""
    if not arguments.new_head or not head.has_labels:
        return {"new_head": True} if arguments.new_head else {}
    num_images = len(task.image_columns)
    return {"new_head": True, "label_names": label_names, "num_images": num_images if num_images > 1 else None}


def _config_of_sizes(
    arguments: ModelArguments, data: RunData, label_names: Sequence[str], vocab_size: int
) -> PreTrainedConfig:
    num_images = len(data.task.image_columns)
    shape = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 4 * arguments.hidden_size,
        "initializer_range": arguments.initializer_range,
        "embedding_initializer_range": arguments.embedding_initializer_range,
    }
    text = {"vocab_size": vocab_size, "max_position_embeddings": arguments.max_text_length + data.tag_tokens}
    image = {"image_size": [arguments.image_height, arguments.image_width], "patch_size": arguments.patch_size}
    common: dict[str, Any] = {"num_images": num_images}
    if label_names:
        common["id2label"] = dict(enumerate(label_names))
        common["label2id"] = {name: index for index, name in enumerate(label_names)}

    if arguments.architecture == "fusion_encoder":
        common |= {"norm_first": arguments.norm_first, "max_caption_tokens": arguments.max_text_length}
        if data.store is not None:
            common |= {"visual_inputs": "regions", "region_feature_size": data.store.feature_size}
        return FusionEncoderConfig(**shape, **text, **image, **common, modality_type_vocab_size=1 + num_images)

    if data.store is not None:
        raise ValueError("regions are read by a fusion_encoder only; set architecture to it, or leave regions out.")
    if arguments.projection_dim is not None:
        common["projection_dim"] = arguments.projection_dim
    return DualEncoderConfig(
        text_config={**shape, **text},
        vision_config={**shape, **image, "modality_type_vocab_size": num_images},
        initializer_range=arguments.initializer_range,
        **common,
    )


def _configure(config: PreTrainedConfig, arguments: ModelArguments, data: RunData) -> None:
    """Write into a configuration what the run says about it, whatever checkpoint it came from.

    A teacher is adapted by training it on another store: the student's boxes, in features of the teacher's own backbone.

    Raises:
        ValueError: the model reads pixels and a store is given, or the other way round, or features of another width.
    """
    if data.task.answers_column is not None:
        config.problem_type = "multi_label_classification"
    if arguments.hidden_dropout_prob is not None:
        for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
            if part is not None and hasattr(part, "hidden_dropout_prob"):
                part.hidden_dropout_prob = arguments.hidden_dropout_prob

    reads_regions, store = getattr(config, "visual_inputs", "patches") == "regions", data.store
    if reads_regions != (store is not None):
        has, gives = ("regions", "no region store") if reads_regions else ("pixels", f"the region store {store!r}")
        way_out = "give regions, a folder of `dual-distill regions`" if reads_regions else "leave regions out"
        raise ValueError(f"the model reads {has}, but the run gives {gives}; {way_out}, or start from another model.")
    if store is not None:
        if config.region_feature_size != store.feature_size:
            raise ValueError(
                f"the model reads region features {config.region_feature_size} wide, but those of {store!r} are "
                f"{store.feature_size}; give the store of the backbone that the model was trained on."
            )
        config.region_boxes_id, config.region_features_id = store.boxes_id, store.features_id


def _longest_text(config: PreTrainedConfig, data: RunData, wanted: int) -> int:
    positions = getattr(config, "text_config", config).max_position_embeddings
    longest: int = min(positions - data.tag_tokens, wanted)
    if longest < _SHORTEST_TEXT:
        raise ValueError(
            f"the model has {positions} positions for words, of which max_tag_length {data.tag_tokens} leaves {longest} for "
            "the text; give a smaller max_tag_length."
        )
    return longest
