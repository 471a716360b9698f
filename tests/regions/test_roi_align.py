"""RoIAlign against a loop written from its definition, closed forms, and gradients."""

import math

import pytest
import torch

from dual_distill.regions.roi_align import roi_align


def slow_sample(plane, y, x):
    """The bilinear value of a `(h, w)` plane at a point, as four numbers and their weights."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(math.floor(y), height - 1), min(math.floor(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    above = plane[top, left] * (1 - across) + plane[top, right] * across
    below = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
    return above * (1 - down) + below * down


def slow_roi_align(feature_map, box, rows, columns, scale, points):
    """`(C, rows, columns)` of one box."""
    x0, y0, x1, y1 = (float(value) * scale - 0.5 for value in box)
    bin_height, bin_width = (y1 - y0) / rows, (x1 - x0) / columns
    pooled = feature_map.new_zeros(feature_map.shape[0], rows, columns)
    for channel, plane in enumerate(feature_map):
        for row in range(rows):
            for column in range(columns):
                total = 0.0
                for i in range(points):
                    for j in range(points):
                        y = y0 + row * bin_height + (i + 0.5) * bin_height / points
                        x = x0 + column * bin_width + (j + 0.5) * bin_width / points
                        total = total + slow_sample(plane, y, x)
                pooled[channel, row, column] = total / points**2
    return pooled


# In pixels of an image of 36 x 28, on a map of 9 x 7 cells: whole, tiny, on a border, beyond all borders, of no area.
BOXES = [
    torch.tensor([[0.0, 0, 36, 28], [3.3, 5.1, 17.9, 22.2], [8, 8, 12, 12]]),
    torch.tensor([[-3.0, -2, 39, 33], [30.5, 20, 36, 28], [7, 7, 7, 7], [-9, -9, -7, -7.5]]),
]


@pytest.mark.parametrize("rows, columns, points", [(3, 2, 2), (1, 1, 3), (4, 4, 1)])
def test_equal_to_the_definition(rows, columns, points) -> None:
    maps = torch.randn(2, 3, 7, 9)
    found = roi_align(maps, BOXES, (rows, columns), 0.25, points)
    expected = [slow_roi_align(maps[i], box, rows, columns, 0.25, points) for i in range(2) for box in BOXES[i]]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)


def test_gradients_equal_those_of_the_definition() -> None:
    maps = torch.randn(2, 2, 7, 9, requires_grad=True)
    weights = torch.randn(7, 2, 3, 2)
    (roi_align(maps, BOXES, (3, 2), 0.25, 2) * weights).sum().backward()
    found, maps.grad = maps.grad, None
    pooled = [slow_roi_align(maps[i], box, 3, 2, 0.25, 2) for i in range(2) for box in BOXES[i]]
    (torch.stack(pooled) * weights).sum().backward()
    torch.testing.assert_close(found, maps.grad, atol=1e-5, rtol=0)


def test_a_constant_map_pools_to_its_constant() -> None:
    pooled = roi_align(torch.full((1, 1, 7, 9), 2.5), BOXES[:1], 7, 0.25)
    torch.testing.assert_close(pooled, torch.full_like(pooled, 2.5))


def test_a_box_of_one_cell_takes_that_cell() -> None:
    maps = torch.randn(1, 4, 7, 9)
    pooled = roi_align(maps, [torch.tensor([[20.0, 8, 24, 12]])], 1, 0.25, 1)
    torch.testing.assert_close(pooled[0, :, 0, 0], maps[0, :, 2, 5])


def test_the_mean_over_bins_is_one_bin_of_all_points() -> None:
    maps = torch.randn(2, 3, 7, 9)
    means = roi_align(maps, BOXES, 7, 0.25, 2).mean((2, 3))
    torch.testing.assert_close(roi_align(maps, BOXES, 1, 0.25, 14)[..., 0, 0], means, atol=1e-5, rtol=0)


def test_a_scale_for_each_direction() -> None:
    maps = torch.randn(1, 3, 7, 9)
    stretched = BOXES[0] * torch.tensor([2.0, 3, 2, 3])
    torch.testing.assert_close(roi_align(maps, [stretched], 2, (0.125, 0.25 / 3)), roi_align(maps, BOXES[:1], 2, 0.25))


def test_an_image_without_boxes_adds_none() -> None:
    maps = torch.randn(2, 3, 7, 9)
    pooled = roi_align(maps, [torch.zeros(0, 4), BOXES[1]], 2, 0.25)
    assert pooled.shape == (4, 3, 2, 2)
    assert torch.equal(pooled, roi_align(maps[1:], BOXES[1:], 2, 0.25))


def test_half_precision_is_close() -> None:
    maps = torch.randn(2, 3, 7, 9)
    half = roi_align(maps.bfloat16(), BOXES, 2, 0.25)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), roi_align(maps, BOXES, 2, 0.25), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "maps, boxes, options, message",
    [
        (torch.zeros(3, 7, 9), BOXES, {}, r"feature_maps has shape \(3, 7, 9\) and there are boxes for 2 images"),
        (torch.zeros(2, 3, 7, 9), BOXES[:1], {}, "boxes for 1 images"),
        (torch.zeros(2, 3, 7, 9), [torch.zeros(4), torch.zeros(1, 4)], {}, r"boxes of an image have shape \(4,\)"),
        (torch.zeros(2, 3, 7, 9), BOXES, {"sampling_ratio": 0}, "sampling_ratio 0, but each must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(maps, boxes, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        roi_align(maps, boxes, **options)
