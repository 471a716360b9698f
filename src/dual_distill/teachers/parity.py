"""The proof that a converted model computes what the original computes: the same random batch through both."""

from typing import Any

import torch
from transformers import PreTrainedModel

from dual_distill.modeling import FusionEncoderConfig


def random_batch(
    config: FusionEncoderConfig,
    num_rows: int = 3,
    num_tokens: int = 12,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Draw rows of unequal texts and images, padded with noise, so that a mask that leaks shows.

    Args:
        config: of the model that is to read them.
        num_rows: B rows; the first is the largest, each further one is shorter and smaller.
        num_tokens: longest text in tokens, at most the model's.
        grid: rows and columns of patches of the largest image; None: the model's own position table.
        seed: of the draw; the same seed gives the same batch, and no other random number is touched.

    Returns:
        `input_ids`, `attention_mask` `(B, T)`, `pixel_values` `(B, N, 3, H, W)` and `pixel_mask` `(B, N, H, W)`.

    Example:
        >>> batch = random_batch(FusionEncoderConfig(image_size=8, patch_size=4, num_images=2), num_rows=2)
        >>> batch["pixel_values"].shape, batch["attention_mask"].sum(1)
        (torch.Size([2, 2, 3, 8, 8]), tensor([12,  6]))
    """
    draw = torch.Generator().manual_seed(seed)
    num_tokens = min(num_tokens, config.max_position_embeddings)
    rows, columns = grid or config.patch_grid
    size = (num_rows, config.num_images)
    height, width = rows * config.patch_size, columns * config.patch_size
    batch = {
        "input_ids": torch.randint(config.vocab_size, (num_rows, num_tokens), generator=draw),
        "attention_mask": torch.zeros(num_rows, num_tokens, dtype=torch.long),
        "pixel_values": torch.randn(*size, config.num_channels, height, width, generator=draw),
        "pixel_mask": torch.zeros(*size, height, width, dtype=torch.long),
    }
    for row in range(num_rows):
        batch["attention_mask"][row, : max(1, num_tokens // (row + 1))] = 1
        for image in range(config.num_images):
            # Images of one row differ too: the row's index shortens the height, both shorten the width.
            real_rows, real_columns = max(1, rows - row), max(1, columns - (row + image) // 2)
            batch["pixel_mask"][row, image, : real_rows * config.patch_size, : real_columns * config.patch_size] = 1
    return batch


@torch.inference_mode()
def largest_difference(
    original: PreTrainedModel, converted: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Run one batch through a ViLT of transformers and through its conversion.

    Args:
        original: ViLT, bare or with a head.
        converted: the fusion encoder made of it; the head is compared when both have one, else the pooled vectors.
        batch: as `random_batch` draws it, on the models' device.

    Returns:
        `output` ("logits" or "pooler_output"), `largest_difference` between the two in absolute terms, and
        `largest_value` of the original, its scale.
    """
    original.eval()
    converted.eval()
    found = converted(**batch)
    output = "logits" if found.get("logits") is not None else "pooler_output"
    one_image = {**batch, **{name: batch[name][:, 0] for name in ("pixel_values", "pixel_mask")}}
    if type(original).__name__ == "ViltForImagesAndTextClassification":
        expected = original(**batch).logits
    elif output == "logits":
        expected = original(**one_image).logits
    else:
        expected = original(**one_image).pooler_output
    values = found[output][:, 0] if output == "pooler_output" else found[output]
    return {
        "output": output,
        "largest_difference": (values.float() - expected.float()).abs().max().item(),
        "largest_value": expected.float().abs().max().item(),
    }


__all__ = ["largest_difference", "random_batch"]
