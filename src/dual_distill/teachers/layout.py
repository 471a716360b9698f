"""Where a batch's tokens stand: characters of text tokens, boxes of image tokens, and what was recorded cut to both.

Each family's `inputs` adds the same six tensors (`LAYOUT`) to what its model reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dual_distill.modeling import RecordedAttention, Region, seen_region

from .view import DirectionAttention, LayerAttention, TeacherView

LAYOUT = ("text_spans", "text_mask", "text_index", "image_boxes", "image_mask", "image_index")
"""Spans, boxes and masks as in `TeacherView`; each index says which tokens of the model's sequence these are."""

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


def split_layout(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the model reads of a batch, and its layout."""
    layout = {name: batch[name] for name in LAYOUT}
    return {name: tensor for name, tensor in batch.items() if name not in layout}, layout


def grid_boxes(rows: int, columns: int, region: Region = WHOLE) -> Tensor:
    """Boxes `(rows * columns, 4)` of a region's cells in raster order.

    Example:
        >>> grid_boxes(1, 2).tolist()
        [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    """
    x0, y0, x1, y1 = region
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    corners = torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1).flatten(0, 1)
    return corners * torch.tensor([x1 - x0, y1 - y0] * 2) + torch.tensor([x0, y0] * 2)


def patch_boxes(image_processor: Any, images: Sequence[Image.Image], pixels: Tensor, patch_size: int) -> list[Tensor]:
    """Boxes of a CLS token, which is the whole image, and of the patches of the pixels that stand for each image."""
    rows, columns = (side // patch_size for side in pixels.shape[-2:])
    regions = [seen_region(image_processor, *image.size) for image in images]
    return [torch.cat([grid_boxes(1, 1), grid_boxes(rows, columns, region)]) for region in regions]


def text_layout(tokenizer: Any, texts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tokenize texts that stand alone: what the model reads, and the text half of the layout.

    Raises:
        ValueError: the tokenizer does not say which characters a token covers.
    """
    check_offsets(tokenizer)
    options = {"padding": True, "truncation": True, "return_attention_mask": True, "return_tensors": "pt"}
    options["return_offsets_mapping"] = True
    encoded = dict(tokenizer(list(texts), **options))
    mask = encoded["attention_mask"].bool()
    spans = encoded.pop("offset_mapping") * mask[..., None]
    index = torch.arange(mask.shape[1]).expand(mask.shape)
    return encoded, {"text_spans": spans, "text_mask": mask, "text_index": index}


def check_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot say where in the text its tokens stand."""
    if not getattr(tokenizer, "is_fast", False):
        way_out = "load it with a backend of the tokenizers library"
        raise ValueError(f"{type(tokenizer).__name__} does not say which characters a token covers; {way_out}.")


def image_layout(boxes: Sequence[Tensor], index: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Pad the boxes of each row's image tokens to the image half of the layout.

    Args:
        boxes: of each row `(I, 4)`; without area where a token shows nothing of the image, such as an end of line.
        index: of each row `(I,)`, where in the sequence they stand; None: they are all that is attended to.
    """
    index = [torch.arange(len(each)) for each in boxes] if index is None else index
    masks = [(each[:, 2] > each[:, 0]) & (each[:, 3] > each[:, 1]) for each in boxes]
    tensors = {"image_boxes": boxes, "image_mask": masks, "image_index": index}
    return {name: pad_sequence(list(rows), batch_first=True) for name, rows in tensors.items()}


def joint_attention(recorded: RecordedAttention, layout: Mapping[str, Tensor], causal: bool = False) -> LayerAttention:
    """Cut what one sequence of text and image tokens recorded to both directions, or to text-to-image where causal."""
    text, image, keys = layout["text_index"], layout["image_index"], recorded.repeated_keys
    how = (recorded.scaling, recorded.softcap)
    to_image = DirectionAttention(_take(recorded.queries, text), _take(keys, image), *how)
    to_text = None if causal else DirectionAttention(_take(recorded.queries, image), _take(keys, text), *how)
    return LayerAttention(to_image, to_text)


def cross_attention(recorded: RecordedAttention) -> DirectionAttention:
    """What the tokens of one modality, as queries, recorded of those of the other."""
    return DirectionAttention(recorded.queries, recorded.repeated_keys, recorded.scaling, recorded.softcap)


def as_view(layout: Mapping[str, Tensor], layers: Sequence[LayerAttention], **said: Tensor | None) -> TeacherView:
    """A view of a layout's tokens; `said` is its logits or match_scores."""
    places = {name: layout[name] for name in LAYOUT if "index" not in name}
    return TeacherView(layers=layers, **places, **said)  # type: ignore[arg-type]


def named_logits(config: Any, logits: Tensor, answers: Sequence[str] | None) -> Tensor:
    """Reorder a classifier's logits `(B, L)` to those of a student's answers, which are looked up by name.

    Raises:
        ValueError: the teacher has no such answer.

    Example:
        >>> from types import SimpleNamespace
        >>> named_logits(SimpleNamespace(label2id={"yes": 0, "no": 1}), torch.tensor([[2.0, 3.0]]), ["no"])
        tensor([[3.]])
    """
    if answers is None:
        return logits
    missing = [answer for answer in answers if answer not in config.label2id]
    if missing:
        given = f"{len(missing)} of {len(answers)} answers are none of the teacher's, such as {missing[0]!r}"
        raise ValueError(f"{given}; leave them out, or set soft_label_weight to 0.")
    return logits[:, [config.label2id[answer] for answer in answers]]


def _take(states: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` `(B, N)` of states `(B, H, S, D)`, row by row: `(B, H, N, D)`."""
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[-1]))
