"""Which model and processor made a vector: names for people, digests for the comparison.

A vector from other weights, another patch size or another resize looks like any other, and answers nonsense without a
word.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dual_distill.data import fingerprint, tokenizer_content
from dual_distill.modeling import DualDistillProcessor, own_fields

_SHOWN = 12


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Name a model by what it was loaded from, and digest its weights and what its towers compute with them.

    Args:
        model: a dual encoder.

    Returns:
        `name` (a folder, or a repository of the Hub), `revision` (its commit, None of a folder), `weights_sha256`,
        `config_sha256` and `dtype`, as JSON holds them.

    Example:
        >>> from dual_distill.modeling import DualEncoderConfig, DualEncoderModel
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = DualEncoderModel(DualEncoderConfig(
        ...     text_config=tower, vision_config={"image_size": 8, "patch_size": 4, **tower}))
        >>> before = model_identity(model)
        >>> model.interaction[0].bias.data[0] = 1
        >>> before["name"], before["weights_sha256"] == model_identity(model)["weights_sha256"]
        ('a model without a name', False)
    """
    # The Hub's cache keeps each commit in models--OWNER--NAME/snapshots/COMMIT.
    name, revision = getattr(model, "name_or_path", "") or "a model without a name", None
    folder = Path(name)
    if folder.parent.name == "snapshots":
        name, revision = folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name

    # Our own fields of the configurations; those of transformers differ from version to version.
    parts = {part: getattr(model.config, part) for part in ("text_config", "vision_config")}
    settings = {part: {one: getattr(own, one) for one in own_fields(type(own))} for part, own in parts.items()}
    # Left out where a tower pools itself, as ours do: their stores of before still fit.
    poolings = {name: getattr(model.config, name) for name in ("text_pooling", "vision_pooling")}
    settings |= {name: pooling for name, pooling in poolings.items() if pooling != "tower"}
    return {
        "name": name,
        "revision": revision,
        "weights_sha256": fingerprint(model),
        "config_sha256": fingerprint(settings),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def longest_text(model: PreTrainedModel, processor: DualDistillProcessor) -> int:
    """Return the longest text in tokens: what the tokenizer lets through and the model's position table holds."""
    return min(processor.tokenizer.model_max_length, model.config.max_position_embeddings)


def processor_settings(kind: str, model: PreTrainedModel, processor: DualDistillProcessor) -> dict[str, Any]:
    """Return what the inputs of one kind went through, as JSON holds it.

    For "image" the settings of the image processor, unset ones left out; for "text" the digest of the tokenizer and the
    longest text in tokens.

    Raises:
        ValueError: the tokenizer is one of the slow kind, which has no one description.
    """
    if kind == "image":
        settings = json.loads(processor.image_processor.to_json_string()) | {"jpeg_margin": processor.jpeg_margin}
        return {name: value for name, value in settings.items() if value is not None and not name.startswith("_")}

    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        slow = f"a {type(tokenizer).__name__} without a fast backend"
        raise ValueError(f"The tokenizer is {slow}, which cannot be told from another; save it as a fast one.")
    return {"tokenizer_sha256": fingerprint(tokenizer_content(tokenizer)), "max_tokens": longest_text(model, processor)}


def check_same_model(store: str, made_with: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse a model that is not the one that made a store; name and revision may differ, a copy is the same model.

    Raises:
        ValueError: weights, configuration or dtype differ.
    """
    parts = [part for part in ("weights_sha256", "config_sha256", "dtype") if made_with[part] != given[part]]
    if parts:
        named, differ = _described(made_with), ", ".join(part.removesuffix("_sha256") for part in parts)
        unlike = f"not with {_described(given)}: they differ in {differ}"
        made = f"The store {store!r} was made with the model {named}, {unlike}"
        raise ValueError(f"{made}. Take the model that made it, or encode into another folder.")


def _described(model: dict[str, Any]) -> str:
    at = f" at {model['revision'][:_SHOWN]}" if model["revision"] else ""
    return f"{model['name']!r}{at} (weights {model['weights_sha256'][:_SHOWN]}, {model['dtype']})"
