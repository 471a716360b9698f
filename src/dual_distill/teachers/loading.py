"""A checkpoint's name in, our model and processor out, whether it is ours already or a ViLT."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ViltConfig,
    ViltImageProcessorPil,
)

from dual_distill import modeling
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig

from .checkpoint import BARE_MODELS, build, fetch, first_line, read_config, read_weights, split_head
from .vilt import VILT_CLASSES, convert_vilt_config

logger = logging.getLogger(__name__)

ModelClass = type[PreTrainedModel] | Sequence[type[PreTrainedModel]]

SEVERAL_IMAGES = (
    modeling.FusionEncoderForImagesAndTextClassification,
    modeling.DualEncoderForImagesAndTextClassification,
)
# One logit a label; a newly initialized head of these must be told its labels.
LABELLED = (modeling.FusionEncoderForQuestionAnswering, modeling.DualEncoderForQuestionAnswering, *SEVERAL_IMAGES)
PRETRAINING = (modeling.FusionEncoderForPreTraining, modeling.DualEncoderForPreTraining)
_PROJECTIONS = ("text_projection", "image_projection", "logit_scale")
# (saved as, loaded as) -> parts of the saved head that the other one takes over. Those are all its parts, except where
# it is for pre-training: that head must be newly initialized, but for what it takes over.
TAKEN_OVER: Mapping[tuple[type[PreTrainedModel], type[PreTrainedModel]], tuple[str, ...]] = {
    (modeling.FusionEncoderForPreTraining, modeling.FusionEncoderForImageTextRetrieval): ("itm_score",),
    (modeling.FusionEncoderForPreTraining, modeling.FusionEncoderForMaskedLM): ("mlm_score",),
    (modeling.FusionEncoderForPreTraining, modeling.FusionEncoderForCaptioning): ("mlm_score",),
    (modeling.FusionEncoderForMaskedLM, modeling.FusionEncoderForCaptioning): ("mlm_score",),
    (modeling.FusionEncoderForMaskedLM, modeling.FusionEncoderForPreTraining): ("mlm_score",),
    (modeling.DualEncoderForPreTraining, modeling.DualEncoderForImageTextRetrieval): (*_PROJECTIONS, "itm_score"),
    (modeling.DualEncoderForImageTextRetrieval, modeling.DualEncoderForPreTraining): _PROJECTIONS,
}
_GENERATION = "generation_config.json"
_MODALITIES = "embeddings.token_type_embeddings.weight"


class LoadedModel(NamedTuple):
    """What `load_model` and `load_teacher` return.

    Attributes:
        model: a fusion encoder or a dual encoder, as the checkpoint is one, or a teacher of another family; in eval
            mode.
        processor: turns texts and images into its batches; that of another family is its own.
    """

    model: PreTrainedModel
    processor: DualDistillProcessor


def load_model(
    checkpoint: str | Path,
    revision: str | None = None,
    model_class: ModelClass | None = None,
    *,
    new_head: bool = False,
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a checkpoint of ours, or a ViLT of transformers, which is converted on the way in.

    Args:
        checkpoint: a folder, or `owner/name` or `owner/name@revision` on the Hub.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        model_class: the class to load as, or one for each model type that may come; None: the class that the
            checkpoint was saved as (`architectures` in its config). A pre-trained model loads as the class for
            retrieval too, and a fusion encoder as those for masked words and captions, with the weights that it has for
            them; a bare class leaves the head out.
        new_head: newly initialize the head, whatever the checkpoint has; `model_class` must be given. Parts that both
            heads have are taken over where there are such. A warning lists the parameters that are left out, taken
            over and newly initialized.
        label_names: answers or classes of a new head, in the order of the logits.
        num_images: images a row of a new head for classification; None: 1.
        attn_implementation: how attention is computed.
        dtype: of the model, whatever it was saved in.

    Returns:
        Model and processor.

    Raises:
        ValueError: the checkpoint cannot be found, is of another type, has no safetensors weights, is damaged, or was
            saved as another class; the message says what to do.
    """
    source = str(checkpoint)
    folder = fetch(source, revision)
    found = read_known_config(folder, source)
    config, wanted, saved = _resolve(found, source, model_class, new_head, label_names, num_images)
    prefix = found.model_type if isinstance(found, ViltConfig) else wanted.base_model_prefix
    body, head = split_head(read_weights(folder, source), prefix)

    # The table of modalities has a row for each image: new ones are copies of the last.
    table = body.get(_MODALITIES)
    if new_head and table is not None:
        missing = max(config.modality_type_vocab_size - len(table), 0)
        body[_MODALITIES] = torch.cat([table, table[-1:].repeat(missing, 1)])

    # Either the head fits as it is, or parts of it are taken over, or it is left out.
    taken = take_over(head, saved, wanted)
    if wanted is modeling.DualEncoderForImageTextRetrieval and not config.interaction_layers:
        # Without such layers it compares vectors alone.
        taken = {name: weight for name, weight in taken.items() if not name.startswith("rank_output")}
    if taken:
        logger.warning("%s: its head is of another class; taken over from it: %s.", source, ", ".join(sorted(taken)))
    elif head and (new_head or wanted in BARE_MODELS):
        logger.warning("%s: the weights of its head are left out: %s.", source, ", ".join(head))
    else:
        taken = head

    required: tuple[str, ...] | None = ("",) if new_head else None
    if saved is modeling.FusionEncoderModel and isinstance(found, ViltConfig) and "pooler.dense.weight" not in body:
        # ViLT's `add_pooling_layer=False`: no damage.
        required = ("embeddings.", "encoder.", "layernorm.")
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": dtype}
    model, _ = build(wanted, config, body, taken, source, required=required, **options)

    # How it was saved to write; a head that was taken over from another class brings nothing of the kind.
    if saved is wanted and model.can_generate() and (folder / _GENERATION).is_file():
        try:
            written, made = GenerationConfig.from_pretrained(folder), model.generation_config.to_dict()
            if written.num_beams is not None and written.num_beams < 1:
                raise ValueError(f"num_beams is {written.num_beams}, but must be at least 1.")
            # What it leaves out, such as how a caption ends, is as the config says.
            made |= {"max_new_tokens": None} if written.max_length else {}
            written.update(defaults_only=True, **made)
            model.generation_config = written
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"the {_GENERATION} of {source!r} cannot be read: {first_line(error)}") from error
    return LoadedModel(model, read_processor(folder, source, found))


