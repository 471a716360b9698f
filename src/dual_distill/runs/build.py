"""One training run from its arguments: data, processor, model, teacher and trainer put together.

A recipe is three dataclasses side by side (`ModelArguments`, `DataArguments`, `DistillationTrainingArguments`), so a
YAML file, the command line and Python say the same words. `resolve` settles everything that needs no weights;
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

from dual_distill.data import (
    CaptioningCollator,
    DistillationCollator,
    IndexedDataset,
    PreTrainingCollator,
    RandAugment,
    Task,
    get_task,
    train_tokenizer,
)
from dual_distill.evaluation import accuracy_of_logits
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
    dual_config_from_fusion,
)
from dual_distill.teachers import load_config, load_processor, load_teacher, model_class
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

from .arguments import DataArguments, ModelArguments
from .captioning_run import (
    Regions,
    caption_collator,
    configure_regions,
    make_caption_trainer,
    open_regions,
    region_fields,
)
from .image_text_run import IMAGE_TEXT_HEADS, configure_head, image_text_collator, make_image_text_trainer, texts_of
from .run_data import UNLABELLED_HEADS, check_labels, check_rows, check_splits, label_names_of, load_data, rows_of

_SHORTEST_TEXT = 4
_CONFIGS: dict[str, type[PreTrainedConfig]] = {"fusion_encoder": FusionEncoderConfig, "dual_encoder": DualEncoderConfig}


@dataclass(frozen=True)
class Resolved:
    """A run without its weights.

    Attributes:
        task: its columns and head.
        data: its splits; `train` may be a stream of pairs.
        label_names: answers in the order of the logits; none for pairs.
        processor: serves teacher and student.
        collator: makes batches for training, evaluation and teacher alike.
        student_config: of the model that is trained.
        teacher_config: of the teacher, or None.
        regions: the region stores of both.
    """

    task: Task
    data: Mapping[str, Any]
    label_names: list[str]
    processor: DualDistillProcessor
    collator: DistillationCollator | PreTrainingCollator | CaptioningCollator
    student_config: PreTrainedConfig
    teacher_config: PreTrainedConfig | None
    regions: Regions


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


def resolve(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
    data: DatasetDict | None = None,
    processor: DualDistillProcessor | None = None,
) -> Resolved:
    """Settle all of a run that needs no weights: data, labels, processor and both configurations.

    Args:
        model_arguments: the model and its start.
        data_arguments: the task.
        training_arguments: everything the trainer takes.
        data: the task's splits, if they are at hand already.
        processor: a processor, if one is at hand already; None: the checkpoint's, or one built for the task.

    Raises:
        ValueError: the arguments do not fit each other, the task, or the checkpoints; the message says how to mend it.
    """
    splits: Mapping[str, Any]
    if data is None:
        task, splits = load_data(data_arguments)
    else:
        task, splits = configure_head(get_task(data_arguments.task), data_arguments.head), data
    check_splits(splits)
    regions = open_regions(data_arguments)
    label_names = [] if task.head in UNLABELLED_HEADS else label_names_of(model_arguments, data_arguments, task, splits)
    if processor is None:
        source = model_arguments.init_from or model_arguments.teacher
        if source is None:
            processor = build_processor(
                model_arguments, texts_of(splits["train"], task, data_arguments.tokenizer_texts)
            )
        else:
            revision = model_arguments.init_revision if model_arguments.init_from else model_arguments.teacher_revision
            processor = load_processor(source, revision)
    config = student_config(model_arguments, processor, task, label_names, regions)
    if task.head == "pretraining":
        training_arguments.write_weights(config)
    teacher_config = None
    if model_arguments.teacher is not None:
        teacher_config = load_config(model_arguments.teacher, model_arguments.teacher_revision, head=task.head)
    if config.num_images != len(task.image_columns):
        raise ValueError(
            f"a row of the data has {len(task.image_columns)} images ({', '.join(task.image_columns)}), but the model "
            f"reads "
            f"{config.num_images} with a {task.head} head; name other image columns, or set new_head or another head."
        )
    positions = getattr(config, "text_config", config).max_position_embeddings
    longest_text = min(positions - regions.tag_tokens, model_arguments.max_text_length)
    if longest_text < _SHORTEST_TEXT:
        raise ValueError(
            f"the model has {positions} places for words, of which max_tag_length {regions.tag_tokens} leaves "
            f"{longest_text} "
            "for the text; give a smaller max_tag_length."
        )
    collator = _collator(processor, task, label_names, longest_text, regions, data_arguments, training_arguments)
    if task.head not in UNLABELLED_HEADS:
        check_labels(task, splits, label_names)
    check_rows(splits, collator)
    return Resolved(task, splits, label_names, processor, collator, config, teacher_config, regions)


def _collator(
    processor: DualDistillProcessor,
    task: Task,
    label_names: Sequence[str],
    max_text_length: int,
    regions: Regions,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
) -> Any:
    """Return what makes the batches of a task's head."""
    seed = training_arguments.seed
    if task.head in IMAGE_TEXT_HEADS:
        return image_text_collator(processor, task, max_text_length, data_arguments, training_arguments)
    if task.head == "captioning":
        return caption_collator(processor, task, max_text_length, regions, data_arguments, seed)
    return DistillationCollator(
        processor,
        task,
        label_names,
        max_text_length,
        data_arguments.image_cache_mb,
        augmentation=RandAugment(seed=seed) if data_arguments.augmentation == "randaugment" else None,
        **regions.collator_options(),
    )


