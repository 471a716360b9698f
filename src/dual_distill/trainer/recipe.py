"""One training run from its arguments: data, processor, model, teacher and trainer put together.

A recipe is three dataclasses side by side (`ModelArguments`, `DataArguments`, `DistillationTrainingArguments`), so a YAML
file, the command line and Python say the same words. `resolve` settles everything that needs no weights; `make_run` adds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViltImageProcessorPil, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dual_distill.conversion import load_config, load_processor, load_teacher, model_class
from dual_distill.data import (
    ID_COLUMNS,
    DistillationCollator,
    NumberedRows,
    PreTrainingCollator,
    RandAugment,
    Task,
    answer_coverage,
    build_answer_vocabulary,
    get_task,
    load_own_data,
    load_task,
    train_tokenizer,
)
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig
from dual_distill.modeling.tower_initialization import dual_config_from_fusion

from .arguments import DataArguments, ModelArguments
from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import accuracy_of_logits
from .pair_recipe import (
    PAIR_HEADS,
    STREAMED_PAIRS,
    first_rows,
    load_streamed_pairs,
    make_pair_trainer,
    num_rows,
    pair_collator,
    settle_head,
    texts_of,
)

_CONFIGS: dict[str, type[PreTrainedConfig]] = {"fusion_encoder": FusionEncoderConfig, "dual_encoder": DualEncoderConfig}
_CHECKED_ROWS = 16
_PIECE = 10_000


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
    """

    task: Task
    data: Mapping[str, Any]
    label_names: list[str]
    processor: DualDistillProcessor
    collator: DistillationCollator | PreTrainingCollator
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
        task, splits = settle_head(get_task(data_arguments.task), data_arguments.head), data
    _check_splits(splits)
    is_pairs = task.head in PAIR_HEADS
    label_names = [] if is_pairs else _label_names(model_arguments, data_arguments, task, splits)
    if processor is None:
        source = model_arguments.init_from or model_arguments.teacher
        if source is None:
            processor = build_processor(model_arguments, texts_of(splits["train"], task, data_arguments.tokenizer_tasks))
        else:
            revision = model_arguments.init_revision if model_arguments.init_from else model_arguments.teacher_revision
            processor = load_processor(source, revision)
    config = student_config(model_arguments, processor, task, label_names)
    if task.head == "pretraining":
        training_arguments.write_weights(config)
    teacher_config = None
    if model_arguments.teacher is not None:
        teacher_config = load_config(model_arguments.teacher, model_arguments.teacher_revision, head=task.head)
    if config.num_images != len(task.image_columns):
        raise ValueError(
            f"a row of the data has {len(task.image_columns)} images ({', '.join(task.image_columns)}), but the model reads "
            f"{config.num_images} with a {task.head} head; name other image columns, or set fresh_head or another head."
        )
    longest_text = min(getattr(config, "text_config", config).max_position_embeddings, model_arguments.max_text_length)
    if is_pairs:
        collator: Any = pair_collator(processor, task, longest_text, data_arguments, training_arguments)
    else:
        collator = DistillationCollator(
            processor,
            task,
            label_names,
            longest_text,
            data_arguments.image_cache_mb,
            augmentation=RandAugment(seed=training_arguments.seed) if data_arguments.augmentation == "randaugment" else None,
        )
        _check_labels(task, splits, label_names)
    _check_rows(splits, collator)
    return Resolved(task, splits, label_names, processor, collator, config, teacher_config)


