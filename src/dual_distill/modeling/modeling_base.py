"""What the models of both encoders are mixed from: abilities, the transformer behind embeddings, word embeddings."""

from collections.abc import Callable, Sequence
from functools import wraps
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .modeling_embeddings import ImageEmbeddings
from .modeling_layers import Pooler, TransformerAttention, TransformerEncoder, TransformerLayer


class EncoderPreTrainedModel(PreTrainedModel):
    """What all classes of both encoders share: abilities and initialisation."""

    main_input_name = "input_ids"
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
        std = getattr(self.config, "embedding_initializer_range", None) or self.config.initializer_range

        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, ImageEmbeddings):
            init.normal_(module.cls_token, std=std)
            init.normal_(module.position_embeddings, std=std)


class FreezableTower(nn.Module):
    """A tower that stays as it is where none of it is trained, ours or of others."""

    def train(self, mode: bool = True) -> Any:
        """As every module; frozen, it drops nothing, and keeps no running means of batches that change."""
        # What makes a model of others fit is trained, whether it is or not. FSDP may hold a tower's weights elsewhere.
        frozen = [not parameter.requires_grad for parameter in getattr(self, "model", self).parameters()]
        return super().train(mode and not (frozen and all(frozen)))


def records_layers(forward: Callable[..., Any]) -> Any:
    """Let a forward hand out `hidden_states` and `attentions` as `_can_record_outputs` names them."""
    return merge_with_config_defaults(capture_outputs(tie_last_hidden_states=False)(forward))


def returns_tuple(forward: Callable[..., Any]) -> Any:
    """Give a tuple where the call or the configuration asks for one; parts of the model that it calls do not."""

    @wraps(forward)
    def with_dictionaries(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, return_dict=True, **kwargs)

    return can_return_tuple(with_dictionaries)


class TransformerBody(EncoderPreTrainedModel):
    """Embeddings, which differ from model to model, encoder, final layer norm and pooler, under ViLT's names."""

    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": TransformerAttention}

    def __init__(self, config: PreTrainedConfig, embeddings: type[nn.Module]):
        super().__init__(config)
        self.embeddings: Any = embeddings(config)
        self.encoder = TransformerEncoder(config)

        # Post-norm layers end in a norm of their own.
        norm_first = getattr(config, "norm_first", True)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm: nn.Module = norm if norm_first else nn.Identity()
        self.pooler = Pooler(config)
        self.post_init()

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool final tokens `(B, L, C)`, by the first of them that is real; `mask` `(B, T)` is the text's."""
        return self.pooler(tokens, mask)

    def encode_tokens(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
        recorded_layers: Sequence[int],
        text_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> dict[str, Any]:
        """Encode embedded tokens `(B, L, C)`: hidden state, pooled vector, queries and keys of the recorded layers.

        `text_mask` `(B, T)` tells where a text begins, whose first token is pooled; None: with the first token.
        """
        hidden_states, recorded = self.encoder(tokens, attention_mask, recorded_layers=recorded_layers, **kwargs)
        hidden_states = self.layernorm(hidden_states)

        return {
            "last_hidden_state": hidden_states,
            "pooler_output": self.pool(hidden_states, text_mask),
            "query_states": tuple(queries for queries, _ in recorded) or None,
            "key_states": tuple(keys for _, keys in recorded) or None,
        }


class TextInputs:
    """Word embeddings where resizing and tying look for them; mixed into the models that embed text themselves."""

    text_embeddings_path = "embeddings.text_embeddings"

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return attrgetter(self.text_embeddings_path)(self).word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        attrgetter(self.text_embeddings_path)(self).word_embeddings = value
