"""A tiny region-based teacher and a narrower student with features of another width, and rows for them."""

from pathlib import Path

import torch

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForQuestionAnswering
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

STUDENT_FEATURES, TEACHER_FEATURES = 5, 9
SHAPE = {
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "visual_inputs": "regions",
    "norm_first": False,
    "num_labels": 5,
    "region_boxes_id": "boxes a",
}


def region_model(seed, hidden_size, region_feature_size, **fields):
    torch.manual_seed(seed)
    shape = SHAPE | {"hidden_size": hidden_size, "region_feature_size": region_feature_size} | fields
    model = FusionEncoderForQuestionAnswering(FusionEncoderConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def region_teacher(**fields):
    return region_model(1, 24, TEACHER_FEATURES, **fields)


def region_student(seed=2, **fields):
    return region_model(seed, 16, STUDENT_FEATURES, **fields)


def region_rows(count=20):
    generator = torch.Generator().manual_seed(5)

    def draw(low, high, size=1):
        return torch.randint(low, high, (size,), generator=generator)

    rows = []
    for _ in range(count):
        regions = int(draw(1, 5))
        rows.append(
            {
                "ids": draw(1, 60, int(draw(2, 7))),
                "tags": draw(1, 60, int(draw(1, 4))),
                "boxes": torch.rand(regions, 6, generator=generator),
                "features": torch.randn(regions, STUDENT_FEATURES, generator=generator),
                "teacher_features": torch.randn(regions, TEACHER_FEATURES, generator=generator),
                "label": int(draw(0, 5)),
            }
        )
    return rows


def region_collator(rows):
    length = max(len(row["ids"]) + len(row["tags"]) for row in rows)
    most = max(len(row["boxes"]) for row in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "token_type_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "region_features": torch.zeros(len(rows), most, STUDENT_FEATURES),
        "teacher_region_features": torch.zeros(len(rows), most, TEACHER_FEATURES),
        "region_boxes": torch.zeros(len(rows), most, 6),
        "region_mask": torch.zeros(len(rows), most, dtype=torch.bool),
        "labels": torch.tensor([row["label"] for row in rows]),
    }
    for i, row in enumerate(rows):
        words, tags, regions = len(row["ids"]), len(row["tags"]), len(row["boxes"])
        batch["input_ids"][i, : words + tags] = torch.cat([row["ids"], row["tags"]])
        batch["attention_mask"][i, : words + tags] = 1
        batch["token_type_ids"][i, words : words + tags] = 1
        batch["region_features"][i, :regions] = row["features"]
        batch["teacher_region_features"][i, :regions] = row["teacher_features"]
        batch["region_boxes"][i, :regions] = row["boxes"]
        batch["region_mask"][i, :regions] = True
    return batch


def region_trainer(folder, model=None, teacher="tiny", rows=None, eval_rows=None, shard=None, **fields):
    """A trainer with the DistillVLM objective; every field of the arguments may be given, and how they are sharded."""
    # The MSE of probabilities is small.
    taught = {"method": "distillvlm", "queue_size": 100, "attention_weight": 50.0}
    defaults = {
        **({} if teacher is None else taught),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 0.0,  # clipping would hide a gradient that is a whole factor too large
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    torch.manual_seed(3)  # the projection's weights
    paired = {} if teacher is None else {"teacher": region_teacher() if teacher == "tiny" else teacher}
    arguments = DistillationTrainingArguments(output_dir=str(Path(folder)), **{**defaults, **fields})
    if shard is not None:
        shard(arguments)
    return DistillationTrainer(
        model=region_student() if model is None else model,
        args=arguments,
        train_dataset=region_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        data_collator=region_collator,
        **paired,
    )
