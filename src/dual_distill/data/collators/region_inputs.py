"""Regions of a batch as tensors, and the text that names them: `[CLS] text [SEP] tags [SEP]`."""

from collections.abc import Sequence
from typing import Any

import torch

from dual_distill.data.region_set import RegionSet

MAX_REGIONS = 50
"""Most regions an image, as models take them."""

NUM_TAGS = 20
"""Most object tags beside a text."""


def tag_texts(
    tokenizer: Any,
    texts: Sequence[str],
    tags: Sequence[Sequence[str]],
    max_length: int | None = None,
    max_text_length: int | None = None,
    max_tag_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tokenize texts with the tags of their regions behind them; what is too long is cut from the tags first.

    Args:
        tokenizer: has `cls_token_id`, `sep_token_id` and `pad_token_id`.
        texts: B texts.
        tags: B lists of words; none for a row leaves `[CLS] text [SEP]`.
        max_length: most tokens of both together; None: no limit.
        max_text_length: most tokens of `[CLS] text [SEP]`; None: `max_length`.
        max_tag_length: most tokens of `tags [SEP]`; None: what `max_length` leaves.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` `(B, T)` int64, padded to the longest; segment 0 for the text, 1
        for the tags and the `[SEP]` behind them, 0 for padding.

    Raises:
        ValueError: the tokenizer has no such token, or a limit leaves no room for a text.

    Example:
        >>> from dual_distill.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red circle and a dog"])
        >>> batch = tag_texts(tokenizer, ["a red circle"], [["dog", "circle"]], max_length=7)
        >>> tokenizer.convert_ids_to_tokens(batch["input_ids"][0]), batch["token_type_ids"][0].tolist()
        (['[CLS]', 'a', 'red', 'circle', '[SEP]', 'dog', '[SEP]'], [0, 0, 0, 0, 0, 1, 1])
    """
    for name in ("cls_token_id", "sep_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no {name}, which texts with tags need; take a BERT-like tokenizer."
            )
    text_limit = max_length if max_text_length is None else min(max_text_length, max_length or max_text_length)
    if text_limit is not None and text_limit < 3:
        raise ValueError(
            f"the longest text is {text_limit} tokens, which leaves none beside [CLS] and [SEP]; give 3 or more."
        )
    pieces = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    words = tokenizer([" ".join(row) for row in tags], add_special_tokens=False)["input_ids"]
    rows, segments = [], []
    for text, tag in zip(pieces, words, strict=True):
        ids = [
            tokenizer.cls_token_id,
            *(text if text_limit is None else text[: text_limit - 2]),
            tokenizer.sep_token_id,
        ]
        room = len(tag) + 1 if max_length is None else max_length - len(ids)
        room = room if max_tag_length is None else min(room, max_tag_length)
        behind = [*tag[: room - 1], tokenizer.sep_token_id] if tag and room > 1 else []
        rows.append(ids + behind)
        segments.append([0] * len(ids) + [1] * len(behind))
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "token_type_ids": torch.tensor([row + [0] * (longest - len(row)) for row in segments]),
    }


def distinct_tags(regions: Sequence[RegionSet], num_tags: int) -> list[str]:
    """Return the first tags of the regions of a row, each word once, the most certain regions first.

    Args:
        regions: one entry an image.
        num_tags: most tags.

    Example:
        >>> boxes = torch.zeros(3, 4)
        >>> found = RegionSet(torch.zeros(3, 1), boxes, torch.ones(3), ["dog", "", "dog"], 9, 9)
        >>> distinct_tags([found, found._replace(tags=["cat", "dog", "sky"])], 2)
        ['dog', 'cat']
    """
    return list(dict.fromkeys(tag for one in regions for tag in one.tags if tag))[:num_tags]


def pad_regions(rows: Sequence[Sequence[RegionSet]]) -> dict[str, torch.Tensor]:
    """Pad the regions of a batch to the most of a picture.

    Args:
        rows: B rows of N region sets.

    Returns:
        `region_features` `(B, R, F)` float32, `region_boxes` `(B, R, 6)` as `RegionSet.normalized_boxes`, `region_mask` `(B,
        R)` bool; for N > 1 with an axis of images behind the rows.

    Raises:
        ValueError: pictures have features of unlike width.

    Example:
        >>> one = RegionSet(torch.ones(1, 4), torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.ones(1), ["dog"], 10, 10)
        >>> {name: tuple(tensor.shape) for name, tensor in pad_regions([[one], [one]]).items()}
        {'region_features': (2, 1, 4), 'region_boxes': (2, 1, 6), 'region_mask': (2, 1)}
    """
    images = [one for row in rows for one in row]
    widths = sorted({one.features.shape[1] for one in images})
    if len(widths) != 1:
        raise ValueError(f"the regions of one batch have features {widths} wide; take them from one store.")
    most = max(len(one.boxes_px) for one in images)
    features = torch.zeros(len(images), most, widths[0])
    boxes = torch.zeros(len(images), most, 6)
    mask = torch.zeros(len(images), most, dtype=torch.bool)
    for place, one in enumerate(images):
        number = len(one.boxes_px)
        features[place, :number] = one.features
        boxes[place, :number] = one.normalized_boxes()
        mask[place, :number] = True
    batch = {"region_features": features, "region_boxes": boxes, "region_mask": mask}
    num_images = len(rows[0])
    return batch if num_images == 1 else {name: tensor.unflatten(0, (-1, num_images)) for name, tensor in batch.items()}


__all__ = ["MAX_REGIONS", "NUM_TAGS", "distinct_tags", "pad_regions", "tag_texts"]
