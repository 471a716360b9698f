"""The text side of a BERT starts a fusion encoder over regions: words, layers and pooler, and the masked-word head.

Any checkpoint of type "bert" fits, MiniLM's among them, with or without a head of transformers. What a BERT does not
have, the map of regions and the heads of tasks, is newly initialized; the report names it, and also which weights of
the BERT are left out.
"""

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from dual_distill.modeling import (
    DualDistillProcessor,
    FusionEncoderConfig,
    FusionEncoderForMaskedLM,
    FusionEncoderModel,
)

from .checkpoint import Weights, build, fetch, read_config, read_weights
from .loading import LABELLED, read_processor, take_over

logger = logging.getLogger(__name__)

# What the names of a BERT's weights become, one after the other; layers and pooler are called as ours.
_RENAMED = {
    r"^embeddings\.": "embeddings.text_embeddings.",
    r"\.attention\.self\.": ".attention.attention.",
    r"\.attention\.output\.LayerNorm\.": ".layernorm_attention.",
    r"\.output\.LayerNorm\.": ".layernorm_output.",
    r"^cls\.predictions\.transform\.": "mlm_score.transform.",
    r"^cls\.predictions\.bias$": "mlm_score.decoder.bias",
}
_OURS = ("embeddings.", "encoder.", "pooler.", "mlm_score.")
# Weights that stand for others: the decoder's, which a BERT ties, and what is constant.
_REPEATED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_CONSTANT = ("embeddings.position_ids", "embeddings.token_type_ids")
_POSITIONS = "embeddings.text_embeddings.position_embeddings.weight"
# Fields that the BERT fixes, and those that may be set to something else.
_FIXED = (
    *("vocab_size", "type_vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
)
_FREE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "pad_token_id")


class BertStart(NamedTuple):
    """What `start_from_bert` returns.

    Attributes:
        model: a fusion encoder over regions, in eval mode.
        processor: with the BERT's tokenizer; its image processor is ViLT's, and unused with regions.
        new: parameters of the model that the BERT does not have, newly initialized, to be trained.
        left_out: weights of the BERT that the model does not have.
    """

    model: PreTrainedModel
    processor: DualDistillProcessor
    new: tuple[str, ...]
    left_out: tuple[str, ...]


def start_from_bert(
    checkpoint: str | Path,
    model_class: type[PreTrainedModel] = FusionEncoderModel,
    *,
    revision: str | None = None,
    **fields: Any,
) -> BertStart:
    """Load the text side of a fusion encoder over regions from a BERT-like checkpoint.

    Args:
        checkpoint: a folder, or `owner/name` or `owner/name@revision` on the Hub, of model type "bert", in safetensors.
        model_class: of the fusion encoder; a BERT with a masked-word head starts the heads for masked words, captions
            and pre-training with it.
        revision: branch, tag, commit or `refs/pr/N` of a Hub repository.
        **fields: of `FusionEncoderConfig`, beside those that the BERT fixes, such as `region_feature_size=2048`, or
            `id2label` for a head with answers. A smaller `max_position_embeddings` cuts the position table.

    Returns:
        A `BertStart`; what is new and what is left out is also logged.

    Raises:
        ValueError: the checkpoint is not a BERT, lacks weights of its body, or a field contradicts it.
    """
    source = str(checkpoint)
    if model_class in LABELLED and "id2label" not in fields:
        way_out = "start without that head, and set new_head in training"
        raise ValueError(f"a BERT has no labels for {model_class.__name__}; {way_out}.")
    folder = fetch(source, revision)
    bert_config = read_bert_config(folder, source)
    config = convert_bert_config(bert_config, **fields)
    found, left_out = convert_bert_state_dict(read_weights(folder, source))
    if _POSITIONS in found:
        found[_POSITIONS] = found[_POSITIONS][: config.max_position_embeddings]
    body = {name: weight for name, weight in found.items() if not name.startswith("mlm_score.")}
    head = {name: weight for name, weight in found.items() if name not in body}
    taken = head if model_class is FusionEncoderForMaskedLM else take_over(head, FusionEncoderForMaskedLM, model_class)
    left_out += [name for name in head if name not in taken]

    # Words and layers must all be there; regions, pooler and head may be new.
    required = ("encoder.", "embeddings.text_embeddings.")
    model, new = build(model_class, config, body, taken, source, required=required)
    if left_out:
        logger.warning("%s: left out, since the model does not have them: %s.", source, ", ".join(left_out))
    bert_config.max_position_embeddings = config.max_position_embeddings
    return BertStart(model, read_processor(folder, source, bert_config), tuple(new), tuple(left_out))


