"""The dual encoder: a text tower, an image tower, and a shallow interaction of their two pooled vectors.

The towers never see each other, so either side can be encoded once, stored, and given back as `text_embeds=` or
`image_embeds=`. Queries and keys of both towers are handed out in the layout of the fusion encoder, `[text; image]`, a
pair a row, which is all that cross-modal attention distillation needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_classification import SplitLinear, classification_head, classification_loss
from .modeling_fusion_encoder import flatten_pairs
from .modeling_layers import layers_to_record
from .modeling_outputs import DualEncoderOutput, EncoderForTaskOutput, TowerOutput
from .modeling_towers import DualEncoderPreTrainedModel, DualEncoderTextModel, DualEncoderVisionModel


class DualEncoderModel(DualEncoderPreTrainedModel):
    """The bare dual encoder: texts and images in, their pooled vectors and one fused vector a pair out.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower})
        >>> model = DualEncoderModel(config).eval()
        >>> ids, pixels = torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 1, 3, 8, 8)
        >>> output = model(input_ids=ids, pixel_values=pixels)
        >>> stored = model(input_ids=ids, image_embeds=output.image_embeds)
        >>> output.pooler_output.shape, torch.equal(stored.pooler_output, output.pooler_output)
        (torch.Size([3, 1, 8]), True)
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        self.text_model = DualEncoderTextModel(config.text_config)
        self.vision_model = DualEncoderVisionModel(config.vision_config)
        width = config.hidden_size
        self.interaction = classification_head(2 * width, 2 * width, width, first_layer=SplitLinear)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_model.set_input_embeddings(value)

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts alone: `pooler_output` is `(B, C)`, what `forward` takes as `text_embeds`."""
        output = self.text_model(input_ids, attention_mask, token_type_ids, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=output.pooler_output,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def get_image_features(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode images alone: `pooler_output` is `(B, C)` for `(B, 3, H, W)` pixels, `(B, N, C)` for `(B, N, 3, H,
        W)`.

        Either is what `forward` takes as `image_embeds`.
        """
        output = self.vision_model(pixel_values, pixel_mask, **kwargs)
        rows = pixel_values.shape[:-3]
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=output.pooler_output.unflatten(0, rows),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Give the text's half of the interaction's first linear map: `(..., C)` -> `(..., 2C)`, bias included.

        That map is linear in text and image apart, so each half is computed once, however many pairs it is part of.
        """
        first: SplitLinear = self.interaction[0]
        return first.first_half(text_embeds)

    def project_images(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Give the image's half of the interaction's first linear map: `(..., C)` -> `(..., 2C)`, without the bias."""
        first: SplitLinear = self.interaction[0]
        return first.second_half(image_embeds)

    def fuse_projections(self, text_projections: torch.Tensor, image_projections: torch.Tensor) -> torch.Tensor:
        """Finish the interaction from its two halves.

        Args:
            text_projections: `(..., 2C)` from `project_text`.
            image_projections: `(..., 2C)` from `project_images`; the two broadcast.

        Returns:
            `(..., C)` fused vectors, the `pooler_output` of `forward` up to rounding.

        Example:
            >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
            >>> model = DualEncoderModel(DualEncoderConfig(
            ...     text_config=tower, vision_config={"image_size": 8, "patch_size": 4, **tower}))
            >>> texts, images = torch.randn(3, 1, 8), torch.randn(1, 5, 8)
            >>> every_pair = model.fuse_projections(model.project_text(texts), model.project_images(images))
            >>> whole = model.interaction(torch.cat([texts.expand(3, 5, 8), images.expand(3, 5, 8)], dim=-1))
            >>> torch.allclose(every_pair, whole, atol=1e-5)
            True
        """
        return self.interaction[1:](text_projections + image_projections)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DualEncoderOutput:
        """Encode B rows of one text and N images, either side from its inputs or from stored vectors.

        Args:
            input_ids: `(B, T)` word pieces; or give `text_embeds`.
            attention_mask: `(B, T)`, 1 = real token; None: all real.
            pixel_values: `(B, N, 3, H, W)`, or `(B, 3, H, W)` for one image a row; or give `image_embeds`.
            pixel_mask: `(B, N, H, W)`, 1 = real pixel; None: all real.
            token_type_ids: `(B, T)` text segments; None: all 0.
            text_embeds: `(B, C)` from `get_text_features`.
            image_embeds: `(B, N, C)` or `(B, C)` from `get_image_features`.
            output_query_states: True for the queries of the config's `recorded_layers`, or a list of layers.
            output_key_states: likewise for keys.
            join_states: False hands out each layer's queries (and keys) as the pair (text, image) that the towers
                computed instead of one sequence, which is a copy of both: what distilling many layers would pay for in
                memory.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention), and what attention functions take.

        Returns:
            A `DualEncoderOutput`.

        Raises:
            ValueError: a side is missing or given twice, or queries are asked for of a stored side.
        """
        for one, other, names in (
            (input_ids, text_embeds, ("input_ids", "text_embeds")),
            (pixel_values, image_embeds, ("pixel_values", "image_embeds")),
        ):
            if (one is None) == (other is None):
                state = "neither was" if one is None else "both were"
                raise ValueError(f"give either {names[0]} or {names[1]}; {state} given.")
        layers = layers_to_record(output_query_states, output_key_states, self.config)
        if layers and (text_embeds is not None or image_embeds is not None):
            raise ValueError("stored vectors have no queries and keys; give input_ids and pixel_values to record them.")

        text_output = vision_output = image_mask = None
        if text_embeds is None:
            text_output = self.text_model(input_ids, attention_mask, token_type_ids, recorded_layers=layers, **kwargs)
            text_embeds = text_output.pooler_output
        if image_embeds is None:
            vision_output = self.vision_model(pixel_values, pixel_mask, recorded_layers=layers, **kwargs)
            rows = (pixel_values.shape[0], 1 if pixel_values.dim() == 4 else pixel_values.shape[1])
            image_embeds = vision_output.pooler_output.unflatten(0, rows)
            image_mask = vision_output.image_mask.unflatten(0, rows)
        elif image_embeds.dim() == 2:
            image_embeds = image_embeds[:, None]
        if text_embeds.shape[0] != image_embeds.shape[0]:
            raise ValueError(
                f"there are {text_embeds.shape[0]} texts and {image_embeds.shape[0]} rows of images; give one text for "
                "each row of images."
            )
        pairs = torch.cat([text_embeds[:, None].expand(-1, image_embeds.shape[1], -1), image_embeds], dim=-1)
        recorded = {"query_states": None, "key_states": None}
        for name, wanted in (("query_states", output_query_states), ("key_states", output_key_states)):
            if wanted:
                recorded[name] = join_recorded_states(
                    text_output, vision_output, name, join_states, image_embeds.shape[1]
                )
        return DualEncoderOutput(
            pooler_output=self.interaction(pairs),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            image_mask=image_mask,
            text_model_output=text_output,
            vision_model_output=vision_output,
            **recorded,
        )


