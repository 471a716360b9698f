"""Attention and transformer layers that the fusion encoder and both towers of the dual encoder are made of.

Unusual here:

* Parameter names are those of transformers' `ViltModel`, so that its checkpoints fit without renaming.
* A layer is pre-norm (ViLT) unless the config says `norm_first=False` (BERT); the norms then bear other names, so that
  a checkpoint of the one kind does not load into the other in silence.
* A layer hands out its queries and keys only when asked to, as ordinary outputs: they survive activation checkpointing
  and sdpa, and layers that nobody asked keep nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .modeling_embeddings import leading_padding

QueriesAndKeys = tuple[Tensor, Tensor]
AskedLayers = bool | Sequence[int] | None
"""True: the layers that the configuration names; a list: those; False or None: none."""
# Takes a layer's new keys and values and returns them behind those of earlier tokens.
ExtendKeys = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def has_values(tensor: Tensor) -> bool:
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
    for layer in layers:
        if not -num_hidden_layers <= layer < num_hidden_layers:
            raise ValueError(f"layer {layer} was asked for, but the model has {num_hidden_layers} layers.")
    return [layer % num_hidden_layers for layer in layers]


def layers_to_record(
    output_query_states: AskedLayers, output_key_states: AskedLayers, config: PreTrainedConfig
) -> list[int]:
    """Return the layers to record: the caller's list, the config's `recorded_layers` for `True`, else none.

    Raises:
        ValueError: queries and keys are asked for from different layers.
    """
    wanted = (output_query_states, output_key_states)
    asked = [list(config.recorded_layers if value is True else value) for value in wanted if value]
    if len(asked) == 2 and asked[0] != asked[1]:
        differ = f"output_query_states names layers {asked[0]}, output_key_states {asked[1]}"
        raise ValueError(f"{differ}; name the same, in one order.")
    return asked[0] if asked else []


def shared_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    shared_states: QueriesAndKeys,
    image_by_image: bool = False,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Attention of B * N rows to their own keys and to N rows of `(N, H, L, D)` keys that B rows each share, uncopied.

    The queries of all rows that share an image are one long list of queries to it; row b * N + n shares image n, or,
    `image_by_image`, row n * B + b. The mask is bool, True = visible key, shared keys first: `(B * N, L + T)`, or
    `(B * N, 1, T, L + T)` where queries differ.
    """
    shared_keys, shared_values = shared_states
    num_images, num_shared = len(shared_keys), shared_keys.shape[2]
    # To images, heads, rows of an image, tokens and widths; and back.
    split, axes, back = ((-1, num_images), (1, 2, 0, 3, 4), (2, 0, 1, 3, 4))
    if image_by_image:
        split, axes, back = ((num_images, -1), (0, 2, 1, 3, 4), (0, 2, 1, 3, 4))

    def fold(rows: Tensor) -> Tensor:
        return rows.unflatten(0, split).permute(axes).flatten(2, 3)

    def unfold(products: Tensor) -> Tensor:
        return products.unflatten(2, (-1, query.shape[2])).permute(back).flatten(0, 1)

    shared_scores = unfold(fold(query) @ shared_keys.transpose(2, 3))
    scores = torch.cat([shared_scores, query @ key.transpose(2, 3)], dim=-1) * scaling
    visible = attention_mask[:, None, None] if attention_mask.dim() == 2 else attention_mask
    scores = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
    probs = nn.functional.dropout(scores.softmax(-1).to(query.dtype), p=dropout, training=module.training)

    output = unfold(fold(probs[..., :num_shared]) @ shared_values) + probs[..., num_shared:] @ value
    return output.transpose(1, 2).contiguous(), probs


