"""One training run from its arguments: data, processor, model, teacher and trainer put together.

A recipe is three dataclasses side by side (`ModelArguments`, `DataArguments`, `DistillationTrainingArguments`), so a YAML
file, the command line and Python say the same words.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, PreTrainedModel, ViltImageProcessorPil, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dual_distill.data import (
    ID_COLUMNS,
    DistillationCollator,
    Task,
    build_answer_vocabulary,
    get_task,
    load_task,
    train_tokenizer,
)
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import accuracy_of_logits

MODEL_CLASSES: dict[tuple[str, str], type[PreTrainedModel]] = {
    ("fusion_encoder", "question_answering"): FusionEncoderForQuestionAnswering,
    ("fusion_encoder", "images_and_text_classification"): FusionEncoderForImagesAndTextClassification,
    ("dual_encoder", "question_answering"): DualEncoderForQuestionAnswering,
    ("dual_encoder", "images_and_text_classification"): DualEncoderForImagesAndTextClassification,
}
_ARCHITECTURES = {FusionEncoderConfig.model_type: "fusion_encoder", DualEncoderConfig.model_type: "dual_encoder"}


@dataclass
class ModelArguments:
    """Which model is trained and what it starts from.

    The shape fields (sizes, layers, resizing) are for a model that starts from nothing; a checkpoint brings its own.

    Example:
        >>> ModelArguments(architecture="dual_encoder", init_from="runs/teacher", teacher="runs/teacher").hidden_size
        768
    """

    architecture: Literal["fusion_encoder", "dual_encoder"] = field(
        default="dual_encoder", metadata={"help": "fusion_encoder (a teacher) or dual_encoder (a student)."}
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: of the same architecture, or a fusion encoder whose weights both towers take. "
            "Default: random weights of the sizes below."
        },
    )
    teacher: str | None = field(
        default=None, metadata={"help": "Checkpoint of the frozen teacher. Default: none, hard labels alone."}
    )
    text_layers: list[int] | None = field(
        default=None, metadata={"help": "Fusion layers that the text tower takes from init_from. Default: all."}
    )
    vision_layers: list[int] | None = field(
        default=None, metadata={"help": "Fusion layers that the image tower takes from init_from. Default: all."}
    )
    hidden_size: int = field(default=768, metadata={"help": "Model width."})
    num_hidden_layers: int = field(default=12, metadata={"help": "Transformer layers (of each tower)."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads; must divide the width."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width inside the MLP. Default: 4 x hidden_size."})
    hidden_dropout_prob: float = field(default=0.0, metadata={"help": "Dropout (recipe of the paper: 0.1)."})
    initializer_range: float = field(default=0.02, metadata={"help": "Standard deviation of fresh weights."})
    embedding_initializer_range: float | None = field(
        default=None,
        metadata={"help": "That of fresh embeddings. Default: initializer_range; small models learn sooner with 1."},
    )
    image_height: int = field(default=384, metadata={"help": "Height in pixels that the position table stands for."})
    image_width: int = field(default=384, metadata={"help": "Width in pixels that the position table stands for."})
    patch_size: int = field(default=32, metadata={"help": "Side of a patch in pixels."})
    image_mean: float = field(
        default=0.5, metadata={"help": "Brightness in [0, 1] that becomes 0; for drawings, that of the background."}
    )
    image_std: float = field(default=0.5, metadata={"help": "What the difference to image_mean is divided by, above 0."})
    resize: Literal["keep_aspect", "fixed"] = field(
        default="keep_aspect",
        metadata={"help": "keep_aspect: shorter side to image_height, as ViLT; fixed: to image_height x image_width."},
    )
    vocab_size: int = field(default=30522, metadata={"help": "Largest vocabulary of the tokenizer trained on the texts."})
    max_text_length: int = field(default=40, metadata={"help": "Longest text in tokens."})
    attn_implementation: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = field(
        default="sdpa", metadata={"help": "How attention is computed."}
    )


@dataclass
class DataArguments:
    """What is learned from.

    Example:
        >>> DataArguments(task="nlvr", data="path/to/nlvr1").image_cache_mb
        512.0
    """

    task: str = field(default="scenes", metadata={"help": "Task: scenes (generated), easy_vqa, nlvr."})
    data: str | None = field(default=None, metadata={"help": "Folder with the task's files; scenes needs none."})
    data_options: dict | str | None = field(
        default=None, metadata={"help": "Further options of the task's reader, as JSON (or a mapping in the recipe)."}
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on at most so many rows, drawn by the seed."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Evaluate on at most so many validation rows."})
    image_cache_mb: float = field(default=512.0, metadata={"help": "Memory for prepared images in MB; 0: none."})

    def __post_init__(self) -> None:
        """Read options that were given as JSON."""
        if isinstance(self.data_options, str):
            try:
                self.data_options = json.loads(self.data_options)
            except json.JSONDecodeError as error:
                raise ValueError(f"data_options is {self.data_options!r}, which is no JSON: {error}.") from error


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
    data: DatasetDict
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
    task = get_task(data_arguments.task)
    data = data or load_task(
        data_arguments.task, data_arguments.data, **cast("dict[str, Any]", data_arguments.data_options or {})
    )
    source = model_arguments.init_from or model_arguments.teacher
    if processor is None:
        if source is not None:
            processor = DualDistillProcessor.from_pretrained(source)
        else:
            processor = build_processor(model_arguments, data["train"][task.text_column])
    teacher = None
    if model_arguments.teacher is not None:
        teacher = load_model(model_arguments.teacher, task, model_arguments.attn_implementation)
    if source is not None:
        id2label = AutoConfig.from_pretrained(source).id2label
        label_names = [id2label[index] for index in range(len(id2label))]
    elif task.label_names is not None:
        label_names = list(task.label_names)
    else:
        label_names = build_answer_vocabulary(data["train"], task.label_column)
    # Again, so that a student starts from the same random weights with a teacher and without one.
    set_seed(training_arguments.seed)
    model = build_model(model_arguments, processor, task, label_names)
    collator = DistillationCollator(
        processor, task, label_names, model_arguments.max_text_length, data_arguments.image_cache_mb
    )
    trainer = DistillationTrainer(
        model,
        training_arguments,
        teacher=teacher,
        data_collator=collator,
        train_dataset=_rows(data["train"], task, data_arguments.max_train_rows, training_arguments.seed),
        eval_dataset=_rows(data["validation"], task, data_arguments.max_eval_rows, training_arguments.seed),
        processing_class=processor,
        compute_metrics=accuracy_of_logits,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    return Run(trainer, processor, data, task, label_names)


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


def build_model(
    arguments: ModelArguments, processor: DualDistillProcessor, task: Task, label_names: list[str]
) -> PreTrainedModel:
    """Build the model that is trained, from a checkpoint or from nothing, in float32."""
    cls = MODEL_CLASSES[arguments.architecture, task.head]
    if arguments.init_from is not None:
        found = architecture_of(arguments.init_from)
        if found == arguments.architecture:
            return load_model(arguments.init_from, task, arguments.attn_implementation)
        if found == "fusion_encoder":
            fusion = load_model(arguments.init_from, task, arguments.attn_implementation)
            model = cls.from_fusion_encoder(fusion, arguments.text_layers, arguments.vision_layers)
            model.set_attn_implementation(arguments.attn_implementation)
            return model
        raise ValueError(
            f"init_from {arguments.init_from!r} is a {found}, which cannot start a {arguments.architecture}; give a "
            "checkpoint of the same architecture, or a fusion_encoder for a dual_encoder."
        )
    shape = {
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": arguments.intermediate_size or 4 * arguments.hidden_size,
        "hidden_dropout_prob": arguments.hidden_dropout_prob,
        "initializer_range": arguments.initializer_range,
        "embedding_initializer_range": arguments.embedding_initializer_range,
    }
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": arguments.max_text_length}
    image = {"image_size": [arguments.image_height, arguments.image_width], "patch_size": arguments.patch_size}
    num_images = len(task.image_columns)
    common = {
        "num_images": num_images,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    if arguments.architecture == "fusion_encoder":
        config: Any = FusionEncoderConfig(**shape, **text, **image, **common, modality_type_vocab_size=1 + num_images)
    else:
        config = DualEncoderConfig(
            text_config={**shape, **text},
            vision_config={**shape, **image, "modality_type_vocab_size": num_images},
            initializer_range=arguments.initializer_range,
            **common,
        )
    config._attn_implementation = arguments.attn_implementation
    return cls(config)


def architecture_of(checkpoint: str, revision: str | None = None) -> str:
    """Return `fusion_encoder` or `dual_encoder`; refuse a checkpoint that is neither."""
    model_type = AutoConfig.from_pretrained(checkpoint, revision=revision).model_type
    if model_type not in _ARCHITECTURES:
        raise ValueError(
            f"{checkpoint!r} holds a model of type {model_type!r}; give a checkpoint of type "
            f"{' or '.join(_ARCHITECTURES)}, as `dual-distill train` writes them."
        )
    return _ARCHITECTURES[model_type]


def load_model(checkpoint: str, task: Task, attn_implementation: str = "sdpa", revision: str | None = None) -> PreTrainedModel:
    """Load a checkpoint with the head of the task, in float32 whatever it was saved in."""
    cls = MODEL_CLASSES[architecture_of(checkpoint, revision), task.head]
    return cls.from_pretrained(checkpoint, revision=revision, dtype=torch.float32, attn_implementation=attn_implementation)


def _rows(dataset: Dataset, task: Task, limit: int | None, seed: int) -> Dataset:
    """At most `limit` rows, without the columns (boxes, objects) that training only would decode and throw away."""
    wanted = {*task.image_columns, task.text_column, task.label_column, *ID_COLUMNS}
    dataset = dataset.select_columns([column for column in dataset.column_names if column in wanted])
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(limit))


__all__ = [
    "DataArguments",
    "ModelArguments",
    "Run",
    "architecture_of",
    "build_model",
    "build_processor",
    "load_model",
    "make_run",
    "train",
]
