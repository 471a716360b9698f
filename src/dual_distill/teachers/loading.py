"""The door that loads: a checkpoint's name in, our model and processor out, whether it is ours already or a ViLT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, ViltConfig, ViltImageProcessorPil

from dual_distill.modeling import DualDistillProcessor

from .checkpoint import build, fetch, read_weights, split_head
from .heads import BARE, FOLLOWS, HEADS, carried_head, extend_modalities, model_class, new_head_config
from .vilt import VILT_HEADS, convert_vilt_config, split_vilt_head


class Teacher(NamedTuple):
    """What `load_teacher` returns.

    Attributes:
        model: a fusion encoder (or a dual encoder, if the checkpoint is one), in eval mode.
        processor: turns texts and images into its batches.
    """

    model: PreTrainedModel
    processor: DualDistillProcessor


def load_teacher(
    name_or_path: str | Path,
    revision: str | None = None,
    head: str | None = None,
    *,
    new_head: bool = False,
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """Load a checkpoint of ours, or a ViLT of transformers, which is converted on the way in.

    Args:
        name_or_path: a folder, or `owner/name` or `owner/name@revision` on the Hub.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        head: one of `HEADS`; None: the one that the checkpoint was saved with (`architectures` in its config). What was
            pre-trained ("pretraining") loads as "image_text_retrieval" and a fusion encoder as "masked_lm" too, with
            the weights that it has for them.
        new_head: draw the head anew, whatever the checkpoint has; `head` must be named. Between "pretraining" and
            "masked_lm" or "image_text_retrieval", the parts that both heads have are kept. A warning lists the
            parameters that are left out, kept and fresh.
        label_names: answers or classes of a fresh head, in the order of the logits.
        num_images: images a row of a fresh classification head; None: 1.
        attn_implementation: how attention is computed.
        dtype: of the model, whatever it was saved in.

    Returns:
        Model and processor.

    Raises:
        ValueError: the checkpoint cannot be found, is of another kind, has no safetensors weights, is damaged, or has
            another head than asked for; the message says which way out there is.
    """
    name = str(name_or_path)
    return load_folder(
        fetch(name, revision),
        name,
        head,
        new_head=new_head,
        label_names=label_names,
        num_images=num_images,
        attn_implementation=attn_implementation,
        dtype=dtype,
    )


def load_folder(
    folder: Path,
    name: str,
    head: str | None = None,
    *,
    new_head: bool = False,
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """Load from a folder that was fetched as `name`; the rest is as in `load_teacher`."""
    found = read_config(folder, name)
    config, head = _resolve(found, name, head, new_head, label_names, num_images)
    weights = read_weights(folder, name)
    cls = model_class(config, head)
    body, rest = (
        split_vilt_head(weights) if isinstance(found, ViltConfig) else split_head(weights, cls.base_model_prefix)
    )
    if new_head and not hasattr(config, "vision_config"):
        body = extend_modalities(body, config.modality_type_vocab_size)
    model = build(
        cls,
        config,
        body,
        rest,
        name,
        new_head=new_head,
        carried=carried_head(rest, config.model_type, saved_head(found), head),
        attn_implementation=attn_implementation,
        dtype=dtype,
    )
    return Teacher(model, _read_processor(folder, name, found))


def load_config(
    name_or_path: str | Path,
    revision: str | None = None,
    head: str | None = None,
    *,
    new_head: bool = False,
    label_names: Sequence[str] | None = None,
    num_images: int | None = None,
) -> PreTrainedConfig:
    """Return the configuration of the model that `load_teacher` would return, without its weights; same arguments.

    Raises:
        ValueError: as `load_teacher`, as far as the configuration alone can tell.
    """
    name = str(name_or_path)
    found = read_config(fetch(name, revision, weights=False), name)
    return _resolve(found, name, head, new_head, label_names, num_images)[0]


def load_processor(name_or_path: str | Path, revision: str | None = None) -> DualDistillProcessor:
    """Return the processor that `load_teacher` would return, without the weights; same arguments.

    Raises:
        ValueError: the checkpoint cannot be found, is of another kind, or has no processor that can be read.
    """
    name = str(name_or_path)
    folder = fetch(name, revision, weights=False)
    return _read_processor(folder, name, read_config(folder, name))


def saved_head(config: PreTrainedConfig) -> str | None:
    """Return the head that a checkpoint was saved with, None when its config does not say or names a class unknown
    here.

    Example:
        >>> saved_head(ViltConfig(architectures=["ViltForQuestionAnswering"]))
        'question_answering'
    """
    [architecture] = (config.architectures or [None])[:1]
    if isinstance(config, ViltConfig):
        return VILT_HEADS.get(architecture)
    return next((head for head, cls in HEADS[config.model_type].items() if cls.__name__ == architecture), None)


def _resolve(
    found: PreTrainedConfig,
    name: str,
    head: str | None,
    new_head: bool,
    label_names: Sequence[str] | None,
    num_images: int | None,
) -> tuple[PreTrainedConfig, str]:
    """Return our configuration and the head's name, or refuse a head that the checkpoint does not have."""
    is_vilt = isinstance(found, ViltConfig)
    saved = saved_head(found)
    if head is None:
        if new_head:
            raise ValueError("new_head is set but no head is named; name the head that is to be drawn anew.")
        if saved is None:
            known = VILT_HEADS if is_vilt else [cls.__name__ for cls in HEADS[found.model_type].values()]
            raise ValueError(
                f"the config of {name!r} names the architecture {found.architectures or 'of no class'}, from which no "
                f"head "
                f"follows (known: {', '.join(known)}); name one with head=, such as head='question_answering'."
            )
        head = saved
    if new_head and head == BARE:
        raise ValueError("a bare model has no head to be drawn anew; name another head or leave new_head out.")
    if not new_head and (label_names is not None or num_images is not None):
        raise ValueError("label_names and num_images describe a fresh head; set new_head, or leave them out.")
    if not new_head and head != BARE and saved is not None and head != saved and (saved, head) not in FOLLOWS:
        raise ValueError(
            f"{name!r} was saved with the head {saved!r}, not {head!r}; leave head out, or set new_head to keep its "
            f"body "
            f"and draw a new head {head!r}, which must then be trained."
        )
    config: PreTrainedConfig = found
    if is_vilt:
        try:
            config = convert_vilt_config(found, BARE if new_head else head)
        except ValueError as error:
            raise ValueError(f"{name!r} cannot be converted: {error}") from error
    model_class(config, head)  # refuses a head that this kind of model does not have
    if new_head:
        config = new_head_config(config, head, label_names, num_images)
    return config, head


