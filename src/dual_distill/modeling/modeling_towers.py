"""The two towers of the dual encoder, the interaction layers behind them, and what all dual encoder classes share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_base import EncoderPreTrainedModel, FreezableTower, TextInputs, TransformerBody, records_layers
from .modeling_embeddings import ImageEmbeddings, TextEmbeddings, text_positions
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

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        modality = self.token_type_embeddings(input_ids.new_zeros(1, 1))
        return self.text_embeddings(input_ids, token_type_ids, position_ids) + modality


class DualEncoderPreTrainedModel(EncoderPreTrainedModel):
    """What all dual encoder classes share: configuration, and the start from a fusion encoder."""

    config: DualEncoderConfig
    base_model_prefix = "dual_encoder"
    _no_split_modules = ["TowerTextEmbeddings", "ImageEmbeddings", "TransformerLayer", "InteractionLayer"]

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | Path,
        text: str | Path,
        *,
        vision_revision: str | None = None,
        text_revision: str | None = None,
        attn_implementation: str = "sdpa",
        **fields: Any,
    ) -> Self:
        """Build a dual encoder of two models that AutoModel loads, such as SigLIP 2 or DINOv3 and ModernBERT.

        What stands behind the towers is newly initialized; seed torch for a repeatable start.

        Args:
            vision: folder or Hub name of the image model; of one with two towers, as CLIP, the image tower is taken.
            text: folder or Hub name of the text model, likewise.
            vision_revision: branch, tag or commit of `vision` on the Hub.
            text_revision: branch, tag or commit of `text` on the Hub.
            attn_implementation: how attention is computed, by towers that can.
            **fields: of `DualEncoderConfig`: `num_labels` or `id2label`, `interaction_layers`, `vision_pooling`, ...

        Returns:
            A model of this class in float32, in training mode.

        Raises:
            ValueError: AutoModel loads no such tower, the checkpoint lacks weights of it, or a field does not fit;
                OSError: there is no such checkpoint in safetensors.

        Example:
            >>> from tempfile import TemporaryDirectory as Folder
            >>> from transformers import AutoModel, BertConfig, ViTConfig
            >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
            >>> from dual_distill import DualEncoderForQuestionAnswering
            >>> with Folder() as vision, Folder() as text:
            ...     AutoModel.from_config(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(vision)
            ...     AutoModel.from_config(BertConfig(**shape, vocab_size=50)).save_pretrained(text)
            ...     model = DualEncoderForQuestionAnswering.from_vision_text_pretrained(vision, text, num_labels=3)
            >>> model(input_ids=torch.ones(2, 5, dtype=torch.long), pixel_values=torch.zeros(2, 3, 8, 8)).logits.shape
            torch.Size([2, 3])
        """
        revisions = {"vision_revision": vision_revision, "text_revision": text_revision}
        config = DualEncoderConfig.from_vision_text_pretrained(vision, text, **revisions, **fields)
        config.architectures = [cls.__name__]
        model = cls._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)

        body = getattr(model, cls.base_model_prefix, model)
        body.vision_model.load(vision, vision_revision)
        body.text_model.load(text, text_revision)
        return model.train()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save under the names that the parameters have here, under which Trainer looks for them when it resumes."""
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})

    @classmethod
    def from_fusion_encoder(
        cls,
        fusion_encoder: FusionEncoderPreTrainedModel,
        text_layers: Sequence[int] | None = None,
        vision_layers: Sequence[int] | None = None,
        interaction_layers: int = 0,
        interaction_from: Sequence[int] | None = None,
        projection_dim: int | None = None,
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
            projection_dim: width of the vectors that retrieval compares; None: that of `DualEncoderConfig`.

        Returns:
            A model of this class, in the fusion encoder's dtype and on its device, in training mode.

        Raises:
            ValueError: a path or another model is given, a named layer does not exist, the heads are of different
                kinds, or `interaction_from` names another number of layers than there are.
        """
        if getattr(getattr(fusion_encoder, "config", None), "model_type", None) != FusionEncoderConfig.model_type:
            given = repr(fusion_encoder) if isinstance(fusion_encoder, str) else f"a {type(fusion_encoder).__name__}"
            converts = "which converts a ViLT too, or `dual_distill.teachers.convert_vilt(model)`"
            way_out = f"give `dual_distill.load_teacher(path).model`, {converts}"
            raise ValueError(f"from_fusion_encoder starts from a FusionEncoder model, not from {given}; {way_out}.")
        if interaction_from is not None and len(interaction_from) != interaction_layers:
            named = f"interaction_from names {len(interaction_from)} layers"
            raise ValueError(f"{named}, interaction_layers is {interaction_layers}.")
        layers = (text_layers, vision_layers, interaction_layers)
        config = dual_config_from_fusion(fusion_encoder.config, *layers, projection_dim)
        config.architectures = [cls.__name__]
        config._attn_implementation = fusion_encoder.config._attn_implementation

        model = cls(config)
        copy_fusion_weights(fusion_encoder, model, text_layers, vision_layers, interaction_from)
        return model.to(device=fusion_encoder.device, dtype=fusion_encoder.dtype).train()


class DualEncoderTextModel(FreezableTower, TextInputs, TransformerBody, DualEncoderPreTrainedModel):
    """The text tower."""

    config: DualEncoderTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)

    def __init__(self, config: DualEncoderTextConfig):
        super().__init__(config, TowerTextEmbeddings)

    @records_layers
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, T)` word pieces; see `TowerOutput`."""
        positions = text_positions(input_ids, attention_mask, self.config.max_position_embeddings)
        tokens = self.embeddings(input_ids, token_type_ids, positions)
        mask = None if attention_mask is None else attention_mask.bool()
        layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)
        return TowerOutput(**self.encode_tokens(tokens, layer_mask, recorded_layers, attention_mask, **kwargs))


