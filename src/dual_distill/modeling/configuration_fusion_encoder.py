"""The configuration of the fusion encoder: one transformer over text and image tokens together."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FusionEncoderConfig(PreTrainedConfig):
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
        initializer_range: standard deviation of freshly drawn weights.
        embedding_initializer_range: that of freshly drawn word, position, modality and CLS embeddings; None:
            `initializer_range`.
        layer_norm_eps: epsilon of the layer norms inside the encoder.
        image_size: pixels that the position table stands for: a number for a square, or `[height, width]`. Images of
            other sizes are accepted; the table is interpolated to each image's own grid.
        patch_size: side of a square patch in pixels; must divide `image_size`.
        num_channels: colour channels.
        qkv_bias: whether query, key and value projections have a bias.
        num_images: images in a row that `ForImagesAndTextClassification` expects (2 for NLVR2).
        recorded_layers: layers whose queries and keys `output_query_states=True` returns; negative counts from the last.
        pad_token_id: id of the padding token.
        tie_word_embeddings: whether `ForMaskedLM` decodes words with the word embeddings.

    Raises:
        StrictDataclassClassValidationError: `hidden_size` is no multiple of `num_attention_heads`, or `image_size` none of
            `patch_size`.

    Example:
        >>> config = FusionEncoderConfig(hidden_size=96, num_attention_heads=4, image_size=[50, 200], patch_size=10)
        >>> config.patch_grid
        (5, 20)
    """

    model_type = "dual_distill_fusion_encoder"
    # Trainer.predict on rows without labels would else gather and pad all of these beside the logits.
    keys_to_ignore_at_inference = ["pooler_output", "image_mask", "query_states", "key_states", "hidden_states", "attentions"]

    vocab_size: int = 30522
    type_vocab_size: int = 2
    modality_type_vocab_size: int = 2
    max_position_embeddings: int = 40
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
    image_size: int | list[int] | tuple[int, int] = 384
    patch_size: int = 32
    num_channels: int = 3
    qkv_bias: bool = True
    num_images: int = 1
    recorded_layers: list[int] | tuple[int, ...] = (-1,)
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def validate_architecture(self) -> None:
        """Refuse widths and grids that do not divide."""
        super().validate_architecture()
        validate_tower(self)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return patch_grid(self.image_size, self.patch_size)


def patch_grid(image_size: int | list[int] | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return rows and columns of patches in an image of `image_size` pixels.

    Example:
        >>> patch_grid(384, 32)
        (12, 12)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height // patch_size, width // patch_size


def validate_tower(config: PreTrainedConfig) -> None:
    """Raise a `ValueError` for widths and grids that do not divide; shared by every transformer of the package."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads}; "
            "choose a width that the heads divide evenly."
        )
    image_size = getattr(config, "image_size", None)
    if image_size is None:
        return
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(side <= 0 or side % config.patch_size for side in sides):
        raise ValueError(
            f"image_size {image_size} does not divide into patches of {config.patch_size} pixels; "
            "give one side or [height, width], each a multiple of patch_size."
        )


__all__ = ["FusionEncoderConfig", "patch_grid", "validate_tower"]
