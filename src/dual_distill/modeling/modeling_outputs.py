"""What the models return. Shape letters: B rows, N images a row, T text tokens, I patches, H heads, D head width, C width."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class FusionEncoderOutput(ModelOutput):
    """Output of `FusionEncoderModel`; one sequence `[text; image CLS; patches]` per image-text pair.

    Attributes:
        last_hidden_state: `(B * N, T + 1 + I, C)`, after the final layer norm.
        pooler_output: `(B, N, C)`, one fused vector a pair.
        image_mask: `(B, N, 1 + I)` bool, True = real image token.
        query_states: tuple, one `(B * N, H, T + 1 + I, D)` a recorded layer, in the order in which they were named.
        key_states: likewise.
        hidden_states: tuple of `(B * N, T + 1 + I, C)`, on request.
        attentions: tuple of `(B * N, H, T + 1 + I, T + 1 + I)`, on request, eager attention only.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class TowerOutput(ModelOutput):
    """Output of one tower of the dual encoder.

    Attributes:
        last_hidden_state: `(B, T, C)` for text, `(B * N, 1 + I, C)` for images, after the final layer norm.
        pooler_output: `(B, C)` or `(B * N, C)`.
        image_mask: `(B * N, 1 + I)` bool, True = real; the image tower only.
        query_states: tuple, one `(B or B * N, H, tokens, D)` a recorded layer.
        key_states: likewise.
        hidden_states: tuple, on request.
        attentions: tuple, on request, eager attention only.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output of `DualEncoderModel`.

    Attributes:
        pooler_output: `(B, N, C)`, one fused vector a pair, from the shallow interaction.
        text_embeds: `(B, C)` pooled text, can be stored and given back as `text_embeds=`.
        image_embeds: `(B, N, C)` pooled images, can be stored and given back as `image_embeds=`.
        image_mask: `(B, N, 1 + I)` bool, True = real image token; None when `image_embeds` were given.
        query_states: tuple, one `(B * N, H, T + 1 + I, D)` a recorded layer: text queries, then image queries, a pair a
            row, laid out as the fusion encoder's; with `join_states=False` the two apart, `(text, image)` a layer.
        key_states: likewise.
        text_model_output: everything of the text tower; None when `text_embeds` were given.
        vision_model_output: everything of the image tower; None when `image_embeds` were given.
    """

    pooler_output: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None
    text_model_output: TowerOutput | None = None
    vision_model_output: TowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Convert to a tuple, nested outputs too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class EncoderForTaskOutput(ModelOutput):
    """Output of every model with a task head.

    Attributes:
        loss: scalar, nats per row (per labelled token for masked words), when labels were given.
        logits: `(B, labels)`; `(B, N)` for retrieval, `(B, T, vocabulary)` for masked words.
        pooler_output: `(B, N, C)`, one fused vector a pair.
        text_embeds: `(B, C)`, dual encoder only.
        image_embeds: `(B, N, C)`, dual encoder only.
        image_mask: `(B, N, 1 + I)` bool, True = real image token.
        query_states: tuple, one `(B * N, H, T + 1 + I, D)` a recorded layer.
        key_states: likewise.
        hidden_states: tuple, on request, fusion encoder only.
        attentions: tuple, on request, fusion encoder with eager attention only.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["DualEncoderOutput", "EncoderForTaskOutput", "FusionEncoderOutput", "TowerOutput"]
