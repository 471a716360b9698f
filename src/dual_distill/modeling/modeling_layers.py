"""Embeddings, attention and transformer layers that the fusion encoder and both towers of the dual encoder are made of.

Unusual here:

* Parameter names are those of transformers' `ViltModel`, so that its checkpoints fit without renaming.
* A layer is pre-norm (ViLT) unless the config says `norm_first=False` (BERT); the norms then bear other names, so that
  a checkpoint of the one kind does not load into the other in silence.
* Patches keep raster order and none is sampled away; padding is at the bottom and right and is masked.
* The position table is interpolated to each image's own grid by two small matrix products instead of a Python loop, so
  a batch of many sizes has no data-dependent shape, no host synchronisation and no graph break under `torch.compile`.
* A layer hands out its queries and keys only when asked to, as ordinary outputs: they survive activation checkpointing
  and sdpa, and layers that nobody asked keep nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

QueriesAndKeys = tuple[torch.Tensor, torch.Tensor]
# Takes a layer's new keys and values and returns them behind those of earlier tokens.
ExtendKeys = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values can be read: not while a graph is compiled, nor where it has a shape and no memory.

    Example:
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode():
        ...     shape_alone = torch.zeros(2)
        >>> has_values(torch.zeros(2)), has_values(shape_alone)
        (True, False)
    """
    return not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def resolve_layers(layers: Sequence[int], num_hidden_layers: int) -> list[int]:
    """Return `layers` with negative entries counted from the end.

    Raises:
        ValueError: a layer lies outside the model.

    Example:
        >>> resolve_layers([0, -1], 12)
        [0, 11]
    """
    resolved = []
    for layer in layers:
        if not -num_hidden_layers <= layer < num_hidden_layers:
            raise ValueError(
                f"layer {layer} was asked for, but the model has {num_hidden_layers} layers; "
                f"choose from {-num_hidden_layers} to {num_hidden_layers - 1}."
            )
        resolved.append(layer % num_hidden_layers)
    return resolved


def layers_to_record(
    output_query_states: bool | Sequence[int] | None,
    output_key_states: bool | Sequence[int] | None,
    config: PreTrainedConfig,
) -> list[int]:
    """Return the layers to record: the caller's list, the config's for `True`, none for `False` or `None`.

    Raises:
        ValueError: queries and keys are asked for from different layers.
    """
    wanted = []
    for value in (output_query_states, output_key_states):
        if value is True:
            wanted.append(list(config.recorded_layers))
        elif value is not None and value is not False:
            wanted.append(list(value))
    if not wanted:
        return []
    if any(layers != wanted[0] for layers in wanted):
        raise ValueError(
            f"output_query_states names layers {wanted[0]}, output_key_states {wanted[1]}; "
            "name the same layers in both, in the same order."
        )
    return wanted[0]


def initialize_embeddings(module: nn.Module, config: PreTrainedConfig) -> None:
    """Initialize embeddings from a normal distribution of the width that the config names for them."""
    std = getattr(config, "embedding_initializer_range", None) or config.initializer_range
    if isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=std)
    elif isinstance(module, ImageEmbeddings):
        init.normal_(module.cls_token, std=std)
        init.normal_(module.position_embeddings, std=std)