def read_bert_config(folder: Path, source: str) -> Any:
    """Read the configuration of a BERT; refuse another model, whose weights mean something else."""
    return read_config(folder, source, ["bert"], "one of type 'bert', such as bert-base-uncased or MiniLM-L12-H384")


def convert_bert_config(config: BertConfig, **fields: Any) -> FusionEncoderConfig:
    """Return the configuration of a fusion encoder over regions whose text side is this BERT.

    Args:
        config: of the BERT.
        **fields: what shall differ, of those that the BERT does not fix.

    Raises:
        ValueError: a field contradicts the BERT, or it is a decoder.

    Example:
        >>> ours = convert_bert_config(BertConfig(hidden_size=384, intermediate_size=1536), region_feature_size=1024)
        >>> ours.visual_inputs, ours.norm_first, ours.hidden_size, ours.max_position_embeddings
        ('regions', False, 384, 512)
    """
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError("this BERT is a decoder, but a fusion encoder reads both ways; give an encoder.")

    for name in fields.keys() & _FIXED:
        value, fixed = fields[name], getattr(config, name)
        is_shorter = name == "max_position_embeddings" and value < fixed
        if value != fixed and not is_shorter:
            raise ValueError(f"{name} is {value!r}, but the BERT has {fixed!r}; leave it out, or take another BERT.")
    shared = {name: getattr(config, name) for name in (*_FIXED, *_FREE)}
    return FusionEncoderConfig(**{"visual_inputs": "regions", "norm_first": False, **shared, **fields})


def convert_bert_state_dict(weights: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename a BERT's weights to those of a fusion encoder's body (no prefix) and its masked-word head.

    Args:
        weights: of a `BertModel`, or of one of its models with a head.

    Returns:
        Weights under our names, none copied or changed, and the names of those that a fusion encoder does not have.

    Example:
        >>> weights = {"bert.embeddings.LayerNorm.gamma": torch.ones(1), "cls.seq_relationship.bias": torch.ones(2)}
        >>> ours, left_out = convert_bert_state_dict(weights)
        >>> list(ours), left_out
        (['embeddings.text_embeddings.LayerNorm.weight'], ['cls.seq_relationship.bias'])
    """
    ours: dict[str, torch.Tensor] = {}
    left_out = []
    plain = {_plain_name(name): weight for name, weight in weights.items()}
    for theirs, (given, weight) in zip(plain, weights.items(), strict=True):
        name = theirs
        for pattern, replacement in _RENAMED.items():
            name = re.sub(pattern, replacement, name)

        # Nothing is lost with a copy of a weight that is taken.
        twin = plain.get(_REPEATED.get(theirs, ""))
        is_repeated = theirs in _CONSTANT or (twin is not None and torch.equal(weight, twin))
        if name.startswith(_OURS) and not is_repeated:
            ours[name] = weight
        elif not is_repeated:
            left_out.append(given)
    return ours, left_out


def load_original_bert(folder: Path, source: str) -> BertModel:
    """Load the body of a BERT with transformers' own class, in float32 and eval mode: the original of a start.

    Its `from_pretrained` is not used: it would print a table of the head's weights, which the body does not have.
    """
    original = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    found = {_plain_name(name): weight for name, weight in read_weights(folder, source).items()}
    original.load_state_dict({name: found[name] for name in original.state_dict()})
    return original.float().eval()


def _plain_name(name: str) -> str:
    """Return the name of a BERT's weight in the body alone, without the endings that old checkpoints have."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name.removeprefix("bert.")))
