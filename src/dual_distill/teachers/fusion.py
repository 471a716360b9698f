"""Our own models: fusion encoders, ViLT, which becomes one, and dual encoders, drawn beside a teacher."""

from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from . import loading
from .foreign import Answers, Batch, Modules, check_no_answers
from .layout import as_view, grid_boxes, image_layout, named_logits, split_layout, text_layout
from .view import DirectionAttention, LayerAttention, TeacherView

load = loading.load_model


def inputs(config: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Make the batch of B images and B texts; spans are of the text in the form NFC, in which models read it."""
    batch, layout = text_layout(processor.tokenizer, [normalize("NFC", text) for text in texts])
    batch.pop("token_type_ids", None)
    batch |= processor(images=list(images))

    # Images are padded at the bottom and right: those patches lie beyond what is seen of the image.
    height, width = batch["pixel_values"].shape[-2:]
    rows, columns = height // config.patch_size, width // config.patch_size
    boxes = []
    for image, mask in zip(images, batch["pixel_mask"][:, 0], strict=True):
        x0, y0, x1, y1 = processor.seen_region(image)
        wider, higher = width / int(mask[0].sum()), height / int(mask[:, 0].sum())
        beyond = (x0, y0, x0 + (x1 - x0) * wider, y0 + (y1 - y0) * higher)
        boxes.append(torch.cat([grid_boxes(1, 1), grid_boxes(rows, columns, beyond)]))
    return batch | layout | image_layout(boxes)


def layers(model: Any) -> list[Modules]:
    """Those in which text and image meet: interaction layers, or all, whose queries and keys the model gives itself."""
    depth = getattr(model.config, "interaction_layers", 0) or model.config.get_text_config().num_hidden_layers
    return [(f"layer {index}",) for index in range(depth)]


@torch.no_grad()
def view(model: Any, processor: Any, batch: Batch, wanted: Sequence[int], answers: Answers = None) -> TeacherView:
    """Run the model on a batch of `inputs`; arguments are those of `causal_vlm.view`.

    Of a dual encoder with interaction layers, these are what looks, and what is counted; text looks at the image alone.
    """
    read, layout = split_layout(batch)
    interacts = bool(getattr(model.config, "interaction_layers", 0))
    asked: dict[str, Any] = {"output_query_states": list(wanted), "output_key_states": list(wanted)}
    if not interacts and getattr(model.config, "records_tokens", False):
        lacks = "the towers' queries and keys do not fit each other, and the model kept no projections"
        raise ValueError(f"{lacks}; train it with keep_attention_projections.")
    outputs = model(**read, **({"output_interaction_states": True} if interacts else asked))
    logits = getattr(outputs, "logits", None) if model.config.label2id else None
    if logits is None:
        check_no_answers(model, answers)
    else:
        logits = named_logits(model.config, logits, answers)

    words, shown = layout["text_mask"].shape[1], []
    if interacts:
        states = outputs.interaction_model_output
        for layer in wanted:
            shown.append(LayerAttention(DirectionAttention(states.query_states[layer], states.key_states[layer][1])))
    for queries, keys in zip(outputs.query_states or (), outputs.key_states or (), strict=True):
        to_image = DirectionAttention(queries[:, :, :words], keys[:, :, words:])
        shown.append(LayerAttention(to_image, DirectionAttention(queries[:, :, words:], keys[:, :, :words])))

    # Before the patches stand as many tokens of the whole image as the tower has: CLS, registers, or none.
    boxes, mask = layout["image_boxes"], outputs.image_mask[:, 0]
    whole = boxes[:, :1].expand(-1, mask.shape[1] - boxes.shape[1] + 1, -1)
    return as_view(
        layout | {"image_boxes": torch.cat([whole, boxes[:, 1:]], 1), "image_mask": mask}, shown, logits=logits
    )