def load_data(arguments: DataArguments, label_names: Sequence[str] | None = None) -> tuple[Task, Any]:
    """Read the data of a run, and the task that it is.

    Args:
        arguments: which data.
        label_names: classes that one's own data must keep to, such as those of a checkpoint; None: those of its train split.

    Raises:
        ValueError: the task is unknown or has another head than asked for, or the data cannot be read.
    """
    options = dict(cast("dict[str, Any]", arguments.data_options or {}))  # JSON has been read by now
    if arguments.skip_bad:
        options["skip_bad"] = True
    if arguments.task != "own":
        if arguments.task == STREAMED_PAIRS.name:
            return settle_head(STREAMED_PAIRS, arguments.head), load_streamed_pairs(arguments, options)
        task = settle_head(get_task(arguments.task), arguments.head)
        return task, load_task(arguments.task, arguments.data, **options)
    if arguments.head in PAIR_HEADS:
        raise ValueError(f"head is {arguments.head!r}, but task own has labels; for pairs of your own choose task pairs.")
    if arguments.data is None:
        raise ValueError("task own needs data=, a file, a folder, or the name of a data set on the Hub.")
    own = load_own_data(
        arguments.data,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        answers_column=arguments.answers_column,
        head=arguments.head,
        label_names=label_names,
        min_answer_count=arguments.min_answer_count or 1,
        **options,
    )
    return own.task, own.data


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
    train_rows = _rows(resolved.data["train"], task, data_arguments.max_train_rows, seed)
    eval_rows = _rows(resolved.data["validation"], task, data_arguments.max_eval_rows, seed)
    shared = {"data_collator": resolved.collator, "eval_dataset": eval_rows, "processing_class": resolved.processor}
    if task.head in PAIR_HEADS:
        trainer: DistillationTrainer = make_pair_trainer(model, training_arguments, task, teacher, train_rows, **shared)
        return Run(trainer, resolved.processor, resolved.data, task, [])
    trainer = DistillationTrainer(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=NumberedRows(train_rows) if data_arguments.augmentation != "none" else train_rows,
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
            size={"height": arguments.image_height, "width": arguments.image_width},
            **normalisation,
        )
    else:
        image_processor = ViltImageProcessorPil(
            size={"shortest_edge": arguments.image_height}, size_divisor=arguments.patch_size, **normalisation
        )
    return DualDistillProcessor(image_processor, tokenizer)


def student_config(
    arguments: ModelArguments, processor: DualDistillProcessor, task: Task, label_names: Sequence[str]
) -> PreTrainedConfig:
    """Return the configuration of the model that is trained: its checkpoint's, or one of the sizes in `arguments`."""
    if arguments.init_from is None:
        config = _config_from_sizes(arguments, processor, task, label_names)
    else:
        config = load_config(
            arguments.init_from, arguments.init_revision, task.head, **_fresh_head(arguments, task, label_names)
        )
        found = next(name for name, kind in _CONFIGS.items() if kind.model_type == config.model_type)
        if found != arguments.architecture:
            if found != "fusion_encoder":
                raise ValueError(
                    f"init_from {arguments.init_from!r} is a {found}, which cannot start a {arguments.architecture}; give a "
                    "checkpoint of the same architecture, or a fusion_encoder for a dual_encoder."
                )
            config = dual_config_from_fusion(config, arguments.text_layers, arguments.vision_layers)
    _settle(config, arguments, task)
    return config


def _settle(config: PreTrainedConfig, arguments: ModelArguments, task: Task) -> None:
    """Write into a configuration what the run says about it, whatever checkpoint it came from."""
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
        return cls(config)
    start = load_teacher(
        arguments.init_from,
        arguments.init_revision,
        task.head,
        attn_implementation=arguments.attn_implementation,
        **_fresh_head(arguments, task, resolved.label_names),
    ).model
    if isinstance(start, cls):
        model = start
    else:
        model = cls.from_fusion_encoder(start, arguments.text_layers, arguments.vision_layers)
        model.set_attn_implementation(arguments.attn_implementation)
    _settle(model.config, arguments, task)
    if arguments.hidden_dropout_prob is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = arguments.hidden_dropout_prob
    return model


def load_model(checkpoint: str, task: Task, attn_implementation: str = "sdpa", revision: str | None = None) -> PreTrainedModel:
    """Load a checkpoint, ours or a ViLT, with the head of the task, in float32 whatever it was saved in."""
    return load_teacher(checkpoint, revision, task.head, attn_implementation=attn_implementation).model


def _fresh_head(arguments: ModelArguments, task: Task, label_names: Sequence[str]) -> dict[str, Any]:
    if not arguments.fresh_head:
        return {}
    if task.head in PAIR_HEADS:
        return {"fresh_head": True}
    num_images = len(task.image_columns)
    return {"fresh_head": True, "label_names": label_names, "num_images": num_images if num_images > 1 else None}


