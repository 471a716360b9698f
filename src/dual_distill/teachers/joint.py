"""Encoders that read text and image as one sequence, both ways.

ModernVBERT, Florence-2's encoder and PaliGemma's prefix read an image and a prompt; FLAVA an image and a text;
VisualBERT a text and regions: per row a mapping with `features` `(R, F)` and `boxes` `(R, 4)` in the unit square.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from . import causal_vlm, foreign
from .answers import answer_logits
from .foreign import Answers, Batch, Modules
from .layout import as_view, image_layout, joint_attention, named_logits, patch_boxes, split_layout, text_layout
from .prompts import Prompt, prompt_inputs, read_template
from .view import TeacherView

load = foreign.load

# Where the joint layers stand and how their attention is called; elsewhere all of the language model are joint.
_LAYERS = {
    "florence2": ("language_model.encoder.", ".self_attn"),
    "flava": ("multimodal_model.", ".attention.attention"),
    "visual_bert": ("encoder.", ".attention.self"),
}


def inputs(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Make the batch of B images (or regions) and B texts."""
    if config.model_type == "visual_bert":
        return _with_regions(processor, images, texts)
    if config.model_type == "flava":
        return _with_patches(config, processor, images, texts)
    if config.model_type == "modernvbert":
        return prompt_inputs(config, processor, images, texts, read_template(processor))

    # These write a start before the text and an end behind it themselves.
    is_florence = config.model_type == "florence2"
    placed, end = ("", processor.tokenizer.eos_token) if is_florence else (processor.image_token, "\n")
    return prompt_inputs(config, processor, images, texts, Prompt(placed, ""), added=len(end))


def _with_regions(processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """VisualBERT: words, then regions, whose processor is a tokenizer."""
    batch, layout = text_layout(processor, texts)
    features = [torch.as_tensor(image["features"]) for image in images]
    index = [torch.arange(len(each)) + batch["input_ids"].shape[1] for each in features]
    layout |= image_layout([torch.as_tensor(image["boxes"]) for image in images], index)
    batch["visual_embeds"] = pad_sequence(features, batch_first=True)
    return batch | layout | {"visual_attention_mask": layout["image_mask"].float()}


def _with_patches(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """FLAVA: its multimodal CLS, the image with its CLS, and words."""
    batch, layout = text_layout(processor.tokenizer, texts)
    batch |= processor.image_processor(list(images), return_tensors="pt")
    boxes = patch_boxes(processor.image_processor, images, batch["pixel_values"], config.image_config.patch_size)
    before_image = int(config.multimodal_config.use_cls_token)
    layout |= image_layout(boxes, [torch.arange(len(each)) + before_image for each in boxes])
    layout["text_index"] = layout["text_index"] + before_image + len(boxes[0])
    return batch | layout


def layers(model: Any) -> list[Modules]:
    """Attention modules of the joint layers; of ModernVBERT and PaliGemma those that see the whole sequence."""
    if model.config.model_type not in _LAYERS:
        return causal_vlm.layers(model)
    part, end = _LAYERS[model.config.model_type]
    return [(name,) for name, _ in model.named_modules() if part in name and name.endswith(end)]


def view(
    model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None, **scoring: Any
) -> TeacherView:
    """Run the model on a batch of `inputs`; arguments are those of `causal_vlm.view`.

    A classifier's logits are shown by the names of answers; PaliGemma writes them, and takes the options of
    `answer_logits`.
    """
    given, layout = split_layout(batch)
    read: dict[str, Any] = dict(given)
    kind = model.config.model_type
    if kind == "florence2":
        # Its decoder is not asked; one token lets the model run.
        read["decoder_input_ids"] = read["input_ids"][:, :1]
    if kind == "paligemma":
        read["use_cache"] = answers is not None
    outputs, recorded = foreign.run_recorded(model, read, layers(model), wanted)

    logits = None
    if "ForQuestionAnswering" in type(model).__name__:
        logits = named_logits(model.config, outputs.logits, answers)
    elif answers is not None and kind == "paligemma":
        prompt, mask = Prompt("", "", after_answer=processor.tokenizer.eos_token), read["attention_mask"]
        logits = answer_logits(model, processor.tokenizer, mask, outputs, answers, prompt, **scoring)
    else:
        foreign.check_no_answers(model, answers)
    return as_view(layout, [joint_attention(attention, layout) for [attention] in recorded], logits=logits)
