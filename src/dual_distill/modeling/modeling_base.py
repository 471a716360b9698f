"""What the models of both encoders are mixed from: abilities, the transformer behind embeddings, word embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .modeling_embeddings import initialize_embeddings
from .modeling_layers import Pooler, TransformerEncoder


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


def records_layers(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a forward hand out `hidden_states` and `attentions` as `_can_record_outputs` names them."""
    recording: Callable[..., Any] = merge_with_config_defaults(capture_outputs(tie_last_hidden_states=False)(forward))
    return recording


class TransformerBody(EncoderPreTrainedModel):
    """Embeddings, which differ from model to model, encoder, final layer norm and pooler, under ViLT's names."""

    def __init__(self, config: PreTrainedConfig, embeddings: type[nn.Module]):
        super().__init__(config)
        self.embeddings: Any = embeddings(config)
        self.encoder = TransformerEncoder(config)
        # Post-norm layers end in a norm of their own.
        norm_first = getattr(config, "norm_first", True)
        self.layernorm: nn.Module = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if norm_first else nn.Identity()
        )
        self.pooler = Pooler(config)
        self.post_init()

    def encode_tokens(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None,
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
