"""Tiny encoders whose every parameter is far from its initial value, and rows of unequal texts and images.

Padding is filled with noise, not with zeros: a mask that leaks shows.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderTextConfig,
    DualEncoderVisionConfig,
)

PATCH = 4
FIELDS = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": [2 * PATCH, 3 * PATCH],
    "patch_size": PATCH,
}
Row = tuple[torch.Tensor, list[torch.Tensor]]


def tiny_config(kind: type[PreTrainedConfig], **fields: object) -> PreTrainedConfig:
    fields = {**FIELDS, **fields}

    def taken(part: type[PreTrainedConfig]) -> dict[str, object]:
        return {name: value for name, value in fields.items() if name in part.__annotations__}

    if kind is not DualEncoderConfig:
        labels = {"num_labels": fields["num_labels"]} if "num_labels" in fields else {}
        return kind(**taken(kind), **labels)
    towers = {"text_config": taken(DualEncoderTextConfig), "vision_config": taken(DualEncoderVisionConfig)}
    rest = {name: value for name, value in fields.items() if not any(name in tower for tower in towers.values())}
    return DualEncoderConfig(**towers, **taken(DualEncoderConfig), **{k: v for k, v in rest.items() if k == "num_labels"})


@pytest.fixture
def config() -> Callable[..., PreTrainedConfig]:
    """A tiny configuration of a kind; fields of a dual encoder go to the towers that have them."""
    return tiny_config


@pytest.fixture
def build() -> Callable[..., PreTrainedModel]:
    """A tiny model of a class, in eval mode, with noise on every parameter; one seed gives the same weights."""

    def build(cls: type[PreTrainedModel], seed: int = 1, attn_implementation: str = "sdpa", **fields: object):
        torch.manual_seed(seed)
        model = cls._from_config(tiny_config(cls.config_class, **fields), attn_implementation=attn_implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return build


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Rows of a text of each length with images of the given grids of patches: `(ids, [image, ...])`."""

    def make_rows(lengths: Sequence[int] = (7, 3, 5), grids: Sequence[Sequence[tuple[int, int]]] = ()) -> list[Row]:
        grids = grids or (((2, 3),), ((1, 2),), ((3, 1),))
        return [
            (torch.randint(1, 60, (length,)), [torch.randn(3, rows * PATCH, columns * PATCH) for rows, columns in row])
            for length, row in zip(lengths, grids, strict=True)
        ]

    return make_rows


@pytest.fixture
def collate() -> Callable[..., dict[str, torch.Tensor]]:
    """Rows to one batch, padded with noise to the largest row or to `num_tokens` and `grid`."""

    def collate(rows: Sequence[Row], num_tokens: int = 0, grid: tuple[int, int] = (0, 0)) -> dict[str, torch.Tensor]:
        num_tokens = max(num_tokens, *(len(ids) for ids, _ in rows))
        height = max(grid[0] * PATCH, *(image.shape[1] for _, images in rows for image in images))
        width = max(grid[1] * PATCH, *(image.shape[2] for _, images in rows for image in images))
        num_images = len(rows[0][1])
        batch = {
            "input_ids": torch.randint(1, 60, (len(rows), num_tokens)),
            "attention_mask": torch.zeros(len(rows), num_tokens, dtype=torch.long),
            "pixel_values": torch.randn(len(rows), num_images, 3, height, width) * 10,
            "pixel_mask": torch.zeros(len(rows), num_images, height, width, dtype=torch.long),
        }
        for i, (ids, images) in enumerate(rows):
            batch["input_ids"][i, : len(ids)] = ids
            batch["attention_mask"][i, : len(ids)] = 1
            for j, image in enumerate(images):
                batch["pixel_values"][i, j, :, : image.shape[1], : image.shape[2]] = image
                batch["pixel_mask"][i, j, : image.shape[1], : image.shape[2]] = 1
        return batch

    return collate


@pytest.fixture
def batch(make_rows: Callable[..., list[Row]], collate: Callable[..., dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Three rows of unequal texts and images, padded."""
    return collate(make_rows())
