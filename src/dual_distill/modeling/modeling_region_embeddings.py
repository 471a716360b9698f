"""Image regions in place of patches: what an object detector found, as tokens beside the words.

A region is a feature vector and the six numbers of its box. It has neither position nor segment: the box says where it
lies, and regions are a set. What is asked of the inputs is checked here because features come from files
and a wrong one would only show as a model that does not learn.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .modeling_embeddings import TextEmbeddings, with_image_axis
from .modeling_layers import has_values

BOX_NUMBERS = 6
# Boxes are quotients of float32 pixels, so an edge may lie a rounding error outside.
_BOX_TOLERANCE = 1e-4


def check_regions(features: Tensor, boxes: Tensor, mask: Tensor, feature_size: int, max_regions: int) -> None:
    """Refuse regions that the model cannot mean anything by.

    Args:
        features: `(B, N, R, F)`, N images a row.
        boxes: `(B, N, R, 6)`.
        mask: `(B, N, R)` bool, True = real region; what is not real is not looked at.
        feature_size: F that the model was built for.
        max_regions: most real regions an image.

    Raises:
        ValueError: a shape does not fit, a real region has features that are not finite or a box outside the image,
            or an image has no region or too many.

    Example:
        >>> check_regions(torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2, 6), 2.0), torch.ones(1, 1, 2).bool(), 4, 50)
        Traceback (most recent call last):
        ValueError: region_boxes of image 0 of the batch reach outside [0, 1]; give x0, y0, x1, y1, width and height
        ...
    """
    width, regions = features.shape[-1], features.shape[:-1]
    if width != feature_size:
        raise ValueError(f"region_features are {width} wide, the model was built for {feature_size}; give that width.")
    if features.dim() != 4 or boxes.shape != (*regions, BOX_NUMBERS) or mask.shape != regions:
        shapes = f"{tuple(features.shape)}, region_boxes {tuple(boxes.shape)} and region_mask {tuple(mask.shape)}"
        way_out = f"give one box of {BOX_NUMBERS} numbers and one mask entry a region"
        raise ValueError(f"region_features have shape {shapes}; {way_out}.")

    # What follows reads values, which would break a graph.
    if not has_values(mask):
        return

    features, boxes, mask = features.flatten(0, 1), boxes.flatten(0, 1), mask.flatten(0, 1)
    counts, real = mask.sum(1), mask[..., None]
    # Compared from the inside: False for NaN too.
    inside = (boxes >= -_BOX_TOLERANCE) & (boxes <= 1 + _BOX_TOLERANCE)
    problems = {
        "region_mask of image {0} of the batch has no region; give each image one at least (the whole image, when the "
        "detector finds nothing).": counts == 0,
        "image {0} of the batch has {1} regions, the model takes at most {2}; keep the best of them, or raise "
        "max_regions in the config.": counts > max_regions,
        "region_features of image {0} of the batch hold NaN or infinite numbers; extract its features again.": (
            (real & ~features.isfinite()).flatten(1).any(1)
        ),
        "region_boxes of image {0} of the batch reach outside [0, 1]; give x0, y0, x1, y1, width and height as "
        "fractions of the image's width and height.": (real & ~inside).flatten(1).any(1),
    }

    found = torch.stack(list(problems.values()))
    # One look for all of them: each would wait for the device.
    if found.any():
        kind, image = (int(index) for index in found.nonzero()[0])
        raise ValueError(list(problems)[kind].format(image, int(counts[image]), max_regions))


class RegionEmbeddings(nn.Module):
    """Features and box through one linear map, normalised: `(B, N, R, F)` and `(B, N, R, 6)` -> `(B, N, R, C)`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.feature_size = config.region_feature_size
        self.max_regions = config.max_regions
        self.projection = nn.Linear(config.region_feature_size + BOX_NUMBERS, config.hidden_size)
        self.LayerNorm: nn.Module = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.region_layer_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        check_regions(features, boxes, mask, self.feature_size, self.max_regions)
        regions = torch.cat([features, boxes.to(features.dtype)], dim=-1)
        # NaN in padding would come through a probability of zero.
        regions = regions.masked_fill(~mask[..., None], 0.0).to(dtype)
        return self.dropout(self.LayerNorm(self.projection(regions)))


class RegionFusionEmbeddings(nn.Module):
    """Text (words, then object tags) and regions of every pair; the regions have no position and no segment."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.text_embeddings = TextEmbeddings(config)
        self.region_embeddings = RegionEmbeddings(config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        region_features: Tensor,
        region_boxes: Tensor,
        region_mask: Tensor | None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return text `(B, T, C)`, regions `(B, N, R, C)` and their mask `(B, N, R)`."""
        features, boxes = with_image_axis(region_features, 3), with_image_axis(region_boxes, 3)
        mask = with_image_axis(region_mask, 2)
        mask = features.new_ones(features.shape[:-1], dtype=torch.bool) if mask is None else mask.bool()
        text = self.embed_text(input_ids, token_type_ids, position_ids)
        return text, self.region_embeddings(features, boxes, mask, text.dtype), mask

    def embed_text(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Return text `(B, T, C)` alone."""
        return self.text_embeddings(input_ids, token_type_ids, position_ids)