def join_recorded_states(
    text_output: TowerOutput, vision_output: TowerOutput, name: str, join_states: bool = True, num_images: int = 1
) -> tuple[Any, ...]:
    """Lay the states that both towers recorded side by side, as the fusion encoder's sequence `[text; image]`, a pair a
    row.

    Args:
        text_output: of B texts.
        vision_output: of B * N images.
        name: `query_states` or `key_states`.
        join_states: False leaves each layer's pair (text, image) apart.
        num_images: N, images a text.

    Returns:
        One `(B * N, H, T + 1 + I, D)`, or one pair, a recorded layer.
    """
    apart = tuple(
        (text if num_images == 1 else text.repeat_interleave(num_images, dim=0), image)
        for text, image in zip(text_output[name], vision_output[name], strict=True)
    )
    return tuple(torch.cat(pair, dim=2) for pair in apart) if join_states else apart


class _DualEncoderForTask(DualEncoderPreTrainedModel):
    """A dual encoder and a head; subclasses say how many images the head reads."""

    def __init__(self, config: DualEncoderConfig, num_images: int):
        super().__init__(config)
        self.dual_encoder = DualEncoderModel(config)
        self.num_images = num_images
        in_features = num_images * config.hidden_size
        self.classifier = classification_head(in_features, max(2, num_images) * config.hidden_size, config.num_labels)
        self.post_init()

    def get_text_features(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encode texts alone; see `DualEncoderModel.get_text_features`."""
        return self.dual_encoder.get_text_features(*args, **kwargs)

    def get_image_features(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encode images alone; see `DualEncoderModel.get_image_features`."""
        return self.dual_encoder.get_image_features(*args, **kwargs)

    def project_text(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Give the text's half of the interaction; see `DualEncoderModel.project_text`."""
        return self.dual_encoder.project_text(text_embeds)

    def project_images(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Give the image's half of the interaction; see `DualEncoderModel.project_images`."""
        return self.dual_encoder.project_images(image_embeds)

    def logits_of_projections(self, text_projections: torch.Tensor, image_projections: torch.Tensor) -> torch.Tensor:
        """Give the logits of B rows from the two halves of the interaction's first linear map.

        Args:
            text_projections: `(B, 2C)` from `project_text`, or `(1, 2C)`: one text for all rows.
            image_projections: `(B, N, 2C)` from `project_images`, or `(1, N, 2C)`: the same images for all rows.

        Returns:
            `(B, labels)`, equal to `forward`'s logits up to rounding.
        """
        fused = self.dual_encoder.fuse_projections(text_projections[:, None], image_projections)
        return self.classifier(flatten_pairs(fused, self.num_images))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForTaskOutput:
        """Give one logit a label for each row; the inputs are those of `DualEncoderModel.forward`.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`.
            pixel_mask: `(B, N, H, W)`.
            token_type_ids: `(B, T)`.
            text_embeds: `(B, C)`, in place of the text inputs.
            image_embeds: `(B, N, C)` or `(B, C)`, in place of the image inputs.
            labels: `(B,)` integer classes, or `(B, labels)` soft scores in [0, 1].
            output_query_states: True or a list of layers.
            output_key_states: True or a list of layers.
            join_states: as in `DualEncoderModel.forward`.
            **kwargs: as in `DualEncoderModel.forward`.

        Returns:
            An `EncoderForTaskOutput`.
        """
        output = self.dual_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            token_type_ids=token_type_ids,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            join_states=join_states,
            **kwargs,
        )
        logits = self.classifier(flatten_pairs(output.pooler_output, self.num_images))
        return EncoderForTaskOutput(
            loss=None if labels is None else classification_loss(logits, labels),
            logits=logits,
            pooler_output=output.pooler_output,
            text_embeds=output.text_embeds,
            image_embeds=output.image_embeds,
            image_mask=output.image_mask,
            query_states=output.query_states,
            key_states=output.key_states,
        )


class DualEncoderForQuestionAnswering(_DualEncoderForTask):
    """Dual encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     num_labels=7)
        >>> model = DualEncoderForQuestionAnswering(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=1)


class DualEncoderForImagesAndTextClassification(_DualEncoderForTask):
    """Dual encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     num_images=2)
        >>> model = DualEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=config.num_images)


__all__ = ["DualEncoderForImagesAndTextClassification", "DualEncoderForQuestionAnswering", "DualEncoderModel"]
