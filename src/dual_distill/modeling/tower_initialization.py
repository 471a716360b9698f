"""How a dual encoder starts from a fusion encoder: which of its weights go where."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig, own_fields
from .modeling_layers import resolve_layers

# Parts of heads that both kinds of encoder have, under one name.
HEAD_PARTS = ("classifier", "itm_score", "mlm_score")


def dual_config_from_fusion(
    config: FusionEncoderConfig,
    text_layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
    interaction_layers: int = 0,
    projection_dim: int | None = None,
) -> DualEncoderConfig:
    """Return the configuration of a dual encoder shaped like a fusion encoder, both towers as deep as the layers named.

    A fusion encoder has no projections; `projection_dim` None is the default of `DualEncoderConfig`.

    Raises:
        ValueError: the fusion encoder reads regions, or normalises behind its residuals; towers do neither.

    Example:
        >>> dual_config_from_fusion(FusionEncoderConfig(), text_layers=[0, 5, 11]).text_config.num_hidden_layers
        3
    """
    if config.visual_inputs != "patches" or not config.norm_first:
        has = f"visual_inputs {config.visual_inputs!r} and norm_first {config.norm_first}"
        way_out = "towers read patches and normalise first; start from a fusion encoder that does"
        raise ValueError(f"the fusion encoder has {has}, but {way_out}.")

    depth = config.num_hidden_layers
    depths = [depth if own is None else len(resolve_layers(own, depth)) for own in (text_layers, vision_layers)]
    # A recorded layer that one of the towers lacks is left out.
    recorded_layers = [layer for layer in config.recorded_layers if -min(depths) <= layer < min(depths)] or [-1]

    towers: list[dict[str, Any]] = []
    for kind, depth in zip((DualEncoderTextConfig, DualEncoderVisionConfig), depths, strict=True):
        shared = {name: getattr(config, name) for name in own_fields(kind) if hasattr(config, name)}
        towers.append({**shared, "num_hidden_layers": depth, "recorded_layers": recorded_layers})
    text_tower, image_tower = towers
    # The fusion encoder's first row is that of text.
    image_tower["modality_type_vocab_size"] = max(1, config.modality_type_vocab_size - 1)

    kept = ("initializer_range", "num_images", "classifier_hidden_size", "tie_word_embeddings")
    kept += ("id2label", "label2id", "problem_type")
    fields = {name: getattr(config, name) for name in kept}
    if projection_dim is not None:
        fields["projection_dim"] = projection_dim
    return DualEncoderConfig(
        text_config=text_tower,
        vision_config=image_tower,
        recorded_layers=recorded_layers,
        interaction_layers=interaction_layers,
        **fields,
    )


@torch.no_grad()
def copy_fusion_weights(
    source: nn.Module,
    target: nn.Module,
    text_layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
    interaction_from: Sequence[int] | None = None,
) -> None:
    """Copy a fusion encoder's weights into both towers (and the head, if both have one) of a dual encoder.

    Projections to the space of contrastive features have no counterpart in a fusion encoder and stay newly initialized.

    Raises:
        ValueError: the two heads are of different kinds.
    """
    fusion = getattr(source, "fusion_encoder", source)
    dual = getattr(target, "dual_encoder", target)
    weights = fusion.state_dict()
    depth = len(fusion.encoder.layer)
    modalities = weights.pop("embeddings.token_type_embeddings.weight")
    for tower, layers, rows in (
        (dual.text_model, text_layers, modalities[:1]),
        # A table without an image row (never ViLT's) lends its last row.
        (dual.vision_model, vision_layers, modalities[1:] if len(modalities) > 1 else modalities),
    ):
        taken = {key: weights[key] for key in tower.state_dict() if key in weights}
        taken["embeddings.token_type_embeddings.weight"] = rows

        for index, layer in enumerate([] if layers is None else resolve_layers(layers, depth)):
            start = fusion.encoder.layer[layer].state_dict()
            taken |= {f"encoder.layer.{index}.{key}": weight for key, weight in start.items()}
        tower.load_state_dict(taken)

    if interaction_from is not None:
        chosen = [fusion.encoder.layer[index] for index in resolve_layers(interaction_from, depth)]
        for layer, start in zip(dual.interaction_model.layer, chosen, strict=True):
            # In a fusion encoder one norm serves text and image.
            layer.load_state_dict(start.state_dict(), strict=False)
            layer.layernorm_image.load_state_dict(start.layernorm_before.state_dict())
        dual.interaction_model.layernorm.load_state_dict(fusion.layernorm.state_dict())

    if source is fusion or target is dual:
        return
    for part in (part for part in HEAD_PARTS if hasattr(target, part)):
        parts = [getattr(model, part, nn.Identity()) for model in (source, target)]
        shapes = [[tuple(weight.shape) for weight in head.parameters()] for head in parts]
        if shapes[0] != shapes[1]:
            has = f"the head of {type(source).__name__} has weights {shapes[0]} in its {part}"
            way_out = "start from a fusion encoder with the same head, or from its bare `fusion_encoder`"
            raise ValueError(f"{has}, that of {type(target).__name__} {shapes[1]}; {way_out}.")
        parts[1].load_state_dict(parts[0].state_dict())