def read_config(folder: Path, name: str) -> PreTrainedConfig:
    """Read `config.json`; refuse what is neither ours nor a ViLT."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{name!r} holds an adapter of peft, not a model; load it onto its base with peft, `merge_and_unload` "
                f"it, "
                "`save_pretrained` what that gives, with the processor beside it, and give that folder."
            )
        raise ValueError(f"{name!r} has no config.json; give the folder or repository of a saved model.")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the config.json of {name!r} cannot be read: {reason}") from error
    if not isinstance(config, ViltConfig) and config.model_type not in HEADS:
        raise ValueError(
            f"{name!r} holds a model of type {config.model_type!r}; give one of type {', '.join(HEADS)}, as "
            f"`dual-distill "
            "train` writes them, or vilt, which is converted (a bert starts one over regions: `dual-distill convert`)."
        )
    return config


def _read_processor(folder: Path, name: str, config: PreTrainedConfig) -> DualDistillProcessor:
    """Read the processor of a checkpoint of ours, or make ours of ViLT's image processor and tokenizer."""
    try:
        if not isinstance(config, ViltConfig):
            return DualDistillProcessor.from_pretrained(folder)
        # The PIL back end by name: the automatic choice asks for torchvision.
        image_processor = ViltImageProcessorPil.from_pretrained(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name!r} has no processor that can be read ({reason}); save the image processor and the tokenizer "
            f"beside its "
            "weights with `save_pretrained`."
        ) from error
    # ViLT's tokenizers allow 512 tokens, its text positions end at 40: longer texts are cut, not refused.
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return DualDistillProcessor(image_processor, tokenizer)


__all__ = ["Teacher", "load_config", "load_folder", "load_teacher", "read_config", "saved_head"]
