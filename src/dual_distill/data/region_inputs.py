"""Regions of images: boxes in pixels, features, scores, tags; the check that they are usable; and a batch's inputs.

A file of published features with a wrong width, a box outside its image or a NaN trains without a word; all of them
end here, in one sentence that says where. A text names the regions beside it: `[CLS] text [SEP] tags [SEP]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

# Most regions an image, as models take them.
MAX_REGIONS = 50

# Most object tags beside a text.
NUM_TAGS = 20

# Detectors and the files of others round; a box may stick out by this much and is then cut to the image.
ROUNDING_PX = 1.0


class RegionSet(NamedTuple):
    """The regions of one image, the most certain first where a detector found them.

    Attributes:
        features: `(R, F)` float32.
        boxes_px: `(R, 4)` float32: x0, y0, x1, y1 in pixels of the upright image, x1 and y1 exclusive.
        scores: `(R,)` float32, in [0, 1]; the detector's certainty.
        tags: R words, the class of each region; "" where it has none.
        width: of the image, in pixels.
        height: likewise.
        whole_image: the detector found nothing, and the one region is the whole image.

    Example:
        >>> box = torch.tensor([[0.0, 5.0, 10.0, 10.0]])
        >>> regions = RegionSet(torch.zeros(1, 8), box, torch.ones(1), ["cat"], 20, 10)
        >>> regions.normalized_boxes()
        tensor([[0.0000, 0.5000, 0.5000, 1.0000, 0.5000, 0.5000]])
    """

    features: Tensor
    boxes_px: Tensor
    scores: Tensor
    tags: Sequence[str]
    width: int
    height: int
    whole_image: bool = False

    def normalized_boxes(self) -> Tensor:
        """Return the six numbers that a model reads, `(R, 6)`: x0/W, y0/H, x1/W, y1/H, width/W, height/H, in [0, 1]."""
        boxes = self.boxes_px / self._limits()
        return torch.cat([boxes, boxes[:, 2:] - boxes[:, :2]], dim=1)

    def first(self, number: int) -> "RegionSet":
        """Return the first regions, all where there are fewer."""
        cut = {name: getattr(self, name)[:number] for name in ("features", "boxes_px", "scores", "tags")}
        return self._replace(**cut)

    def checked(self, where: str, feature_size: int | None = None) -> "RegionSet":
        """Return the same in float32 on the CPU, boxes cut to the image, or say what is wrong with it.

        Args:
            where: names the image, or file and line, in errors.
            feature_size: F that is expected; None: any.

        Raises:
            ValueError: there is no region, a shape does not fit, a value is not finite, or a box lies outside the
                image by more than `ROUNDING_PX`.

        Example:
            >>> RegionSet(torch.zeros(0, 8), torch.zeros(0, 4), torch.zeros(0), [], 20, 10).checked("photos/a.png")
            Traceback (most recent call last):
            ValueError: photos/a.png: there is no region at all; an image needs at least one, such as the whole image.
        """
        features, boxes, scores = (each.detach().cpu().float() for each in (self.features, self.boxes_px, self.scores))
        plain = self._replace(features=features, boxes_px=boxes, scores=scores, tags=[str(tag) for tag in self.tags])
        if problem := plain._problem(feature_size):
            raise ValueError(f"{where}: {problem}.")

        # What detectors round beyond the image is cut off.
        return plain._replace(boxes_px=torch.minimum(boxes.clamp(min=0), plain._limits()))

    def _limits(self) -> Tensor:
        return self.boxes_px.new_tensor([self.width, self.height, self.width, self.height])

    def _problem(self, feature_size: int | None) -> str | None:
        """What is wrong with the regions, as the rest of a sentence."""
        features, boxes, scores = self.features, self.boxes_px, self.scores
        number, size = len(boxes), f"{self.width} x {self.height} pixels"
        if self.width < 1 or self.height < 1:
            return f"the image is {size}; give its width and height"
        if number == 0:
            return "there is no region at all; an image needs at least one, such as the whole image"
        if boxes.shape != (number, 4):
            return f"boxes have shape {tuple(boxes.shape)}, expected are four numbers each, (R, 4)"
        if features.dim() != 2 or len(features) != number:
            return f"features have shape {tuple(features.shape)}, expected is one row for each of {number} boxes"
        if feature_size is not None and features.shape[1] != feature_size:
            return f"a feature vector is {features.shape[1]} wide, expected is {feature_size}; use one detector"
        if scores.shape != (number,) or len(self.tags) != number:
            found = f"scores of shape {tuple(scores.shape)} and {len(self.tags)} tags"
            return f"there are {number} boxes, but {found}; give one of each a box"

        for name, values in (("feature", features), ("box", boxes), ("score", scores)):
            finite = values.isfinite().reshape(number, -1).all(-1)
            if not finite.all():
                return f"the {name} of region {int(finite.int().argmin())} holds NaN or infinity; make it again"

        # Detectors and the files of others round.
        outside = ((boxes < -ROUNDING_PX) | (boxes > self._limits() + ROUNDING_PX)).any(1)
        outside |= (boxes[:, 2:] < boxes[:, :2]).any(1)
        if outside.any():
            first = int(outside.int().argmax())
            numbers = ", ".join(f"{value:g}" for value in boxes[first].tolist())
            found = f"box {first} is [{numbers}], which is not x0 <= x1, y0 <= y1 inside an image of {size}"
            return f"{found}; boxes are corners in pixels, not [x, y, width, height] and not fractions"
        return None


class RegionLookup(Protocol):
    """What a collator asks of a `dual_distill.regions.RegionStore`, or of anything that finds an image's regions."""

    @property
    def boxes_id(self) -> str:
        """The maker of the boxes; equal for stores whose region i is the same box."""

    def find_image(self, image: Any, name: str) -> RegionSet:
        """The regions of an image as a row holds it; `name` is what errors call the row."""