class SelfAttention(nn.Module):
    """Query, key and value projections and the attention itself; returns queries and keys beside the result."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        # Else sdpa would turn causal when there is no padding mask.
        self.is_causal = False
        self.query, self.key, self.value = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias) for _ in range(3)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        extend_keys: ExtendKeys | None = None,
        num_queries: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        asking = hidden_states[:, -num_queries:]
        if attention_mask is not None and num_queries:
            attention_mask = attention_mask[..., -num_queries:, :]
        input_shape = asking.shape[:-1]

        inputs = ((self.query, asking), (self.key, hidden_states), (self.value, hidden_states))
        query_states, key_states, value_states = (
            project(tokens).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for project, tokens in inputs
        )
        # While a caption is written, or where a text reads an image: keys and values from elsewhere stand beside them.
        if extend_keys is not None:
            key_states, value_states = extend_keys(key_states, value_states)

        # transformers' own way to any attention; only an image that many texts share has one of ours.
        attention_interface: Callable = shared_attention_forward
        if "shared_states" not in kwargs:
            implementation = self.config._attn_implementation
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
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


def projection(in_features: int, config: PreTrainedConfig) -> nn.Sequential:
    """A linear map with dropout, the end of each residual branch; `dense` is ViLT's name."""
    dense = nn.Linear(in_features, config.hidden_size)
    return nn.Sequential(OrderedDict(dense=dense, dropout=nn.Dropout(config.hidden_dropout_prob)))


class TransformerAttention(nn.Module):
    """Self-attention and its output projection; returns `(output, probabilities or None, queries, keys)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = projection(config.hidden_size, config)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        context, attn_weights, query_states, key_states = self.attention(hidden_states, attention_mask, **kwargs)
        return self.output(context), attn_weights, query_states, key_states


class TransformerLayer(GradientCheckpointingLayer):
    """Attention and MLP, each around a residual, with a layer norm before or behind (`norm_first`).

    Of all tokens, or of the last `num_queries`, which then read the others' keys and values.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.attention = TransformerAttention(config)
        widened = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate = nn.Sequential(OrderedDict(dense=widened, activation=ACT2FN[config.hidden_act]))
        self.output = projection(config.intermediate_size, config)

        # Towers have no such field: they are pre-norm.
        self.norm_first = getattr(config, "norm_first", True)
        norms = [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2)]
        if self.norm_first:
            self.layernorm_before, self.layernorm_after = norms
        else:
            self.layernorm_attention, self.layernorm_output = norms

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        record: bool = False,
        *,
        num_queries: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        normed = self.layernorm_before(hidden_states) if self.norm_first else hidden_states
        attention_output, _, query_states, key_states = self.attention(
            normed, attention_mask, num_queries=num_queries, **kwargs
        )
        # Of the other tokens nobody reads more than keys and values.
        hidden_states = hidden_states[:, -num_queries:] + attention_output

        if self.norm_first:
            hidden_states = hidden_states + self.output(self.intermediate(self.layernorm_after(hidden_states)))
        else:
            hidden_states = self.layernorm_attention(hidden_states)
            hidden_states = self.layernorm_output(hidden_states + self.output(self.intermediate(hidden_states)))

        # Flat: reentrant checkpointing would cut the gradient of tensors inside a nested tuple, without a word.
        return (hidden_states, query_states, key_states) if record else (hidden_states, None, None)


class TransformerEncoder(nn.Module):
    """A stack of layers; `(B, L, C)` -> `(B, L, C)` and the queries and keys of the layers asked for.

    `by_layer` are keyword arguments that differ from layer to layer, a value for each.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layer = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        recorded_layers: Sequence[int] = (),
        by_layer: Mapping[str, Sequence[Any]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, list[QueriesAndKeys]]:
        wanted, recorded = resolve_layers(recorded_layers, len(self.layer)), {}

        for index, layer in enumerate(self.layer):
            own = {name: values[index] for name, values in (by_layer or {}).items()}
            hidden_states, *states = layer(hidden_states, attention_mask, record=index in wanted, **own, **kwargs)
            if index in wanted:
                recorded[index] = tuple(states)

        # In the order that was asked for; a layer may be asked for twice.
        return hidden_states, [recorded[index] for index in wanted]


class Pooler(nn.Module):
    """First token through a linear map and tanh: `(B, L, C)` -> `(B, C)`; of a text with a mask its first real one."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, text_mask: Tensor | None = None) -> Tensor:
        if text_mask is None:
            return torch.tanh(self.dense(hidden_states[:, 0]))
        # Of a text without any real token the last padded one.
        first = leading_padding(text_mask).clamp(max=hidden_states.shape[1] - 1)
        first_states = hidden_states.gather(1, first[:, :, None].expand(-1, -1, hidden_states.shape[2]))
        return torch.tanh(self.dense(first_states[:, 0]))
