"""What is known of the regions of one image: boxes in pixels, features, scores, tags; and the check that it is usable.

A file of published features with a wrong width, a box outside its image or a NaN trains without a word; all of them
end here, in one sentence that says where.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

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

    features: torch.Tensor
    boxes_px: torch.Tensor
    scores: torch.Tensor
    tags: Sequence[str]
    width: int
    height: int
    whole_image: bool = False

    def normalized_boxes(self) -> torch.Tensor:
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

    def _limits(self) -> torch.Tensor:
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
            if not values.isfinite().all():
                first = int((~values.isfinite().reshape(number, -1).all(-1)).nonzero()[0])
                return f"the {name} of region {first} holds NaN or infinity; make the regions again"

        # Detectors and the files of others round.
        outside = ((boxes < -ROUNDING_PX) | (boxes > self._limits() + ROUNDING_PX)).any(1)
        outside |= (boxes[:, 2:] < boxes[:, :2]).any(1)
        if outside.any():
            first = int(outside.nonzero()[0])
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
