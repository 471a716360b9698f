"""ViLT of transformers becomes a fusion encoder: configuration, weights, and the model that both make.

A fusion encoder has ViLT's parameter names (`modeling_layers`), so a head needs no renaming and the body one change of
prefix. What differs, and is dealt with here:

* Checkpoints of older transformers hold constant buffers and name the bias of the masked-word decoder twice.
* With `max_image_length` ViLT draws that many patches of a larger image at random; a fusion encoder reads them all.
* ViLT's NLVR2 has a third modality, the second image; a fresh head over more images than the table knows starts that
row
  from the last one.

transformers' ViLT draws its patches in random order in every forward. Pooled vectors and logits do not depend on it,
the order
of image tokens in hidden states and attention does: compare those after sorting only.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import PreTrainedModel, ViltConfig

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderModel

from .checkpoint import build, split_head
from .heads import BARE, model_class

VILT_HEADS: Mapping[str, str] = MappingProxyType(
    {
        "ViltModel": BARE,
        "ViltForQuestionAnswering": "question_answering",
        "ViltForImagesAndTextClassification": "images_and_text_classification",
        "ViltForImageAndTextRetrieval": "image_text_retrieval",
        "ViltForMaskedLM": "masked_lm",
    }
)
# What an image processor of ViLT allows: a longer side of 1333 / 800 times the shorter one.
LONGEST_OVER_SHORTEST = 1333 / 800
# Constants that transformers 4 saved with the weights.
BUFFERS = ("embeddings.text_embeddings.position_ids", "embeddings.text_embeddings.token_type_ids")
# The same bias, under the name that transformers 4 gave it.
OLD_DECODER_BIAS, DECODER_BIAS = "mlm_score.bias", "mlm_score.decoder.bias"


def convert_vilt_config(config: ViltConfig, head: str = BARE) -> FusionEncoderConfig:
    """Return the configuration of the fusion encoder that computes what this ViLT computes, with its labels.

    Args:
        config: of a ViLT with this head; answers and labels (`id2label`) are kept in order.
        head: one of `HEADS`; decides how many images a row has.

    Raises:
        ValueError: ViLT would drop patches (`max_image_length`), patches are not square, or `num_images` is not set
            where the head needs it.

    Example:
        >>> config = convert_vilt_config(ViltConfig(num_images=2, modality_type_vocab_size=3), "images_and_text_classification")
        >>> config.num_images, config.patch_grid
        (2, (12, 12))
    """
    patch_size = _one_side(config.patch_size)
    image_size = config.image_size if isinstance(config.image_size, int) else list(config.image_size)
    shared = {
        name: getattr(config, name)
        for name in FusionEncoderConfig.__annotations__
        if hasattr(config, name) and name not in ("image_size", "patch_size", "num_images", "pad_token_id")
    }
    if config.pad_token_id is not None:
        shared["pad_token_id"] = config.pad_token_id
    num_images = 1
    if head == "images_and_text_classification":
        num_images = config.num_images
        if num_images < 1:
            raise ValueError(
                f"num_images is {num_images}, but this head reads a fixed number of images a row; set num_images in "
                f"the "
                "config (2 for NLVR2, 1 for visual entailment)."
            )
    converted = FusionEncoderConfig(
        **shared,
        image_size=image_size,
        patch_size=patch_size,
        num_images=num_images,
        id2label=dict(config.id2label),
        label2id=dict(config.label2id),
        # ViLT's answers are trained with a sigmoid each, which its config need not say.
        problem_type="multi_label_classification" if head == "question_answering" else config.problem_type,
    )
    _refuse_dropped_patches(config.max_image_length, converted)
    return converted


def convert_vilt_state_dict(weights: Mapping[str, torch.Tensor], head: str = BARE) -> dict[str, torch.Tensor]:
    """Rename ViLT's weights to those of the fusion encoder with this head; none is copied or changed.

    Args:
        weights: a state dict of one of `VILT_HEADS`, of transformers 4 or 5.
        head: one of `HEADS`; "bare" leaves a head out.

    Raises:
        ValueError: the decoder's bias is there under both of its names with different values.

    Example:
        >>> weights = {"vilt.layernorm.bias": torch.ones(1), "rank_output.bias": torch.ones(1)}
        >>> list(convert_vilt_state_dict(weights, "image_text_retrieval"))
        ['fusion_encoder.layernorm.bias', 'rank_output.bias']
    """
    body, rest = split_vilt_head(weights)
    if head == BARE:
        return body
    return {f"{FusionEncoderModel.base_model_prefix}.{name}": weight for name, weight in body.items()} | rest


def convert_vilt(model: PreTrainedModel, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """Return the fusion encoder that computes what a ViLT of transformers computes, with weights of its own.

    Args:
        model: an instance of one of `VILT_HEADS`.
        attn_implementation: how attention is computed; ViLT itself has eager attention only.

    Returns:
        `FusionEncoderModel` or `FusionEncoderFor...`, on the model's device and in its dtype, in eval mode. Logits and
        pooled vectors agree to 1e-5 in float32.

    Raises:
        ValueError: the class is not one of `VILT_HEADS`, or the configuration cannot be converted.

    Example:
        >>> from transformers import ViltModel
        >>> vilt = ViltModel(ViltConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                             intermediate_size=8, image_size=8, patch_size=4))
        >>> type(convert_vilt(vilt)).__name__
        'FusionEncoderModel'
    """
    name = type(model).__name__
    if name not in VILT_HEADS:
        raise ValueError(f"{name} cannot be converted; give one of {', '.join(VILT_HEADS)}.")
    head = VILT_HEADS[name]
    config = convert_vilt_config(model.config, head)
    body, rest = split_vilt_head(model.state_dict())
    converted = build(
        model_class(config, head), config, body, rest, name, attn_implementation=attn_implementation, dtype=model.dtype
    )
    return converted.to(model.device)


def split_vilt_head(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split ViLT's weights into body and head, both under our names."""
    body, head = split_head(weights, "vilt")
    for name in BUFFERS:
        body.pop(name, None)
    old_bias = head.pop(OLD_DECODER_BIAS, None)
    if old_bias is not None and not torch.equal(head.setdefault(DECODER_BIAS, old_bias), old_bias):
        raise ValueError(
            f"the checkpoint has {OLD_DECODER_BIAS} and {DECODER_BIAS} with different values, although they are one "
            "parameter; save it again with the transformers that it was trained with."
        )
    return body, head


