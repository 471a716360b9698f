"""Text layers that look at the image through cross-attention: BLIP (matching, VQA), BridgeTower and LXMERT.

LXMERT reads regions in place of an image: per row a mapping with `features` `(R, F)` and `boxes` `(R, 4)` in the unit
square, of as many regions in each row.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import foreign
from .answers import answer_logits
from .foreign import Answers, Batch, Modules
from .layout import as_view, cross_attention, image_layout, named_logits, patch_boxes, split_layout, text_layout
from .prompts import Prompt
from .view import LayerAttention, TeacherView

load = foreign.load

# Type of a model -> its modules with text as queries, and those with the image as queries.
_MODULES = {
    "blip": (r"text_encoder\.encoder\.layer\.\d+\.crossattention\.self$",),
    "bridgetower": tuple(rf"cross_modal_{side}_layers\.\d+\.crossattention\.self$" for side in ("text", "image")),
    "lxmert": (r"x_layers\.\d+\.visual_attention\.att$",),
}


def inputs(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Make the batch of B images (or regions) and B texts."""
    if config.model_type == "lxmert":
        batch, layout = text_layout(processor, texts)
        boxes = [torch.as_tensor(image["boxes"]) for image in images]
        features = torch.stack([torch.as_tensor(image["features"]) for image in images])
        return batch | layout | image_layout(boxes) | {"visual_feats": features, "visual_pos": torch.stack(boxes)}

    batch, layout = text_layout(processor.tokenizer, texts)
    batch |= processor.image_processor(list(images), return_tensors="pt")
    if config.model_type == "blip":
        batch.pop("token_type_ids", None)
    boxes = patch_boxes(processor.image_processor, images, batch["pixel_values"], config.vision_config.patch_size)
    return batch | layout | image_layout(boxes)


def layers(model: Any) -> list[Modules]:
    """Cross-attention modules, those of one layer together: text as queries first, then the image."""
    names = [name for name, _ in model.named_modules()]
    directions = [[name for name in names if re.search(path, name)] for path in _MODULES[model.config.model_type]]
    return list(zip(*directions, strict=True))


def view(
    model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None, **scoring: Any
) -> TeacherView:
    """Run the model on a batch of `inputs`; arguments are those of `causal_vlm.view`.

    BLIP's VQA model writes answers; it takes the options of `answer_logits`.
    """
    read, layout = split_layout(batch)
    kind = type(model).__name__
    run = partial(_read_question, model) if kind == "BlipForQuestionAnswering" else None
    outputs, recorded = foreign.run_recorded(model, read, layers(model), wanted, run)

    said: dict[str, Tensor] = {}
    if kind == "LxmertForQuestionAnswering":
        said["logits"] = named_logits(model.config, outputs.question_answering_score, answers)
    elif answers is not None and run is not None:
        said["logits"] = _written(model, processor.tokenizer, outputs, read["attention_mask"], answers, **scoring)
    else:
        foreign.check_no_answers(model, answers)
    if "Retrieval" in kind:
        said["match_scores"] = foreign.match_scores(outputs.itm_score if "itm_score" in outputs else outputs.logits)

    # Both directions where a layer has two modules, or one that ran twice: the text first (LXMERT).
    calls = [[*filter(None, [layer[0].before]), *layer] for layer in recorded]
    return as_view(layout, [LayerAttention(*map(cross_attention, each)) for each in calls], **said)


def _read_question(model: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the question encoder of BLIP makes of question and image, `(B, T, C)`; its decoder is not run."""
    seen = model.vision_model(pixel_values=pixel_values).last_hidden_state
    read = {"input_ids": input_ids, "attention_mask": attention_mask, "encoder_hidden_states": seen}
    return model.text_encoder(**read).last_hidden_state


@torch.no_grad()
def _written(
    model: Any, tokenizer: Any, states: Tensor, mask: Tensor, answers: Sequence[str], **scoring: Any
) -> Tensor:
    """Log-probability of answers as what BLIP's decoder writes of encoded questions."""

    def decode(input_ids: Tensor, **options: Any) -> Any:
        seen, real = (each.repeat_interleave(len(input_ids) // len(states), dim=0) for each in (states, mask))
        return model.text_decoder(input_ids, encoder_hidden_states=seen, encoder_attention_mask=real, **options)

    start = torch.full_like(mask[:, :1], model.config.text_config.bos_token_id)
    began = decode(start, use_cache=True)
    prompt = Prompt("", "", after_answer=tokenizer.sep_token)
    return answer_logits(decode, tokenizer, torch.ones_like(start), began, answers, prompt, **scoring)
