"""The dual encoder: a text tower, an image tower, and a shallow interaction of their two pooled vectors.

The towers never see each other, so either side can be encoded once, stored, and given back: pooled
(`image_pooler_output=`) or projected into the interaction (`image_embeds=`). Queries and keys of both towers are handed
out in the layout of the fusion encoder, `[text; image]`, a pair a row, which is what attention distillation needs.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_base import returns_tuple
from .modeling_embeddings import with_image_axis
from .modeling_foreign_towers import ForeignTextTower, ForeignVisionTower
from .modeling_heads import SplitLinear, classification_head
from .modeling_layers import AskedLayers, layers_to_record
from .modeling_outputs import EncoderOutput, ImageFeaturesOutput, TowerOutput
from .modeling_towers import (
    DualEncoderInteractionModel,
    DualEncoderPreTrainedModel,
    DualEncoderTextModel,
    DualEncoderVisionModel,
    pairs,
)

ATTENTION_ROLES = ("text_query", "text_key", "image_query", "image_key")
"""Projections of final tokens, by what they take the place of."""
STORED_AND_RECORDED = "stored vectors have no queries and keys; give input_ids and pixel_values to record them."
INTERACTION_READS_TEXT = (
    "this model has interaction layers, in which a text's tokens read the image; give input_ids, or text_token_embeds."
)
INTERACTION_READS_IMAGES = (
    "this model has interaction layers, which read an image's tokens; give pixel_values or image_token_embeds, or "
    "image_token_states beside image_pooler_output or image_embeds."
)


class DualEncoderModel(DualEncoderPreTrainedModel):
    """The bare dual encoder: texts and images in, their pooled vectors and one fused vector a pair out.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower})
        >>> model = DualEncoderModel(config).eval()
        >>> ids, pixels = torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 1, 3, 8, 8)
        >>> output = model(input_ids=ids, pixel_values=pixels)
        >>> stored = model(input_ids=ids, image_pooler_output=output.image_pooler_output)
        >>> output.pooler_output.shape, torch.equal(stored.pooler_output, output.pooler_output)
        (torch.Size([3, 1, 8]), True)
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        text, vision = (config.is_own(tower) for tower in ("text_config", "vision_config"))
        self.text_model: Any = DualEncoderTextModel(config.text_config) if text else ForeignTextTower(config)
        self.vision_model: Any = DualEncoderVisionModel(config.vision_config) if vision else ForeignVisionTower(config)
        self.interaction_model = None
        if config.interaction_layers:
            self.interaction_model = DualEncoderInteractionModel(config.joint_config, config.interaction_layers)
        width = config.hidden_size
        if config.projected_heads:
            size = config.projected_heads * max(1, width // config.projected_heads)
            self.attention_projections = nn.ModuleDict({role: nn.Linear(width, size) for role in ATTENTION_ROLES})
        self.interaction = classification_head(2 * width, 2 * width, width, first_layer=SplitLinear)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Return the word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embeddings."""
        self.text_model.set_input_embeddings(value)

    @returns_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode texts alone: `pooler_output` is `(B, C)`, what `forward` takes as `text_pooler_output`."""
        return self.text_model(input_ids, attention_mask, token_type_ids, **kwargs)

    @returns_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_token_states: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageFeaturesOutput:
        """Encode images alone: `pooler_output` is `(B, C)` for `(B, 3, H, W)` pixels, `(B, N, C)` for N images a row.

        Either is what `forward` takes as `image_pooler_output`; it takes the other fields under their own names.

        Args:
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`.
            pixel_mask: `(B, N, H, W)` or `(B, H, W)`.
            output_token_states: whether the interaction layers' keys and values are handed out too: twice the numbers
                of the tokens for each layer, and less to compute for each text.
            **kwargs: as in `forward`.

        Returns:
            An `ImageFeaturesOutput`.

        Raises:
            ValueError: keys and values of interaction layers are asked for, and there are none.
        """
        if output_token_states and self.interaction_model is None:
            raise ValueError("output_token_states asks for keys and values of interaction layers; there are none.")

        output = self.vision_model(pixel_values, pixel_mask, **kwargs)
        rows = with_image_axis(pixel_values, 4).shape[:2]
        tokens, mask = (each.unflatten(0, rows) for each in (output.last_hidden_state, output.image_mask))
        features = ImageFeaturesOutput(**output, image_token_embeds=tokens, image_token_mask=mask)
        # Without an axis of images where the pixels had none.
        features.pooler_output = output.pooler_output.unflatten(0, pixel_values.shape[:-3])
        if output_token_states:
            features.image_token_states = self.interaction_model.project_images(tokens)
        return features

    def project_text(self, text_pooler_output: Tensor) -> Tensor:
        """Give the text's half of the interaction's first linear map: `(..., C)` -> `(..., 2C)`, bias included.

        That map is linear in text and image apart, so each half is computed once, however many pairs it is part of.
        """
        return self._project(text_pooler_output, "first")

    def project_images(self, image_pooler_output: Tensor) -> Tensor:
        """Give the image's half of the interaction's first linear map: `(..., C)` -> `(..., 2C)`, without the bias."""
        return self._project(image_pooler_output, "second")

    def _project(self, vectors: Tensor, half: Literal["first", "second"]) -> Tensor:
        """Give one half of the first linear map, of whatever stands in its place too."""
        layer = self.interaction[0]
        if isinstance(layer, SplitLinear):
            return layer(vectors, half=half)

        # An adapted or a quantised layer takes both vectors: zeros stand for the other, the bias goes with the first.
        zeros = torch.zeros_like(vectors)
        if half == "first":
            return layer(torch.cat([vectors, zeros], dim=-1))
        return layer(torch.cat([zeros, vectors], dim=-1)) - layer(torch.cat([zeros, zeros], dim=-1))

    def fuse_projections(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """Finish the interaction from its two halves.

        Args:
            text_embeds: `(..., 2C)` from `project_text`.
            image_embeds: `(..., 2C)` from `project_images`; the two broadcast.

        Returns:
            `(..., C)` fused vectors, the `pooler_output` of `forward`.

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
        return self.interaction[1:](text_embeds + image_embeds)

    @returns_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_pooler_output: Tensor | None = None,
        image_pooler_output: Tensor | None = None,
        text_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_embeds: Tensor | None = None,
        image_token_states: Tensor | None = None,
        image_token_mask: Tensor | None = None,
        text_token_embeds: Tensor | None = None,
        output_query_states: AskedLayers = None,
        output_key_states: AskedLayers = None,
        join_states: bool = True,
        output_interaction_states: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderOutput:
        """Encode B rows of one text and N images, either side from its inputs or from stored vectors.

        Args:
            input_ids: `(B, T)` word pieces; or give one of the stored forms of a text.
            attention_mask: `(B, T)`, 1 = real token; None: all real.
            pixel_values: `(B, N, 3, H, W)`, or `(B, 3, H, W)` for one image a row; or give one of the stored forms.
            pixel_mask: `(B, N, H, W)`, 1 = real pixel; None: all real.
            token_type_ids: `(B, T)` text segments; None: all 0.
            text_pooler_output: `(B, C)` pooled, from `get_text_features`.
            image_pooler_output: `(B, N, C)` or `(B, C)` pooled, from `get_image_features`.
            text_embeds: `(B, 2C)` projected, from `project_text`; one row serves all images.
            image_embeds: `(B, N, 2C)` or `(B, 2C)` projected, from `project_images`; one row serves all texts.
            image_token_embeds: `(B, N, 1 + I, C)` or `(B, 1 + I, C)`, the tokens of `get_image_features`, the form for
                interaction layers; one row serves all texts and is not copied for each.
            image_token_states: `(B, N, layers, 2, H, 1 + I, D)`, the interaction layers' keys and values, beside
                `image_pooler_output` or `image_embeds`.
            image_token_mask: `(B, N, 1 + I)` bool, True = real token; None: all real.
            text_token_embeds: `(B, T, C)`, the `last_hidden_state` of `get_text_features`, the form for interaction
                layers, beside `attention_mask`; one row serves all images.
            output_query_states: True for the queries of the config's `recorded_layers`, or a list of layers.
            output_key_states: likewise for keys.
            join_states: False hands out each layer's queries (and keys) as the pair (text, image) that the towers
                computed instead of one sequence, which is a copy of both: what distilling many layers would pay for in
                memory.
            output_interaction_states: whether `interaction_model_output` has the interaction layers' queries and keys.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention), and what attention functions take.

        Returns:
            An `EncoderOutput`.

        Raises:
            ValueError: a side is missing or given twice, a stored vector is of another kind or not enough for
                interaction layers, or queries are asked for of a stored side.
        """
        texts = {"input_ids": input_ids, "text_pooler_output": text_pooler_output, "text_embeds": text_embeds}
        texts["text_token_embeds"] = text_token_embeds
        vectors = {"image_pooler_output": image_pooler_output, "image_embeds": image_embeds}
        images = {"pixel_values": pixel_values, **vectors, "image_token_embeds": image_token_embeds}
        for side in (texts, images):
            check_side(side, self.config.hidden_size)
        layers, named = self.layers_to_record(output_query_states, output_key_states)

        # Interaction layers read an image's tokens, or what was made of them; without such layers nothing does.
        has_layers, has_states = self.interaction_model is not None, image_token_states is not None
        only_vectors = any(tensor is not None for tensor in vectors.values())
        for is_wrong, sentence in (
            (layers and (input_ids is None or pixel_values is None), STORED_AND_RECORDED),
            (has_states and not has_layers, "image_token_states are for interaction layers, and this model has none."),
            (has_layers and input_ids is None and text_token_embeds is None, INTERACTION_READS_TEXT),
            (has_layers and only_vectors != has_states, INTERACTION_READS_IMAGES),
        ):
            if is_wrong:
                raise ValueError(sentence)

        # Each side: its tokens where there are some, its pooled vector, its half of the shallow interaction.
        text_output = vision_output = interaction_output = None
        if input_ids is not None:
            text_output = self.text_model(input_ids, attention_mask, token_type_ids, recorded_layers=named, **kwargs)
            text_token_embeds, text_pooler_output = text_output.last_hidden_state, text_output.pooler_output
        elif text_token_embeds is not None:
            text_pooler_output = self.text_model.pool(text_token_embeds, attention_mask)
        if pixel_values is not None:
            vision_output = self.vision_model(pixel_values, pixel_mask, recorded_layers=named, **kwargs)
            rows = with_image_axis(pixel_values, 4).shape[:2]
            of_images = (vision_output.pooler_output, vision_output.last_hidden_state, vision_output.image_mask)
            image_pooler_output, image_token_embeds, image_token_mask = (each.unflatten(0, rows) for each in of_images)
        elif image_token_embeds is not None:
            image_token_embeds = with_image_axis(image_token_embeds, 3)
            mask = None if image_token_mask is None else with_image_axis(image_token_mask, 2).flatten(0, 1)
            pooled = self.vision_model.pool(image_token_embeds.flatten(0, 1), mask)
            image_pooler_output = pooled.unflatten(0, image_token_embeds.shape[:2])

        if image_embeds is None:
            image_pooler_output = with_image_axis(image_pooler_output, 2)
            image_embeds = self.project_images(image_pooler_output)
        image_embeds, image_token_mask = with_image_axis(image_embeds, 2), with_image_axis(image_token_mask, 2)

        # shape[0], not len: export keeps it symbolic.
        num_texts = next(tensor.shape[0] for tensor in texts.values() if tensor is not None)
        num_rows, num_images = image_embeds.shape[:2]
        if num_texts != num_rows and 1 not in (num_texts, num_rows):
            given = f"{num_texts} texts and {num_rows} rows of images"
            raise ValueError(f"there are {given}; give one text for each row of images.")

        # A text is pooled as it reads each image, where there are layers that read.
        if self.interaction_model is not None:
            interaction_output = self.interaction_model(
                text_token_embeds,
                attention_mask,
                image_token_embeds,
                image_token_states,
                image_token_mask,
                output_states=output_interaction_states,
                **kwargs,
            )
            mask = None if attention_mask is None else pairs(attention_mask, max(num_texts, num_rows), num_images)
            pooled = self.text_model.pool(interaction_output.last_hidden_state, mask)
            text_pooler_output = pooled.unflatten(0, (-1, num_images))

        text_embeds = self.project_text(text_pooler_output) if text_embeds is None else text_embeds
        fused = self.fuse_projections(with_image_axis(text_embeds, 2), image_embeds)

        wanted = (output_query_states, output_key_states)
        return EncoderOutput(
            pooler_output=fused,
            text_pooler_output=text_pooler_output,
            image_pooler_output=image_pooler_output,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            image_mask=image_token_mask,
            text_model_output=text_output,
            vision_model_output=vision_output,
            interaction_model_output=interaction_output,
            **self.recorded_states(layers, text_output, vision_output, wanted, join_states, num_images),
        )

    def layers_to_record(self, queries: AskedLayers, keys: AskedLayers) -> tuple[list[int], list[int]]:
        """Layers of which states are handed out, and those that the towers record: none where final tokens are."""
        layers = layers_to_record(queries, keys, self.config)
        if not (self.config.records_tokens or self.config.projected_heads):
            return layers, layers
        if any(layer != -1 for layer in layers):
            raise ValueError(f"layers {layers} were asked for, but of these towers the final tokens are recorded: -1.")
        return layers, []

    def recorded_states(self, layers: list[int], text: Any, vision: Any, *asked: Any) -> dict[str, tuple[Any, ...]]:
        """What the towers recorded, or their final tokens, projected where the model has kept projections for that."""
        if layers and text.query_states is None:
            for side, output in (("text", text), ("image", vision)):
                tokens = output.last_hidden_state
                for role in ("query", "key"):
                    states = tokens[:, None]
                    if self.config.projected_heads:
                        heads = self.attention_projections[f"{side}_{role}"](tokens)
                        states = heads.unflatten(-1, (self.config.projected_heads, -1)).transpose(1, 2)
                    output[f"{role}_states"] = (states,) * len(layers)
        return join_recorded_states(text, vision, *asked)


def check_side(given: Mapping[str, Tensor | None], hidden_size: int) -> None:
    """Refuse a side that is missing or given twice, and pooled vectors where projected ones belong or vice versa."""
    names = [name for name, tensor in given.items() if tensor is not None]
    if len(names) != 1:
        alone = "" if names else "; get_image_features and get_text_features take one side alone"
        raise ValueError(f"give one of {', '.join(given)}; got {' and '.join(names) or 'none of them'}{alone}.")

    name, tensor = names[0], given[names[0]]
    side, _, kind = name.partition("_")
    width = {"pooler_output": hidden_size, "embeds": 2 * hidden_size, "token_embeds": hidden_size}.get(kind)
    if width is not None and tensor is not None and tensor.shape[-1] != width:
        project = "project_images" if side == "image" else "project_text"
        pooled = f"{side}_pooler_output takes what get_{side}_features pools ({hidden_size} wide)"
        projected = f"{side}_embeds its projection by {project} ({2 * hidden_size} wide)"
        raise ValueError(f"{name} is {tensor.shape[-1]} wide, not {width}; {pooled}, {projected}.")


def join_recorded_states(
    text_output: Any, vision_output: Any, wanted: tuple[Any, Any], join_states: bool, num_images: int = 1
) -> dict[str, tuple[Any, ...]]:
    """Join the states that both towers recorded as the fusion encoder's sequence `[text; image]`, a pair a row.

    Args:
        text_output: of B texts.
        vision_output: of B * N images.
        wanted: whether queries are, and whether keys are.
        join_states: False leaves each layer's pair (text, image) apart.
        num_images: N, images a text.

    Returns:
        For what is wanted, one `(B * N, H, T + 1 + I, D)`, or one pair, a recorded layer.
    """
    joined: dict[str, tuple[Any, ...]] = {}
    for name in (name for name, value in zip(("query_states", "key_states"), wanted, strict=True) if value):
        apart = [
            (text if num_images == 1 else text.repeat_interleave(num_images, dim=0), image)
            for text, image in zip(text_output[name], vision_output[name], strict=True)
        ]
        joined[name] = tuple(torch.cat(pair, dim=2) for pair in apart) if join_states else tuple(apart)
    return joined
