"""The fusion encoder: one transformer reads text and image tokens together (ViLT's shape, in raster order).

A row of N images is N image-text pairs: the text is repeated, each pair is one sequence `[text; image CLS; patches]`,
or `[text; object tags; regions]` where the config says `visual_inputs="regions"`.

A BERT's weights fit a model with `norm_first=False` and regions under these names (left BERT's, right ours):

    embeddings.{word,position,token_type}_embeddings  embeddings.text_embeddings.(the same), position table cut to
    length embeddings.LayerNorm                              embeddings.text_embeddings.LayerNorm
    encoder.layer.i.attention.self.{query,key,value}  encoder.layer.i.attention.attention.(the same)
    encoder.layer.i.attention.output.dense            encoder.layer.i.attention.output.dense
    encoder.layer.i.attention.output.LayerNorm        encoder.layer.i.layernorm_attention
    encoder.layer.i.{intermediate,output}.dense       encoder.layer.i.(the same) encoder.layer.i.output.LayerNorm
    encoder.layer.i.layernorm_output pooler.dense                                      pooler.dense
    cls.predictions.transform.{dense,LayerNorm}       mlm_score.transform.(the same), beside the body
    cls.predictions.bias                              mlm_score.decoder.bias; its weight is tied to the words

Only `embeddings.region_embeddings` (`projection`, `LayerNorm`) is then new.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_caption_mask import attention_mask_of, caption_positions, seq2seq_mask
from .modeling_classification import classification_head, classification_loss
from .modeling_layers import (
    ImageEmbeddings,
    Pooler,
    TextEmbeddings,
    TransformerAttention,
    TransformerEncoder,
    TransformerLayer,
    initialize_embeddings,
    layers_to_record,
)
from .modeling_outputs import EncoderForTaskOutput, FusionEncoderOutput
from .modeling_region_embeddings import RegionFusionEmbeddings


class FusionEmbeddings(ImageEmbeddings):
    """Text and image tokens of every pair, each with its modality embedding, side by side."""

    def __init__(self, config: FusionEncoderConfig):
        super().__init__()
        self.text_embeddings = TextEmbeddings(config)
        self._add_image_parameters(config)
        self.token_type_embeddings = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return text `(B, T, C)`, images `(B, N, 1 + I, C)` and the image mask `(B, N, 1 + I)` (None: all real)."""
        modalities = self.token_type_embeddings.weight
        text = self.embed_text(input_ids, token_type_ids, position_ids)
        images, mask = embed_image_rows(self, pixel_values, pixel_mask)
        slots = torch.arange(1, images.shape[1] + 1, device=images.device).clamp(max=modalities.shape[0] - 1)
        return text, images + self.token_type_embeddings(slots)[:, None], mask

    def embed_text(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Return text `(B, T, C)` alone."""
        return self.text_embeddings(input_ids, token_type_ids, position_ids) + self.token_type_embeddings.weight[0]


def embed_image_rows(
    embeddings: ImageEmbeddings, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embed `(B, N, 3, H, W)` pixels (`(B, 3, H, W)` for N = 1) as `(B, N, 1 + I, C)` and give the mask `(B, N, 1 + I)`."""
    if pixel_values.dim() == 4:
        pixel_values = pixel_values[:, None]
        pixel_mask = None if pixel_mask is None else pixel_mask[:, None]
    if pixel_values.dim() != 5:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (B, N, 3, H, W), or (B, 3, H, W) for one "
            "image a row."
        )
    if pixel_mask is not None and pixel_mask.dim() == 3:
        pixel_mask = pixel_mask[:, None]
    rows = pixel_values.shape[:2]
    tokens, mask = embeddings.embed_images(
        pixel_values.flatten(0, 1), None if pixel_mask is None else pixel_mask.flatten(0, 1)
    )
    return tokens.unflatten(0, rows), None if mask is None else mask.unflatten(0, rows)


