"""The text side of a BERT starts a fusion encoder over regions: words, layers and pooler, and the masked-word head.

Any checkpoint of type "bert" fits, MiniLM's among them, with or without a head of transformers. What a BERT cannot
give, the map of regions and the heads of tasks, is drawn anew; the report names it, and also what of the BERT found no
place.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, PreTrainedModel, ViltImageProcessorPil

from dual_distill.modeling import DualDistillProcessor, FusionEncoderConfig, FusionEncoderModel

from .checkpoint import fetch, read_weights
from .heads import BARE, model_class

logger = logging.getLogger(__name__)

# Names of a BERT's weights -> ours; "#" stands for the number of a layer.
_BODY = {
    "embeddings.word_embeddings.weight": "embeddings.text_embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "embeddings.text_embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.text_embeddings.token_type_embeddings.weight",
}
_BODY_MODULES = {
    "embeddings.LayerNorm": "embeddings.text_embeddings.LayerNorm",
    "encoder.layer.#.attention.self.query": "encoder.layer.#.attention.attention.query",
    "encoder.layer.#.attention.self.key": "encoder.layer.#.attention.attention.key",
    "encoder.layer.#.attention.self.value": "encoder.layer.#.attention.attention.value",
    "encoder.layer.#.attention.output.dense": "encoder.layer.#.attention.output.dense",
    "encoder.layer.#.attention.output.LayerNorm": "encoder.layer.#.layernorm_attention",
    "encoder.layer.#.intermediate.dense": "encoder.layer.#.intermediate.dense",
    "encoder.layer.#.output.dense": "encoder.layer.#.output.dense",
    "encoder.layer.#.output.LayerNorm": "encoder.layer.#.layernorm_output",
    "pooler.dense": "pooler.dense",
}
_HEAD_MODULES = {
    "cls.predictions.transform.dense": "mlm_score.transform.dense",
    "cls.predictions.transform.LayerNorm": "mlm_score.transform.LayerNorm",
}
_NAMES = {
    **_BODY,
    **{f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _BODY_MODULES.items() for kind in ("weight", "bias")},
}
_HEAD_NAMES = {
    **{f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _HEAD_MODULES.items() for kind in ("weight", "bias")},
    "cls.predictions.bias": "mlm_score.decoder.bias",
}
_POSITIONS = "embeddings.text_embeddings.position_embeddings.weight"
_WORDS = "embeddings.word_embeddings.weight"
# The names that the layer norms of old checkpoints have.
_OLD_ENDINGS = {"gamma": "weight", "beta": "bias"}
_NAMED = 4
_SHARED = (
    "vocab_size",
    "type_vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


class BertStart(NamedTuple):
    """What `start_from_bert` returns.

    Attributes:
        model: a fusion encoder over regions, in eval mode.
        processor: with the BERT's tokenizer; its image processor is ViLT's, and stands unused beside regions.
        fresh: parameters of the model that the BERT does not have, drawn anew, to be trained.
        left_out: weights of the BERT that have no place in the model.
    """

    model: PreTrainedModel
    processor: DualDistillProcessor
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


def start_from_bert(
    name_or_path: str | Path, head: str = BARE, *, revision: str | None = None, **fields: Any
) -> BertStart:
    """Load the text side of a fusion encoder over regions from a BERT-like checkpoint.

    Args:
        name_or_path: a folder, or `owner/name` or `owner/name@revision` on the Hub, of model type "bert", in
            safetensors.
        head: one of `HEADS`; the masked-word head of a BERT that has one starts "masked_lm", "captioning" and
            "pretraining".
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        **fields: of `FusionEncoderConfig`, beside those that the BERT fixes, such as `region_feature_size=2048`, or
            `id2label` for a head with answers. A smaller `max_position_embeddings` cuts the position table.

    Returns:
        A `BertStart`; what is fresh and what is left out is also logged.

    Raises:
        ValueError: the checkpoint is no BERT, lacks weights of its body, or a field contradicts it.
    """
    name = str(name_or_path)
    folder = fetch(name, revision)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name!r} has no config.json; give the folder or repository of a saved BERT.")
    found = AutoConfig.from_pretrained(folder)
    if not isinstance(found, BertConfig) or found.model_type != "bert":
        raise ValueError(
            f"{name!r} holds a model of type {found.model_type!r}, whose weights mean something else; give one of "
            f"type 'bert', "
            "such as bert-base-uncased or MiniLM-L12-H384."
        )
    config = convert_bert_config(found, **fields)
    model, fresh, left_out = fill_from_bert(read_weights(folder, name), config, head, repr(name))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name!r} has no tokenizer that can be read ({error}); save it beside the weights."
        ) from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return BertStart(model, DualDistillProcessor(ViltImageProcessorPil(), tokenizer), fresh, left_out)


def convert_bert_config(config: BertConfig, **fields: Any) -> FusionEncoderConfig:
    """Return the configuration of a fusion encoder over regions whose text side is this BERT.

    Args:
        config: of the BERT.
        **fields: what shall differ, of those that the BERT does not fix.

    Raises:
        ValueError: a field contradicts the BERT, or it is a decoder.

    Example:
        >>> from transformers import BertConfig
        >>> ours = convert_bert_config(BertConfig(hidden_size=384, intermediate_size=1536), region_feature_size=1024)
        >>> ours.visual_inputs, ours.norm_first, ours.hidden_size, ours.max_position_embeddings
        ('regions', False, 384, 512)
    """
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError("this BERT is a decoder, but a fusion encoder looks both ways; give an encoder.")
    shared = {name: getattr(config, name) for name in _SHARED}
    free = {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "pad_token_id"}
    for name, value in fields.items():
        shorter = name == "max_position_embeddings" and value <= shared[name]
        if name in shared and name not in free and value != shared[name] and not shorter:
            raise ValueError(
                f"{name} is {value!r}, but the BERT has {shared[name]!r}; leave it out, or start from another BERT."
            )
    return FusionEncoderConfig.base_regions(**{**shared, **fields})


def convert_bert_state_dict(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Rename a BERT's weights to those of a fusion encoder's body (no prefix) and its masked-word head.

    Args:
        weights: of a `BertModel`, or of one of its models with a head.

    Returns:
        Weights under our names, none copied or changed, and the names of those that have no place.

    Example:
        >>> weights = {"bert.embeddings.LayerNorm.gamma": torch.ones(1), "cls.seq_relationship.bias": torch.ones(2)}
        >>> ours, left_out = convert_bert_state_dict(weights)
        >>> list(ours), left_out
        (['embeddings.text_embeddings.LayerNorm.weight'], ('cls.seq_relationship.bias',))
    """
    ours: dict[str, torch.Tensor] = {}
    left_out = []
    for name, weight in weights.items():
        plain, _, ending = name.removeprefix("bert.").rpartition(".")
        plain = f"{plain}.{_OLD_ENDINGS.get(ending, ending)}"
        layer = re.match(r"encoder\.layer\.(\d+)\.", plain)
        place = _NAMES.get(re.sub(r"^encoder\.layer\.\d+\.", "encoder.layer.#.", plain), _HEAD_NAMES.get(plain))
        if place is not None:
            ours[place.replace("#", layer[1]) if layer else place] = weight
        elif not _is_repeated(plain, weight, weights):
            left_out.append(name)
    return ours, tuple(left_out)


