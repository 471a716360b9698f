"""Our own fusion encoders, and ViLT, which becomes one: both directions, over the tokens that distillation compares."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import loading
from .foreign import Answers, Batch, Modules, check_no_answers
from .layout import as_view, grid_boxes, image_layout, named_logits, split_layout, text_layout
from .view import DirectionAttention, LayerAttention, TeacherView

load = loading.load_model


def inputs(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Make the batch of B images and B texts."""
    batch, layout = text_layout(processor.tokenizer, texts)
    batch.pop("token_type_ids", None)
    batch |= processor(images=list(images))

    # Images are padded at the bottom and right: those patches lie beyond the image.
    height, width = batch["pixel_values"].shape[-2:]
    rows, columns = height // config.patch_size, width // config.patch_size
    boxes = []
    for mask in batch["pixel_mask"][:, 0]:
        beyond = (0.0, 0.0, width / int(mask[0].sum()), height / int(mask[:, 0].sum()))
        boxes.append(torch.cat([grid_boxes(1, 1), grid_boxes(rows, columns, beyond)]))
    return batch | layout | image_layout(boxes)


def layers(model: Any) -> list[Modules]:
    """All layers; their queries and keys are outputs of the model, so that no module need be recorded."""
    return [(f"layer {index}",) for index in range(model.config.num_hidden_layers)]


@torch.no_grad()
def view(model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None) -> TeacherView:
    """Run the model on a batch of `inputs`; arguments are those of `causal_vlm.view`."""
    read, layout = split_layout(batch)
    outputs = model(**read, output_query_states=list(wanted), output_key_states=list(wanted))
    logits = getattr(outputs, "logits", None) if model.config.label2id else None
    if logits is None:
        check_no_answers(model, answers)
    else:
        logits = named_logits(model.config, logits, answers)

    words, shown = layout["text_mask"].shape[1], []
    for queries, keys in zip(outputs.query_states or (), outputs.key_states or (), strict=True):
        to_image = DirectionAttention(queries[:, :, :words], keys[:, :, words:])
        shown.append(LayerAttention(to_image, DirectionAttention(queries[:, :, words:], keys[:, :, :words])))
    return as_view(layout | {"image_mask": outputs.image_mask[:, 0]}, shown, logits=logits)