NamedImages = tuple[Sequence[Any], str]  # the images of a row, and what errors call the row


@dataclass(frozen=True)
class RegionInputs:
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

    def __post_init__(self) -> None:
        """Refuse two stores of other boxes."""
        if self.teacher_regions is not None and self.teacher_regions.boxes_id != self.regions.boxes_id:
            found = f"boxes by {self.regions.boxes_id!r}, those of the teacher by {self.teacher_regions.boxes_id!r}"
            way_out = "make the teacher's features at the student's boxes (dual-distill regions ... --boxes STORE)"
            raise ValueError(f"the regions have {found}, but region i must be one box on both sides; {way_out}.")

    def __call__(self, rows: Sequence[NamedImages]) -> tuple[dict[str, Tensor], list[list[str]]]:
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
                raise ValueError(f"Row {name}: {unequal}; make the teacher's by dual-distill regions --boxes STORE.")
        return {**batch, "teacher_region_features": pad_regions(theirs)["region_features"]}, tags

    def _find(self, store: RegionLookup, rows: Sequence[NamedImages]) -> list[list[RegionSet]]:
        return [[store.find_image(image, name).first(self.max_regions) for image in images] for images, name in rows]


def tag_texts(
    tokenizer: Any,
    texts: Sequence[str],
    tags: Sequence[Sequence[str]],
    max_text_length: int | None = None,
    max_tag_length: int | None = None,
) -> dict[str, Tensor]:
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
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        found = f"{type(tokenizer).__name__} lacks one of cls_token_id, sep_token_id, pad_token_id"
        raise ValueError(f"{found}, which tags need; take a BERT-like tokenizer.")
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
        rows.append(torch.tensor(ids + behind))
        segments.append(torch.tensor([0] * len(ids) + [1] * len(behind)))

    ones = [torch.ones_like(row) for row in rows]
    batch = {"input_ids": rows, "attention_mask": ones, "token_type_ids": segments}
    fill = {"input_ids": tokenizer.pad_token_id}
    return {name: _padded(values, fill.get(name, 0)) for name, values in batch.items()}


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


def pad_regions(rows: Sequence[Sequence[RegionSet]]) -> dict[str, Tensor]:
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


def _padded(rows: list[Tensor], value: float = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
