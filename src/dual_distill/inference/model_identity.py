"""Which model and processor made a vector: names for people, digests for the comparison.

A vector from other weights, another patch size or another resize looks like any other, and answers nonsense without a
word.
"""

import json
from typing import Any

from transformers import PreTrainedModel

from dual_distill.data import fingerprint
from dual_distill.modeling import DualDistillProcessor, own_fields
from dual_distill.teachers import fetch, load_model

_SHOWN = 12


def load_encoder(name: str, revision: str | None = None) -> tuple[PreTrainedModel, DualDistillProcessor, str | None]:
    """Load a checkpoint, and say which commit of the Hub it is.

    Args:
        name: folder or Hub repository.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.

    Returns:
        The model in eval mode, its processor, and the commit of a Hub repository, None of a folder.

    Raises:
        ValueError: as `dual_distill.load_model`.

    Example:
        >>> load_encoder("no/such/model/here")
        Traceback (most recent call last):
        ValueError: 'no/such/model/here' is not a folder here ...
    """
    folder = fetch(name, revision)
    # The Hub's cache keeps each commit in snapshots/COMMIT.
    commit = folder.name if folder.parent.name == "snapshots" else None
    return *load_model(folder), commit


def model_identity(model: PreTrainedModel, name: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Name a model, and digest its weights and what its towers compute with them.

    Args:
        model: a dual encoder.
        name: folder or Hub repository; None: what the model was loaded from.
        revision: commit of a Hub repository.

    Returns:
        `name`, `revision`, `weights_sha256`, `config_sha256` and `dtype`, as JSON holds them.

    Example:
        >>> from dual_distill.modeling import DualEncoderConfig, DualEncoderModel
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = DualEncoderModel(DualEncoderConfig(
        ...     text_config=tower, vision_config={"image_size": 8, "patch_size": 4, **tower}))
        >>> before = model_identity(model, "mine")
        >>> model.interaction[0].bias.data[0] = 1
        >>> before["name"], before["weights_sha256"] == model_identity(model)["weights_sha256"]
        ('mine', False)
    """
    # Our own fields of the configurations; those of transformers differ from version to version.
    parts = {part: getattr(model.config, part) for part in ("text_config", "vision_config")}
    settings = {
        part: {field: getattr(config, field) for field in own_fields(type(config))} for part, config in parts.items()
    }
    return {
        "name": name or getattr(model, "name_or_path", "") or "a model without a name",
        "revision": revision,
        "weights_sha256": fingerprint(model),
        "config_sha256": fingerprint(settings),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def image_processor_settings(processor: DualDistillProcessor) -> dict[str, Any]:
    """Return the settings of the image processor, as JSON holds them; unset ones are left out."""
    settings = json.loads(processor.image_processor.to_json_string())
    return {name: value for name, value in settings.items() if value is not None and not name.startswith("_")}


def tokenizer_settings(processor: DualDistillProcessor, max_tokens: int) -> dict[str, Any]:
    """Return the digest of the tokenizer and the longest text in tokens.

    Raises:
        ValueError: the tokenizer is one of the slow kind, which has no one description.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        slow = f"a {type(tokenizer).__name__} without a fast backend"
        raise ValueError(f"The tokenizer is {slow}, which cannot be told from another; save it as a fast one.")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's state, no settings.
    content.pop("padding", None)
    content.pop("truncation", None)
    return {"tokenizer_sha256": fingerprint(content), "max_tokens": max_tokens}


def described(model: dict[str, Any]) -> str:
    """Return a model's identity for a sentence: name, revision and the start of the digest of its weights."""
    at = f" at {model['revision'][:_SHOWN]}" if model["revision"] else ""
    return f"{model['name']!r}{at} (weights {model['weights_sha256'][:_SHOWN]}, {model['dtype']})"


def check_same_model(store: str, made_with: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a model that is not the one that made a store; name and revision may differ, a copy is the same model.

    Raises:
        ValueError: weights, configuration or dtype differ.
    """
    parts = [part for part in ("weights_sha256", "config_sha256", "dtype") if made_with[part] != given[part]]
    if parts:
        named, differ = described(made_with), ", ".join(part.removesuffix("_sha256") for part in parts)
        unlike = f"not with {described(given)}: they differ in {differ}"
        raise ValueError(f"The store {store!r} was made with the model {named}, {unlike}. Take the model that made it.")


def check_same_processor(store: str, made_with: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a processor with other settings than those that made a store.

    Raises:
        ValueError: a setting differs; the message gives both values.
    """
    for name in sorted({*made_with, *given}):
        if made_with.get(name) != given.get(name):
            differ = f"{name} = {made_with.get(name)!r}, but the processor given has {given.get(name)!r}"
            raise ValueError(f"The store {store!r} was made with the processor setting {differ}; take that processor.")