class DualEncoderVisionModel(FreezableTower, TransformerBody, DualEncoderPreTrainedModel):
    """The image tower."""

    config: DualEncoderVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: DualEncoderVisionConfig):
        super().__init__(config, ImageEmbeddings)

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embeddings."""
        return self.embeddings.patch_embeddings

    @records_layers
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, N, 3, H, W)` or `(B, 3, H, W)` pixels as B * N sequences; see `TowerOutput`."""
        images, real = self.embeddings(pixel_values, pixel_mask)
        tokens, mask = images.flatten(0, 1), None if real is None else real.flatten(0, 1)
        layer_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=mask)
        encoded = self.encode_tokens(tokens, layer_mask, recorded_layers, **kwargs)
        image_mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return TowerOutput(**encoded, image_mask=image_mask)


class InteractionLayer(TransformerLayer):
    """Transformer layer whose keys and values are those of the image's tokens and of the text's own."""

    def __init__(self, config: DualEncoderTextConfig):
        super().__init__(config)
        self.layernorm_image = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def project_image(self, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image tokens: `(P, L, C)` -> `(P, H, L, D)` each."""
        attention, normed = self.attention.attention, self.layernorm_image(image_tokens)
        shape = (*normed.shape[:-1], -1, attention.head_dim)
        return tuple(project(normed).view(shape).transpose(1, 2) for project in (attention.key, attention.value))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        record: bool = False,
        *image: Tensor,
        **kwargs: Any,
    ) -> Any:
        """Let `(P, T, C)` text tokens read the image of their pair, or N images that all texts share.

        An image is given as its tokens `(P or N, L, C)` or as keys and values `(P or N, H, L, D)`. Tokens are projected
        here and not before: whoever shards or recomputes a layer does so around this call.
        """
        image_states = self.project_image(*image) if len(image) == 1 else image
        if image_states[0].shape[0] != hidden_states.shape[0]:
            kwargs["shared_states"] = image_states
        else:
            kwargs["extend_keys"] = lambda *own: [torch.cat(pair, 2) for pair in zip(image_states, own, strict=True)]

        # What is recorded are the text's own keys, which stand last.
        hidden_states, queries, keys = super().forward(hidden_states, attention_mask, record, **kwargs)
        if keys is None:
            return (hidden_states,)
        # Side by side, not nested: reentrant checkpointing passes no gradient into what is nested.
        return hidden_states, queries, keys[:, :, -hidden_states.shape[1] :], image_states[0]


class DualEncoderInteractionModel(DualEncoderPreTrainedModel):
    """The interaction layers and the layer norm behind them.

    Unusual here:

    * The image's tokens are read and never changed, so an image is still encoded once, whatever is asked about it; its
      tokens, or the keys and values that the layers make of them, can be stored.
    * One image for many texts is read by broadcasting: its keys and values are not copied for each text.
    * A layer is the towers' own, with a layer norm of the image's tokens beside that of the text's, so a fusion
      encoder's layers fit. Keys are laid out `[image; text]`.
    """

    config: DualEncoderTextConfig
    base_model_prefix = "interaction_model"
    _can_record_outputs = {"hidden_states": InteractionLayer, "attentions": TransformerAttention}

    def __init__(self, config: DualEncoderTextConfig, num_layers: int):
        super().__init__(config)
        self.layer: Any = nn.ModuleList([InteractionLayer(config) for _ in range(num_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def project_images(self, image_token_embeds: Tensor) -> Tensor:
        """Keys and values of every layer, to be stored: `(B, N, L, C)` -> `(B, N, layers, 2, H, L, D)`."""
        tokens = image_token_embeds.flatten(0, 1)
        states = [torch.stack(layer.project_image(tokens), dim=1) for layer in self.layer]
        return torch.stack(states, dim=1).unflatten(0, image_token_embeds.shape[:2])

    @records_layers
    def forward(
        self,
        text_token_embeds: Tensor,
        text_mask: Tensor | None = None,
        image_token_embeds: Tensor | None = None,
        image_token_states: Tensor | None = None,
        image_token_mask: Tensor | None = None,
        output_states: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Let texts read images.

        Args:
            text_token_embeds: `(B, T, C)`, a text's last hidden state; one row serves all images.
            text_mask: `(B, T)`, 1 = real token; None: all real.
            image_token_embeds: `(B, N, L, C)`, an image's last hidden state; one row serves all texts.
            image_token_states: `(B, N, layers, 2, H, L, D)` from `project_images`, in place of the tokens.
            image_token_mask: `(B, N, L)` bool, True = real token; None: all real.
            output_states: whether each layer's queries `(B * N, H, T, D)` and keys, the pair text `(B * N, H, T, D)`
                and image `(B * N, H, L, D)` (`(N, H, L, D)` for one row that serves all), are handed out.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention), and what attention functions take.

        Returns:
            A `TowerOutput` whose `last_hidden_state` is `(B * N, T, C)`, text b as it reads image n.
        """
        images = image_token_embeds if image_token_states is None else image_token_states
        # shape[0], not len: export keeps it symbolic.
        rows, (num_rows, num_images) = max(text_token_embeds.shape[0], images.shape[0]), images.shape[:2]

        # A pair of text and image a row. Where one row of images serves many texts, only masks are repeated for it.
        texts = pairs(text_token_embeds, rows, num_images)
        if text_mask is None:
            text_mask = texts.new_ones(text_token_embeds.shape[0], texts.shape[1])
        if image_token_mask is None:
            image_token_mask = texts.new_ones(num_rows, num_images, images.shape[-2])
        image_mask = image_token_mask.bool().expand(rows, -1, -1).flatten(0, 1)
        mask = torch.cat([image_mask, pairs(text_mask.bool(), rows, num_images)], dim=1)
        if num_rows == rows:
            keys = texts.new_empty(*mask.shape, 0)
            mask = create_bidirectional_mask(self.config, texts, mask, encoder_hidden_states=keys)

        recorded: list[Any] = []
        for index, layer in enumerate(self.layer):
            is_projected = image_token_states is not None
            image = images[:, :, index].flatten(0, 1).unbind(1) if is_projected else (images.flatten(0, 1),)
            texts, *states = layer(texts, mask, output_states, *image, **kwargs)
            if output_states:
                queries, *keys = states
                recorded.append((queries, tuple(keys)))

        queries_and_keys = zip(*recorded, strict=True) if output_states else (None, None)
        query_states, key_states = queries_and_keys
        return TowerOutput(last_hidden_state=self.layernorm(texts), query_states=query_states, key_states=key_states)


def pairs(texts: Tensor, rows: int, num_images: int) -> Tensor:
    """Repeat `(B or 1, ...)` texts for every image of every row: `(rows * num_images, ...)`."""
    texts = texts.expand(rows, *texts.shape[1:])
    return texts if num_images == 1 else texts.repeat_interleave(num_images, dim=0)
