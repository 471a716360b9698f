"""A tiny teacher and a tiny student, and rows of texts of unequal lengths with images of unequal sizes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

TINY = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": [8, 12],
    "patch_size": 4,
    "num_labels": 5,
}


def tiny_teacher(seed: int = 1, **fields: object) -> FusionEncoderForQuestionAnswering:
    """With noise on every parameter, so that its attention has something to say."""
    torch.manual_seed(seed)
    over_images = fields.get("num_images", 1) > 1
    cls = FusionEncoderForImagesAndTextClassification if over_images else FusionEncoderForQuestionAnswering
    model = cls(FusionEncoderConfig(**{**TINY, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tiny_student(seed: int = 2, **fields: object) -> DualEncoderForQuestionAnswering:
    """Its towers start from another fusion encoder than the teacher."""
    fusion = tiny_teacher(seed, **fields)
    over_images = fields.get("num_images", 1) > 1
    return (
        DualEncoderForImagesAndTextClassification if over_images else DualEncoderForQuestionAnswering
    ).from_fusion_encoder(fusion)


def tiny_rows(count: int = 20, images: int = 1) -> list[dict]:
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int, size: int = 1) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    return [
        {
            "ids": draw(1, 60, int(draw(2, 9))),
            "image": torch.randn(images, 3, 4 * int(draw(1, 3)), 4 * int(draw(1, 4)), generator=generator),
            "label": int(draw(0, 5)),
        }
        for _ in range(count)
    ]


def tiny_collator(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pads to the largest of these rows, as the package's own collator does."""
    length = max(len(row["ids"]) for row in rows)
    height, width = (max(row["image"].shape[dim] for row in rows) for dim in (2, 3))
    images = rows[0]["image"].shape[0]
    batch = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "pixel_values": torch.zeros(len(rows), images, 3, height, width),
        "pixel_mask": torch.zeros(len(rows), images, height, width, dtype=torch.long),
    }
    for i, row in enumerate(rows):
        h, w = row["image"].shape[2:]
        batch["input_ids"][i, : len(row["ids"])] = row["ids"]
        batch["attention_mask"][i, : len(row["ids"])] = 1
        batch["pixel_values"][i, :, :, :h, :w] = row["image"]
        batch["pixel_mask"][i, :, :h, :w] = 1
    if all("label" in row for row in rows):
        batch["labels"] = torch.tensor([row["label"] for row in rows])
    return batch


def tiny_arguments(folder: Path | str, **fields: object) -> DistillationTrainingArguments:
    """SGD: Adam would blow up rounding wherever a gradient is zero in theory, as that of a key's bias."""
    defaults = {
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 100.0,  # clipping would hide a gradient that is a whole factor too large
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
        "dataloader_num_workers": 0,
    }
    return DistillationTrainingArguments(output_dir=str(folder), **{**defaults, **fields})


@pytest.fixture
def teacher() -> FusionEncoderForQuestionAnswering:
    return tiny_teacher()


@pytest.fixture
def student() -> DualEncoderForQuestionAnswering:
    return tiny_student()


@pytest.fixture
def make_teacher() -> Callable[..., FusionEncoderForQuestionAnswering]:
    return tiny_teacher


@pytest.fixture
def make_student() -> Callable[..., DualEncoderForQuestionAnswering]:
    return tiny_student


@pytest.fixture
def make_rows() -> Callable[..., list[dict]]:
    return tiny_rows


@pytest.fixture
def collator() -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    return tiny_collator


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., DistillationTrainingArguments]:
    return lambda **fields: tiny_arguments(fields.pop("output_dir", tmp_path / "out"), **fields)


@pytest.fixture
def build(arguments: Callable[..., DistillationTrainingArguments]) -> Callable[..., DistillationTrainer]:
    """A trainer of a fresh tiny student with a fresh tiny teacher; every field of the arguments may be given."""

    def build(
        model: torch.nn.Module | None = None,
        teacher: torch.nn.Module | str | None = "tiny",
        trainer_class: type = DistillationTrainer,
        objective: object = None,
        rows: list[dict] | None = None,
        eval_rows: list[dict] | None = None,
        compute_metrics: Callable | None = None,
        processing_class: object = None,
        **fields: object,
    ) -> DistillationTrainer:
        paired = {} if teacher is None else {"teacher": tiny_teacher() if teacher == "tiny" else teacher}
        if objective is not None:
            paired["objective"] = objective
        return trainer_class(
            model=tiny_student() if model is None else model,
            args=arguments(**fields),
            train_dataset=tiny_rows() if rows is None else rows,
            eval_dataset=eval_rows,
            data_collator=tiny_collator,
            compute_metrics=compute_metrics,
            processing_class=processing_class,
            **paired,
        )

    return build
