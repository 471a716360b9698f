"""Objective of pre-training: closed forms, slow loops, what is left out, and who receives the gradient."""

import math
from types import SimpleNamespace

import pytest
import torch

from dual_distill.objectives import DiDEObjective, PreTrainingObjective, itm_distillation_loss, mlm_distillation_loss


def draw(*shape, grad=False):
    return torch.randn(*shape).requires_grad_(grad)


def outputs(rows=2, tokens=3, image_tokens=4, words=7, grad=False):
    """What both models return for a batch; the second row's last image token is padding."""
    mask = torch.ones(rows, 1, image_tokens, dtype=torch.bool)
    mask[1, 0, -1] = False
    states = [(draw(rows, 2, tokens + image_tokens, 5, grad=grad),) for _ in range(2)]
    return SimpleNamespace(
        query_states=states[0],
        key_states=states[1],
        image_mask=mask,
        itm_logits=draw(3 * rows, 2, grad=grad),
        itm_labels=torch.tensor([1, 1, 0, -100, 0, 0]),
        mlm_logits=draw(rows, tokens, words, grad=grad),
        itc_loss=torch.tensor(0.25),
        itm_loss=torch.tensor(0.5),
        mlm_loss=torch.tensor(1.0),
        loss=torch.tensor(1.75),
    )


BATCH = {
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "masked_labels": torch.tensor([[-100, 4, 2], [-100, 1, -100]]),
}


def divergence(student, teacher):
    teacher, student = teacher.softmax(-1).tolist(), student.softmax(-1).tolist()
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_matching_is_the_mean_over_pairs_that_are_there(temperature):
    student, teacher, labels = draw(6, 2), draw(6, 2), torch.tensor([1, -100, 0, 0, -100, 1])
    kept = [row for row in range(6) if labels[row] != -100]
    expected = (
        sum(divergence(student[row] / temperature, teacher[row] / temperature) for row in kept) / 4 * temperature**2
    )
    assert itm_distillation_loss(student, teacher, labels, temperature).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_masked_words_are_compared_where_a_word_was_masked(temperature):
    student, teacher, labels = draw(2, 4, 9), draw(2, 4, 9), torch.tensor([[-100, 3, 8, -100], [0, -100, -100, -100]])
    kept = [(row, token) for row in range(2) for token in range(4) if labels[row, token] != -100]
    expected = sum(divergence(student[at] / temperature, teacher[at] / temperature) for at in kept) / 3 * temperature**2
    assert mlm_distillation_loss(student, teacher, labels, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_agreeing_models_and_nothing_to_compare_give_zero():
    logits, words, none = draw(4, 2), draw(2, 3, 5), torch.full((2, 3), -100)
    assert itm_distillation_loss(logits, logits, torch.tensor([1, 0, 0, 1])).item() == pytest.approx(0, abs=1e-7)
    assert mlm_distillation_loss(words, words, torch.zeros(2, 3)).item() == pytest.approx(0, abs=1e-6)
    assert mlm_distillation_loss(words, draw(2, 3, 5), none).item() == 0
    student = draw(4, 2, grad=True)
    itm_distillation_loss(student, draw(4, 2), torch.full((4,), -100)).backward()
    assert student.grad.abs().sum() == 0


def test_the_objective_adds_its_terms_to_the_students_own():
    student, teacher = outputs(), outputs()
    losses = PreTrainingObjective(0.5, 2.0, 3.0)(student, teacher, BATCH)
    assert list(losses) == [
        *("itc_loss", "itm_loss", "mlm_loss"),
        *("attention_loss", "itm_distillation_loss", "mlm_distillation_loss", "loss"),
    ]
    plain = DiDEObjective(soft_label_weight=0.0)
    logits = {"logits": torch.zeros(2, 1)}
    attention = plain(SimpleNamespace(**vars(student), **logits), SimpleNamespace(**vars(teacher), **logits), BATCH)[
        "attention_loss"
    ]
    matching = itm_distillation_loss(student.itm_logits, teacher.itm_logits, student.itm_labels)
    words = mlm_distillation_loss(student.mlm_logits, teacher.mlm_logits, BATCH["masked_labels"])
    torch.testing.assert_close(losses["attention_loss"], attention)
    torch.testing.assert_close(losses["loss"], 1.75 + 0.5 * attention + 2 * matching + 3 * words)


@pytest.mark.parametrize("name", ["attention", "itm_distillation", "mlm_distillation"])
def test_a_term_of_weight_0_is_not_computed_and_needs_no_outputs(name):
    student, teacher = outputs(), outputs()
    needed = {"attention": "query_states", "itm_distillation": "itm_logits", "mlm_distillation": "mlm_logits"}[name]
    setattr(student, needed, None)
    setattr(teacher, needed, None)
    losses = PreTrainingObjective(**{f"{name}_weight": 0.0})(student, teacher, BATCH)
    assert f"{name}_loss" not in losses
    assert losses["loss"].isfinite()


def test_the_gradient_reaches_the_student_alone():
    student, teacher = outputs(grad=True), outputs(grad=True)
    PreTrainingObjective()(student, teacher, BATCH)["loss"].backward()
    for side, reached in ((student, True), (teacher, False)):
        for tensor in (side.query_states[0], side.key_states[0], side.itm_logits, side.mlm_logits):
            assert (tensor.grad is not None and bool(tensor.grad.abs().sum() > 0)) == reached
    # Neither the place without a pair nor a token that was not masked.
    assert student.itm_logits.grad[3].abs().sum() == 0
    assert student.mlm_logits.grad[BATCH["masked_labels"] == -100].abs().sum() == 0


def test_a_student_without_terms_of_its_own_learns_from_the_teacher_alone():
    student = outputs()
    for name in ("loss", "itc_loss", "itm_loss", "mlm_loss"):
        setattr(student, name, None)
    losses = PreTrainingObjective(attention_weight=0.0, mlm_distillation_weight=0.0)(student, outputs(), BATCH)
    assert list(losses) == ["itm_distillation_loss", "loss"]
    assert losses["loss"] == losses["itm_distillation_loss"]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"the weights are .*'itm_distillation_weight': -1.*give numbers >= 0"):
        PreTrainingObjective(itm_distillation_weight=-1)
    with pytest.raises(ValueError, match="the weights are"):
        PreTrainingObjective(mlm_distillation_weight=float("nan"))
    with pytest.raises(ValueError, match="temperature is 0"):
        PreTrainingObjective(temperature=0)
    with pytest.raises(ValueError, match=r"student_logits has shape \(3, 2\), teacher_logits \(4, 2\)"):
        itm_distillation_loss(draw(3, 2), draw(4, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"labels \(2, 3\); give \(B, T, vocabulary\)"):
        mlm_distillation_loss(draw(2, 4, 5), draw(2, 4, 5), torch.ones(2, 3))
    student, teacher = outputs(), outputs()
    teacher.mlm_logits = None
    with pytest.raises(ValueError, match="the teacher returned no mlm_logits"):
        PreTrainingObjective()(student, teacher, BATCH)