class FusionEncoderPreTrainedModel(PreTrainedModel):
    """What all fusion encoder classes share: configuration, initialisation, abilities."""

    config: FusionEncoderConfig
    base_model_prefix = "fusion_encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # The loss is a mean over rows and is never scaled by `num_items_in_batch`: gradient accumulation must divide it.
    accepts_loss_kwargs = False
    _no_split_modules = ["FusionEmbeddings", "RegionFusionEmbeddings", "TransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": TransformerAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_embeddings(module, self.config)


class FusionEncoderModel(FusionEncoderPreTrainedModel):
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
        super().__init__(config)
        self.reads_regions = config.visual_inputs == "regions"
        self.embeddings = RegionFusionEmbeddings(config) if self.reads_regions else FusionEmbeddings(config)
        self.encoder = TransformerEncoder(config)
        # Post-norm layers end in a norm of their own.
        self.layernorm: nn.Module = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()
        )
        self.pooler = Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.text_embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        caption_mask: bool = False,
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
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention), and what attention functions take.

        Returns:
            A `FusionEncoderOutput`.

        Raises:
            ValueError: a shape or a region does not fit; the message names it.
        """
        recorded_layers = layers_to_record(output_query_states, output_key_states, self.config)
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        position_ids = caption_positions(segments, attention_mask, self.config) if caption_mask else None
        self._check_kind_of_image(pixel_values, region_features, region_boxes)
        image_inputs = (
            (region_features, region_boxes, region_mask) if self.reads_regions else (pixel_values, pixel_mask)
        )
        text, images, image_mask = self.embeddings(input_ids, token_type_ids, *image_inputs, position_ids=position_ids)
        if text.shape[0] != images.shape[0]:
            raise ValueError(
                f"input_ids has {text.shape[0]} rows, {'region_features' if self.reads_regions else 'pixel_values'} "
                f"{images.shape[0]}; give one text for each row of images."
            )
        num_images = images.shape[1]
        tokens = torch.cat([text.repeat_interleave(num_images, dim=0), images.flatten(0, 1)], dim=1)
        mask = None
        if attention_mask is not None or image_mask is not None:
            text_mask = (
                text.new_ones(text.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
            )
            real = images.new_ones(images.shape[:3], dtype=torch.bool) if image_mask is None else image_mask
            mask = torch.cat([text_mask.repeat_interleave(num_images, dim=0), real.flatten(0, 1)], dim=1)
        pattern = None
        if caption_mask:
            pattern = seq2seq_mask(
                segments, attention_mask, images.new_ones(images.shape[:3]) if image_mask is None else image_mask
            )
            itself = torch.eye(pattern.shape[1], dtype=torch.bool, device=pattern.device)  # padding must see something
            layer_mask = attention_mask_of(pattern | itself, self.config, tokens, tokens)
        else:
            layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)
        hidden_states, recorded = self.encoder(tokens, layer_mask, recorded_layers=recorded_layers, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return FusionEncoderOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states).unflatten(0, images.shape[:2]),
            image_mask=images.new_ones(images.shape[:3], dtype=torch.bool) if image_mask is None else image_mask,
            query_states=tuple(queries for queries, _ in recorded) if output_query_states else None,
            key_states=tuple(keys for _, keys in recorded) if output_key_states else None,
            attention_pattern=pattern,
        )

    def _check_kind_of_image(
        self, pixel_values: torch.Tensor | None, region_features: torch.Tensor | None, region_boxes: torch.Tensor | None
    ) -> None:
        if self.reads_regions and (region_features is None or region_boxes is None or pixel_values is not None):
            raise ValueError(
                "this fusion encoder reads text and regions together (visual_inputs is 'regions'); give "
                "region_features and "
                "region_boxes, and no pixel_values."
            )
        if not self.reads_regions and region_features is not None:
            raise ValueError(
                "this fusion encoder reads patches, but was given region_features; give pixel_values, or build a "
                "model with "
                "visual_inputs='regions'."
            )
        if not self.reads_regions and pixel_values is None:
            raise ValueError("a fusion encoder reads text and image together; give pixel_values.")


class _FusionEncoderForTask(FusionEncoderPreTrainedModel):
    """A fusion encoder and a head; subclasses say how many images the head reads."""

    def __init__(self, config: FusionEncoderConfig, num_images: int):
        super().__init__(config)
        self.fusion_encoder = FusionEncoderModel(config)
        self.num_images = num_images
        in_features = num_images * config.hidden_size
        self.classifier = classification_head(in_features, max(2, num_images) * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        region_features: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForTaskOutput:
        """Give one logit a label for each row; the inputs are those of `FusionEncoderModel.forward`.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`.
            pixel_mask: `(B, N, H, W)`.
            token_type_ids: `(B, T)`.
            labels: `(B,)` integer classes, or `(B, labels)` soft scores in [0, 1].
            output_query_states: True or a list of layers.
            output_key_states: True or a list of layers.
            region_features: `(B, R, F)` or `(B, N, R, F)`, in place of pixels.
            region_boxes: `(B, R, 6)` or `(B, N, R, 6)`.
            region_mask: `(B, R)` or `(B, N, R)`.
            **kwargs: as in `FusionEncoderModel.forward`.

        Returns:
            An `EncoderForTaskOutput`.
        """
        output = self.fusion_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            token_type_ids=token_type_ids,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            region_features=region_features,
            region_boxes=region_boxes,
            region_mask=region_mask,
            **kwargs,
        )
        logits = self.classifier(flatten_pairs(output.pooler_output, self.num_images))
        return EncoderForTaskOutput(
            loss=None if labels is None else classification_loss(logits, labels),
            logits=logits,
            pooler_output=output.pooler_output,
            image_mask=output.image_mask,
            query_states=output.query_states,
            key_states=output.key_states,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


def flatten_pairs(fused: torch.Tensor, num_images: int) -> torch.Tensor:
    """Lay the N fused vectors of a row side by side: `(B, N, C)` -> `(B, N * C)`; refuse another N than the head's."""
    if fused.shape[1] != num_images:
        raise ValueError(
            f"the rows have {fused.shape[1]} images, the head was built for {num_images}; "
            "set num_images in the config or give as many images a row."
        )
    return fused.flatten(1)


class FusionEncoderForQuestionAnswering(_FusionEncoderForTask):
    """Fusion encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4, num_labels=7)
        >>> model = FusionEncoderForQuestionAnswering(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config, num_images=1)


class FusionEncoderForImagesAndTextClassification(_FusionEncoderForTask):
    """Fusion encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4, num_images=2, modality_type_vocab_size=3)
        >>> model = FusionEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config, num_images=config.num_images)


__all__ = [
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderModel",
    "FusionEncoderPreTrainedModel",
]