def load_config(
    checkpoint: str | Path, revision: str | None = None, model_class: ModelClass | None = None, **head: Any
) -> PreTrainedConfig:
    """Return the configuration of the model that `load_model` would return, without its weights; same arguments.

    Its `architectures` names the class of that model.

    Args:
        checkpoint: as for `load_model`.
        revision: as for `load_model`.
        model_class: as for `load_model`.
        **head: `new_head`, `label_names` and `num_images` of `load_model`.

    Raises:
        ValueError: as `load_model`, as far as the configuration alone can tell.
    """
    source = str(checkpoint)
    found = read_known_config(fetch(source, revision, weights=False), source)
    return _resolve(found, source, model_class, **head)[0]


def load_processor(checkpoint: str | Path, revision: str | None = None) -> DualDistillProcessor:
    """Return the processor that `load_model` would return, without the weights; same arguments.

    Raises:
        ValueError: the checkpoint cannot be found, is of another type, or has no processor that can be read.
    """
    source = str(checkpoint)
    folder = fetch(source, revision, weights=False)
    return read_processor(folder, source, read_known_config(folder, source))


def take_over(
    head: Mapping[str, torch.Tensor], saved: type[PreTrainedModel] | None, wanted: type[PreTrainedModel]
) -> dict[str, torch.Tensor]:
    """Return the weights that a head takes from a saved head of another class, under its own names; often none.

    A score of retrieval (`rank_output`) is the matching head's logit of "matches" less that of "does not": its sigmoid
    is the probability that the matching head gave.

    Example:
        >>> weights = {"itm_score.fc.weight": torch.tensor([[1.0, 2.0], [4.0, 3.0]])}
        >>> take_over(weights, modeling.FusionEncoderForPreTraining, modeling.FusionEncoderForImageTextRetrieval)
        {'rank_output.weight': tensor([[3., 1.]])}
    """
    parts = () if saved is None else TAKEN_OVER.get((saved, wanted), ())
    taken = {name: weight for name, weight in head.items() if name.split(".")[0] in parts}
    if wanted not in (modeling.FusionEncoderForImageTextRetrieval, modeling.DualEncoderForImageTextRetrieval):
        return taken
    scores = {name: weight for name, weight in taken.items() if name.startswith("itm_score.fc")}
    ranks = {name.replace("itm_score.fc", "rank_output"): weight[1:] - weight[:1] for name, weight in scores.items()}
    return {name: weight for name, weight in taken.items() if name not in scores} | ranks


def read_known_config(folder: Path, source: str) -> PreTrainedConfig:
    """Read the configuration of a checkpoint that can be loaded: ours or a ViLT."""
    ours = [config.model_type for config in (FusionEncoderConfig, DualEncoderConfig)]
    known = f"one of type {', '.join(ours)}, or vilt, which is converted (for a bert: `dual-distill convert`)"
    return read_config(folder, source, [*ours, ViltConfig.model_type], known)


