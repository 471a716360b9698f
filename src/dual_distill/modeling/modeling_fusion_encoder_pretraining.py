"""The fusion encoder while it is pre-trained: does a text match an image, and which words are missing.

Both heads keep ViLT's parameter names (`itm_score`, `mlm_score`). Up to three passes through the encoder make one step:
the matched pairs, each text with an image that is not its own, and the matched pairs with masked words. Queries, keys,
hidden states and attentions are those of the first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_embeddings import check_one_image
from .modeling_fusion_encoder import FusionEncoderModel
from .modeling_fusion_encoder_heads import FusionEncoderWithWords, MaskedWordHead, mlm_loss
from .modeling_outputs import EncoderForPreTrainingOutput, shared_fields
from .modeling_pretraining_losses import (
    check_pair_ids,
    gather_pair_ids,
    gather_rows,
    hard_negatives,
    itm_loss,
    share_of_all,
)


class MatchingHead(nn.Module):
    """Two logits a fused vector, column 1 = text and image match: `(..., C)` -> `(..., 2)`."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.fc = nn.Linear(hidden_size, 2)

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        return self.fc(fused)


class FusionEncoderForPreTraining(FusionEncoderWithWords):
    """Fusion encoder with ViLT's two heads of pre-training: image-text matching and masked words.

    A term is computed when its inputs are given and its weight in the configuration is not 0. With both terms on, every
    parameter gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4)
        >>> model = FusionEncoderForPreTraining(config)
        >>> text, labels = torch.ones(3, 5, dtype=torch.long), torch.full((3, 5), -100)
        >>> labels[:, 2] = 7
        >>> output = model(input_ids=text, pixel_values=torch.zeros(3, 3, 8, 8), masked_input_ids=text,
        ...                masked_labels=labels, image_ids=torch.arange(3), caption_ids=torch.arange(3))
        >>> output.itm_logits.shape, output.mlm_logits.shape
        (torch.Size([6, 2]), torch.Size([3, 5, 50]))
        >>> torch.allclose(output.loss, output.itm_loss + output.mlm_loss)
        True
    """

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config)
        self.fusion_encoder = FusionEncoderModel(config)
        self.itm_score = MatchingHead(config.hidden_size)
        self.mlm_score = MaskedWordHead(config)
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForPreTrainingOutput:
        """Compare B matched pairs with drawn ones, and complete their masked words.

        Args:
            input_ids: `(B, T)`, the text as it is.
            attention_mask: `(B, T)`.
            pixel_values: `(B, 1, 3, H, W)` or `(B, 3, H, W)`, the image that belongs to each text.
            pixel_mask: `(B, 1, H, W)`.
            token_type_ids: `(B, T)`.
            masked_input_ids: `(B, T)`, the same text with words masked; gives `mlm_logits`.
            masked_labels: `(B, T)` int64, the word piece where one was masked, -100 elsewhere; gives `mlm_loss`.
            image_ids: `(B,)` int64, equal for equal images. With `caption_ids`, each text is also held against an image
                that is drawn from all processes, uniformly among those that are not known to fit it; gives
                `itm_loss`. Pixels of all processes are then gathered.
            caption_ids: `(B,)` int64, equal for equal captions.
            output_query_states: True or a list of layers, of the matched pairs with their unmasked text.
            output_key_states: likewise.
            **kwargs: as in `FusionEncoderModel.forward`, of that pass too.

        Returns:
            An `EncoderForPreTrainingOutput`; without ids `itm_logits` are `(B, 2)`, of the pairs as they are
            given.

        Raises:
            ValueError: a shape does not fit, rows have more than one image, or one of two inputs that belong together
                is missing.
        """
        check_pretraining_inputs(pixel_values, masked_input_ids, masked_labels, image_ids, caption_ids)
        text = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        images = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        output = self.fusion_encoder(
            input_ids,
            **text,
            **images,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            **kwargs,
        )
        results = shared_fields(output, without=("pooler_output",))

        if self.config.itm_weight:
            # Left out otherwise: an output without a gradient would mislead `find_unused_parameters`.
            results["pooler_output"] = output.pooler_output
            fused = output.pooler_output[:, 0]
            if image_ids is not None and caption_ids is not None:
                ids = gather_pair_ids(image_ids, caption_ids)
                rows = hard_negatives(torch.zeros(len(image_ids), len(ids.image_ids), device=image_ids.device), ids)
                drawn = self.fusion_encoder(input_ids, **text, **_drawn_images(pixel_values, pixel_mask, rows))
                fused = torch.cat([fused, drawn.pooler_output[:, 0]])
                results["negative_image_rows"] = rows
                results["itm_labels"] = matching_labels(rows)
            results["itm_logits"] = self.itm_score(fused)

        if self.config.mlm_weight and masked_input_ids is not None:
            masked = self.fusion_encoder(masked_input_ids, **text, **images)
            results["mlm_logits"] = self.mlm_score(masked.last_hidden_state[:, : masked_input_ids.shape[1]])
        return pretraining_output(results, masked_labels, self.config)


def matching_labels(rows: torch.Tensor, *more_rows: torch.Tensor) -> torch.Tensor:
    """Label matched pairs 1 and drawn ones 0, -100 where none could be drawn (row -1)."""
    drawn = torch.cat([rows, *more_rows])
    return torch.cat([torch.ones_like(rows), torch.where(drawn < 0, -100, 0)])


def pretraining_output(
    results: dict[str, Any], masked_labels: torch.Tensor | None, config: PreTrainedConfig
) -> EncoderForPreTrainingOutput:
    """Add the losses of logits that have labels, and their sum by the configuration's weights (None: no term)."""
    if "itm_labels" in results:
        results["itm_loss"] = itm_loss(results["itm_logits"], results["itm_labels"])
    if "mlm_logits" in results and masked_labels is not None:
        # This process' part of the mean over the masked tokens of all processes.
        share = share_of_all((masked_labels != -100).sum())
        results["mlm_loss"] = mlm_loss(results["mlm_logits"], masked_labels) * share

    terms = [name for name in ("itc_loss", "itm_loss", "mlm_loss") if name in results]
    weighted = [getattr(config, name.removesuffix("loss") + "weight") * results[name] for name in terms]
    return EncoderForPreTrainingOutput(loss=sum(weighted) if weighted else None, **results)


def check_pretraining_inputs(
    pixel_values: torch.Tensor | None,
    masked_input_ids: torch.Tensor | None,
    masked_labels: torch.Tensor | None,
    image_ids: torch.Tensor | None,
    caption_ids: torch.Tensor | None,
) -> None:
    """Refuse inputs that belong together and are not, and more than one image a row."""
    check_pair_ids(image_ids, caption_ids)
    if masked_labels is not None and masked_input_ids is None:
        raise ValueError("masked_labels was given without masked_input_ids; give the masked text too.")
    check_one_image(pixel_values, None, "a caption has one")


def _drawn_images(
    pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, rows: torch.Tensor
) -> dict[str, torch.Tensor | None]:
    """Return the pixels of the rows drawn (of row 0 where none was) from all processes."""
    gathered = gather_rows(pixel_values)
    if pixel_mask is None and gathered is not pixel_values:  # another process' images may be larger
        pixel_mask = pixel_values.new_ones(pixel_values.shape[:-3] + pixel_values.shape[-2:], dtype=torch.bool)
    indices = rows.clamp(min=0)
    return {
        "pixel_values": gathered[indices],
        "pixel_mask": None if pixel_mask is None else gather_rows(pixel_mask)[indices],
    }
