"""Tiny encoders whose every parameter is far from its initial value, and rows of unequal texts and images.

Padding is filled with noise, not with zeros: a mask that leaks shows.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.modeling import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig, own_fields

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
        return {name: value for name, value in fields.items() if name in own_fields(part)}

    if kind is not DualEncoderConfig:
        labels = {"num_labels": fields["num_labels"]} if "num_labels" in fields else {}
        return kind(**taken(kind), **labels)
    towers = {"text_config": taken(DualEncoderTextConfig), "vision_config": taken(DualEncoderVisionConfig)}
    rest = {name: value for name, value in fields.items() if not any(name in tower for tower in towers.values())}
    return DualEncoderConfig(
        **towers, **taken(DualEncoderConfig), **{k: v for k, v in rest.items() if k == "num_labels"}
    )


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
def batch(
    make_rows: Callable[..., list[Row]], collate: Callable[..., dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Three rows of unequal texts and images, padded."""
    return collate(make_rows())


def make_pairs(image_ids: Sequence[int], caption_ids: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """Rows for pre-training, ragged; what an image or a caption is follows from its id, `id % 3` words are masked."""
    rows = []
    for image_id, caption_id in zip(image_ids, caption_ids, strict=True):
        words = torch.Generator().manual_seed(caption_id)
        text = torch.randint(5, 60, (3 + caption_id % 5,), generator=words)
        masked, labels = text.clone(), torch.full_like(text, -100)
        for place in range(1, 1 + caption_id % 3):
            masked[place], labels[place] = 4, text[place]
        size = (1 + image_id % 3) * PATCH, (1 + image_id // 3 % 3) * PATCH
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1000 + image_id))
        rows.append({
            "input_ids": text,
            "masked_input_ids": masked,
            "masked_labels": labels,
            "attention_mask": torch.ones_like(text),
            "pixel_values": image,
            "pixel_mask": torch.ones(1, *size, dtype=torch.long),
            "image_ids": torch.tensor(image_id),
            "caption_ids": torch.tensor(caption_id),
        })  # fmt: skip
    return rows


def collate_pairs(rows: Sequence[dict[str, torch.Tensor]], num_tokens: int = 0) -> dict[str, torch.Tensor]:
    """Pad rows for pre-training to the largest, masks and labels as they must be, the rest with noise."""
    batch = {}
    for name in rows[0]:
        sizes = [max(sizes) for sizes in zip(*(row[name].shape for row in rows), strict=True)]
        if len(sizes) == 1:
            sizes = [max(*sizes, num_tokens)]
        shape = len(rows), *sizes
        if name == "pixel_values":
            batch[name] = torch.randn(shape) * 10
        elif name.endswith("input_ids"):
            batch[name] = torch.randint(5, 60, shape)
        else:
            batch[name] = torch.full(shape, -100 if name == "masked_labels" else 0)
        for i, row in enumerate(rows):
            batch[name][(i, *(slice(size) for size in row[name].shape))] = row[name]
    return batch


@pytest.fixture
def pair_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """A batch for pre-training of rows with these image ids and caption ids; None: all unlike."""

    def pair_batch(
        image_ids: Sequence[int] = (1, 2, 3, 4), caption_ids: Sequence[int] | None = None, num_tokens: int = 0
    ) -> dict[str, torch.Tensor]:
        if caption_ids is None:
            caption_ids = [10 + image_id for image_id in image_ids]
        return collate_pairs(make_pairs(image_ids, caption_ids), num_tokens)

    return pair_batch