class TextEmbeddings(nn.Module):
    """Word + position + segment embeddings, normalised: `(B, T)` ids -> `(B, T, C)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.max_position_embeddings = config.max_position_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        num_tokens = input_ids.shape[1]
        if position_ids is None and num_tokens > self.max_position_embeddings:
            raise ValueError(
                f"the text has {num_tokens} tokens, the model takes at most {self.max_position_embeddings}; "
                "let the processor truncate it."
            )
        if token_type_ids is None:
            token_type_ids = input_ids.new_zeros(1, 1)
        if position_ids is None:
            position_ids = torch.arange(num_tokens, device=input_ids.device)[None]

        segments, positions = self.token_type_embeddings(token_type_ids), self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + segments + positions))


class PatchEmbeddings(nn.Module):
    """One linear map per square patch: `(B, 3, H, W)` pixels -> `(B, C, H / patch, W / patch)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        channels, height, width = pixel_values.shape[-3:]
        if channels != self.num_channels:
            raise ValueError(f"pixel_values has {channels} channels, the model takes {self.num_channels}.")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"pixel_values is {height} x {width} pixels, which does not divide into patches of {self.patch_size}; "
                "let the processor resize and pad it (size_divisor = patch_size)."
            )
        return self.projection(pixel_values.to(self.projection.weight.dtype))


class ImageEmbeddings(nn.Module):
    """CLS token + patches + positions of each image's own grid.

    The parameters live on the module that mixes this in (`FusionEmbeddings`, `VisionEmbeddings`), flat, under ViLT's
    names.
    """

    def _add_image_parameters(self, config: PreTrainedConfig) -> None:
        self.grid = config.patch_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def embed_images(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embed `(B, 3, H, W)` pixels as `(B, 1 + I, C)` tokens and give their `(B, 1 + I)` mask (None: all real)."""
        patches = self.patch_embeddings(pixel_values)
        batch_size, _, rows, columns = patches.shape

        patch_mask = None
        if pixel_mask is not None:
            if pixel_mask.shape != (batch_size, *pixel_values.shape[-2:]):
                raise ValueError(
                    f"pixel_mask has shape {tuple(pixel_mask.shape)}, pixel_values {tuple(pixel_values.shape)}; "
                    "the mask needs one entry a pixel and no channel."
                )
            # A patch counts as real when its top left pixel is: processors pad whole patches at the bottom and right.
            patch_mask = pixel_mask[:, :: self.patch_embeddings.patch_size, :: self.patch_embeddings.patch_size].bool()

        positions = self.interpolate_positions(rows, columns, patch_mask).to(patches.dtype)
        tokens = torch.cat([self.cls_token.expand(batch_size, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + positions
        if patch_mask is not None:
            patch_mask = torch.cat([patch_mask.new_ones(batch_size, 1), patch_mask.flatten(1)], dim=1)
        return self.dropout(tokens), patch_mask

    def interpolate_positions(self, rows: int, columns: int, patch_mask: torch.Tensor | None) -> torch.Tensor:
        """Resize the position table bilinearly (corners aligned) to each image's grid, padded to `rows x columns`.

        Returns:
            `(B or 1, 1 + rows * columns, C)`; what stands at padded patches is masked and means nothing.
        """
        cls_position, table = self.position_embeddings[:, :1], self.position_embeddings[0, 1:]
        if patch_mask is None:
            if (rows, columns) == self.grid:
                return self.position_embeddings
            heights, widths = table.new_full((1,), rows), table.new_full((1,), columns)
        else:
            # The largest extent, not the first row's: one image may be padded in a way that the other is not.
            heights, widths = patch_mask.any(2).sum(1), patch_mask.any(1).sum(1)

        # Positions are few and cheap, half precision would blur them.
        with torch.autocast(table.device.type, enabled=False):
            row_weights = _bilinear_weights(heights, rows, self.grid[0])
            column_weights = _bilinear_weights(widths, columns, self.grid[1])
            table = table.unflatten(0, self.grid).float()
            positions = torch.einsum("brp,bsq,pqc->brsc", row_weights, column_weights, table).flatten(1, 2)
        return torch.cat([cls_position.expand(positions.shape[0], -1, -1).float(), positions], dim=1)


def _bilinear_weights(lengths: torch.Tensor, num_targets: int, num_sources: int) -> torch.Tensor:
    """Return `(B, targets, sources)` weights that resize `num_sources` points to each of `lengths`, corners aligned."""
    lengths = lengths.float().unsqueeze(1)
    targets = torch.arange(num_targets, device=lengths.device).float()
    # A single target point sits on the first source point, as torch's interpolate has it.
    positions = targets * (num_sources - 1) / (lengths - 1).clamp(min=1)
    sources = torch.arange(num_sources, device=lengths.device)
    return (1 - (positions.unsqueeze(-1) - sources).abs()).clamp(min=0)


class EncoderPreTrainedModel(PreTrainedModel):
    """What all classes of both encoders share: abilities and initialisation."""

    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # The loss is a mean over rows and is never scaled by `num_items_in_batch`: gradient accumulation must divide it.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_embeddings(module, self.config)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the only form that returns its `(B, H, Q, K)` probabilities."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probs = nn.functional.dropout(probs, p=dropout, training=module.training)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs


class SelfAttention(nn.Module):
    """Query, key and value projections and the attention itself; returns queries and keys beside the result."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # sdpa would turn causal when there is no padding mask
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        extend_keys: ExtendKeys | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        query_states = self.query(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.key(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.value(hidden_states).view(hidden_shape).transpose(1, 2)
        if extend_keys is not None:
            key_states, value_states = extend_keys(key_states, value_states)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return attn_output.reshape(*input_shape, -1), attn_weights, query_states, key_states


class Projection(nn.Module):
    """A linear map with dropout, the end of each residual branch; `dense` is ViLT's name."""

    def __init__(self, in_features: int, out_features: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(hidden_states))


class Intermediate(nn.Module):
    """The widening half of the MLP."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class TransformerAttention(nn.Module):
    """Self-attention and its output projection; returns `(output, probabilities or None, queries, keys)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = Projection(config.hidden_size, config.hidden_size, config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        context, attn_weights, query_states, key_states = self.attention(hidden_states, attention_mask, **kwargs)
        return self.output(context), attn_weights, query_states, key_states


class TransformerLayer(GradientCheckpointingLayer):
    """Transformer layer: attention and MLP, each around a residual, with a layer norm before or behind (`norm_first`)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.attention = TransformerAttention(config)
        self.intermediate = Intermediate(config)
        self.output = Projection(config.intermediate_size, config.hidden_size, config.hidden_dropout_prob)
        self.norm_first = getattr(config, "norm_first", True)  # towers have no such field: they are pre-norm
        norms = [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2)]
        if self.norm_first:
            self.layernorm_before, self.layernorm_after = norms
        else:
            self.layernorm_attention, self.layernorm_output = norms

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        record: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        normed = self.layernorm_before(hidden_states) if self.norm_first else hidden_states
        attention_output, _, query_states, key_states = self.attention(normed, attention_mask, **kwargs)
        hidden_states = hidden_states + attention_output
        if self.norm_first:
            hidden_states = hidden_states + self.output(self.intermediate(self.layernorm_after(hidden_states)))
        else:
            hidden_states = self.layernorm_attention(hidden_states)
            hidden_states = self.layernorm_output(hidden_states + self.output(self.intermediate(hidden_states)))
        # Flat: reentrant checkpointing would cut the gradient of tensors inside a nested tuple, without a word.
        return (hidden_states, query_states, key_states) if record else (hidden_states, None, None)


class TransformerEncoder(nn.Module):
    """A stack of layers; `(B, L, C)` -> `(B, L, C)` and the queries and keys of the layers asked for."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layer = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        extend_keys: Sequence[ExtendKeys] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, list[QueriesAndKeys]]:
        wanted = resolve_layers(recorded_layers, len(self.layer))
        recorded = {}
        for index, layer in enumerate(self.layer):
            if extend_keys is not None:
                kwargs["extend_keys"] = extend_keys[index]
            hidden_states, query_states, key_states = layer(
                hidden_states, attention_mask, record=index in wanted, **kwargs
            )
            if index in wanted:
                recorded[index] = (query_states, key_states)
        return hidden_states, [recorded[index] for index in wanted]


class Pooler(nn.Module):
    """First token through a linear map and tanh: `(B, L, C)` -> `(B, C)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_states[:, 0]))


class TransformerBody:
    """Encoder, final layer norm and pooler, under ViLT's names; mixed into the models whose embeddings differ."""

    def _add_body(self, config: PreTrainedConfig) -> None:
        """Build the modules."""
        self.encoder = TransformerEncoder(config)
        # Post-norm layers end in a norm of their own.
        norm_first = getattr(config, "norm_first", True)
        self.layernorm: nn.Module = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if norm_first else nn.Identity()
        )
        self.pooler = Pooler(config)

    def encode_tokens(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        recorded_layers: Sequence[int],
        **kwargs: Unpack[TransformersKwargs],
    ) -> dict[str, Any]:
        """Encode embedded tokens `(B, L, C)`: hidden state, pooled vector, queries and keys of the recorded layers."""
        hidden_states, recorded = self.encoder(tokens, attention_mask, recorded_layers=recorded_layers, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return {
            "last_hidden_state": hidden_states,
            "pooler_output": self.pooler(hidden_states),
            "query_states": tuple(queries for queries, _ in recorded) or None,
            "key_states": tuple(keys for _, keys in recorded) or None,
        }


class TextInputs:
    """Word embeddings where resizing and tying look for them; mixed into the models that embed text themselves."""

    embeddings: Any

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        words: nn.Module = self.embeddings.text_embeddings.word_embeddings
        return words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.text_embeddings.word_embeddings = value
