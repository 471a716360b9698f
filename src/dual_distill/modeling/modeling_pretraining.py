"""What both encoders share while they are pre-trained: one forward of up to three terms, and the heads it ends in."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .modeling_base import EncoderPreTrainedModel
from .modeling_embeddings import check_one_image
from .modeling_fusion_encoder_heads import MaskedWordsMixin, mlm_loss
from .modeling_outputs import EncoderForPreTrainingOutput, shared_fields
from .modeling_pretraining_losses import PairIds, check_pair_ids, gather_pair_ids, itm_loss, share_of_all

Similarities = tuple[torch.Tensor, torch.Tensor]
"""Of texts with all images, of images with all texts."""
Negatives = tuple[tuple[torch.Tensor, ...], torch.Tensor]
"""Rows of the drawn images, then those of the drawn texts where there are some; the fused vectors of these pairs."""


class MatchingHead(nn.Module):
    """Two logits a fused vector, column 1 = text and image match: `(..., C)` -> `(..., 2)`."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.fc = nn.Linear(hidden_size, 2)

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        return self.fc(fused)


class EncoderForPreTraining(MaskedWordsMixin, EncoderPreTrainedModel):
    """A body of either kind with matching, masked words and what else its subclass compares."""

    itm_score: MatchingHead

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

        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "pixel_mask": pixel_mask,
            "token_type_ids": token_type_ids,
        }
        recorded = {"output_query_states": output_query_states, "output_key_states": output_key_states}
        output = self.base_model(**inputs, **recorded, **kwargs)
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
                results["itm_labels"] = matching_labels(*rows)
                fused = torch.cat([fused, drawn])
            results["itm_logits"] = self.itm_score(fused)

        if self.config.mlm_weight and masked_input_ids is not None:
            states = self.masked_word_states(output, {**inputs, "input_ids": masked_input_ids})
            results["mlm_logits"] = self.mlm_score(states)
        return self._with_losses(results, masked_labels)

    def contrast(self, output: Any, ids: PairIds | None, results: dict[str, Any]) -> Similarities | None:
        """Add the contrastive term to the results, and return the similarities that negatives are drawn by."""
        return None

    def fuse_negatives(self, output: Any, ids: PairIds, similarities: Any, inputs: dict[str, Any]) -> Negatives:
        """Draw unmatched pairs from the batch of all processes, by their similarities (None: all alike)."""
        raise NotImplementedError

    def masked_word_states(self, output: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """States `(B, T, C)` of a masked text's tokens that have seen the image."""
        raise NotImplementedError

    def _with_losses(self, results: dict[str, Any], masked_labels: torch.Tensor | None) -> EncoderForPreTrainingOutput:
        """Add the losses of logits that have labels, and their sum by the configuration's weights (None: no term)."""
        if "itm_labels" in results:
            results["itm_loss"] = itm_loss(results["itm_logits"], results["itm_labels"])
        if "mlm_logits" in results and masked_labels is not None:
            # This process' part of the mean over the masked tokens of all processes.
            share = share_of_all((masked_labels != -100).sum())
            results["mlm_loss"] = mlm_loss(results["mlm_logits"], masked_labels) * share

        terms = [name for name in ("itc_loss", "itm_loss", "mlm_loss") if name in results]
        weighted = [getattr(self.config, name.removesuffix("loss") + "weight") * results[name] for name in terms]
        return EncoderForPreTrainingOutput(loss=sum(weighted) if weighted else None, **results)


def matching_labels(rows: torch.Tensor, *more_rows: torch.Tensor) -> torch.Tensor:
    """Label matched pairs 1 and drawn ones 0, -100 where none could be drawn (row -1)."""
    drawn = torch.cat([rows, *more_rows])
    return torch.cat([torch.ones_like(rows), torch.where(drawn < 0, -100, 0)])
