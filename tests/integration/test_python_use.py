"""The same from Python: two lines of data, a trainer; and augmentation that teacher, student and resumed run share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dual_distill import (
    DistillationCollator,
    DistillationTrainer,
    DistillationTrainingArguments,
    DualEncoderForQuestionAnswering,
    get_task,
    load_task,
    load_teacher,
)
from dual_distill.data import IndexedDataset, RandAugment
from dual_distill.runs import DataArguments, ModelArguments, make_run, train


@pytest.fixture
def vqa(files: Callable[[str], Path]) -> dict[str, Path]:
    folder = files("vqa")
    return {
        "questions": folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        "annotations": folder / "v2_mscoco_val2014_annotations.json",
        "images": folder,
    }


def arguments(folder: Path, **fields: object) -> DistillationTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return DistillationTrainingArguments(str(folder), **{**defaults, **fields})


def test_a_student_in_a_dozen_lines(vqa: dict, vilts: dict, tmp_path: Path) -> None:
    data = load_task("vqa", **vqa, validation_rows=8)
    teacher, processor = load_teacher(vilts["vqa"])
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer = DistillationTrainer(
        student,
        arguments(tmp_path),
        teacher=vilts["vqa"],
        data_collator=DistillationCollator(processor, get_task("vqa"), list(teacher.config.id2label.values())),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert {"eval_loss", "eval_attention_loss", "eval_soft_label_loss"} <= set(trainer.evaluate())
    assert not all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_teacher_and_student_see_the_same_augmented_pixels(vqa: dict, vilts: dict, tmp_path: Path) -> None:
    """Augmented in training, batch by batch the same for both, other ones in each epoch; as they are in evaluation."""
    data = load_task("vqa", **vqa, validation_rows=16)  # four rows to train on: a batch, so an epoch a step
    teacher, processor = load_teacher(vilts["vqa"])
    names = list(teacher.config.id2label.values())
    task = get_task("vqa")
    trainer = DistillationTrainer(
        DualEncoderForQuestionAnswering.from_fusion_encoder(teacher),
        arguments(tmp_path),
        teacher=teacher,
        data_collator=DistillationCollator(processor, task, names, augmentation=RandAugment(seed=3)),
        train_dataset=IndexedDataset(data["train"]),
        eval_dataset=data["validation"].select(range(4)),
    )
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    for role, model in (("student", trainer.model), ("teacher", trainer.teacher)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, role=role: seen[role].append(kwargs["pixel_values"]), with_kwargs=True
        )
    trainer.train()
    # A first batch is held against the run before the first step.
    assert len({tuple(pixels.flatten().tolist()) for pixels in (seen["student"].pop(0), seen["teacher"].pop(0))}) == 1
    assert len(seen["student"]) == 2
    assert all(torch.equal(*pair) for pair in zip(seen["student"], seen["teacher"], strict=True))
    assert len({pixels.sum().item() for pixels in seen["student"]}) == 2
    trainer.evaluate()
    plain = DistillationCollator(processor, task, names)
    assert torch.equal(seen["student"][2], plain([data["validation"][i] for i in range(4)])["pixel_values"])
    assert torch.equal(seen["teacher"][2], seen["student"][2])


def test_an_augmentation_that_would_be_passed_over_is_refused(vqa: dict, vilts: dict, tmp_path: Path) -> None:
    teacher, processor = load_teacher(vilts["vqa"])
    collator = DistillationCollator(
        processor, get_task("vqa"), list(teacher.config.id2label.values()), augmentation=RandAugment()
    )
    with pytest.raises(
        ValueError, match=r"train_dataset is a Dataset without them; give IndexedDataset\(train_dataset\)"
    ):
        DistillationTrainer(
            DualEncoderForQuestionAnswering.from_fusion_encoder(teacher),
            arguments(tmp_path),
            teacher=teacher,
            data_collator=collator,
            train_dataset=load_task("vqa", **vqa, validation_rows=8)["train"],
        )


def test_a_resumed_run_equals_the_uninterrupted_one_with_augmentation(
    vilts: dict, files: Callable, tmp_path: Path
) -> None:
    """Three steps an epoch, four in all, stopped after two: within an epoch, and the rest crosses into the next."""

    def run(folder: Path) -> dict[str, torch.Tensor]:
        trainer = make_run(
            ModelArguments(init_from=vilts["mlm"], new_head=True, teacher=vilts["vqa"], hidden_dropout_prob=0.1),
            DataArguments(
                task="vqa",
                data=str(files("vqa")),
                data_options={"validation_rows": 20},
                max_train_rows=12,
                augmentation="randaugment",
            ),
            arguments(folder, max_steps=4, save_steps=2, seed=5),
        )
        train(trainer)
        assert trainer.state.global_step == 4
        return load_file(folder / "model.safetensors")

    whole = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    start = load_file(tmp_path / "half" / "checkpoint-2" / "model.safetensors")
    resumed = run(tmp_path / "half")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], start[name]) for name in whole)
