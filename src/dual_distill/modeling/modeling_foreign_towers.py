"""Towers that are not ours: any model that AutoModel loads, called as our own towers are.

Unusual here:

* Images arrive as pixels with a mask whatever the tower, and image tokens leave in raster order behind CLS and register
  tokens. For SigLIP 2's flexible grids the pixels are cut into patches here, the real ones first, as it wants them.
* Queries and keys are noted while the tower runs (see `modeling_attention_recording`); the tower itself is not touched.
* A tower is tried once when it is built, on made-up inputs: whether it runs, whether padding changes a text, where the
  token of a patch stands. This sees of any model what a list of types would have to know.
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

    reads: str
    such_as: str

    def __init__(self, config: DualEncoderConfig, tower: PreTrainedConfig, pooling: str):
        super().__init__()
        model_class = MODEL_MAPPING[type(tower)]
        # Not by `main_input_name`, which many image models leave at that of texts.
        if self.reads not in inspect.signature(model_class.forward).parameters:
            raise ValueError(f"a {model_class.__name__} reads no {self.reads}; give a model such as {self.such_as}.")
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

    def can_be_tried(self) -> bool:
        """Whether the weights are drawn, here, and attention runs on every device; a saved model was tried once."""
        # transformers sets this where it draws, not on meta. DeepSpeed holds weights elsewhere.
        is_drawn = getattr(self.model, "_is_hf_initialized", False)
        is_here = is_drawn and all(weight.numel() for weight in self.model.parameters())
        return is_here and self.model.config._attn_implementation in ("eager", "sdpa")

    @torch.no_grad()
    def try_out(self, inputs: dict[str, Any]) -> Any:
        """Output of the model in evaluation mode.

        Raises:
            ValueError: it does not run on them, or makes no tokens.
        """
        self.model.eval()
        try:
            output = self.model(**inputs, return_dict=True)
            output.last_hidden_state  # noqa: B018 - a model without tokens is no tower
            return output
        except Exception as error:
            reason = f"{type(error).__name__}, {str(error).strip().splitlines()[0].rstrip('.')!r}"
            fails = f"a {type(self.model).__name__} does not run on {self.reads} alone: {reason}"
            raise ValueError(f"{fails}; give a model such as {self.such_as}.") from error
        finally:
            self.model.train()

    def check_width(self, states: Tensor, width: int) -> None:
        """Refuse tokens or pooled vectors that are not as wide as the configuration says."""
        if states.shape[-1] != width:
            gives = f"a {type(self.model).__name__} gives vectors of width {states.shape[-1]}"
            raise ValueError(f"{gives} where its configuration says {width}; give a model such as {self.such_as}.")

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

    reads, such_as = "input_ids", "BERT or Llama"

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, config.text_config, str(config.text_pooling))
        if self.can_be_tried():
            self.check_padding(getattr(config.text_config, "vocab_size", 1000))

    def check_padding(self, vocab_size: int) -> None:
        """Refuse a model whose tokens of a text change with the padding behind it."""
        # Words from the middle: special ones stand at the ends.
        words = (vocab_size // 2 + torch.arange(8, device=self.model.device)) % vocab_size
        mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]], device=words.device)
        output = self.try_out(self.model_inputs(words[None, :4], mask[:, :4]))
        alone = self.finish(output, mask[:, :4]).last_hidden_state
        padded = self.try_out(self.model_inputs(words[None], mask)).last_hidden_state[:, :4]

        change, largest = (padded - alone).abs().max(), alone.abs().max()
        if change > largest * torch.finfo(alone.dtype).eps ** 0.5:
            reads = (
                f"a {type(self.model).__name__} reads padding: in a batch with a longer text, tokens of a text change"
            )
            way_out = f"give a model that masks padding, such as {self.such_as}"
            raise ValueError(f"{reads} by {change / largest:.1g} of the largest; {way_out}.")

    def model_inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None = None
    ) -> dict[str, Any]:
        """What the model is given for texts."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self.takes:
            inputs["token_type_ids"] = token_type_ids
        if "use_cache" in self.takes:
            inputs["use_cache"] = False
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> TowerOutput:
        """Encode `(B, T)` word pieces; see `TowerOutput`."""
        order = None
        if attention_mask is not None:
            # Padding behind: in front of a text, what pools the first token or has no mask would read it. Positions are
            # then those that the model counts itself, from wherever it begins.
            order = attention_mask.long().argsort(dim=1, descending=True, stable=True)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
            token_type_ids = None if token_type_ids is None else token_type_ids.gather(1, order)
        inputs = self.model_inputs(input_ids, attention_mask, token_type_ids)
        output, recorded = self.run(inputs, recorded_layers, **kwargs)
        return self.finish(output, attention_mask, recorded, order)

    def finish(
        self, output: Any, mask: Tensor | None, recorded: Sequence[Any] = (), order: Tensor | None = None
    ) -> TowerOutput:
        """What the tower gives, of what the model does."""
        tokens = output.last_hidden_state
        pooled = self.pool(tokens, mask, getattr(output, "pooler_output", None))
        for states in (tokens, pooled):
            self.check_width(states, self.model.config.hidden_size)
        return _tower_output(output, tokens if order is None else _put_back(tokens, order), pooled, recorded, order)


