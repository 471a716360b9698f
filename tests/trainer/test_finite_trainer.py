"""What is no number stops a run: the teacher's outputs, kept rows, the loss, gradients, weights."""

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from dual_distill.objectives import DiDEObjective


@pytest.mark.parametrize(
    "name", ["classifier.0.weight", "fusion_encoder.encoder.layer.1.attention.attention.query.bias"]
)
def test_a_teacher_with_one_nan_stops_the_run_at_its_first_step(name, build, make_teacher, tmp_path):
    teacher = make_teacher()
    with torch.no_grad():
        teacher.get_parameter(name)[0] = torch.nan
    trainer = build(teacher=teacher, logging_steps=2, save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match=r"loss .*the teacher's outputs at step 1; .*no checkpoint was saved"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path / "out")) is None


class _Broken(DiDEObjective):
    """Its label term is infinite from a step on."""

    calls = 0

    def forward(self, *given):
        losses = super().forward(*given)
        self.calls += self.training  # not before the first step
        factor = torch.inf if self.calls >= 4 else 1.0
        return {**losses, "soft_label_loss": losses["soft_label_loss"] * factor, "loss": losses["loss"] * factor}


def test_a_term_names_its_step_and_the_last_good_checkpoint(build, tmp_path):
    trainer = build(objective=_Broken(), save_strategy="steps", save_steps=1, logging_steps=100)
    with pytest.raises(ValueError, match=r"loss and soft_label_loss and the gradients at step 4.*checkpoint-3"):
        trainer.train()
    assert get_last_checkpoint(str(tmp_path / "out")).endswith("checkpoint-3")


def test_an_infinite_learning_rate_saves_nothing(build, tmp_path):
    trainer = build(learning_rate=float("inf"), save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match=r"weights after step 1 \(the first is .*nothing of it was saved"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    with pytest.raises(ValueError, match="weights after step 1"):
        trainer.save_model()


def test_an_evaluation_says_it_too(build, make_rows, make_student):
    student = make_student()
    with torch.no_grad():
        student.classifier[0].bias[1] = torch.nan
    with pytest.raises(ValueError, match="at step 0"):
        build(student, eval_rows=make_rows(4)).evaluate()


def test_a_run_that_is_sound_waits_for_nothing_and_says_nothing(build, monkeypatch):
    trainer = build(logging_steps=3)
    checks = []
    check = trainer.check_finite
    monkeypatch.setattr(trainer, "check_finite", lambda: checks.append(trainer.state.global_step) or check())
    trainer.train()
    assert checks == [3, 6, 6]


def test_large_numbers_whose_sum_is_none_are_numbers(build):
    trainer = build()
    trainer.note_finite("masked logits", torch.full((3, 4), torch.finfo(torch.float32).min))
    trainer.check_finite()
    trainer.note_finite("masked logits", torch.tensor([0.0, -torch.inf]))
    with pytest.raises(ValueError, match="masked logits at step 0"):
        trainer.check_finite()


def test_a_row_of_a_cache_that_is_no_number_is_refused_and_not_kept(build, make_teacher, tmp_path):
    teacher = make_teacher()
    with torch.no_grad():
        teacher.classifier[0].bias[0] = torch.nan
    trainer = build(teacher=teacher, cache_teacher="attention")
    with pytest.raises(ValueError, match=r"the teacher's outputs for row [0-9a-f]{32}-0 are not finite"):
        trainer.train()
    assert len(trainer.teacher_cache) == 0