def _resolve(
    found: PreTrainedConfig,
    source: str,
    model_class: ModelClass | None = None,
    new_head: bool = False,
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
) -> tuple[Any, type[PreTrainedModel], type[PreTrainedModel] | None]:
    """Return our configuration, its class and the class that was saved, or refuse a head that the checkpoint lacks."""
    is_vilt, architecture = isinstance(found, ViltConfig), (found.architectures or [""])[0]
    saved: Any = VILT_CLASSES.get(architecture) if is_vilt else getattr(modeling, architecture, None)
    saved = saved if hasattr(saved, "config_class") else None
    if new_head and model_class is None:
        raise ValueError("new_head is set but no class is named; give model_class, the class to load as.")
    if not new_head and not (label_names is None and num_images is None):
        raise ValueError("label_names and num_images describe a new head; set new_head, or leave them out.")

    # The one class, of those to load as, that is of the type of the checkpoint.
    classes: Any = model_class or saved
    if classes is None:
        named = f"the architecture {found.architectures or 'of no class'}, which is not known here; give model_class"
        raise ValueError(f"the config of {source!r} names {named}.")
    classes = (classes,) if isinstance(classes, type) else classes
    config_class = FusionEncoderConfig if is_vilt else type(found)
    wanted = next((each for each in classes if each.config_class is config_class), None)
    if wanted is None:
        named = " or ".join(each.__name__ for each in classes)
        raise ValueError(f"{source!r} holds a {config_class.model_type}, which cannot be loaded as {named}.")

    # A head is as it was saved, or none, or follows from the one that was saved.
    follows = (saved, wanted) in TAKEN_OVER and wanted not in PRETRAINING
    if not (new_head or follows or saved in (None, wanted) or wanted in BARE_MODELS):
        way_out = "load it as it is, or set new_head for a newly initialized head, which must then be trained"
        raise ValueError(f"{source!r} was saved as {architecture}, not as {wanted.__name__}; {way_out}.")

    config = found
    if isinstance(found, ViltConfig):
        try:
            config = convert_vilt_config(found, modeling.FusionEncoderModel if new_head else wanted)
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"{source!r} cannot be converted: {first_line(error)}") from error
    config = new_head_config(config, wanted, label_names, num_images) if new_head else config
    config.architectures = [wanted.__name__]
    return config, wanted, saved


def new_head_config(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
) -> PreTrainedConfig:
    """Return `config` with the labels and images of a newly initialized head.

    Example:
        >>> head = modeling.FusionEncoderForImagesAndTextClassification
        >>> config = new_head_config(FusionEncoderConfig(), head, ["false", "true"], num_images=2)
        >>> config.id2label, config.num_images, config.modality_type_vocab_size
        ({0: 'false', 1: 'true'}, 2, 3)
    """
    name, count = model_class.__name__, 1 if num_images is None else num_images
    names, is_labelled = label_names or (), model_class in LABELLED
    reads = "1 or more" if model_class in SEVERAL_IMAGES else "1"
    problems = {
        f"a {name} has no head to initialize; name another class or leave new_head out": model_class in BARE_MODELS,
        f"a new head of {name} needs label_names, in the order of its logits": is_labelled and label_names is None,
        f"a new head of {name} takes no label_names": not is_labelled and label_names is not None,
        f"label_names has {len(names)} names, {len(set(names))} different; give each once": is_labelled
        and not 0 < len(names) == len(set(names)),
        f"num_images is {num_images}, but {name} reads {reads} a row": count < 1 or (count > 1 and reads == "1"),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(f"{problem}.")

    fields = {**config.to_dict(), "num_images": count, "classifier_hidden_size": None}
    if is_labelled:
        ids = {label: index for index, label in enumerate(names)}
        fields |= {"id2label": dict(enumerate(names)), "label2id": ids}
    if "modality_type_vocab_size" in fields:
        fields["modality_type_vocab_size"] = max(fields["modality_type_vocab_size"], 1 + count)
    return type(config)(**fields)


def read_processor(folder: Path, source: str, config: PreTrainedConfig) -> DualDistillProcessor:
    """Read the processor of a checkpoint of ours, or make ours of the tokenizer (and ViLT's image processor)."""
    try:
        if isinstance(config, FusionEncoderConfig | DualEncoderConfig):
            return DualDistillProcessor.from_pretrained(folder, trust_remote_code=False)
        # The PIL back end by name: the automatic choice asks for torchvision.
        is_vilt = isinstance(config, ViltConfig)
        image_processor = ViltImageProcessorPil.from_pretrained(folder) if is_vilt else ViltImageProcessorPil()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        way_out = "save image processor and tokenizer beside its weights"
        raise ValueError(f"{source!r} has no processor that can be read ({first_line(error)}); {way_out}.") from error

    # It truncates where the text positions end: texts that are too long are cut, not refused.
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return DualDistillProcessor(image_processor, tokenizer)