class ForeignVisionTower(ForeignTower):
    """An image model: a transformer over patches of a fixed or a flexible grid, or a convolutional backbone."""

    reads, such_as = "pixel_values", "ViT, SigLIP or ConvNeXt"

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, config.vision_config, str(config.vision_pooling))
        self.patch_size, self.is_flexible = config.patch_size, "spatial_shapes" in self.takes
        size = getattr(config.vision_config, "image_size", None)
        self.own_size = (size, size) if isinstance(size, int) else tuple(size or ())
        self.width = width = tower_width(config.vision_config)
        # Image tokens as wide as those of text, with which they are compared.
        self.projection: Any = nn.Identity()
        if width != config.hidden_size:
            self.projection = nn.Linear(width, config.hidden_size)
        if self.can_be_tried():
            sized = hasattr(config.vision_config, "image_size") or self.is_flexible
            self.check_places(*(config.patch_grid if sized else (2, 3)))

    def check_places(self, rows: int, columns: int) -> None:
        """Refuse a model whose tokens do not stand as its patches do."""
        side, name = self.patch_size, type(self.model).__name__
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, rows * side, columns * side, generator=draw).repeat(2, 1, 1, 1)
        # Of two images that are else the same, the last patch of the first row.
        pixels[1, :, :side, -side:] *= -1
        pixels = pixels.to(self.model.device, self.model.dtype)
        inputs, order = self.model_inputs(pixels, None)
        output = self.try_out(inputs)
        tokens = self.finish(output, [rows, columns], inputs, order).last_hidden_state
        if len(tokens) != len(pixels):
            raise ValueError(f"a {name} makes one row of tokens of two images; give a model such as {self.such_as}.")
        if output.last_hidden_state.dim() == 4:
            return  # cells say where they stand
        num_first = tokens.shape[1] - rows * columns
        changed = int((tokens[1] - tokens[0]).norm(dim=-1).argmax())
        if changed != num_first + columns - 1:
            stand = f"patch {columns - 1} of {rows} x {columns} is token {changed} of {tokens.shape[1]}"
            expected = f"expected are those of patches last, row by row; give a model such as {self.such_as}"
            raise ValueError(f"a {name} has its tokens in another order: {stand}; {expected}.")

    def model_inputs(self, pixels: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor | None]:
        """What the model is given for images, and the order of the patches in it, None: raster order."""
        if self.is_flexible:
            return self.cut_patches(pixels, mask)
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if "interpolate_pos_encoding" in self.takes:
            is_other = tuple(pixels.shape[-2:]) != self.own_size
            if is_other and self.own_size[0] != self.own_size[1]:
                height, width = pixels.shape[-2:]
                own = "{} x {}, whose positions are stretched from squares alone".format(*self.own_size)
                kind = f"a {type(self.model).__name__} of {own}"
                raise ValueError(f"pixel_values: {height} x {width} pixels for {kind}; resize images to its size.")
            inputs["interpolate_pos_encoding"] = is_other
        return inputs, None

    def raster(self, tokens: Tensor, order: Tensor | None, grid: list[int]) -> Tensor:
        """Tokens `(B, L, C)` of what the model gives, in raster order behind those of the whole image.

        Raises:
            ValueError: there are fewer than patches, or a convolution has other cells.
        """
        name = type(self.model).__name__
        if tokens.dim() == 4:
            if list(tokens.shape[-2:]) != grid:
                found = f"a {name} gives {tokens.shape[-2]} x {tokens.shape[-1]} cells where"
                raise ValueError(
                    f"{found} {grid[0]} x {grid[1]} are expected; take ConvNeXt, EfficientNet, or ResNet as published."
                )
            tokens = tokens.flatten(2).transpose(1, 2)
        if tokens.shape[1] < grid[0] * grid[1]:
            kind = f"a {name} gives {tokens.shape[1]} tokens for a grid of {grid[0]} x {grid[1]} patches"
            raise ValueError(f"{kind}; take a tower with a token for each patch, or a convolutional one.")
        return tokens if order is None else _put_back(tokens, order)

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
        if not self.is_flexible:
            self.check_pixels(pixels, mask)
        inputs, order = self.model_inputs(pixels, mask)
        output, recorded = self.run(inputs, recorded_layers, **kwargs)

        grid = [side // self.patch_size for side in pixels.shape[-2:]]
        return self.finish(output, grid, inputs, order, recorded)

    def finish(
        self, output: Any, grid: list[int], inputs: dict[str, Any], order: Tensor | None, recorded: Sequence[Any] = ()
    ) -> TowerOutput:
        """What the tower gives, of what the model does, its tokens in raster order."""
        tokens = self.raster(output.last_hidden_state, order, grid)
        num_first = tokens.shape[1] - grid[0] * grid[1]
        if self.pooling == "cls" and not num_first:
            raise ValueError(f"a {type(self.model).__name__} has no CLS token; give vision_pooling mean or tower.")

        image_mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        if order is not None:
            image_mask = inputs["pixel_attention_mask"].bool().gather(1, order.argsort(1))
        own = getattr(output, "pooler_output", None) if self.pooling == "tower" else None
        own = None if own is None else own.flatten(1)
        for states in (tokens, own):
            if states is not None:
                self.check_width(states, self.width)
        tokens, own = self.projection(tokens), None if own is None else self.projection(own)
        pooled = self.pool(tokens, image_mask, own)
        return _tower_output(output, tokens, pooled, recorded, order, image_mask=image_mask)

    def check_pixels(self, pixels: Tensor, mask: Tensor | None) -> None:
        """Refuse padded images, whose padding would be read as image, and sizes that the patches do not divide.

        Of the tower's own size (384 pixels in patches of 14, say), it leaves out itself what fills no patch.
        """
        is_own = tuple(pixels.shape[-2:]) == self.own_size
        if not is_own and any(side % self.patch_size for side in pixels.shape[-2:]):
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


def _put_back(states: Tensor, order: Tensor) -> Tensor:
    """Tokens that stand in an order `(B, L)`, padded ones among them, where they stood before."""
    return _reordered(states, order.argsort(1))


def _tower_output(
    output: Any, tokens: Tensor, pooled: Tensor, recorded: Sequence[Any], order: Tensor | None, **more: Any
) -> TowerOutput:
    """What every tower returns, of the output of a model of transformers."""
    more |= {name: getattr(output, name, None) for name in ("hidden_states", "attentions")}
    if order is not None:
        recorded = [tuple(_put_back(states, order) for states in pair) for pair in recorded]
        for name in ("hidden_states", "attentions"):
            if more[name]:
                more[name] = tuple(_put_back(states, order) for states in more[name])
        if more["attentions"]:
            more["attentions"] = tuple(_put_back(probs.mT, order).mT for probs in more["attentions"])
    more["query_states"], more["key_states"] = zip(*recorded, strict=True) if recorded else (None, None)
    return TowerOutput(last_hidden_state=tokens, pooler_output=pooled, **more)
