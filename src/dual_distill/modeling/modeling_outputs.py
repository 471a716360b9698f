"""What the models return; B rows, N images a row, T text tokens, I patches, H heads of width D, C model width."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class TowerOutput(BaseModelOutputWithPooling):
    """Output of one tower of the dual encoder.

    Attributes:
        last_hidden_state: `(B, T, C)` for text, `(B * N, 1 + I, C)` for images, after the final layer norm.
        pooler_output: `(B, C)` or `(B * N, C)`.
        hidden_states: tuple, on request.
        attentions: tuple, on request, eager attention only.
        image_mask: `(B * N, 1 + I)` bool, True = real; the image tower only.
        query_states: tuple, one `(B or B * N, H, tokens, D)` a recorded layer.
        key_states: likewise.
    """

    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FusionEncoderOutput(TowerOutput):
    """Output of `FusionEncoderModel`; one sequence `[text; image CLS; patches]` per image-text pair.

    Attributes:
        last_hidden_state: `(B * N, T + 1 + I, C)`, after the final layer norm.
        pooler_output: `(B, N, C)`, one fused vector a pair.
        hidden_states: tuple of `(B * N, T + 1 + I, C)`, on request.
        attentions: tuple of `(B * N, H, T + 1 + I, T + 1 + I)`, on request, eager attention only.
        image_mask: `(B, N, 1 + I)` bool, True = real image token.
        query_states: tuple, one `(B * N, H, T + 1 + I, D)` a recorded layer, in the order in which they were named.
        key_states: likewise.
        attention_pattern: `(B, T + 1 + I, T + 1 + I)` bool, which query sees which key, under the mask of captions
            only.

    With regions, R of them stand where `1 + I` does: regions have no CLS token.
    """

    attention_pattern: torch.BoolTensor | None = None


@dataclass
class ImageFeaturesOutput(TowerOutput):
    """What `get_image_features` hands out: the image tower's output, and what interaction layers read of an image.

    Attributes:
        image_token_embeds: `(B, N, 1 + I, C)`, the image's final tokens.
        image_token_mask: `(B, N, 1 + I)` bool, True = real.
        image_token_states: `(B, N, layers, 2, H, 1 + I, D)`, the interaction layers' keys and values, on request.
    """

    image_token_embeds: torch.FloatTensor | None = None
    image_token_mask: torch.BoolTensor | None = None
    image_token_states: torch.FloatTensor | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """Output of `DualEncoderModel`, and what models of both kinds with a head return behind their own fields.

    Attributes:
        pooler_output: `(B, N, C)`, one fused vector a pair; of a dual encoder from the shallow interaction.
        text_pooler_output: `(B, C)` pooled text; None when `text_embeds` were given. Dual encoder only, like the three
            that follow.
        image_pooler_output: `(B, N, C)` pooled images; None when `image_embeds` were given.
        text_embeds: `(B, 2C)` the text's projection into the interaction. This and the pooled text can be stored and
            given back under their names. `(B, P)` of length 1 in pre-training and retrieval.
        image_embeds: `(B, N, 2C)` the images' projections into the interaction, likewise; `(B, P)` in pre-training.
        image_mask: `(B, N, 1 + I)` bool, True = real image token; None for stored images.
        query_states: tuple, one `(B * N, H, T + 1 + I, D)` a recorded layer: text queries, then image queries, a pair a
            row, laid out as the fusion encoder's; with `join_states=False` the two apart, `(text, image)` a layer. In
            pre-training those of the matched pairs with their unmasked text, like the three that follow.
        key_states: likewise.
        hidden_states: tuple, on request, fusion encoder only.
        attentions: tuple, on request, fusion encoder with eager attention only.
        attention_pattern: `(B, T + 1 + I, T + 1 + I)` bool, which query sees which key; captioning only.
        interaction_model_output: everything of the interaction layers; None without any. With such layers a text is
            pooled as it reads each image: `text_pooler_output` is `(B, N, C)`, `text_embeds` `(B, N, 2C)`.
        text_model_output: everything of a dual encoder's text tower; None for stored texts. A model with a head hands
            it on, like the next, only with hidden states or attentions that were asked for.
        vision_model_output: everything of its image tower; None for stored images.
        past_key_values: keys and values of the words so far; captioning only, while a caption is written with a cache.
    """

    pooler_output: torch.FloatTensor | None = None
    text_pooler_output: torch.FloatTensor | None = None
    image_pooler_output: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    image_mask: torch.BoolTensor | None = None
    query_states: tuple[torch.FloatTensor, ...] | None = None
    key_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    attention_pattern: torch.BoolTensor | None = None
    interaction_model_output: TowerOutput | None = None
    text_model_output: TowerOutput | None = None
    vision_model_output: TowerOutput | None = None
    past_key_values: Cache | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Convert to a tuple, nested outputs too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


SHARED_FIELDS = tuple(field.name for field in fields(EncoderOutput))
"""Read here once: `torch.compile` cannot read the fields of a class."""


def shared_fields(output: ModelOutput, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a model with a head hands on of this output of its body."""
    names = [name for name in SHARED_FIELDS if name not in without and output.get(name) is not None]

    # A tower's output keeps all its tokens in memory: not without need.
    for name in ("text_model_output", "vision_model_output"):
        if name in names and not (output[name].hidden_states or output[name].attentions):
            names.remove(name)
    return {name: output[name] for name in names}


