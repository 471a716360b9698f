"""Parity of a converted model with its original: the same random batch through both, and nothing written without it."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel, PreTrainedModel

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderModel

# Of the largest value, or of 1 where that is smaller: above rounding in float32, below what an error would do.
TOLERANCE = 1e-4
_PARITY_TOKENS = 16


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
    found = converted.eval()(**batch)
    output = "logits" if found.get("logits") is not None else "pooler_output"
    values = found.logits if output == "logits" else found.pooler_output[:, 0]

    # transformers' ViLT has an axis of images in one of its classes only.
    if type(original).__name__ != "ViltForImagesAndTextClassification":
        batch = {**batch, **{name: batch[name][:, 0] for name in ("pixel_values", "pixel_mask")}}
    return _difference(output, values, original.eval()(**batch)[output])


@torch.inference_mode()
def text_difference(original: BertModel, started: PreTrainedModel) -> dict[str, Any]:
    """Run random tokens, without regions, through a BERT and the fusion encoder over regions that it started.

    Args:
        original: in eval mode.
        started: with a head or without, in eval mode.

    Returns:
        As `largest_difference`, of "last_hidden_state".
    """
    body: Any = getattr(started, FusionEncoderModel.base_model_prefix, started)
    length = min(_PARITY_TOKENS, started.config.max_position_embeddings)
    tokens = torch.randint(started.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(length) >= length // 2).long().expand(2, -1) % started.config.type_vocab_size

    expected = original(input_ids=tokens, token_type_ids=segments).last_hidden_state
    found, _ = body.encoder(body.embeddings.text_embeddings(tokens, segments), None)
    return _difference("last_hidden_state", found, expected)


def _difference(output: str, found: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    return {
        "output": output,
        "largest_difference": (found.float() - expected.float()).abs().max().item(),
        "largest_value": expected.float().abs().max().item(),
    }


def check_parity(difference: Mapping[str, Any], compared: str, step: str) -> None:
    """Refuse to write what does not compute what the original computes; a value that is not a number is refused too."""
    allowed = TOLERANCE * max(1.0, difference["largest_value"])
    if not difference["largest_difference"] <= allowed:
        found = f"differ by {difference['largest_difference']:.3g}, at most {allowed:.3g} is expected"
        defect = f"this is a defect of the checkpoint (values that are not finite) or of the {step}: please report it"
        raise ValueError(f"{compared} {found}; nothing was written, and {defect}.")


def refuse_full_folder(out: Path) -> None:
    """Refuse to write over what is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already and not an empty folder; name a new one.")


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, which becomes `out` at the end; on an error nothing is left of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        folder = Path(aside, "written")
        folder.mkdir()
        yield folder
        folder.rename(out)
