"""What models with a head share: a forward for tasks, one for pre-training, and the heads of both encoders."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .modeling_base import EncoderPreTrainedModel, returns_tuple
from .modeling_embeddings import check_one_image
from .modeling_layers import AskedLayers
from .modeling_losses import (
    PairIds,
    check_pair_ids,
    classification_loss,
    gather_pair_ids,
    itm_loss,
    mlm_loss,
    share_of_all,
)
from .modeling_outputs import EncoderForPreTrainingOutput, EncoderForTaskOutput, shared_fields

Similarities = tuple[Tensor, Tensor]
"""Of texts with all images, of images with all texts."""
Negatives = tuple[tuple[Tensor, ...], Tensor]
"""Rows of the drawn images, then those of the drawn texts where there are some; the fused vectors of these pairs."""


class SplitLinear(nn.Linear):
    """A linear map of two concatenated vectors, whole or in halves: `W [a; b] + c = (W_a a + c) + W_b b`."""

    def forward(self, features: Tensor, half: Literal["first", "second"] | None = None) -> Tensor:
        """Map both vectors `(..., in_features)`, or one half: the first with the bias, the second without."""
        middle = self.in_features // 2
        if half == "first":
            return nn.functional.linear(features, self.weight[:, :middle], self.bias)
        if half == "second":
            return nn.functional.linear(features, self.weight[:, middle:])
        return super().forward(features)


def classification_head(
    in_features: int, hidden_features: int, num_labels: int, first_layer: type[nn.Linear] = nn.Linear
) -> nn.Sequential:
    """Build `Linear -> LayerNorm -> GELU -> Linear`, the head of every task and of the shallow interaction."""
    return nn.Sequential(
        first_layer(in_features, hidden_features),
        nn.LayerNorm(hidden_features),
        nn.GELU(),
        nn.Linear(hidden_features, num_labels),
    )


def masked_word_head(config: PreTrainedConfig) -> nn.Sequential:
    """Build the head of masked words, one logit a word piece for a text token: `(B, T, C)` -> `(B, T, vocabulary)`."""
    transform = OrderedDict(
        dense=nn.Linear(config.hidden_size, config.hidden_size),
        activation=ACT2FN[config.hidden_act],
        LayerNorm=nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
    )
    decoder = nn.Linear(config.hidden_size, config.vocab_size)
    return nn.Sequential(OrderedDict(transform=nn.Sequential(transform), decoder=decoder))


def matching_head(hidden_size: int) -> nn.Sequential:
    """Build the head of matching, two logits a fused vector, column 1 = it matches: `(..., C)` -> `(..., 2)`."""
    return nn.Sequential(OrderedDict(fc=nn.Linear(hidden_size, 2)))


class MaskedWordsMixin:
    """The decoder of masked words where resizing and tying look for it; mixed into the models that complete words."""

    mlm_score: Any

    def get_output_embeddings(self) -> Any:
        """Return the decoder."""
        return self.mlm_score.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder."""
        self.mlm_score.decoder = new_embeddings


