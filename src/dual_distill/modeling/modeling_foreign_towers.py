"""Towers that are not ours: any model that AutoModel loads, called as our own towers are.

Unusual here:

* Images arrive as pixels with a mask whatever the tower, and image tokens leave in raster order behind CLS and register
  tokens. For SigLIP 2's flexible grids the pixels are cut into patches here, the real ones first, as it wants them.
* Queries and keys are noted while the tower runs (see `modeling_attention_recording`); the tower itself is not touched.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_dual_encoder import DualEncoderConfig, tower_width
from .modeling_attention_recording import record_attention
from .modeling_base import FreezableTower
from .modeling_embeddings import with_image_axis
from .modeling_layers import has_values, resolve_layers
from .modeling_outputs import TowerOutput


class ForeignTower(FreezableTower):
    """A model of transformers, its pooling, and what of its attention is recorded."""

    def __init__(self, config: DualEncoderConfig, tower: PreTrainedConfig, pooling: str):
        super().__init__()
        model_class = MODEL_MAPPING[type(tower)]
        # A model that cannot attend as asked attends as it can.
        if not model_class._supports_sdpa:
            tower._attn_implementation = "eager"
        self.options: dict[str, Any] = {}
        # No pooler that nobody asks: it would never get a gradient.
        if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
            self.options["add_pooling_layer"] = pooling == "tower"
        self.model: Any = model_class._from_config(tower, **self.options)
        # As transformers asks of a part: what is not to be split over devices, nor rounded.
        self._no_split_modules = self.model._no_split_modules
        self._keep_in_fp32_modules = self.model._keep_in_fp32_modules
        self.pooling, self.takes = pooling, frozenset(inspect.signature(self.model.forward).parameters)
        self.attention_names = [name for name, part in self.model.named_modules() if hasattr(part, "is_causal")]

    def load(self, name: str | Path, revision: str | None) -> None:
        """Take the weights of a checkpoint.

        Raises:
            ValueError: it lacks weights of the tower, as one that holds the tower inside a model that writes.
        """
        told = {"config": self.model.config, "revision": revision, "dtype": torch.float32, **self.options}
        told |= {"use_safetensors": True, "output_loading_info": True}
        self.model, report = type(self.model).from_pretrained(name, **told)
        # Without a pooler many are published; a new one is trained.
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if missing:
            lacks = f"lacks {len(missing)} weights of a {type(self.model).__name__}, such as {missing[0]}"
            raise ValueError(f"{str(name)!r} {lacks}; give a checkpoint of that model alone, in whole.")

    def get_input_embeddings(self) -> Any:
        """Return the word or patch embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.model.set_input_embeddings(value)

    def run(self, inputs: dict[str, Any], recorded_layers: Sequence[int], **kwargs: Any) -> tuple[Any, list[Any]]:
        """Run the model; return its output, and queries and keys of the layers."""
        if not recorded_layers:
            return self.model(**inputs, **{**kwargs, "return_dict": True}), []

        if not self.attention_names:
            way_out = "set attention_weight to 0, or take another tower"
            kind = "attention of its own kind, whose queries and keys are not seen"
            raise ValueError(f"a {type(self.model).__name__} has {kind}; {way_out}.")
        names = [self.attention_names[layer] for layer in resolve_layers(recorded_layers, len(self.attention_names))]
        with record_attention(self.model, names) as recorded:
            output = self.model(**inputs, **{**kwargs, "return_dict": True})
        found = [recorded[name] for name in names]
        # An objective scales by the root of the width alone.
        factors = [one.scaling * one.queries.shape[-1] ** 0.5 for one in found]
        return output, [(one.queries * by, one.repeated_keys) for one, by in zip(found, factors, strict=True)]

    def pool(self, tokens: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> Tensor:
        """Pool tokens `(B, L, C)` whose mask is `(B, L)`; `pooled` is what the tower pooled itself."""
        if self.pooling == "tower":
            if pooled is None:
                way_out = "give cls, mean or last as its pooling, or what it read in place of its tokens"
                raise ValueError(f"a {type(self.model).__name__} pools nothing here itself; {way_out}.")
            return pooled
        if mask is None:
            mask = tokens.new_ones(tokens.shape[:2])
        if self.pooling == "mean":
            weights = mask.to(tokens.dtype)[..., None]
            return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)

        # Of the real ones, wherever padding stands.
        places = torch.arange(tokens.shape[1], device=tokens.device) + 1
        real = places * mask.long() if self.pooling == "last" else (len(places) + 1 - places) * mask.long()
        return tokens[torch.arange(len(tokens), device=tokens.device), real.argmax(1)]