def make_run(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
    data: DatasetDict | None = None,
    processor: DualDistillProcessor | None = None,
) -> Run:
    """Put a run together; nothing is trained yet. Arguments and errors are those of `resolve`."""
    set_seed(training_arguments.seed)
    resolved = resolve(model_arguments, data_arguments, training_arguments, data, processor)
    task, seed = resolved.task, training_arguments.seed
    teacher = None
    if model_arguments.teacher is not None:
        teacher = load_teacher(
            model_arguments.teacher,
            model_arguments.teacher_revision,
            task.head,
            attn_implementation=model_arguments.attn_implementation,
        ).model
    # Again, so that a student starts from the same random weights with a teacher and without one.
    set_seed(seed)
    model = build_model(model_arguments, resolved)
    train_rows = rows_of(resolved.data["train"], task, data_arguments.max_train_rows, seed)
    eval_rows = rows_of(resolved.data["validation"], task, data_arguments.max_eval_rows, seed)
    shared = {"data_collator": resolved.collator, "eval_dataset": eval_rows, "processing_class": resolved.processor}
    if task.head in IMAGE_TEXT_HEADS:
        trainer: DistillationTrainer = make_image_text_trainer(
            model, training_arguments, task, teacher, train_rows, **shared
        )
        return Run(trainer, resolved.processor, resolved.data, task, [])
    if task.head == "captioning":
        trainer = make_caption_trainer(model, training_arguments, data_arguments, teacher, train_rows, shared)
        return Run(trainer, resolved.processor, resolved.data, task, [])
    trainer = DistillationTrainer(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=IndexedDataset(train_rows) if data_arguments.augmentation != "none" else train_rows,
        **shared,
        compute_metrics=accuracy_of_logits,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    return Run(trainer, resolved.processor, resolved.data, task, resolved.label_names)


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


def build_processor(arguments: ModelArguments, texts: Any) -> DualDistillProcessor:
    """Build a processor for a model that starts from nothing: a tokenizer trained on `texts`, an image processor."""
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.max_text_length)
    normalisation = {"image_mean": [arguments.image_mean] * 3, "image_std": [arguments.image_std] * 3}
    if arguments.resize == "fixed":
        image_processor: Any = ViTImageProcessorPil(
            size={"height": arguments.image_height, "width": arguments.image_width}, **normalisation
        )
    else:
        image_processor = ViltImageProcessorPil(
            size={"shortest_edge": arguments.image_height}, size_divisor=arguments.patch_size, **normalisation
        )
    return DualDistillProcessor(image_processor, tokenizer)


def student_config(
    arguments: ModelArguments, processor: DualDistillProcessor, task: Task, label_names: Sequence[str], regions: Regions
) -> PreTrainedConfig:
    """Return the configuration of the model that is trained: its checkpoint's, or one of the sizes in `arguments`."""
    if arguments.init_from is None:
        config = _config_from_sizes(arguments, processor, task, label_names, regions)
    else:
        config = load_config(
            arguments.init_from, arguments.init_revision, task.head, **_new_head(arguments, task, label_names)
        )
        found = next(name for name, kind in _CONFIGS.items() if kind.model_type == config.model_type)
        if found != arguments.architecture:
            if found != "fusion_encoder":
                raise ValueError(
                    f"init_from {arguments.init_from!r} is a {found}, which cannot start a {arguments.architecture}; "
                    f"give a "
                    "checkpoint of the same architecture, or a fusion_encoder for a dual_encoder."
                )
            config = dual_config_from_fusion(config, arguments.text_layers, arguments.vision_layers)
    _configure(config, arguments, task, regions)
    return config