def fill_from_bert(
    weights: Mapping[str, torch.Tensor], config: FusionEncoderConfig, head: str = BARE, source: str = "the BERT"
) -> tuple[PreTrainedModel, tuple[str, ...], tuple[str, ...]]:
    """Build a fusion encoder over regions and give it the weights of a BERT; the rest is drawn anew.

    Args:
        weights: of the BERT.
        config: as `convert_bert_config` makes it.
        head: one of `HEADS`.
        source: names the BERT in messages.

    Returns:
        The model in eval mode, its parameters that are fresh, and the BERT's weights that have no place.

    Raises:
        ValueError: weights of words or layers are missing, or of another shape.
    """
    found, left_out = convert_bert_state_dict(weights)
    cls = model_class(config, head)
    model = cls._from_config(config, dtype=torch.float32)
    expected = model.state_dict()
    prefix = "" if head == BARE else f"{FusionEncoderModel.base_model_prefix}."
    if _POSITIONS in found:
        found[_POSITIONS] = found[_POSITIONS][: config.max_position_embeddings]
    named = {name if name.startswith("mlm_score.") else prefix + name: weight for name, weight in found.items()}
    placed = {name: weight.to(torch.float32) for name, weight in named.items() if name in expected}
    left_out += tuple(name for name in named if name not in expected)
    for name, weight in placed.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(weight.shape)}, but its config.json says "
                f"{tuple(expected[name].shape)}; "
                "the checkpoint is damaged, so fetch it again."
            )
    tied = model.all_tied_weights_keys
    fresh = tuple(name for name in expected if name not in placed and name not in tied)
    missing = [name for name in fresh if name.startswith((f"{prefix}encoder.", f"{prefix}embeddings.text_embeddings."))]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} weights of a BERT, such as {', '.join(missing[:_NAMED])}; give a "
            f"checkpoint with "
            "all its layers."
        )
    model.load_state_dict(placed, strict=False)
    model.tie_weights()
    if fresh:
        logger.warning("%s: drawn anew, to be trained: %s.", source, ", ".join(fresh))
    if left_out:
        logger.warning("%s: without a place here, left out: %s.", source, ", ".join(left_out))
    return model.eval(), fresh, left_out


def _is_repeated(name: str, weight: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a weight is a constant, or the same as another one that is taken."""
    if name in ("embeddings.position_ids", "embeddings.token_type_ids"):
        return True
    twin = {"cls.predictions.decoder.weight": _WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}.get(name)
    other = None if twin is None else weights.get(f"bert.{twin}", weights.get(twin))
    return other is not None and torch.equal(weight, other)


__all__ = ["BertStart", "convert_bert_config", "convert_bert_state_dict", "fill_from_bert", "start_from_bert"]
