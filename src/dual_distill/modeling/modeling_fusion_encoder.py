"""The fusion encoder: one transformer reads text and image tokens together (ViLT's shape, in raster order).

A row of N images is N image-text pairs: the text is repeated, each pair is one sequence `[text; image CLS; patches]`,
or `[text; object tags; regions]` where the config says `visual_inputs="regions"`.

A BERT's weights fit a model with `norm_first=False` and regions under these names (left BERT's, right ours):

    embeddings.{word,position,token_type}_embeddings  embeddings.text_embeddings.(the same), positions cut to length
    embeddings.LayerNorm                              embeddings.text_embeddings.LayerNorm
    encoder.layer.i.attention.self.{query,key,value}  encoder.layer.i.attention.attention.(the same)
    encoder.layer.i.attention.output.dense            encoder.layer.i.attention.output.dense
    encoder.layer.i.attention.output.LayerNorm        encoder.layer.i.layernorm_attention
    encoder.layer.i.{intermediate,output}.dense       encoder.layer.i.(the same)
    encoder.layer.i.output.LayerNorm                  encoder.layer.i.layernorm_output
    pooler.dense                                      pooler.dense
    cls.predictions.transform.{dense,LayerNorm}       mlm_score.transform.(the same), beside the body
    cls.predictions.bias                              mlm_score.decoder.bias; its weight is tied to the words

Only `embeddings.region_embeddings` (`projection`, `LayerNorm`) is then new.
"""

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_base import EncoderPreTrainedModel, TextInputs, TransformerBody, records_layers
from .modeling_caption_mask import attention_mask_of, caption_positions, seq2seq_mask
from .modeling_embeddings import ImageEmbeddings, text_positions
from .modeling_layers import AskedLayers, layers_to_record
from .modeling_outputs import FusionEncoderOutput
from .modeling_region_embeddings import RegionFusionEmbeddings


class FusionEmbeddings(ImageEmbeddings):
    """Text and image tokens of every pair, each with its modality embedding."""

    reads_text = True

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return text `(B, T, C)`, images `(B, N, 1 + I, C)` and the image mask `(B, N, 1 + I)` (None: all real)."""
        text = self.embed_text(input_ids, token_type_ids, position_ids)
        return text, *self.embed_image_rows(pixel_values, pixel_mask, first_slot=1)

    def embed_text(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Return text `(B, T, C)` alone."""
        modality = self.token_type_embeddings(input_ids.new_zeros(1, 1))
        return self.text_embeddings(input_ids, token_type_ids, position_ids) + modality


class FusionEncoderPreTrainedModel(EncoderPreTrainedModel):
    """What all fusion encoder classes share."""

    config: FusionEncoderConfig
    base_model_prefix = "fusion_encoder"
    _no_split_modules = ["FusionEmbeddings", "RegionFusionEmbeddings", "TransformerLayer"]


class FusionEncoderModel(TextInputs, TransformerBody, FusionEncoderPreTrainedModel):
    """The bare fusion encoder: pairs of text and image in, one fused vector a pair out.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4)
        >>> model = FusionEncoderModel(config)
        >>> output = model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8),
        ...                output_query_states=True)
        >>> output.pooler_output.shape, output.query_states[0].shape
        (torch.Size([3, 2, 8]), torch.Size([6, 2, 10, 4]))
    """

    def __init__(self, config: FusionEncoderConfig):
        self.reads_regions = config.visual_inputs == "regions"
        super().__init__(config, RegionFusionEmbeddings if self.reads_regions else FusionEmbeddings)

    @records_layers
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_query_states: AskedLayers = None,
        output_key_states: AskedLayers = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        caption_mask: bool = False,
        asked_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionEncoderOutput:
        """Encode B rows of one text and N images.

        Args:
            input_ids: `(B, T)` word pieces.
            attention_mask: `(B, T)`, 1 = real token; None: all real.
            pixel_values: `(B, N, 3, H, W)`, or `(B, 3, H, W)` for one image a row.
            pixel_mask: `(B, N, H, W)`, 1 = real pixel, padding at the bottom and right; None: all real.
            token_type_ids: `(B, T)` text segments, 1 for object tags; None: all 0.
            output_query_states: True for the queries of the config's `recorded_layers`, or a list of layers.
            output_key_states: likewise for keys.
            region_features: `(B, R, F)`, in place of pixels when the config reads regions; `(B, N, R, F)` for N images
                a row.
            region_boxes: `(B, R, 6)`: x0 / W, y0 / H, x1 / W, y1 / H, w / W, h / H.
            region_mask: `(B, R)`, 1 = real region; None: all real.
            caption_mask: True: words (segment 0) see no later word, and tags and images see no word at all
                (`seq2seq_mask`); False: all see all.
            asked_mask: `(B, T)` bool, True = a [MASK] of a caption that nothing else sees; None: there are none.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention), and what attention functions take.

        Returns:
            A `FusionEncoderOutput`.

        Raises:
            ValueError: a shape or a region does not fit; the message names it.
        """
        kinds = {"pixel_values": pixel_values, "region_features": region_features, "region_boxes": region_boxes}
        given = [name for name, tensor in kinds.items() if tensor is not None]
        wanted = ["region_features", "region_boxes"] if self.reads_regions else ["pixel_values"]
        if given != wanted:
            reads = f"this fusion encoder ({self.config.visual_inputs}) reads text and image together"
            got = " and ".join(given) or "the text alone"
            raise ValueError(f"{reads}; give {' and '.join(wanted)}, not {got}.")

        recorded_layers = layers_to_record(output_query_states, output_key_states, self.config)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        if caption_mask:
            positions = caption_positions(segments, attention_mask, self.config, asked_mask)
        else:
            positions = text_positions(input_ids, attention_mask, self.config.max_position_embeddings)
        read = (region_features, region_boxes, region_mask) if self.reads_regions else (pixel_values, pixel_mask)
        text, images, image_mask = self.embeddings(input_ids, token_type_ids, *read, position_ids=positions)
        if text.shape[0] != images.shape[0]:
            rows = f"{text.shape[0]} rows, {wanted[0]} {images.shape[0]}"
            raise ValueError(f"input_ids has {rows}; give one text for each row of images.")

        # One sequence a pair of text and image.
        num_images = images.shape[1]
        tokens = torch.cat([text.repeat_interleave(num_images, dim=0), images.flatten(0, 1)], dim=1)
        real = images.new_ones(images.shape[:3], dtype=torch.bool) if image_mask is None else image_mask

        pattern = mask = text_rows = None
        if caption_mask:
            pattern = seq2seq_mask(segments, attention_mask, real, asked_mask)
            # Padding must see something.
            itself = torch.eye(pattern.shape[1], dtype=torch.bool, device=pattern.device)
            layer_mask = attention_mask_of(pattern | itself, self.config, tokens, tokens)
        else:
            # Without any padding there is no mask, which attention functions are faster with.
            if attention_mask is not None or image_mask is not None:
                text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                text_rows = text_mask.bool().repeat_interleave(num_images, dim=0)
                mask = torch.cat([text_rows, real.flatten(0, 1)], dim=1)
            layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)

        encoded = self.encode_tokens(tokens, layer_mask, recorded_layers, text_rows, **kwargs)
        encoded["pooler_output"] = encoded["pooler_output"].unflatten(0, images.shape[:2])
        for name, wanted in (("query_states", output_query_states), ("key_states", output_key_states)):
            encoded[name] = encoded[name] if wanted else None
        return FusionEncoderOutput(**encoded, image_mask=real, attention_pattern=pattern)
