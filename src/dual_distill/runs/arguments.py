"""Which model and which data: the arguments that a recipe, the command line and Python share."""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from dual_distill.hub_cards import split_revision
from dual_distill.modeling import Pooling

Architecture = Literal["fusion_encoder", "dual_encoder"]
Attention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2"]
Augmentation = Literal["none", "randaugment"]
CaptionTraining = Literal["masked_words", "self_critical"]
Resize = Literal["keep_aspect", "fixed"]

_TASKS = """scenes (generated), easy_vqa, nlvr, vqa, gqa, vqa_rad, daquar, nlvr2, snli_ve; images with captions:
coco_retrieval, coco_captioning, image_text (a stream to train on); custom: a table, folder or Hub data set of yours."""
_HEADS = """Custom dataset: question_answering (default) or images_and_text_classification. Images with captions:
image_text_retrieval (default) or pretraining."""


def _option(default: Any, text: str) -> Any:
    """Return a field with the help that the command line shows; a list is copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is trained and what it starts from.

    The shape fields (sizes, layers, resizing) are for a model that starts from nothing; a checkpoint brings its own.

    Raises:
        ValueError: a field that takes one of several words has another.

    Example:
        >>> ModelArguments(architecture="dual_encoder", init_from="runs/teacher", teacher="runs/teacher").hidden_size
        768
    """

    _argument_group_name = "model"  # the heading in `dual-distill train --help`
    architecture: Architecture = _option("dual_encoder", "A teacher, or a student.")
    init_from: str | None = _option(None, "Start: such a model, or a fusion encoder for both towers. Default: random.")
    init_revision: str | None = _option(None, "Branch, tag or commit of init_from on the Hub.")
    text_tower: str | None = _option(None, "Student of two models that AutoModel loads: the text model.")
    vision_tower: str | None = _option(None, "The image model beside it, such as SigLIP 2 or DINOv3.")
    text_pooling: Pooling | None = _option(None, "Which vector stands for a text there. Default: as the tower does.")
    vision_pooling: Pooling | None = _option(None, "The same of an image. Default: tower; mean if there are layers.")
    new_head: bool = _option(False, "Newly initialize the head; init_from gives the body: pre-training, another task.")
    teacher: str | None = _option(
        None, "Frozen teacher: a checkpoint of any family, or a store of `teach`. Default: hard labels."
    )
    teacher_revision: str | None = _option(None, "Branch, tag or commit of teacher on the Hub.")
    text_layers: list[int] | None = _option(None, "Layers that the text tower takes from init_from. Default: all.")
    vision_layers: list[int] | None = _option(None, "The same of the image tower. Default: all.")
    interaction_layers: int | None = _option(None, "Layers in which text reads the image. Default: init_from's.")
    hidden_size: int = _option(768, "Model width.")
    num_hidden_layers: int = _option(12, "Transformer layers (of each tower).")
    num_attention_heads: int = _option(12, "Attention heads; must divide the width.")
    intermediate_size: int | None = _option(None, "Width inside the MLP. Default: 4 x hidden_size.")
    hidden_dropout_prob: float | None = _option(None, "Dropout (recipe: 0.1). Default: the checkpoint's, or 0.")
    initializer_range: float = _option(0.02, "Standard deviation of newly initialized weights.")
    embedding_initializer_range: float | None = _option(None, "The same of embeddings. Default: initializer_range.")
    image_height: int = _option(384, "Height in pixels that the position table stands for.")
    image_width: int = _option(384, "Width in pixels that the position table stands for.")
    patch_size: int = _option(32, "Side of a patch in pixels.")
    image_mean: float = _option(0.5, "Brightness in [0, 1] that becomes 0; for drawings, that of the background.")
    image_std: float = _option(0.5, "What the difference to image_mean is divided by, above 0.")
    resize: Resize = _option("keep_aspect", "Shorter side to image_height, as ViLT; fixed: to height and width.")
    vocab_size: int = _option(30522, "Largest vocabulary of the tokenizer trained on the texts.")
    norm_first: bool = _option(True, "Layer norms before attention and MLP (ViLT); false: behind them (BERT, OSCAR).")
    projection_dim: int | None = _option(None, "Dual encoder: width of the vectors that are compared. Default: 256.")
    max_text_length: int = _option(40, "Longest text in tokens.")
    attn_implementation: Attention = _option("sdpa", "How attention is computed.")

    def __post_init__(self) -> None:
        """Refuse words that are none of a field's, and towers that cannot be built."""
        _check_choices(self)
        if (self.text_tower is None) != (self.vision_tower is None):
            raise ValueError("text_tower and vision_tower make a student together; give both.")
        if self.text_tower and (self.init_from or self.architecture != "dual_encoder"):
            raise ValueError("text_tower and vision_tower make a dual_encoder of their own; leave init_from out.")

    @property
    def start(self) -> tuple[str, str | None] | None:
        """Checkpoint and revision that is started from."""
        return None if self.init_from is None else (self.init_from, self.init_revision)

    @property
    def vision_text(self) -> dict[str, Any]:
        """The image and the text model that a student is built of, with their revisions; nothing: of none."""
        found: dict[str, Any] = {}
        for side, tower in (("vision", self.vision_tower), ("text", self.text_tower)):
            if tower is not None:
                found[side], found[f"{side}_revision"] = split_revision(tower)
        return found

    @property
    def towers(self) -> dict[str, Any]:
        """Layers that a dual encoder takes from a fusion encoder, and what it has beyond them."""
        layers = {"text_layers": self.text_layers, "vision_layers": self.vision_layers}
        return layers | {"interaction_layers": self.interaction_layers or 0, "projection_dim": self.projection_dim}

    @property
    def taught_by(self) -> tuple[str, str | None] | None:
        """Checkpoint and revision of the teacher."""
        return None if self.teacher is None else (self.teacher, self.teacher_revision)