def _one_side(patch_size: int | list[int] | tuple[int, int]) -> int:
    """Return the side of a square patch."""
    if isinstance(patch_size, int):
        return patch_size
    sides = set(patch_size)
    if len(sides) != 1:
        raise ValueError(
            f"patch_size is {list(patch_size)}, but a fusion encoder has square patches; this ViLT cannot be read."
        )
    return sides.pop()


def _refuse_dropped_patches(max_image_length: int, config: FusionEncoderConfig) -> None:
    """Refuse a ViLT that reads fewer patches than an image of its processor can have."""
    shorter = min(config.patch_grid)
    longest = int(LONGEST_OVER_SHORTEST * shorter * config.patch_size) // config.patch_size
    most = max(config.patch_grid[0] * config.patch_grid[1], shorter * longest)
    if 0 <= max_image_length < most:
        raise ValueError(
            f"max_image_length is {max_image_length}, so this ViLT draws at most {max_image_length} patches of an "
            f"image at "
            f"random where an image can have {most}, and a fusion encoder reads all of them; set max_image_length to "
            f"-1 in "
            "its config.json if that is what you want (ViLT then reads all of them too)."
        )


__all__ = ["VILT_HEADS", "convert_vilt", "convert_vilt_config", "convert_vilt_state_dict", "split_vilt_head"]
