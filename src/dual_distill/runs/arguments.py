"""Which model and which data: the arguments that a recipe, the command line and Python share."""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin


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
            "help": "Checkpoint to start from: of the same architecture, or a fusion encoder (or ViLT) whose weights both "
            "towers take. Default: random weights of the sizes below."
        },
    )
    init_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of init_from on the Hub."})
    new_head: bool = field(
        default=False,
        metadata={
            "help": "Start from the body of init_from with a newly initialized head: from pre-training, or another task."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "Checkpoint of the frozen teacher: ours, or a ViLT. Default: none, hard labels alone."},
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of teacher on the Hub."}
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
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width inside the MLP. Default: 4 x hidden_size."}
    )
    hidden_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout (recipe of the paper: 0.1). Default: the checkpoint's; 0 without one."}
    )
    initializer_range: float = field(
        default=0.02, metadata={"help": "Standard deviation of newly initialized weights."}
    )
    embedding_initializer_range: float | None = field(
        default=None,
        metadata={
            "help": "That of newly initialized embeddings. Default: initializer_range; the small recipes here use 0.5."
        },
    )
    image_height: int = field(default=384, metadata={"help": "Height in pixels that the position table stands for."})
    image_width: int = field(default=384, metadata={"help": "Width in pixels that the position table stands for."})
    patch_size: int = field(default=32, metadata={"help": "Side of a patch in pixels."})
    image_mean: float = field(
        default=0.5, metadata={"help": "Brightness in [0, 1] that becomes 0; for drawings, that of the background."}
    )
    image_std: float = field(
        default=0.5, metadata={"help": "What the difference to image_mean is divided by, above 0."}
    )
    resize: Literal["keep_aspect", "fixed"] = field(
        default="keep_aspect",
        metadata={"help": "keep_aspect: shorter side to image_height, as ViLT; fixed: to image_height x image_width."},
    )
    vocab_size: int = field(
        default=30522, metadata={"help": "Largest vocabulary of the tokenizer trained on the texts."}
    )
    norm_first: bool = field(
        default=True,
        metadata={"help": "Layer norms before attention and MLP (ViLT); false: behind them (BERT, OSCAR)."},
    )
    projection_dim: int | None = field(
        default=None,
        metadata={"help": "Dual encoder: width of the vectors that pre-training and retrieval compare. Default: 256."},
    )
    max_text_length: int = field(default=40, metadata={"help": "Longest text in tokens."})
    attn_implementation: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = field(
        default="sdpa", metadata={"help": "How attention is computed."}
    )

    def __post_init__(self) -> None:
        """Refuse words that are none of a field's."""
        _check_words(self)


@dataclass
class DataArguments:
    """What is learned from.

    The fields from `head` to `answers_column` describe a custom dataset (`task: custom`); other tasks know theirs.

    Raises:
        ValueError: a field that takes one of several words has another, or `data_options` is no JSON.

    Example:
        >>> DataArguments(task="nlvr", data="path/to/nlvr1").image_cache_mb
        512.0
    """

    task: str = field(
        default="scenes",
        metadata={
            "help": "scenes (generated), easy_vqa, nlvr, vqa, nlvr2, snli_ve; of pairs: coco_retrieval, "
            "pairs (streamed); to write: coco_captioning; or custom: a "
            "table, folder or Hub data set of yours."
        },
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the task's files; for task custom also a file or a Hub data set; scenes needs none."
        },
    )
    data_options: dict | str | None = field(
        default=None, metadata={"help": "Further options of the task's reader, as JSON (or a mapping in the recipe)."}
    )
    skip_bad: bool = field(
        default=False, metadata={"help": "Pass over rows with a missing image or a malformed line and list them."}
    )
    head: Literal["question_answering", "images_and_text_classification", "pretraining", "image_text_retrieval"] = (
        field(
            default="question_answering",
            metadata={
                "help": "Custom dataset: questions with free answers, or classes. Pairs: pretraining; retrieval else."
            },
        )
    )
    image_column: list[str] = field(
        default_factory=lambda: ["image"], metadata={"help": "Custom dataset: column of the image, or several columns."}
    )
    text_column: str = field(
        default="question", metadata={"help": "Custom dataset: column of the question or sentence."}
    )
    label_column: str = field(default="answer", metadata={"help": "Custom dataset: column of the answer or class."})
    answers_column: str | None = field(
        default=None, metadata={"help": "Custom dataset: column of lists, what several people answered. Default: none."}
    )
    min_answer_count: int | None = field(
        default=None,
        metadata={"help": "Fewest training rows with an answer that becomes a class. Default: the task's."},
    )
    tokenizer_texts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Text files, a text a line, whose words a new tokenizer learns too, so that a pre-trained model can be "
            "fine-tuned on other data."
        },
    )
    regions: str | None = field(
        default=None,
        metadata={
            "help": "Region store that the model reads in place of pixels (`dual-distill regions`). Default: pixels."
        },
    )
    teacher_regions: str | None = field(
        default=None,
        metadata={
            "help": "Region store of the teacher's features at the same boxes. Default: the teacher reads regions too."
        },
    )
    num_tags: int = field(default=20, metadata={"help": "Regions: most object tags beside a text; 0: none."})
    max_tag_length: int = field(
        default=30, metadata={"help": "Regions: most tokens of the tags, beside those of the text."}
    )
    caption_training: Literal["masked_words", "self_critical"] = field(
        default="masked_words",
        metadata={"help": "Captioning: masked words, or the CIDEr of what the model writes itself (a second stage)."},
    )
    augmentation: Literal["none", "randaugment"] = field(
        default="none",
        metadata={
            "help": "randaugment: two operations at magnitude 9 (recipe), the same pixels for teacher and student."
        },
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on at most so many rows, drawn by the seed."}
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "Evaluate on at most so many validation rows."})
    image_cache_mb: float = field(default=512.0, metadata={"help": "Memory for prepared images in MB; 0: none."})

    def __post_init__(self) -> None:
        """Read options that were given as JSON, and one image column as a list of one."""
        _check_words(self)
        if isinstance(self.image_column, str):  # as a recipe may have it
            self.image_column = [self.image_column]
        if isinstance(self.data_options, str):
            try:
                self.data_options = json.loads(self.data_options)
            except json.JSONDecodeError as error:
                raise ValueError(f"data_options is {self.data_options!r}, which is no JSON: {error}.") from error


def _check_words(arguments: Any) -> None:
    """Hold fields with a choice of words to their choice: a recipe's values are not checked by the command line's parser."""
    for one in fields(arguments):
        if get_origin(one.type) is Literal and (value := getattr(arguments, one.name)) not in get_args(one.type):
            raise ValueError(f"{one.name} is {value!r}; give one of {', '.join(get_args(one.type))}.")


__all__ = ["DataArguments", "ModelArguments"]