class ForeignTextTower(ForeignTower):
    """A text model, bidirectional or causal; texts may be padded at either side."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, config.text_config, str(config.text_pooling))
        # RoBERTa's kind counts positions from behind its padding token's.
        positions = config.text_config.max_position_embeddings
        self.first_position = positions - config.max_position_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, T)` word pieces; see `TowerOutput`."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "position_ids" in self.takes and attention_mask is not None:
            inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0).long() + self.first_position
        if "token_type_ids" in self.takes:
            inputs["token_type_ids"] = token_type_ids
        if "use_cache" in self.takes:
            inputs["use_cache"] = False
        output, recorded = self.run(inputs, recorded_layers, **kwargs)

        tokens = output.last_hidden_state
        pooled = self.pool(tokens, attention_mask, getattr(output, "pooler_output", None))
        return _tower_output(output, tokens, pooled, recorded)


class ForeignVisionTower(ForeignTower):
    """An image model: a transformer over patches of a fixed or a flexible grid, or a convolutional backbone."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, config.vision_config, str(config.vision_pooling))
        self.patch_size, self.is_flexible = config.patch_size, "spatial_shapes" in self.takes
        width = tower_width(config.vision_config)
        # Image tokens as wide as those of text, with which they are compared.
        self.projection: Any = nn.Identity()
        if width != config.hidden_size:
            self.projection = nn.Linear(width, config.hidden_size)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, N, 3, H, W)` or `(B, 3, H, W)` pixels as B * N sequences; see `TowerOutput`."""
        pixels = with_image_axis(pixel_values, 4).flatten(0, 1).to(self.model.dtype)
        mask = None if pixel_mask is None else with_image_axis(pixel_mask, 3).flatten(0, 1)
        order, inputs = None, {"pixel_values": pixels}
        if self.is_flexible:
            inputs, order = self.cut_patches(pixels, mask)
        else:
            self.check_pixels(pixels, mask)
            if "interpolate_pos_encoding" in self.takes:
                size = self.model.config.image_size
                own_size = (size, size) if isinstance(size, int) else tuple(size)
                inputs["interpolate_pos_encoding"] = tuple(pixels.shape[-2:]) != own_size
        output, recorded = self.run(inputs, recorded_layers, **kwargs)

        tokens = output.last_hidden_state
        grid = [side // self.patch_size for side in pixels.shape[-2:]]
        if tokens.dim() == 4:
            if list(tokens.shape[-2:]) != grid:
                found = f"a {type(self.model).__name__} gives {tokens.shape[-2]} x {tokens.shape[-1]} cells where"
                raise ValueError(
                    f"{found} {grid[0]} x {grid[1]} are expected; take ConvNeXt, EfficientNet, or ResNet as published."
                )
            tokens = tokens.flatten(2).transpose(1, 2)
        num_first = tokens.shape[1] - grid[0] * grid[1]
        if num_first < 0:
            kind = f"a {type(self.model).__name__} gives {tokens.shape[1]} tokens for a grid of {grid[0]} x {grid[1]}"
            raise ValueError(f"{kind} patches; take a tower with a token for each patch, or a convolutional one.")
        if self.pooling == "cls" and not num_first:
            raise ValueError(f"a {type(self.model).__name__} has no CLS token; give vision_pooling mean or tower.")

        image_mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        if order is not None:
            # Back to raster order, padded patches among them.
            back = order.argsort(1)
            image_mask = inputs["pixel_attention_mask"].bool().gather(1, back)
            tokens = _reordered(tokens, back)
            recorded = [tuple(_reordered(states, back) for states in pair) for pair in recorded]
        tokens = self.projection(tokens)
        own = getattr(output, "pooler_output", None)
        own = None if own is None else self.projection(own.flatten(1))
        return _tower_output(output, tokens, self.pool(tokens, image_mask, own), recorded, image_mask=image_mask)

    def check_pixels(self, pixels: Tensor, mask: Tensor | None) -> None:
        """Refuse padded images, whose padding would be read as image, and sizes that the patches do not divide."""
        if any(side % self.patch_size for side in pixels.shape[-2:]):
            height, width = pixels.shape[-2:]
            does = f"{height} x {width} pixels do not divide into patches of {self.patch_size}"
            raise ValueError(f"pixel_values: {does}; use the tower's own image processor.")
        if mask is not None and has_values(mask) and not mask.all():
            reads = f"a {type(self.model).__name__} would read the padding of images of unequal sizes"
            raise ValueError(f"{reads}; use an image processor that makes one size, as the tower's own does.")

    def cut_patches(self, pixels: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor]:
        """Inputs of SigLIP 2's kind, real patches first, `(B, P, 3 * patch ** 2)`; and the order that they stand in."""
        side = self.patch_size
        # (B, 3, rows, columns, side, side), then raster order with the channels last, as its image processor has it.
        patches = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1)
        grid = patches.shape[1:3]
        real = pixels.new_ones(len(pixels), *grid, dtype=torch.bool) if mask is None else mask[:, ::side, ::side].bool()
        shapes = torch.stack([real.any(2).sum(1), real.any(1).sum(1)], dim=1)

        flat = real.flatten(1).long()
        order = flat.argsort(dim=1, descending=True, stable=True)
        patches = _reordered(patches.flatten(1, 2).flatten(2), order)
        inputs = {"pixel_values": patches, "pixel_attention_mask": flat.gather(1, order), "spatial_shapes": shapes}
        return inputs, order


def _reordered(states: Tensor, order: Tensor) -> Tensor:
    """Tokens `(B, L, C)` or `(B, H, L, D)` in another order `(B, L)`."""
    index = order[:, None, :, None] if states.dim() == 4 else order[..., None]
    return states.gather(-2, index.expand(*states.shape[:-2], -1, states.shape[-1]))


def _tower_output(output: Any, tokens: Tensor, pooled: Tensor, recorded: list[Any], **more: Any) -> TowerOutput:
    """What every tower returns, of the output of a model of transformers."""
    more |= {name: getattr(output, name, None) for name in ("hidden_states", "attentions")}
    more["query_states"], more["key_states"] = zip(*recorded, strict=True) if recorded else (None, None)
    return TowerOutput(last_hidden_state=tokens, pooler_output=pooled, **more)
