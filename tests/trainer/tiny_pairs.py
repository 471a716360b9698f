"""Tiny models for pre-training and retrieval, and rows of image-text data with masked words, some of them twice."""

import runpy
from pathlib import Path

import torch

from dual_distill.modeling import (
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    FusionEncoderConfig,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForPreTraining,
    dual_config_from_fusion,
)

# Neither pytest nor a script finds a neighbour by its name alone.
shared = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
TINY, tiny_arguments, tiny_collator, tiny_rows = (
    shared[name] for name in ("TINY", "tiny_arguments", "tiny_collator", "tiny_rows")
)
MASK = 59
ARGUMENTS = {"num_train_epochs": 1, "learning_rate": 0.02}


def noisy(cls: type, config: object, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def fusion(cls: type = FusionEncoderForPreTraining, seed: int = 1, **fields: object) -> torch.nn.Module:
    return noisy(cls, FusionEncoderConfig(**{**TINY, **fields}), seed)


def dual(cls: type = DualEncoderForPreTraining, seed: int = 2, **fields: object) -> torch.nn.Module:
    config = dual_config_from_fusion(FusionEncoderConfig(**TINY))
    for name, value in {"projection_dim": 6, **fields}.items():
        setattr(config, name, value)
    model = noisy(cls, config, seed)
    with torch.no_grad():
        model.logit_scale.fill_(1.0)
    return model


def retrieval_fusion(seed: int = 3) -> FusionEncoderForImageTextRetrieval:
    return fusion(FusionEncoderForImageTextRetrieval, seed)


def retrieval_dual(seed: int = 4, **fields: object) -> DualEncoderForImageTextRetrieval:
    return dual(DualEncoderForImageTextRetrieval, seed, **fields)


def pair_rows(count: int = 8) -> list[dict]:
    """Row 1 shows row 0's image, row 5 says row 4's caption."""
    rows = [{**row, "image_id": 100 + place, "caption_id": 1000 + place} for place, row in enumerate(tiny_rows(count))]
    for place in range(1, count, 8):
        rows[place] |= {name: rows[place - 1][name] for name in ("image", "image_id")}
    for place in range(5, count, 8):
        rows[place] |= {name: rows[place - 1][name] for name in ("ids", "caption_id")}
    return rows


def image_text_collator(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Masks one word a row, or two in every second, so that half batches hold unequally many."""
    batch = tiny_collator([{name: row[name] for name in ("ids", "image")} for row in rows])
    batch["image_ids"] = torch.tensor([row["image_id"] for row in rows])
    batch["caption_ids"] = torch.tensor([row["caption_id"] for row in rows])
    batch["masked_input_ids"] = batch["input_ids"].clone()
    batch["masked_labels"] = torch.full_like(batch["input_ids"], -100)
    for i, row in enumerate(rows):
        for place in range(min(1 + row["caption_id"] % 4 // 2, len(row["ids"]))):
            batch["masked_labels"][i, place] = row["ids"][place]
            batch["masked_input_ids"][i, place] = MASK
    return batch


def retrieval_collator(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in image_text_collator(rows).items() if not name.startswith("masked")}


def pair_arguments(folder: object, **fields: object) -> object:
    return tiny_arguments(folder, **{**ARGUMENTS, **fields})