class EncoderWithHead(EncoderPreTrainedModel):
    """A body of either kind and what a subclass puts on top of it."""

    body_class: type[PreTrainedModel]
    add_head: Callable[[Any], None]
    """Builds what stands on the body."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.body_class(config))
        self.add_head(config)
        self.post_init()


class EncoderForTask(EncoderWithHead):
    """A body and a head for a task: subclasses say how rows are encoded, what the logits are, and their loss."""

    task_loss: Callable[[Tensor, Tensor], Tensor] = staticmethod(classification_loss)
    head_logits: Callable[[Any, Any], Tensor]
    """Of the body's output, and of the text's ids."""

    @returns_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_query_states: AskedLayers = None,
        output_key_states: AskedLayers = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForTaskOutput:
        """Give the logits of B rows of one text and N images, and their loss; the inputs are those of the body.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`; masked words and captions have one image.
            pixel_mask: `(B, N, H, W)`.
            token_type_ids: `(B, T)`.
            labels: `(B,)` integer classes, or `(B, labels)` soft scores in [0, 1]. For retrieval the index in `[0, N)`
                of the image that fits, or `(B, N)` float, 1 = fits, 0 = does not. For masked words and captions
                `(B, T)` word pieces, -100 where nothing was masked.
            output_query_states: True or a list of layers.
            output_key_states: True or a list of layers.
            **kwargs: as in the body's `forward`: regions in place of pixels for a fusion encoder; for a dual encoder
                stored vectors in place of a side (`text_pooler_output`, `image_embeds`, ...), and `join_states`.

        Returns:
            An `EncoderForTaskOutput`; the loss is in nats per row, per labelled token for masked words and captions.

        Raises:
            ValueError: a shape does not fit, or there are more images a row than the head reads.
        """
        output = self.encode_rows(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            token_type_ids=token_type_ids,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            **kwargs,
        )

        logits = self.head_logits(output, input_ids)
        loss = None if labels is None else self.task_loss(logits, labels)
        return EncoderForTaskOutput(loss=loss, logits=logits, **shared_fields(output))

    def encode_rows(self, **inputs: Any) -> Any:
        """Run the body."""
        return self.base_model(**inputs)


class ClassifierHead:
    """The classifier of a row's N fused vectors, side by side; mixed into the models that answer and classify."""

    reads_config_images = False
    """Whether N is `config.num_images`; else 1."""

    def add_head(self, config: PreTrainedConfig) -> None:
        """Build the classifier."""
        self.num_images = config.num_images if self.reads_config_images else 1
        in_features = self.num_images * config.hidden_size
        hidden_features = config.classifier_hidden_size or max(2, self.num_images) * config.hidden_size
        self.classifier = classification_head(in_features, hidden_features, config.num_labels)

    def head_logits(self, output: Any, input_ids: Tensor | None) -> Tensor:
        """One logit a label, `(B, labels)`."""
        return self.classify(output.pooler_output)

    def classify(self, fused: Tensor) -> Tensor:
        """Logits of fused vectors `(B, N, C)`; refuse another N than the head's."""
        if fused.shape[1] != self.num_images:
            built = f"the head was built for {self.num_images}"
            raise ValueError(f"the rows have {fused.shape[1]} images, {built}; give as many.")
        return self.classifier(fused.flatten(1))


class EncoderForPreTraining(MaskedWordsMixin, EncoderWithHead):
    """A body of either kind with matching, masked words and what else its subclass compares."""

    itm_score: nn.Module
    fuse_negatives: Callable[..., Negatives]
    """Draws unmatched pairs from the batch of all processes, by their similarities (None: all alike)."""
    masked_word_states: Callable[..., Tensor]
    """States `(B, T, C)` of a masked text's tokens that have seen the image."""

    @returns_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        masked_labels: Tensor | None = None,
        image_ids: Tensor | None = None,
        caption_ids: Tensor | None = None,
        output_query_states: AskedLayers = None,
        output_key_states: AskedLayers = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForPreTrainingOutput:
        """Compare B matched pairs with others, and complete their masked words.

        Args:
            input_ids: `(B, T)`, the text as it is.
            attention_mask: `(B, T)`.
            pixel_values: `(B, 1, 3, H, W)` or `(B, 3, H, W)`, the image that belongs to each text.
            pixel_mask: `(B, 1, H, W)`.
            token_type_ids: `(B, T)`.
            masked_input_ids: `(B, T)`, the same text with words masked; gives `mlm_logits`.
            masked_labels: `(B, T)` int64, the word piece where one was masked, -100 elsewhere; gives `mlm_loss`.
            image_ids: `(B,)` int64, equal for equal images. With `caption_ids`, the pairs are also held against others
                of all processes that are not known to fit, which gives `itm_loss`, and `itc_loss` of a dual encoder. A
                fusion encoder gathers the pixels of all processes for that, and draws images uniformly.
            caption_ids: `(B,)` int64, equal for equal captions.
            output_query_states: True or a list of layers, of the matched pairs with their unmasked text.
            output_key_states: likewise.
            **kwargs: as in the body's `forward`, of that pass only.

        Returns:
            An `EncoderForPreTrainingOutput`; without ids `itm_logits` are `(B, 2)`, of the pairs as they are given.

        Raises:
            ValueError: a shape does not fit, rows have more than one image, or one of two inputs that belong together
                is missing.

        Note:
            With `itc_weight` 0 nothing trains a dual encoder's similarities, and negatives are drawn uniformly.
        """
        check_pair_ids(image_ids, caption_ids)
        if masked_labels is not None and masked_input_ids is None:
            raise ValueError("masked_labels was given without masked_input_ids; give the masked text too.")
        check_one_image(pixel_values, None, "a caption has one")

        text = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {**text, "pixel_values": pixel_values, "pixel_mask": pixel_mask}
        recorded = {"output_query_states": output_query_states, "output_key_states": output_key_states}
        output = self.base_model(**inputs, **recorded, **kwargs)
        # Of the passes that follow.
        inputs["return_dict"] = True
        ids = None if image_ids is None or caption_ids is None else gather_pair_ids(image_ids, caption_ids)

        # What a switched-off term alone needs is left out: an output without a gradient would mislead
        # `find_unused_parameters`.
        of_a_term = ("pooler_output", "text_embeds", "image_embeds", "interaction_model_output")
        results = shared_fields(output, without=of_a_term)
        similarities = self.contrast(output, ids, results)

        if self.config.itm_weight:
            results["pooler_output"] = output.pooler_output
            fused = output.pooler_output[:, 0]
            if ids is not None:
                rows, drawn = self.fuse_negatives(output, ids, similarities, inputs)
                results |= dict(zip(("negative_image_rows", "negative_text_rows"), rows, strict=False))
                # Matched pairs 1 and drawn ones 0, -100 where none could be drawn.
                unmatched = torch.cat(rows)
                labels = (torch.ones_like(rows[0]), torch.where(unmatched < 0, -100, 0))
                results["itm_labels"], fused = torch.cat(labels), torch.cat([fused, drawn])
            results["itm_logits"] = self.itm_score(fused)
            if ids is not None:
                results["itm_loss"] = itm_loss(results["itm_logits"], results["itm_labels"])

        if self.config.mlm_weight and masked_input_ids is not None:
            states = self.masked_word_states(output, {**inputs, "input_ids": masked_input_ids})
            results["mlm_logits"] = self.mlm_score(states)
            if masked_labels is not None:
                # This process' part of the mean over the masked tokens of all processes.
                share = share_of_all((masked_labels != -100).sum())
                results["mlm_loss"] = mlm_loss(results["mlm_logits"], masked_labels) * share

        terms = [name for name in ("itc_loss", "itm_loss", "mlm_loss") if name in results]
        weighted = [getattr(self.config, name.removesuffix("loss") + "weight") * results[name] for name in terms]
        return EncoderForPreTrainingOutput(loss=sum(weighted) if weighted else None, **results)

    def contrast(self, output: Any, ids: PairIds | None, results: dict[str, Any]) -> Similarities | None:
        """Add the contrastive term to the results, and return the similarities that negatives are drawn by."""
        return None
