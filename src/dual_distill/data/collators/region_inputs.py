"""Regions of a batch as tensors, and the text that names them: `[CLS] text [SEP] tags [SEP]`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dual_distill.data.region_set import RegionLookup, RegionSet

MAX_REGIONS = 50
"""Most regions an image, as models take them."""

NUM_TAGS = 20
"""Most object tags beside a text."""

NamedImages = tuple[Sequence[Any], str]  # the images of a row, and what errors call the row


class RegionInputs(NamedTuple):
    """Finds the regions of a batch's images, for a student and, where it reads features of its own, for its teacher.

    Attributes:
        regions: the student's store.
        teacher_regions: the teacher's features of the same boxes, or None.
        num_tags: most object tags beside a text.
        max_regions: most regions an image, the first of the store.
    """

    regions: RegionLookup
    teacher_regions: RegionLookup | None
    num_tags: int
    max_regions: int

    def __call__(self, rows: Sequence[NamedImages]) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        """The padded regions of B rows of images, and the object tags of each row."""
        ours = self._find(self.regions, rows)
        batch, tags = pad_regions(ours), [distinct_tags(row, self.num_tags) for row in ours]
        if self.teacher_regions is None:
            return batch, tags

        theirs = self._find(self.teacher_regions, rows)
        for (_, name), row, found in zip(rows, ours, theirs, strict=True):
            counts = [[len(one.boxes_px) for one in of_row] for of_row in (row, found)]
            if counts[0] != counts[1]:
                unequal = f"{self.regions!r} has {counts[0]} regions, {self.teacher_regions!r} {counts[1]}"
                raise ValueError(f"Row {name}: {unequal}; make the teacher's at the student's boxes (--boxes).")
        return {**batch, "teacher_region_features": pad_regions(theirs)["region_features"]}, tags

    def _find(self, store: RegionLookup, rows: Sequence[NamedImages]) -> list[list[RegionSet]]:
        return [[store.find_image(image, name).first(self.max_regions) for image in images] for images, name in rows]


def tag_texts(
    tokenizer: Any,
    texts: Sequence[str],
    tags: Sequence[Sequence[str]],
    max_text_length: int | None = None,
    max_tag_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tokenize texts with the tags of their regions behind them; what is too long is cut from the tags first.

    Args:
        tokenizer: has `cls_token_id`, `sep_token_id` and `pad_token_id`.
        texts: B texts.
        tags: B lists of words; none for a row leaves `[CLS] text [SEP]`.
        max_text_length: most tokens of `[CLS] text [SEP]`; None: no limit.
        max_tag_length: most tokens of `tags [SEP]`, beside those of the text; None: what the text leaves of
            `max_text_length`.

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids` `(B, T)` int64, padded to the longest; segment 0 for the text, 1
        for the tags and the `[SEP]` behind them, 0 for padding.

    Raises:
        ValueError: the tokenizer has no such token, or a limit leaves no room for a text.

    Example:
        >>> from dual_distill.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red circle and a dog"])
        >>> batch = tag_texts(tokenizer, ["a red circle"], [["dog", "circle"]], max_text_length=7)
        >>> tokenizer.convert_ids_to_tokens(batch["input_ids"][0]), batch["token_type_ids"][0].tolist()
        (['[CLS]', 'a', 'red', 'circle', '[SEP]', 'dog', '[SEP]'], [0, 0, 0, 0, 0, 1, 1])
    """
    for name in ("cls_token_id", "sep_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"{type(tokenizer).__name__} has no {name}, which tags need; take a BERT-like tokenizer.")
    if max_text_length is not None and max_text_length < 3:
        raise ValueError(f"the longest text is {max_text_length} tokens, [CLS] and [SEP] among them; give at least 3.")

    pieces = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    words = tokenizer([" ".join(row) for row in tags], add_special_tokens=False)["input_ids"]
    rows, segments = [], []
    for text, tag in zip(pieces, words, strict=True):
        kept = text if max_text_length is None else text[: max_text_length - 2]
        ids = [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]

        # What is too long is cut from the tags, whose [SEP] needs a token of its own.
        room = len(tag) + 1 if max_text_length is None else max_text_length - len(ids)
        room = room if max_tag_length is None else min(len(tag) + 1, max_tag_length)
        behind = [*tag[: room - 1], tokenizer.sep_token_id] if tag and room > 1 else []
        rows.append(ids + behind)
        segments.append([0] * len(ids) + [1] * len(behind))

    return {
        "input_ids": _padded([torch.tensor(row) for row in rows], tokenizer.pad_token_id),
        "attention_mask": _padded([torch.ones(len(row), dtype=torch.int64) for row in rows]),
        "token_type_ids": _padded([torch.tensor(row) for row in segments]),
    }


def distinct_tags(regions: Sequence[RegionSet], num_tags: int) -> list[str]:
    """Return the first tags of the regions of a row, each word once, the most certain regions first.

    Args:
        regions: one region set an image.
        num_tags: most tags.

    Example:
        >>> boxes = torch.zeros(3, 4)
        >>> found = RegionSet(torch.zeros(3, 1), boxes, torch.ones(3), ["dog", "", "dog"], 9, 9)
        >>> distinct_tags([found, found._replace(tags=["cat", "dog", "sky"])], 2)
        ['dog', 'cat']
    """
    return list(dict.fromkeys(tag for one in regions for tag in one.tags if tag))[:num_tags]


def pad_regions(rows: Sequence[Sequence[RegionSet]]) -> dict[str, torch.Tensor]:
    """Pad the regions of a batch to the most of an image.

    Args:
        rows: B rows of N region sets.

    Returns:
        `region_features` `(B, R, F)` float32, `region_boxes` `(B, R, 6)` as `RegionSet.normalized_boxes`, `region_mask`
        `(B, R)` bool; for N > 1 with an axis of images behind the rows.

    Raises:
        ValueError: images have features of unlike width.

    Example:
        >>> one = RegionSet(torch.ones(1, 4), torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.ones(1), ["dog"], 10, 10)
        >>> {name: tuple(tensor.shape) for name, tensor in pad_regions([[one], [one]]).items()}
        {'region_features': (2, 1, 4), 'region_boxes': (2, 1, 6), 'region_mask': (2, 1)}
    """
    images = [one for row in rows for one in row]
    widths = sorted({one.features.shape[1] for one in images})
    if len(widths) != 1:
        raise ValueError(f"the regions of one batch have features {widths} wide; take them from one store.")

    batch = {
        "region_features": _padded([one.features.float() for one in images]),
        "region_boxes": _padded([one.normalized_boxes() for one in images]),
        "region_mask": _padded([torch.ones(len(one.boxes_px), dtype=torch.bool) for one in images]),
    }
    num_images = len(rows[0])
    return batch if num_images == 1 else {name: tensor.unflatten(0, (-1, num_images)) for name, tensor in batch.items()}


def _padded(rows: list[torch.Tensor], value: float = 0) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
