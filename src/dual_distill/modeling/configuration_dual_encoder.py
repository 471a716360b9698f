"""The configuration of the dual encoder: one transformer per modality and a shallow interaction."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_fusion_encoder import OwnConfig, TransformerConfig, patch_grid, take_former_names, validate_weights


@strict
class DualEncoderTextConfig(TransformerConfig):
    """Configuration of the text tower; the fields mean what they mean in `FusionEncoderConfig`.

    Example:
        >>> DualEncoderTextConfig(hidden_size=96, num_attention_heads=4).num_hidden_layers
        12
    """

    model_type = "dual_distill_text_tower"
    base_config_key = "text_config"

    vocab_size: int = 30522
    type_vocab_size: int = 2
    max_position_embeddings: int = 40
    pad_token_id: int | None = 0


@strict
class DualEncoderVisionConfig(TransformerConfig):
    """Configuration of the image tower; the fields mean what they mean in `FusionEncoderConfig`.

    `modality_type_vocab_size` counts image slots only: row 0 is the first image of a row, row 1 the second.

    Example:
        >>> DualEncoderVisionConfig(hidden_size=96, num_attention_heads=4, image_size=64, patch_size=8).patch_grid
        (8, 8)
    """

    model_type = "dual_distill_image_tower"
    base_config_key = "vision_config"

    modality_type_vocab_size: int = 1
    image_size: int | list[int] | tuple[int, int] = 384
    patch_size: int = 32
    num_channels: int = 3

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return patch_grid(self.image_size, self.patch_size)


@strict
class DualEncoderConfig(OwnConfig):
    """Configuration of a `DualEncoderModel`: two towers of equal width and head count, of any depths.

    Args:
        text_config: the text tower, a `DualEncoderTextConfig` or its fields as a dict.
        vision_config: the image tower, a `DualEncoderVisionConfig` or its fields as a dict.
        initializer_range: standard deviation of newly initialized weights of interaction and head.
        num_images: images in a row that `ForImagesAndTextClassification` expects (2 for NLVR2).
        recorded_layers: layers, counted in each tower, whose queries and keys `output_query_states=True` returns.
        interaction_layers: transformer layers of the text tower's shape in which a text's tokens attend to themselves
            and to the image's final tokens, before the shallow interaction of the two pooled vectors; 0: the paper's.
        projection_dim: width P of the vectors whose cosine ranks texts and images (pre-training and retrieval).
        logit_scale_init: logarithm of the factor on those cosines before training; ln(1 / 0.07).
        itc_weight: weight of the contrastive loss in pre-training; 0: not computed.
        itm_weight: weight of the matching loss in pre-training; 0: not computed.
        mlm_weight: weight of the masked-word loss in pre-training; 0: not computed.
        tie_word_embeddings: whether `ForPreTraining` decodes words with the word embeddings.

    Raises:
        StrictDataclassClassValidationError: the towers differ in width or head count (text queries could not be held
            against image keys), projection_dim is below 1, or a weight is negative.

    Example:
        >>> tower = {"hidden_size": 96, "num_attention_heads": 4}
        >>> DualEncoderConfig(text_config=tower, vision_config=tower).hidden_size
        96
    """

    model_type = "dual_distill_dual_encoder"
    # As in `FusionEncoderConfig`.
    keys_to_ignore_at_inference = [
        "pooler_output",
        "text_embeds",
        "image_embeds",
        "image_mask",
        "query_states",
        "key_states",
        "text_pooler_output",
        "image_pooler_output",
        "interaction_model_output",
        "negative_image_rows",
        "negative_text_rows",
        "mlm_logits",
    ]
    sub_configs_defaults = {"text_config": DualEncoderTextConfig, "vision_config": DualEncoderVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    initializer_range: float | int = 0.02
    num_images: int = 1
    recorded_layers: list[int] | tuple[int, ...] = (-1,)
    interaction_layers: int = 0
    projection_dim: int = 256
    logit_scale_init: float | int = 2.6592600369327783
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Read configurations that hold the weights under their former names."""
        super().__post_init__(**take_former_names(self, kwargs))

    def validate_architecture(self) -> None:
        """Refuse towers whose queries and keys do not fit each other, and weights that mean nothing."""
        super().validate_architecture()
        if self.interaction_layers < 0:
            raise ValueError(f"interaction_layers is {self.interaction_layers}; it must be at least 0.")
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim is {self.projection_dim}; it must be at least 1.")
        validate_weights(self, ("itc_weight", "itm_weight", "mlm_weight"))

        for name in ("hidden_size", "num_attention_heads"):
            text, vision = getattr(self.text_config, name), getattr(self.vision_config, name)
            if text != vision:
                raise ValueError(
                    f"the text tower has {name} {text}, the image tower {vision}; give both the same, or text queries "
                    "cannot be held against image keys."
                )

    @property
    def hidden_size(self) -> int:
        """Width C of both towers and of the fused vector."""
        return self.text_config.hidden_size

    @property
    def num_attention_heads(self) -> int:
        """Heads H of both towers."""
        return self.text_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        """Word pieces of the tokenizer."""
        return self.text_config.vocab_size

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tower's position table."""
        return self.vision_config.patch_grid
