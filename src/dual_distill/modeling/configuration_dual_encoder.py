"""The configuration of the dual encoder: one transformer per modality and a shallow interaction."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_fusion_encoder import FusionEncoderConfig, OwnConfig, TransformerConfig


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


def _of_towers(name: str, *towers: str) -> property:
    """Give a value of the towers at the top: read from the first of `towers`, written to all of them."""

    def read(config: Any) -> Any:
        return getattr(getattr(config, towers[0]), name)

    def write(config: Any, value: Any) -> None:
        for tower in towers:
            setattr(getattr(config, tower), name, value)

    return property(read, write)


@strict
class DualEncoderConfig(OwnConfig):
    """Configuration of a `DualEncoderModel`: two towers of equal width and head count, of any depths.

    Args:
        text_config: the text tower, a `DualEncoderTextConfig` or its fields as a dict.
        vision_config: the image tower, a `DualEncoderVisionConfig` or its fields as a dict.
        initializer_range: standard deviation of newly initialized weights of interaction and head.
        num_images: images in a row that `ForImagesAndTextClassification` expects (2 for NLVR2).
        classifier_hidden_size: width inside a head with labels; None: `hidden_size` times the images of a row, twice
            where that is one.
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
        *FusionEncoderConfig.keys_to_ignore_at_inference,
        *("text_embeds", "image_embeds", "text_pooler_output", "image_pooler_output"),
        *("interaction_model_output", "negative_text_rows"),
    ]
    # Former names, under which old checkpoints hold their weights.
    attribute_map = {**FusionEncoderConfig.attribute_map, "contrastive_weight": "itc_weight"}
    sub_configs_defaults = {"text_config": DualEncoderTextConfig, "vision_config": DualEncoderVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    initializer_range: float | int = 0.02
    num_images: int = 1
    classifier_hidden_size: int | None = None
    recorded_layers: list[int] | tuple[int, ...] = (-1,)
    interaction_layers: int = 0
    projection_dim: int = 256
    logit_scale_init: float | int = 2.6592600369327783
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse towers of another type, of which transformers would read what it can and forget the rest."""
        for name, own in (("text_config", DualEncoderTextConfig), ("vision_config", DualEncoderVisionConfig)):
            given = getattr(self, name) or {}
            model_type = given.get("model_type") if isinstance(given, dict) else given.model_type
            if model_type not in (None, own.model_type):
                raise ValueError(f"{name} is a {model_type}, but a dual encoder has a {own.model_type} there.")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse towers whose queries and keys do not fit each other."""
        super().validate_architecture()
        for name, least in (("interaction_layers", 0), ("projection_dim", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

        for name in ("hidden_size", "num_attention_heads"):
            text, vision = getattr(self.text_config, name), getattr(self.vision_config, name)
            if text != vision:
                raise ValueError(f"the text tower has {name} {text}, the image tower {vision}; give both the same.")

    hidden_size = _of_towers("hidden_size", "text_config", "vision_config")
    num_attention_heads = _of_towers("num_attention_heads", "text_config", "vision_config")
    vocab_size = _of_towers("vocab_size", "text_config")
    patch_grid = _of_towers("patch_grid", "vision_config")
