"""The two towers of the dual encoder, each a transformer of its own, and what all dual encoder classes share."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_base import EncoderPreTrainedModel, TextInputs, TransformerBody, records_layers
from .modeling_embeddings import ImageEmbeddings, TextEmbeddings
from .modeling_fusion_encoder import FusionEncoderPreTrainedModel
from .modeling_layers import TransformerAttention, TransformerLayer
from .modeling_outputs import TowerOutput
from .tower_initialization import copy_fusion_weights, dual_config_from_fusion


class TowerTextEmbeddings(nn.Module):
    """BERT-like embeddings plus the modality embedding of text."""

    def __init__(self, config: DualEncoderTextConfig):
        super().__init__()
        self.text_embeddings = TextEmbeddings(config)
        self.token_type_embeddings = nn.Embedding(1, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        modality = self.token_type_embeddings(input_ids.new_zeros(1, 1))
        return self.text_embeddings(input_ids, token_type_ids) + modality


class TowerImageEmbeddings(ImageEmbeddings):
    """CLS token, patches and positions plus the modality embedding of the image's index in its row."""

    def __init__(self, config: DualEncoderVisionConfig):
        super().__init__()
        self._add_image_parameters(config)

    def forward(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.embed_image_rows(pixel_values, pixel_mask)


class DualEncoderPreTrainedModel(EncoderPreTrainedModel):
    """What all dual encoder classes share: configuration, and the start from a fusion encoder."""

    config: DualEncoderConfig
    base_model_prefix = "dual_encoder"
    _no_split_modules = ["TowerTextEmbeddings", "TowerImageEmbeddings", "TransformerLayer", "InteractionLayer"]

    @classmethod
    def from_fusion_encoder(
        cls,
        fusion_encoder: FusionEncoderPreTrainedModel,
        text_layers: Sequence[int] | None = None,
        vision_layers: Sequence[int] | None = None,
        interaction_layers: int = 0,
        interaction_from: Sequence[int] | None = None,
    ) -> Self:
        """Build a dual encoder whose towers, poolers, embeddings and head start from a fusion encoder's weights.

        The towers' weights are copies and are not shared. The shallow interaction has no counterpart and is newly
        initialized; so is the head when a bare `FusionEncoderModel` is given. Seed torch for a repeatable start.

        Args:
            fusion_encoder: the model to start from; for a class with a head, one with the same head, or the bare model
                (for retrieval, whose projections have no counterpart, one with any head).
            text_layers: fusion layers that the text tower takes, in order; None: all.
            vision_layers: fusion layers that the image tower takes, in order; None: all.
            interaction_layers: layers in which text tokens read image tokens, behind the towers.
            interaction_from: fusion layers that those start from, in order, such as `[-1]` for one; None: newly
                initialized.

        Returns:
            A model of this class, in the fusion encoder's dtype and on its device, in training mode.

        Raises:
            ValueError: a path or another model is given, a named layer does not exist, the heads are of different
                kinds, or `interaction_from` names another number of layers than there are.
        """
        if getattr(getattr(fusion_encoder, "config", None), "model_type", None) != FusionEncoderConfig.model_type:
            given = repr(fusion_encoder) if isinstance(fusion_encoder, str) else f"a {type(fusion_encoder).__name__}"
            raise ValueError(
                f"from_fusion_encoder starts from a FusionEncoder model, not from {given}; give "
                "`dual_distill.load_teacher(path).model`, which converts a ViLT too, or "
                "`dual_distill.teachers.convert_vilt(model)`."
            )
        if interaction_from is not None and len(interaction_from) != interaction_layers:
            raise ValueError(
                f"interaction_from names {len(interaction_from)} layers, interaction_layers is {interaction_layers}; "
                "name one fusion layer for each."
            )
        config = dual_config_from_fusion(fusion_encoder.config, text_layers, vision_layers, interaction_layers)
        config.architectures = [cls.__name__]
        config._attn_implementation = fusion_encoder.config._attn_implementation

        model = cls(config)
        copy_fusion_weights(fusion_encoder, model, text_layers, vision_layers, interaction_from)
        return model.to(device=fusion_encoder.device, dtype=fusion_encoder.dtype).train()


class DualEncoderTextModel(TextInputs, TransformerBody, DualEncoderPreTrainedModel):
    """The text tower."""

    config: DualEncoderTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": TransformerAttention}

    def __init__(self, config: DualEncoderTextConfig):
        super().__init__(config, TowerTextEmbeddings)

    @records_layers
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, T)` word pieces; see `TowerOutput`."""
        tokens = self.embeddings(input_ids, token_type_ids)
        mask = None if attention_mask is None else attention_mask.bool()
        layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)
        return TowerOutput(**self.encode_tokens(tokens, layer_mask, recorded_layers, **kwargs))


class DualEncoderVisionModel(TransformerBody, DualEncoderPreTrainedModel):
    """The image tower."""

    config: DualEncoderVisionConfig
    base_model_prefix = "vision_model"
    input_modalities = ("image",)
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": TransformerAttention}

    def __init__(self, config: DualEncoderVisionConfig):
        super().__init__(config, TowerImageEmbeddings)

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embeddings."""
        return self.embeddings.patch_embeddings

    @records_layers
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, N, 3, H, W)` or `(B, 3, H, W)` pixels as B * N sequences; see `TowerOutput`."""
        images, image_mask = self.embeddings(pixel_values, pixel_mask)
        tokens = images.flatten(0, 1)
        mask = None if image_mask is None else image_mask.flatten(0, 1)
        layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)
        encoded = self.encode_tokens(tokens, layer_mask, recorded_layers, **kwargs)
        return TowerOutput(
            **encoded, image_mask=tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        )
