"""The dual encoder while it is pre-trained: contrast (ITC), matching (ITM), missing words (MLM).

Three terms of ALBEF's kind in a model whose towers never see each other. Matching and masked words pass through the
interaction alone: a pair by its two pooled vectors, a masked word by its own token state beside the pooled image.
Negatives for matching are drawn by the similarities that the contrastive term trains, from the batch of all processes;
they are pooled vectors that are there already, so they cost two small linear maps. Only masked words need a second pass
of the text tower.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_dual_encoder_retrieval import ContrastiveDualEncoder
from .modeling_fusion_encoder_heads import MaskedWordHead, MaskedWordsMixin
from .modeling_fusion_encoder_pretraining import (
    MatchingHead,
    check_pretraining_inputs,
    matching_labels,
    pretraining_output,
)
from .modeling_outputs import DualEncoderOutput, EncoderForPreTrainingOutput, shared_fields
from .modeling_pretraining_losses import (
    PairIds,
    gather_pair_ids,
    gather_rows,
    hard_negatives,
    itc_loss,
    pair_similarities,
)


class DualEncoderForPreTraining(MaskedWordsMixin, ContrastiveDualEncoder):
    """Dual encoder with contrastive, matching and masked-word terms.

    A term is computed when its inputs are given and its weight in the configuration is not 0. With all three on, every
    parameter gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`; with fewer it does.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723, of whose pre-training no code is published.
        Li et al., NeurIPS 2021, arXiv 2107.07651 (ALBEF): hard negatives for matching drawn by contrastive similarity.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower})
        >>> model = DualEncoderForPreTraining(config)
        >>> text, labels = torch.ones(3, 5, dtype=torch.long), torch.full((3, 5), -100)
        >>> labels[:, 2] = 7
        >>> output = model(input_ids=text, pixel_values=torch.zeros(3, 3, 8, 8), masked_input_ids=text,
        ...                masked_labels=labels, image_ids=torch.arange(3), caption_ids=torch.arange(3))
        >>> output.itm_logits.shape, output.mlm_logits.shape
        (torch.Size([9, 2]), torch.Size([3, 5, 50]))
        >>> round(output.itc_loss.item(), 4)  # equal texts, equal images: ln 3
        1.0986
    """

    _tied_weights_keys = {
        "mlm_score.decoder.weight": "dual_encoder.text_model.embeddings.text_embeddings.word_embeddings.weight"
    }

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        self.itm_score = MatchingHead(config.hidden_size)
        self.mlm_score = MaskedWordHead(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        masked_labels: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForPreTrainingOutput:
        """Compare B matched pairs with all others, and complete their masked words.

        Args:
            input_ids: `(B, T)`, the text as it is.
            attention_mask: `(B, T)`.
            pixel_values: `(B, 1, 3, H, W)` or `(B, 3, H, W)`, the image that belongs to each text.
            pixel_mask: `(B, 1, H, W)`.
            token_type_ids: `(B, T)`.
            masked_input_ids: `(B, T)`, the same text with words masked; gives `mlm_logits`.
            masked_labels: `(B, T)` int64, the word piece where one was masked, -100 elsewhere; gives `mlm_loss`.
            image_ids: `(B,)` int64, equal for equal images. With `caption_ids`, gives `itc_loss` and `itm_loss`
                against the texts and images of all processes, without pairs that are known to fit.
            caption_ids: `(B,)` int64, equal for equal captions.
            output_query_states: True or a list of layers, of the matched pairs with their unmasked text.
            output_key_states: likewise.
            join_states: as in `DualEncoderModel.forward`.
            **kwargs: as in `DualEncoderModel.forward`, of that pass only.

        Returns:
            An `EncoderForPreTrainingOutput`; without ids `itm_logits` are `(B, 2)`, of the pairs as they are
            given.

        Raises:
            ValueError: a shape does not fit, rows have more than one image, or one of two inputs that belong together
                is missing.

        Note:
            With `itc_weight` 0 nothing trains the similarities, and negatives are drawn uniformly.
        """
        check_pretraining_inputs(pixel_values, masked_input_ids, masked_labels, image_ids, caption_ids)
        output = self.dual_encoder(
            input_ids,
            attention_mask,
            pixel_values,
            pixel_mask,
            token_type_ids,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            join_states=join_states,
            **kwargs,
        )
        # The text before it reads an image: what is compared with all images of the batch.
        texts, images = output.text_model_output.pooler_output, output.image_pooler_output[:, 0]
        results = shared_fields(
            output, without=("pooler_output", "text_embeds", "image_embeds", "interaction_model_output")
        )
        results["text_pooler_output"] = texts
        ids = None if image_ids is None or caption_ids is None else gather_pair_ids(image_ids, caption_ids)
        similarities = None

        # What a switched-off term alone needs is left out: an output without a gradient would mislead
        # `find_unused_parameters`.
        if self.config.itc_weight:
            results["text_embeds"], results["image_embeds"] = self.project_features(texts, images)
            if ids is not None:
                similarities = pair_similarities(results["text_embeds"], results["image_embeds"], self.logit_scale)
                results["itc_loss"] = itc_loss(*similarities, ids)

        if self.config.itm_weight:
            results["pooler_output"] = output.pooler_output
            fused = output.pooler_output[:, 0]
            if ids is not None:
                image_rows, text_rows = _draw_negatives(similarities, ids)
                results |= {"negative_image_rows": image_rows, "negative_text_rows": text_rows}
                results["itm_labels"] = matching_labels(image_rows, text_rows)
                drawn = self._fuse_drawn(output, attention_mask, ids.own_rows, image_rows, text_rows)
                fused = torch.cat([fused, drawn])
            results["itm_logits"] = self.itm_score(fused)

        if self.config.mlm_weight and masked_input_ids is not None:
            masked = self.dual_encoder.text_model(masked_input_ids, attention_mask, token_type_ids)
            if self.dual_encoder.interaction_model is not None:
                tokens = output.vision_model_output.last_hidden_state[:, None]
                masked = self.dual_encoder.interaction_model(
                    masked.last_hidden_state, attention_mask, tokens, image_token_mask=output.image_mask
                )
            words = self.dual_encoder.project_text(masked.last_hidden_state)
            fused = self.dual_encoder.fuse_projections(words, self.dual_encoder.project_images(images)[:, None])
            results["mlm_logits"] = self.mlm_score(fused)
        return pretraining_output(results, masked_labels, self.config)

    def _fuse_drawn(
        self,
        output: DualEncoderOutput,
        attention_mask: torch.Tensor | None,
        own_rows: torch.Tensor,
        image_rows: torch.Tensor,
        text_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Fuse own texts with drawn images, then drawn texts with own images, `(2 * B, C)`; -1 takes row 0."""
        text: Any = output.text_model_output
        image: Any = output.vision_model_output
        body = self.dual_encoder
        pooled = gather_rows(torch.stack([text.pooler_output, image.pooler_output], dim=1))

        # The rows of all processes, and of them each pair's text and image.
        texts = torch.cat([own_rows, text_rows.clamp(min=0)])
        images = torch.cat([image_rows.clamp(min=0), own_rows])
        pooled_texts, pooled_images = pooled[texts, 0], pooled[images, 1]

        if body.interaction_model is not None:
            if attention_mask is None:
                attention_mask = torch.ones(text.last_hidden_state.shape[:2], device=pooled.device)

            read = body.interaction_model(
                gather_rows(text.last_hidden_state)[texts],
                gather_rows(attention_mask)[texts],
                gather_rows(image.last_hidden_state)[images][:, None],
                image_token_mask=gather_rows(image.image_mask)[images][:, None],
            )
            pooled_texts = body.text_model.pooler(read.last_hidden_state)
        return body.interaction(torch.cat([pooled_texts, pooled_images], dim=-1))


def _draw_negatives(
    similarities: tuple[torch.Tensor, torch.Tensor] | None, ids: PairIds
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw an image for each text and a text for each image, by their similarities (None: all alike)."""
    if similarities is None:
        alike = torch.zeros(ids.num_rows, len(ids.image_ids), device=ids.image_ids.device)
        similarities = (alike, alike)
    return hard_negatives(similarities[0], ids, texts_ask=True), hard_negatives(similarities[1], ids, texts_ask=False)
