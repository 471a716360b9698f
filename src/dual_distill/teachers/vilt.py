"""ViLT of transformers becomes a fusion encoder: configuration, weights, and the model that both make.

A fusion encoder has ViLT's parameter names (`modeling_layers`), so a head needs no renaming and the body one change of
prefix. What differs, and is handled here:

* Checkpoints of older transformers hold constant buffers and name the bias of the masked-word decoder twice.
* With `max_image_length` ViLT draws that many patches of a larger image at random; a fusion encoder reads them all.
* ViLT's NLVR2 has a third modality, the second image; a new head over more images than the table has starts that row
  from the last one.

transformers' ViLT draws its patches in random order in every forward pass. Pooled vectors and logits do not depend on
it, the order of image tokens in hidden states and attention does: compare those only after sorting.
"""

from collections.abc import Mapping
from pathlib import Path

import transformers
from transformers import PreTrainedModel, ViltConfig

from dual_distill import modeling
from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForImagesAndTextClassification, FusionEncoderModel

from .checkpoint import DECODER_BIAS, build, read_weights, split_head

VILT_CLASSES: Mapping[str, type[PreTrainedModel]] = {
    "ViltModel": FusionEncoderModel,
    "ViltForQuestionAnswering": modeling.FusionEncoderForQuestionAnswering,
    "ViltForImagesAndTextClassification": FusionEncoderForImagesAndTextClassification,
    "ViltForImageAndTextRetrieval": modeling.FusionEncoderForImageTextRetrieval,
    "ViltForMaskedLM": modeling.FusionEncoderForMaskedLM,
}
# What an image processor of ViLT allows: a longer side of 1333 / 800 times the shorter one.
LONGEST_OVER_SHORTEST = 1333 / 800


def convert_vilt_config(
    config: ViltConfig, model_class: type[PreTrainedModel] = FusionEncoderModel
) -> FusionEncoderConfig:
    """Return the configuration of the fusion encoder that computes what this ViLT computes, with its labels.

    Args:
        config: of a ViLT; answers and labels (`id2label`) are kept in order.
        model_class: class of the fusion encoder; decides how many images a row has.

    Raises:
        ValueError: ViLT would drop patches (`max_image_length`), patches are not square, or `num_images` is not set
            where the head needs it.

    Example:
        >>> vilt = ViltConfig(num_images=2, modality_type_vocab_size=3)
        >>> config = convert_vilt_config(vilt, FusionEncoderForImagesAndTextClassification)
        >>> config.num_images, config.patch_grid
        (2, (12, 12))
    """
    unlike = {"image_size", "patch_size", "num_images", "pad_token_id"}
    names = [name for name in modeling.own_fields(FusionEncoderConfig) if name not in unlike]
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if config.pad_token_id is not None:
        shared["pad_token_id"] = config.pad_token_id

    sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
    if len(sides) != 1:
        raise ValueError(f"patch_size is {config.patch_size}, but a fusion encoder has square patches.")
    num_images = config.num_images if model_class is FusionEncoderForImagesAndTextClassification else 1
    if num_images < 1:
        way_out = "set num_images in the config (2 for NLVR2, 1 for visual entailment)"
        raise ValueError(f"num_images is {num_images}, but this head reads a fixed number of images; {way_out}.")
    # ViLT's answers are trained with a sigmoid each, which its config need not say.
    answers = model_class is modeling.FusionEncoderForQuestionAnswering
    # ViLT leaves out the pixels behind the last whole patch, and its head is as wide inside as its rows of images.
    [patch_size] = sides
    image_size = [config.image_size] if isinstance(config.image_size, int) else config.image_size
    whole = [side // patch_size * patch_size for side in image_size]
    head_width = config.hidden_size if model_class is FusionEncoderForImagesAndTextClassification else None
    converted = FusionEncoderConfig(
        **shared,
        image_size=whole[0] if len(whole) == 1 else whole,
        patch_size=patch_size,
        num_images=num_images,
        classifier_hidden_size=head_width if num_images == 1 else None,
        id2label=dict(config.id2label),
        label2id=dict(config.label2id),
        problem_type="multi_label_classification" if answers else config.problem_type,
    )

    # An image processor of ViLT allows a longer side of so many patches; with fewer, ViLT would drop some of them.
    shorter, limit = min(converted.patch_grid), config.max_image_length
    longest = int(LONGEST_OVER_SHORTEST * shorter * converted.patch_size) // converted.patch_size
    most = max(converted.patch_grid[0] * converted.patch_grid[1], shorter * longest)
    if 0 <= limit < most:
        draws = f"max_image_length is {limit}, so ViLT draws {limit} patches at random where an image can have {most}"
        way_out = "set it to -1 in its config.json if that is what you want"
        raise ValueError(f"{draws}: a fusion encoder reads them all; {way_out}.")
    return converted


def convert_vilt(model: PreTrainedModel, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """Return the fusion encoder that computes what a ViLT of transformers computes, with weights of its own.

    Args:
        model: an instance of one of `VILT_CLASSES`.
        attn_implementation: how attention is computed; ViLT itself has eager attention only.

    Returns:
        `FusionEncoderModel` or `FusionEncoderFor...`, on the model's device and in its dtype, in eval mode. Logits and
        pooled vectors agree to 1e-5 in float32.

    Raises:
        ValueError: the class is not one of `VILT_CLASSES`, or the configuration cannot be converted.

    Example:
        >>> from transformers import ViltModel
        >>> vilt = ViltModel(ViltConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                             intermediate_size=8, image_size=8, patch_size=4))
        >>> type(convert_vilt(vilt)).__name__
        'FusionEncoderModel'
    """
    name = type(model).__name__
    if name not in VILT_CLASSES:
        raise ValueError(f"{name} cannot be converted; give one of {', '.join(VILT_CLASSES)}.")
    config = convert_vilt_config(model.config, VILT_CLASSES[name])
    # Memory of their own: what is built takes the tensors as they are.
    body, head = split_head({key: weight.clone() for key, weight in model.state_dict().items()}, "vilt")
    options = {"attn_implementation": attn_implementation, "dtype": model.dtype}
    converted, _ = build(VILT_CLASSES[name], config, body, head, name, **options)
    return converted.to(model.device)


def load_original_vilt(
    folder: Path, source: str, config: ViltConfig, converted: PreTrainedModel
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load transformers' own ViLT from a folder, in float32 and eval mode: the original that a conversion must match.

    Its `from_pretrained` is not used: transformers 5 initializes the bias of the masked-word decoder when a checkpoint
    has it under the name of transformers 4. A pooler that the folder lacks is that of `converted`;
    its weights are named as well.
    """
    [name] = [name for name, ours in VILT_CLASSES.items() if ours is type(converted)]
    original: PreTrainedModel = getattr(transformers, name)(config)
    body, head = split_head(read_weights(folder, source), "vilt")
    weights = {f"vilt.{key}": body[key] for key in body} | head
    new: tuple[str, ...] = ()
    if isinstance(converted, FusionEncoderModel):
        pooler = {f"pooler.{key}": weight for key, weight in converted.pooler.state_dict().items()}
        weights, new = {**pooler, **body}, tuple(key for key in pooler if key not in body)
    if DECODER_BIAS in weights:
        weights["mlm_score.decoder.weight"] = body["embeddings.text_embeddings.word_embeddings.weight"]
    original.load_state_dict(weights)
    return original.float().eval(), new