@dataclass
class ReadingArguments:
    """Which data is read, for training and for evaluation.

    The columns describe a custom dataset (`task: custom`); other tasks know theirs.

    Raises:
        ValueError: `data_options` is no JSON object.
    """

    task: str = _option("scenes", _TASKS)
    data: str | None = _option(None, "Folder with the task's files; custom: also a file or Hub data set; scenes: none.")
    data_options: dict | str | None = _option(None, "Options of the task's reader, as JSON (or a mapping in a recipe).")
    skip_bad: bool = _option(False, "Pass over rows with a missing image or a malformed line and list them.")
    image_column: list[str] = _option(["image"], "Custom dataset: column of the image, or several columns.")
    text_column: str = _option("question", "Custom dataset: column of the question or sentence.")
    label_column: str = _option("answer", "Custom dataset: column of the answer or class.")
    answers_column: str | None = _option(None, "Custom dataset: column of lists, what several people answered.")

    def __post_init__(self) -> None:
        """Read options that were given as JSON, and one image column as a list of one."""
        _check_choices(self)
        if isinstance(self.image_column, str):  # as a recipe may have it
            self.image_column = [self.image_column]

        given = self.data_options
        if isinstance(given, str):
            try:
                self.data_options = json.loads(given)
            except json.JSONDecodeError as error:
                raise ValueError(f"data_options is {given!r}, which is no JSON: {error}.") from error
        if not isinstance(self.data_options, dict | None):
            raise ValueError(f"data_options is {given!r}; give a JSON object of option and value.")


@dataclass
class DataArguments(ReadingArguments):
    """What is learned from.

    Raises:
        ValueError: a field that takes one of several words has another, or `data_options` is no JSON object.

    Example:
        >>> DataArguments(task="nlvr", data="path/to/nlvr1").image_cache_mb
        512.0
    """

    _argument_group_name = "data"

    head: str | None = _option(None, _HEADS)
    min_answer_count: int | None = _option(None, "Fewest rows that make an answer a class. Default: the task's.")
    tokenizer_texts: list[str] = _option([], "Text files, a text a line, that a new tokenizer learns from as well.")
    regions: str | None = _option(None, "Region store that the model reads in place of pixels. Default: pixels.")
    teacher_regions: str | None = _option(None, "Region store of the teacher, of the same boxes. Default: regions.")
    num_tags: int = _option(20, "Regions: most object tags beside a text; 0: none.")
    max_tag_length: int = _option(30, "Regions: most tokens of the tags, beside those of the text.")
    caption_training: CaptionTraining = _option("masked_words", "Or the CIDEr of what it writes: a second stage.")
    augmentation: Augmentation = _option("none", "randaugment: 2 operations at magnitude 9 (recipe), for both models.")
    max_train_rows: int | None = _option(None, "Train on at most so many rows, drawn by the seed.")
    max_eval_rows: int | None = _option(None, "Evaluate on at most so many validation rows.")
    image_cache_mb: float = _option(512.0, "Memory for prepared images in MB; 0: none.")


def _check_choices(arguments: Any) -> None:
    """Refuse a word that is none of a field's: the command line's parser does not check a recipe's values."""
    for one in fields(arguments):
        kinds = [kind for kind in (one.type, *get_args(one.type)) if get_origin(kind) is Literal]
        value, words = getattr(arguments, one.name), [word for kind in kinds for word in get_args(kind)]
        if kinds and value not in (*words, one.default):
            raise ValueError(f"{one.name} is {value!r}; give one of {', '.join(words)}.")