# Fields of a base class come before those of a class that derives from it, and the last base class's come first. So
# what belongs to a head has a class of its own, and a loss stays the first field, where transformers' Trainer looks.
@dataclass
class TaskLogits(ModelOutput):
    """Fields that a task head adds; see `EncoderForTaskOutput`."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


@dataclass
class EncoderForTaskOutput(EncoderOutput, TaskLogits):
    """Output of every model with a task head: these fields, then those of `EncoderOutput`.

    Attributes:
        loss: scalar, nats per row (per labelled token for masked words), when labels were given.
        logits: `(B, labels)`; `(B, N)` for retrieval, `(B, T, vocabulary)` for masked words.
    """


@dataclass
class PreTrainingTerms(ModelOutput):
    """Fields that pre-training adds; see `EncoderForPreTrainingOutput`."""

    loss: torch.FloatTensor | None = None
    itc_loss: torch.FloatTensor | None = None
    itm_loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    itm_labels: torch.LongTensor | None = None
    negative_image_rows: torch.LongTensor | None = None
    negative_text_rows: torch.LongTensor | None = None
    mlm_logits: torch.FloatTensor | None = None


@dataclass
class EncoderForPreTrainingOutput(EncoderOutput, PreTrainingTerms):
    """Output of both models for pre-training: these fields, then those of `EncoderOutput`.

    A term that is switched off, or whose inputs were not given, is None.

    Attributes:
        loss: scalar, the terms in nats, weighted by the configuration.
        itc_loss: scalar, nats per row, unweighted; dual encoder only.
        itm_loss: scalar, nats per pair.
        mlm_loss: scalar, nats per masked token.
        itm_logits: `(B, 2)`, column 1 = the pair matches; with ids the drawn pairs follow: `(3 * B, 2)` for the
            dual encoder (matched pairs; each text with its drawn image; the drawn text with each image), `(2 * B, 2)`
            for the fusion encoder (matched pairs; each text with its drawn image).
        itm_labels: `(3 * B,)` or `(2 * B,)` int64: 1 matched, 0 drawn, -100 where none could be drawn.
        negative_image_rows: `(B,)` int64, index of each text's drawn image among the rows of all processes; -1: none.
        negative_text_rows: `(B,)` int64, likewise of each image's drawn text; dual encoder only.
        mlm_logits: `(B, T, vocabulary)` of the masked text.
    """


@dataclass
class RetrievalLogits(ModelOutput):
    """The first fields of transformers' `CLIPOutput`; see `DualEncoderForImageTextRetrievalOutput`."""

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    listed_images: torch.LongTensor | None = None
    listed_texts: torch.LongTensor | None = None
    is_listed: torch.BoolTensor | None = None
    list_scores: torch.FloatTensor | None = None
    list_match_scores: torch.FloatTensor | None = None


@dataclass
class DualEncoderForImageTextRetrievalOutput(EncoderOutput, RetrievalLogits):
    """Output of `DualEncoderForImageTextRetrieval`: these fields, as in CLIP's, then those of `EncoderOutput`.

    Attributes:
        loss: scalar, contrastive, nats per row, when asked for.
        logits_per_image: `(images, texts)`, cosine times the learned factor.
        logits_per_text: `(texts, images)`.
        text_embeds: `(texts, P)` projected, of length 1.
        image_embeds: `(images, P)` projected, of length 1.
        listed_images: `(B, K)` int64, rows of all processes' batch whose images are each text's hardest negatives.
        listed_texts: `(B, K)` int64, likewise of each image's texts.
        is_listed: `(2 * B, 1 + K)` bool, whether a list, texts' lists first, has such an entry; the right one stands
            first.
        list_scores: `(2 * B, 1 + K)`, cosine times the learned factor of the lists' entries.
        list_match_scores: `(2 * B, 1 + K)`, what the interaction layers say of them; None without any.
        text_pooler_output: `(texts, C)` before the projection.
        image_pooler_output: `(images, C)` before the projection.
        image_mask: `(images, 1, 1 + I)` bool, True = real image token.
        query_states: tuple, one `(B, H, T + 1 + I, D)` a recorded layer, text i beside image i.
        key_states: likewise.
    """
