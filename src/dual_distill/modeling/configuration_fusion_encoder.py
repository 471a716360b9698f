"""The configuration of the fusion encoder: one transformer over text and image tokens together."""

import inspect
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MAX_LAYERS = 1_000


@strict
class OwnConfig(PreTrainedConfig):
    """A configuration that reads checkpoints of its own type only; transformers would warn and fill the rest in."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration, or say which call reads a checkpoint of another type."""
        given = config_dict.get("model_type", cls.model_type)
        if given != cls.model_type:
            made = "a dual encoder of it is made by `from_fusion_encoder(load_teacher(...).model)`"
            way_out = f"load it with `dual_distill.load_model(...)`; {made}"
            raise ValueError(f"the checkpoint is a {given}, not a {cls.model_type}; {way_out}.")
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        """Refuse a weight of a loss that is negative or no number."""
        super().validate_architecture()
        for name in own_fields(type(self)):
            # A comparison from the inside: it is False for NaN too.
            if name.endswith("_weight") and not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; give a number >= 0, 0 to leave that loss out.")


@strict
class TransformerConfig(OwnConfig):
    """Fields that every transformer of the package has; they mean what they mean in `FusionEncoderConfig`."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02
    embedding_initializer_range: float | int | None = None
    layer_norm_eps: float | int = 1e-12
    qkv_bias: bool = True
    recorded_layers: list[int] | tuple[int, ...] = (-1,)

    def validate_architecture(self) -> None:
        """Refuse widths and grids that do not divide."""
        super().validate_architecture()
        # Each is built before the weights show that there are none for it.
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers:,}; at most {MAX_LAYERS:,} are built.")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise ValueError(f"hidden_size {width} is no multiple of num_attention_heads {heads}; choose one that is.")

        # The text tower has no image.
        image_size = getattr(self, "image_size", None)
        if image_size is None:
            return
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2 or any(side <= 0 or side % self.patch_size for side in sides):
            does_not = f"does not divide into patches of {self.patch_size} pixels"
            raise ValueError(f"image_size {image_size} {does_not}; give multiples.")

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return height // self.patch_size, width // self.patch_size


@strict
class FusionEncoderConfig(TransformerConfig):
    """Configuration of a `FusionEncoderModel`; the defaults are ViLT-B/32's shape.

    Args:
        vocab_size: word pieces of the tokenizer.
        type_vocab_size: rows of the text segment table (BERT's token types; row 0 is used).
        modality_type_vocab_size: rows of the modality table: 0 text, 1 image, 2 the second image of a row, and so on.
            Images beyond the table share its last row.
        max_position_embeddings: longest text in tokens.
        hidden_size: model width C.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads H; must divide `hidden_size`.
        intermediate_size: width inside the MLP.
        hidden_act: activation of the MLP.
        hidden_dropout_prob: dropout on embeddings and on every residual branch.
        attention_probs_dropout_prob: dropout on attention probabilities.
        initializer_range: standard deviation of newly initialized weights.
        embedding_initializer_range: that of newly initialized word, position, modality and CLS embeddings; None:
            `initializer_range`.
        layer_norm_eps: epsilon of the layer norms inside the encoder.
        image_size: pixels that the position table stands for: a number for a square, or `[height, width]`. Images of
            other sizes are accepted; the table is interpolated to each image's own grid.
        patch_size: side of a square patch in pixels; must divide `image_size`.
        num_channels: colour channels.
        qkv_bias: whether query, key and value projections have a bias.
        num_images: images in a row that `ForImagesAndTextClassification` expects (2 for NLVR2).
        classifier_hidden_size: width inside a head with labels; None: `hidden_size` times the images of a row, twice
            where that is one.
        recorded_layers: layers whose queries and keys `output_query_states=True` returns; negative counts from the
            last.
        pad_token_id: id of the padding token.
        tie_word_embeddings: whether `ForMaskedLM` and `ForPreTraining` decode words with the word embeddings.
        itm_weight: weight of the matching loss in pre-training; 0: not computed.
        mlm_weight: weight of the masked-word loss in pre-training; 0: not computed.
        norm_first: True for layer norms before attention and MLP and one at the end (ViLT), False for layer norms
            behind each residual and none at the end (BERT).
        visual_inputs: "patches" of pixels, or "regions" that an object detector found.
        region_feature_size: width F of a region's feature vector.
        region_layer_norm: whether projected regions are normalised.
        max_regions: most regions an image.
        region_boxes_id: names the detector whose boxes the model was trained on; None: not known. Teacher and student
            must agree in it, or their regions do not correspond.
        region_features_id: names the backbone that the region features came from; None: not known.
        mask_token_id: id of the mask token, which captions are written with.
        bos_token_id: id of the token that captions begin with (BERT's [CLS]).
        eos_token_id: id of the token that captions end with (BERT's [SEP]).
        max_caption_tokens: positions that captions may take; object tags start behind them in `ForCaptioning`.

    Raises:
        StrictDataclassClassValidationError: `hidden_size` is no multiple of `num_attention_heads`, `image_size` none of
            `patch_size`, or `visual_inputs` neither of the two.

    Example:
        >>> config = FusionEncoderConfig(hidden_size=96, num_attention_heads=4, image_size=[50, 200], patch_size=10)
        >>> config.patch_grid
        (5, 20)
    """

    model_type = "dual_distill_fusion_encoder"
    # Former names, under which old checkpoints hold their weights.
    attribute_map = {"matching_weight": "itm_weight", "masked_word_weight": "mlm_weight"}
    # Trainer.predict on rows without labels would else gather and pad all of these beside the logits.
    keys_to_ignore_at_inference = [
        *("pooler_output", "image_mask", "query_states", "key_states", "hidden_states", "attentions"),
        *("negative_image_rows", "mlm_logits", "attention_pattern", "past_key_values"),
    ]

    vocab_size: int = 30522
    type_vocab_size: int = 2
    modality_type_vocab_size: int = 2
    max_position_embeddings: int = 40
    image_size: int | list[int] | tuple[int, int] = 384
    patch_size: int = 32
    num_channels: int = 3
    num_images: int = 1
    classifier_hidden_size: int | None = None
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    itm_weight: float | int = 1.0
    mlm_weight: float | int = 1.0
    norm_first: bool = True
    visual_inputs: str = "patches"
    region_feature_size: int = 2048
    region_layer_norm: bool = True
    max_regions: int = 50
    region_boxes_id: str | None = None
    region_features_id: str | None = None
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    max_caption_tokens: int = 40

    def validate_architecture(self) -> None:
        """Refuse image tokens of a third kind."""
        super().validate_architecture()
        if self.visual_inputs not in ("patches", "regions"):
            raise ValueError(f'visual_inputs is {self.visual_inputs!r}; choose "patches" or "regions".')


def own_fields(kind: type[PreTrainedConfig]) -> list[str]:
    """Return the fields of a configuration that are ours; transformers' own differ from version to version.

    Example:
        >>> "hidden_size" in own_fields(FusionEncoderConfig), "id2label" in own_fields(FusionEncoderConfig)
        (True, False)
    """
    ours = [
        part for part in reversed(kind.__mro__) if issubclass(part, PreTrainedConfig) and part is not PreTrainedConfig
    ]
    return list(dict.fromkeys(name for part in ours for name in inspect.get_annotations(part)))
