"""TRL's trainer of the same name: another class, whose arguments are refused in a sentence."""

import pytest

import dual_distill

trl = pytest.importorskip("trl", reason="TRL is not installed")


def test_two_trainers_of_one_name_are_told_apart(student, teacher, tmp_path) -> None:
    ours, theirs = dual_distill.DistillationTrainer, trl.DistillationTrainer
    assert ours.__name__ == theirs.__name__
    assert not issubclass(ours, theirs)
    assert not issubclass(theirs, ours)
    args = trl.DistillationConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="args is a DistillationConfig; give a DistillationTrainingArguments"):
        ours(student, args, teacher=teacher)
    with pytest.raises(ValueError, match="teacher_model= is called teacher= here"):
        ours(student, teacher_model=teacher)
