"""The configuration of the dual encoder: one tower per modality, ours or any of transformers', and an interaction."""

from math import isqrt, prod
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from .configuration_fusion_encoder import MAX_LAYERS, FusionEncoderConfig, OwnConfig, TransformerConfig


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


Pooling = Literal["cls", "mean", "last", "tower"]
"""The first token, the mean of all, the last one, or whatever the tower itself pools."""

# Their position table begins behind the row of the padding token.
_POSITIONS_BEHIND_PADDING = (
    *("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "xlm-roberta-xl", "xmod"),
    *("mpnet", "longformer", "ibert", "luke", "data2vec-text", "esm", "markuplm"),
)


def _of_towers(name: str, *towers: str) -> property:
    """Give a value of the towers at the top: read from the first of `towers`, written to all of them."""

    def read(config: Any) -> Any:
        return getattr(getattr(config, towers[0]), name)

    def write(config: Any, value: Any) -> None:
        for tower in towers:
            setattr(getattr(config, tower), name, value)

    return property(read, write)


_OWN = {"text_config": DualEncoderTextConfig, "vision_config": DualEncoderVisionConfig}


def tower_config(key: str, given: Any, own: type[PreTrainedConfig]) -> Any:
    """Return the configuration of a tower: of one in transformers by its `model_type`, of CLIP's kind the half.

    Raises:
        ValueError: AutoModel has no model of that type, or that of a text reads none, or not by an encoder alone.
    """
    config = given or {}
    model_type = config.get("model_type", own.model_type) if isinstance(config, dict) else config.model_type
    if model_type == own.model_type:
        return given
    if isinstance(config, dict) and model_type in CONFIG_MAPPING:
        config = CONFIG_MAPPING[model_type](**config)
    config = getattr(config, key, config)
    if isinstance(config, dict) or config.model_type not in MODEL_MAPPING_NAMES:
        known = f"AutoModel has no model of that type; give a {own.model_type}, or a model that AutoModel loads"
        raise ValueError(f"{key} is a {getattr(config, 'model_type', model_type)}, but {known}.")
    if key == "text_config" and (config.is_encoder_decoder or not hasattr(config, "max_position_embeddings")):
        no_text = "names no max_position_embeddings, so that its longest text is not known"
        lacks = "has a decoder" if config.is_encoder_decoder else no_text
        way_out = "give an encoder, such as BERT, or a causal model, such as Llama"
        raise ValueError(f"{key} is a {config.model_type}, which {lacks}; {way_out}.")
    names_width = getattr(config, "hidden_sizes", None) or hasattr(config, "hidden_size")
    if key == "vision_config" and not names_width and config.model_type != "efficientnet":
        lacks = "names no hidden_size, so that the width of its tokens is not known"
        raise ValueError(f"{key} is a {config.model_type}, which {lacks}; give ViT, SigLIP or ConvNeXt.")
    return config


@strict
class DualEncoderConfig(OwnConfig):
    """Configuration of a `DualEncoderModel`: two towers, ours or any that transformers' AutoModel knows.

    Towers of ours have equal width and head count. Where those of others differ in width, a linear map brings image
    tokens to the text tower's; where heads differ, or a tower has no attention, recorded "queries" and "keys" are the
    final tokens, which an objective projects.

    Args:
        text_config: the text tower, a configuration or its fields as a dict; without a `model_type` those of a
            `DualEncoderTextConfig`. Of a configuration with two towers, such as CLIP's, the text tower is taken.
        vision_config: the image tower, likewise; a `DualEncoderVisionConfig`.
        text_pooling: which vector stands for a text: `cls` (its first token), `mean`, `last`, or `tower` (what the
            tower pools itself); None: a tower of ours its own, `cls` for models that complete masked words, `last` for
            causal ones, else `tower`.
        vision_pooling: the same of an image; None: `tower`, or `mean` in front of interaction layers, which can be
            given stored tokens.
        projected_heads: heads of query and key projections of the final tokens that the model keeps, which
            `output_query_states` then hands out; 0: none. Training writes it where it is asked to keep them.
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
        ValueError: transformers' AutoModel does not know the type of a tower.
        StrictDataclassClassValidationError: two towers of ours differ in width or head count (text queries could not be
            held against image keys), a pooling does not fit, projection_dim is below 1, or a weight is negative.

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
    text_pooling: Pooling | None = None
    vision_pooling: Pooling | None = None
    projected_heads: int = 0
    projection_dim: int = 256
    logit_scale_init: float | int = 2.6592600369327783
    itc_weight: float | int = 1.0
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    tie_word_embeddings: bool = True

    @classmethod
    def from_vision_text_pretrained(cls, vision: str | Path, text: str | Path, **fields: Any) -> Self:
        """Return the configuration of the model that `from_vision_text_pretrained` builds; the same arguments."""
        for tower, name in (("vision", vision), ("text", text)):
            revision, key = fields.pop(f"{tower}_revision", None), f"{tower}_config"
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
            if config.model_type in (cls.model_type, _OWN[key].model_type):
                way_out = "start from it with from_pretrained or from_fusion_encoder"
                raise ValueError(f"{str(name)!r} is a {config.model_type} of this package; {way_out}.")
            fields[key] = config
        return cls(**fields)

    def __post_init__(self, **kwargs: Any) -> None:
        """Read towers that are not ours by their `model_type`, and settle how each is pooled."""
        for name, own in _OWN.items():
            setattr(self, name, tower_config(name, getattr(self, name), own))
        super().__post_init__(**kwargs)

        if self.text_pooling is None:
            self.text_pooling = self._usual_text_pooling()
        if self.vision_pooling is None:
            # Stored tokens, which interaction layers read, are pooled anew; a tower's own pooling is not of them.
            pools_tokens = self.interaction_layers and not self.is_own("vision_config")
            self.vision_pooling = "mean" if pools_tokens else "tower"

    def _usual_text_pooling(self) -> Pooling:
        model_type = self.text_config.model_type
        if self.is_own("text_config"):
            return "tower"
        if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return "cls"
        return "last" if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "tower"

    def validate_architecture(self) -> None:
        """Refuse towers that do not fit each other."""
        super().validate_architecture()
        for name, least in (("interaction_layers", 0), ("projected_heads", 0), ("projection_dim", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.interaction_layers > MAX_LAYERS:
            raise ValueError(f"interaction_layers is {self.interaction_layers:,}; at most {MAX_LAYERS:,} are built.")

        # What a tower of ours is, its maker chose; towers of others are made to fit by a linear map.
        is_own = {name: self.is_own(name) for name in _OWN}
        for name in ("hidden_size", "num_attention_heads") if all(is_own.values()) else ("hidden_size",):
            text, vision = getattr(self.text_config, name), getattr(self.vision_config, name, None)
            if is_own["vision_config"] and text != vision:
                raise ValueError(f"the text tower has {name} {text}, the image tower {vision}; give both the same.")
        for name, pooling in (("text_config", self.text_pooling), ("vision_config", self.vision_pooling)):
            if is_own[name] and pooling != "tower":
                raise ValueError(f"{name} is a tower of ours, which pools itself, but its pooling is {pooling!r}.")
        if self.interaction_layers and self.text_pooling == "tower" and not is_own["text_config"]:
            lacks = "behind interaction layers the text tower's own pooling cannot be used"
            raise ValueError(f"{lacks}; give text_pooling cls, mean or last.")

    def is_own(self, tower: str) -> bool:
        """Whether a tower, `text_config` or `vision_config`, is one of this package."""
        return getattr(self, tower).model_type == _OWN[tower].model_type

    @property
    def joint_config(self) -> DualEncoderTextConfig:
        """Shape of what stands behind the towers: the text tower's, if it is ours, else layers of its width."""
        text: Any = self.text_config
        if isinstance(text, DualEncoderTextConfig):
            return text
        shape = {name: getattr(text, name) for name in ("hidden_size", "num_attention_heads", "vocab_size")}
        joint = DualEncoderTextConfig(**shape, intermediate_size=4 * text.hidden_size)
        joint._attn_implementation = self._attn_implementation
        return joint

    @property
    def attention_shapes(self) -> list[tuple[int, int] | None]:
        """Heads and width of a head of each tower's attention; None: it has none of its own."""
        shapes: list[tuple[int, int] | None] = []
        for tower in (self.text_config, self.vision_config):
            if {"head_dim", "num_attention_heads"} & (getattr(tower, "per_layer_attributes", None) or set()):
                shapes.append(None)  # Gemma 4: each kind of layer has its own
                continue
            heads, width = getattr(tower, "num_attention_heads", None), tower_width(tower)
            head_width = getattr(tower, "head_dim", None) or width // (heads if isinstance(heads, int) else 1)
            shapes.append((heads, head_width) if isinstance(heads, int) else None)
        return shapes

    @property
    def records_tokens(self) -> bool:
        """Whether recorded "queries" and "keys" are the final tokens, of one head: those of the towers do not fit."""
        text, image = self.attention_shapes
        return not self.projected_heads and (text is None or text != image)

    @property
    def num_attention_heads(self) -> int | None:
        """Heads of recorded queries and keys; None: not settled, as tokens are recorded."""
        shape = self.attention_shapes[0]
        return None if self.records_tokens or shape is None else self.projected_heads or shape[0]

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        self.text_config.num_attention_heads = self.vision_config.num_attention_heads = value

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens."""
        text = self.text_config
        is_behind = text.model_type in _POSITIONS_BEHIND_PADDING and text.pad_token_id is not None
        return text.max_position_embeddings - (text.pad_token_id + 1 if is_behind else 0)

    @property
    def patch_size(self) -> int:
        """Pixels along the side of what an image token stands for."""
        vision = self.vision_config
        if vision.model_type == "efficientnet":
            # It names what follows its first convolution, which halves.
            return 2 * prod(vision.strides)

        # A convolutional backbone halves its grid between stages; what comes before a ResNet's quarters it.
        halvings = len(getattr(vision, "hidden_sizes", None) or [0]) - 1
        patch = getattr(vision, "patch_size", 4)
        return (patch if isinstance(patch, int) else patch[0]) * 2**halvings

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the image tower's position table, or of the cells of a usual image."""
        vision = self.vision_config
        if hasattr(vision, "num_patches") and not hasattr(vision, "image_size"):
            side = isqrt(vision.num_patches)
            return side, side
        # A convolution has no size of its own; most are trained on this one.
        size = getattr(vision, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    hidden_size = _of_towers("hidden_size", "text_config", "vision_config")
    vocab_size = _of_towers("vocab_size", "text_config")


def tower_width(config: PreTrainedConfig) -> int:
    """Width of a tower's final tokens.

    Example:
        >>> tower_width(DualEncoderTextConfig(hidden_size=96, num_attention_heads=4))
        96
    """
    sizes = getattr(config, "hidden_sizes", None)
    if sizes:
        return sizes[-1]
    return config.hidden_dim if config.model_type == "efficientnet" else config.hidden_size