def _label_names(
    model_arguments: ModelArguments, data_arguments: DataArguments, task: Task, data: Mapping[str, Any]
) -> list[str]:
    """The labels of the checkpoint whose head is used, else the teacher's, else the task's, else those of the data."""
    source, revision = model_arguments.teacher, model_arguments.teacher_revision
    if model_arguments.init_from is not None and not model_arguments.fresh_head:
        source, revision = model_arguments.init_from, model_arguments.init_revision
    if source is not None:
        id2label = load_config(source, revision, head=task.head).id2label
        return [id2label[index] for index in range(len(id2label))]
    if task.label_names is not None:
        return list(task.label_names)
    return build_answer_vocabulary(data["train"], _label_column(task), data_arguments.min_answer_count or task.min_answer_count)


def _label_column(task: Task) -> str:
    assert task.label_column is not None  # tasks without have another head
    return task.label_column


def _check_splits(data: Mapping[str, Any]) -> None:
    """Refuse data that cannot be trained on, or not be evaluated after it."""
    for split in ("train", "validation"):
        if split not in data or num_rows(data[split]) == 0:
            state = "has no rows" if split in data else "is missing"
            raise ValueError(
                f"the split {split!r} {state} (there are {', '.join(data)}), but a run needs rows to train on and rows to be "
                "evaluated on; give files that hold some, or hold more rows out (data_options)."
            )


def _check_rows(data: Mapping[str, Any], collator: DistillationCollator | PreTrainingCollator) -> None:
    """Put the first rows of each split through the collator: columns, pictures and labels are looked at before any model."""
    for split in ("train", "validation"):
        collator(first_rows(data[split], _CHECKED_ROWS))


def _check_labels(task: Task, data: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Refuse data none of whose labels the head can give: a checkpoint for other answers."""
    column = task.answers_column or _label_column(task)
    rows = data["train"]
    # In pieces, the first of which says yes in any data that fits: all of VQA v2 would take ten seconds.
    starts = range(0, len(rows), _PIECE)
    pieces = (rows.select(range(start, min(start + _PIECE, len(rows)))) for start in starts)
    if not any(answer_coverage(piece, column, label_names) for piece in pieces):
        names = ", ".join(repr(name) for name in list(label_names)[:3])
        raise ValueError(
            f"none of the labels in column {column!r} is among the {len(label_names):,} that the head gives ({names}, ...); "
            "give an init_from and a teacher for this data, or set fresh_head and leave the teacher out."
        )


def _config_from_sizes(
    arguments: ModelArguments, processor: DualDistillProcessor, task: Task, label_names: Sequence[str]
) -> PreTrainedConfig:
    shape = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 4 * arguments.hidden_size,
        "initializer_range": arguments.initializer_range,
        "embedding_initializer_range": arguments.embedding_initializer_range,
    }
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": arguments.max_text_length}
    image = {"image_size": [arguments.image_height, arguments.image_width], "patch_size": arguments.patch_size}
    num_images = len(task.image_columns)
    common: dict[str, Any] = {"num_images": num_images}
    if task.head not in PAIR_HEADS:
        common["id2label"] = dict(enumerate(label_names))
        common["label2id"] = {name: index for index, name in enumerate(label_names)}
    if arguments.architecture == "fusion_encoder":
        return FusionEncoderConfig(**shape, **text, **image, **common, modality_type_vocab_size=1 + num_images)
    return DualEncoderConfig(
        text_config={**shape, **text},
        vision_config={**shape, **image, "modality_type_vocab_size": num_images},
        initializer_range=arguments.initializer_range,
        **({} if arguments.projection_dim is None else {"projection_dim": arguments.projection_dim}),
        **common,
    )


def _rows(dataset: Any, task: Task, limit: int | None, seed: int) -> Any:
    """At most `limit` rows, without the columns (boxes, objects) that training only would decode and throw away."""
    if not isinstance(dataset, Dataset):
        if limit is not None:
            raise ValueError(f"max_train_rows is {limit}, but a stream of pairs is trained on for max_steps; leave it out.")
        return dataset
    wanted = {*task.image_columns, task.text_column, task.label_column, task.answers_column, *ID_COLUMNS}
    dataset = dataset.select_columns([column for column in dataset.column_names if column in wanted])
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(limit))


__all__ = [
    "Resolved",
    "Run",
    "build_model",
    "build_processor",
    "load_data",
    "load_model",
    "make_run",
    "resolve",
    "student_config",
    "train",
]
