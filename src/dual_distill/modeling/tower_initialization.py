"""How a dual encoder starts from a fusion encoder: which of its weights go where."""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_layers import resolve_layers


def dual_config_from_fusion(
    config: FusionEncoderConfig, text_layers: Sequence[int] | None = None, vision_layers: Sequence[int] | None = None
) -> DualEncoderConfig:
    """Return the configuration of a dual encoder shaped like a fusion encoder, both towers as deep as the layers named.

    Example:
        >>> dual_config_from_fusion(FusionEncoderConfig(), text_layers=[0, 5, 11]).text_config.num_hidden_layers
        3
    """
    fields = config.to_dict()
    towers = {}
    for name, kind, layers in (
        ("text_config", DualEncoderTextConfig, text_layers),
        ("vision_config", DualEncoderVisionConfig, vision_layers),
    ):
        shared = {key: fields[key] for key in kind.__annotations__ if key in fields}
        if layers is not None:
            shared["num_hidden_layers"] = len(resolve_layers(layers, config.num_hidden_layers))
        towers[name] = shared
    depth = min(tower.get("num_hidden_layers", config.num_hidden_layers) for tower in towers.values())
    recorded_layers = [layer for layer in config.recorded_layers if -depth <= layer < depth] or [-1]
    for tower in towers.values():
        tower["recorded_layers"] = recorded_layers
    towers["vision_config"]["modality_type_vocab_size"] = max(1, config.modality_type_vocab_size - 1)
    return DualEncoderConfig(
        **towers,
        initializer_range=config.initializer_range,
        num_images=config.num_images,
        recorded_layers=recorded_layers,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
    )


@torch.no_grad()
def copy_fusion_weights(
    source: nn.Module,
    target: nn.Module,
    text_layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
) -> None:
    """Copy a fusion encoder's weights into both towers (and the head, if both have one) of a dual encoder.

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
        names = range(depth) if layers is None else resolve_layers(layers, depth)
        taken = {"embeddings.token_type_embeddings.weight": rows}
        for key in tower.state_dict():
            if key.startswith("encoder.layer."):
                index, rest = key.removeprefix("encoder.layer.").split(".", 1)
                taken[key] = weights[f"encoder.layer.{names[int(index)]}.{rest}"]
            elif key not in taken:
                taken[key] = weights[key]
        tower.load_state_dict(taken)
    if source is fusion or target is dual:
        return
    heads = [[tuple(weight.shape) for weight in model.classifier.parameters()] for model in (source, target)]
    if heads[0] != heads[1]:
        raise ValueError(
            f"the head of {type(source).__name__} has weights {heads[0]}, that of {type(target).__name__} {heads[1]}; "
            "start from a fusion encoder with the same head, or from its bare `fusion_encoder`."
        )
    target.classifier.load_state_dict(source.classifier.state_dict())


__all__ = ["copy_fusion_weights", "dual_config_from_fusion"]