def _configure(config: PreTrainedConfig, arguments: ModelArguments, task: Task, regions: Regions) -> None:
    """Write into a configuration what the run says about it, whatever checkpoint it came from."""
    configure_regions(config, regions)
    if task.answers_column is not None:
        config.problem_type = "multi_label_classification"
    if arguments.hidden_dropout_prob is not None:
        for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
            if part is not None and hasattr(part, "hidden_dropout_prob"):
                part.hidden_dropout_prob = arguments.hidden_dropout_prob


def build_model(arguments: ModelArguments, resolved: Resolved) -> PreTrainedModel:
    """Build the model that is trained, from a checkpoint or from nothing, in float32."""
    config, task = resolved.student_config, resolved.task
    cls = model_class(config, task.head)
    if arguments.init_from is None:
        config._attn_implementation = arguments.attn_implementation
        return _ready_to_write(cls(config), resolved)
    start = load_teacher(
        arguments.init_from,
        arguments.init_revision,
        task.head,
        attn_implementation=arguments.attn_implementation,
        **_new_head(arguments, task, resolved.label_names),
    ).model
    if isinstance(start, cls):
        model = start
    else:
        model = cls.from_fusion_encoder(start, arguments.text_layers, arguments.vision_layers)
        model.set_attn_implementation(arguments.attn_implementation)
    _configure(model.config, arguments, task, resolved.regions)
    if arguments.hidden_dropout_prob is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = arguments.hidden_dropout_prob
    return _ready_to_write(model, resolved)


def _ready_to_write(model: PreTrainedModel, resolved: Resolved) -> PreTrainedModel:
    """Tell a captioning model which word pieces begin, end and ask."""
    if resolved.task.head == "captioning":
        assert isinstance(model, FusionEncoderForCaptioning)
        model.use_tokens_of(resolved.processor.tokenizer)
    return model


def load_model(
    checkpoint: str, task: Task, attn_implementation: str = "sdpa", revision: str | None = None
) -> PreTrainedModel:
    """Load a checkpoint, ours or a ViLT, with the head of the task, in float32 whatever it was saved in."""
    return load_teacher(checkpoint, revision, task.head, attn_implementation=attn_implementation).model


def _new_head(arguments: ModelArguments, task: Task, label_names: Sequence[str]) -> dict[str, Any]:
    if not arguments.new_head:
        return {}
    if task.head in UNLABELLED_HEADS:
        return {"new_head": True}
    num_images = len(task.image_columns)
    return {"new_head": True, "label_names": label_names, "num_images": num_images if num_images > 1 else None}


def _config_from_sizes(
    arguments: ModelArguments, processor: DualDistillProcessor, task: Task, label_names: Sequence[str], regions: Regions
) -> PreTrainedConfig:
    shape = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 4 * arguments.hidden_size,
        "initializer_range": arguments.initializer_range,
        "embedding_initializer_range": arguments.embedding_initializer_range,
    }
    positions = arguments.max_text_length + regions.tag_tokens
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": positions}
    image = {"image_size": [arguments.image_height, arguments.image_width], "patch_size": arguments.patch_size}
    num_images = len(task.image_columns)
    common: dict[str, Any] = {"num_images": num_images}
    if task.head not in UNLABELLED_HEADS:
        common["id2label"] = dict(enumerate(label_names))
        common["label2id"] = {name: index for index, name in enumerate(label_names)}
    if arguments.architecture == "fusion_encoder":
        fields = {
            "norm_first": arguments.norm_first,
            "max_caption_tokens": arguments.max_text_length,
            **region_fields(regions),
        }
        return FusionEncoderConfig(
            **shape, **text, **image, **common, **fields, modality_type_vocab_size=1 + num_images
        )
    if regions.student is not None:
        raise ValueError("regions are read by a fusion_encoder alone; set architecture to it, or leave regions out.")
    return DualEncoderConfig(
        text_config={**shape, **text},
        vision_config={**shape, **image, "modality_type_vocab_size": num_images},
        initializer_range=arguments.initializer_range,
        **({} if arguments.projection_dim is None else {"projection_dim": arguments.projection_dim}),
        **common,
    )


__all__ = [
    "Resolved",
    "Run",
    "build_model",
    "build_processor",
    "load_model",
    "make_run",
    "resolve",
    "student_config",
    "train",
]
