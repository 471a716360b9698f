"""RoIAlign: what a feature map says about a box, sampled between its cells instead of rounded to them.

What is unusual: no loop over samples and no gather. The bilinear weights of a sampling point are a product of one
weight by row and one by column, and the points of a box are a grid; so a box is two small matrices, and pooling is two
matrix products, on any device, with gradients.
"""

from collections.abc import Sequence

import torch


def roi_align(
    feature_maps: torch.Tensor,
    boxes: Sequence[torch.Tensor],
    output_size: int | tuple[int, int] = 7,
    spatial_scale: float | tuple[float, float] = 1.0,
    sampling_ratio: int = 2,
) -> torch.Tensor:
    """Pool a feature map inside boxes into a grid of bins, each the mean of bilinear samples.

    A box is scaled to the map, moved by half a cell (cell i stands for the point i + 0.5), and cut into `output_size`
    bins; each bin has `sampling_ratio x sampling_ratio` points, spread evenly. A point more than a cell outside of the
    map counts as zero; one within that margin takes the value at the border.

    The mean over all bins is the same as `output_size=1` with `sampling_ratio` times as many points, which costs a
    fraction.

    Args:
        feature_maps: `(B, C, h, w)`, floating point.
        boxes: B tensors `(R_i, 4)`: x0, y0, x1, y1 in the coordinates that `spatial_scale` is about, x1 and y1
            exclusive. No gradient reaches them.
        output_size: bins by height and width, each >= 1.
        spatial_scale: cells of the map a unit of the boxes, such as 1/32 for pixels and a stride of 32; one number, or
            one for x and one for y.
        sampling_ratio: points a bin and direction, >= 1.

    Returns:
        `(R_1 + ... + R_B, C, rows, columns)` in the dtype of the map, boxes in the order given.

    Raises:
        ValueError: a shape does not fit, or a number is below 1.

    References:
        He et al., Mask R-CNN, ICCV 2017, arXiv 1703.06870, section 3, with the half-cell shift that its later code has.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 1, 4, 8)  # a value of x at column x, that is, at the point x + 0.5
        >>> roi_align(ramp, [torch.tensor([[2.0, 0.0, 6.0, 4.0]])], output_size=(1, 2))
        tensor([[[[2.5000, 4.5000]]]])
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    x_scale, y_scale = spatial_scale if isinstance(spatial_scale, tuple) else (spatial_scale, spatial_scale)
    if feature_maps.dim() != 4 or len(feature_maps) != len(boxes):
        found = f"feature_maps has shape {tuple(feature_maps.shape)} and there are boxes for {len(boxes)} images"
        raise ValueError(f"{found}; expected are (B, C, h, w) and one tensor of boxes for each of B.")
    if min(rows, columns, sampling_ratio) < 1:
        sizes = f"output_size is {(rows, columns)} and sampling_ratio {sampling_ratio}"
        raise ValueError(f"{sizes}, but each must be at least 1.")
    if unfit := [tuple(one.shape) for one in boxes if one.dim() != 2 or one.shape[1] != 4]:
        raise ValueError(f"boxes of an image have shape {unfit[0]}, expected is (R, 4): x0, y0, x1, y1.")

    pooled = [feature_maps.new_zeros(0, feature_maps.shape[1], rows, columns)]
    for feature_map, image_boxes in zip(feature_maps, boxes, strict=True):
        corners = image_boxes.detach().to(feature_map.device, torch.float32)
        x0, y0, x1, y1 = (corners * corners.new_tensor([x_scale, y_scale] * 2)).unbind(1)
        # A box is two small matrices, rows and columns apart.
        by_row = _bin_weights(y0, y1, rows, sampling_ratio, feature_map.shape[1]).to(feature_map.dtype)
        by_column = _bin_weights(x0, x1, columns, sampling_ratio, feature_map.shape[2]).to(feature_map.dtype)
        narrowed = torch.einsum("chw,rqw->rchq", feature_map, by_column)
        pooled.append(torch.einsum("rchq,rph->rcpq", narrowed, by_row))
    return torch.cat(pooled)


def _bin_weights(starts: torch.Tensor, stops: torch.Tensor, bins: int, points: int, cells: int) -> torch.Tensor:
    """What each cell of one direction counts in each bin: `(R, bins, cells)`, the mean of the weights of its points."""
    steps = (torch.arange(bins * points, device=starts.device, dtype=torch.float32) + 0.5) / (bins * points)
    positions = starts[:, None] - 0.5 + (stops - starts)[:, None] * steps
    # A point up to a cell outside of the map takes the value at the border; one further out counts as zero.
    inside = (positions >= -1) & (positions <= cells)
    positions = positions.clamp(0, cells - 1)
    centres = torch.arange(cells, device=starts.device, dtype=torch.float32)
    weights = (1 - (positions[..., None] - centres).abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (bins, points)).mean(2)
