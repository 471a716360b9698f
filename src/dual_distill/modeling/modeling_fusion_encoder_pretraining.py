"""The fusion encoder while it is pre-trained: does a text match an image, and which words are missing.

Both heads keep ViLT's parameter names (`itm_score`, `mlm_score`). Up to three passes through the encoder make one step:
the matched pairs, each text with an image that is not its own, and the matched pairs with masked words. Queries, keys,
hidden states and attentions are those of the first.
"""

from typing import Any

import torch
from torch import Tensor

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_fusion_encoder import FusionEncoderModel, FusionEncoderPreTrainedModel
from .modeling_fusion_encoder_heads import FUSION_TIED_WEIGHTS
from .modeling_heads import EncoderForPreTraining, MaskedWordHead, MatchingHead, Negatives
from .modeling_pretraining_losses import PairIds, gather_rows, hard_negatives


class FusionEncoderForPreTraining(EncoderForPreTraining, FusionEncoderPreTrainedModel):
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

    _tied_weights_keys = FUSION_TIED_WEIGHTS

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config)
        self.fusion_encoder = FusionEncoderModel(config)
        self.itm_score = MatchingHead(config.hidden_size)
        self.mlm_score = MaskedWordHead(config)
        self.post_init()

    def fuse_negatives(self, output: Any, ids: PairIds, similarities: Any, inputs: dict[str, Any]) -> Negatives:
        """Read each text once more, with an image that is drawn uniformly; row 0 where none may be."""
        rows = hard_negatives(torch.zeros(ids.num_rows, len(ids.image_ids), device=ids.image_ids.device), ids)
        pixels, mask = inputs["pixel_values"], inputs["pixel_mask"]
        gathered = gather_rows(pixels)
        if mask is None and gathered is not pixels:  # another process' images may be larger
            mask = pixels.new_ones(pixels.shape[:-3] + pixels.shape[-2:], dtype=torch.bool)

        indices = rows.clamp(min=0)
        drawn_mask = None if mask is None else gather_rows(mask)[indices]
        drawn = self.fusion_encoder(**{**inputs, "pixel_values": gathered[indices], "pixel_mask": drawn_mask})
        return (rows,), drawn.pooler_output[:, 0]

    def masked_word_states(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """Read the masked text with its image, in a pass of its own."""
        num_words = inputs["input_ids"].shape[1]
        states: Tensor = self.fusion_encoder(**inputs).last_hidden_state[:, :num_words]
        return states
