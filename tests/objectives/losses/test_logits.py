"""Soft labels against torch, loops and numbers known beforehand."""

import math

import pytest
import torch
from torch import nn

from dual_distill.objectives import soft_answer_loss, soft_label_loss

BOTH = [soft_label_loss, soft_answer_loss]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_equal_torchs_divergence(temperature):
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    expected = nn.functional.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(soft_label_loss(student, teacher, temperature), expected * temperature**2)


@pytest.mark.parametrize("labels", [2, 4, 9])
def test_a_certain_teacher_against_an_even_student_is_ln_k(labels):
    teacher = torch.zeros(3, labels)
    teacher[:, 1] = 80.0
    assert soft_label_loss(torch.zeros(3, labels), teacher).item() == pytest.approx(math.log(labels), abs=1e-6)


def test_soft_labels_are_zero_and_flat_at_equality():
    student = torch.randn(3, 5, requires_grad=True)
    loss = soft_label_loss(student, student.detach() + 7.0, temperature=2.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_answers_equal_the_loops(temperature):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    total = 0.0
    for i in range(3):
        for a in range(4):
            p = 1 / (1 + math.exp(-teacher[i, a].item() / temperature))
            q = 1 / (1 + math.exp(-student[i, a].item() / temperature))
            total -= p * math.log(q) + (1 - p) * math.log(1 - q)
    assert soft_answer_loss(student, teacher, temperature).item() == pytest.approx(total / 3 * temperature**2, rel=1e-5)


def test_soft_answers_are_smallest_at_equality():
    """There the gradient is zero and the teacher's own entropy remains."""
    teacher = torch.randn(3, 4)
    student = teacher.clone().requires_grad_()
    loss = soft_answer_loss(student, teacher)
    loss.backward()
    p = teacher.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum() / 3
    torch.testing.assert_close(loss.detach(), entropy)
    assert student.grad.abs().max() < 1e-6
    assert soft_answer_loss(teacher + 0.1, teacher) > loss


@pytest.mark.parametrize("compare", BOTH)
def test_a_high_temperature_keeps_the_size_of_the_gradient(compare):
    gradients = []
    for temperature in (100.0, 1000.0):
        torch.manual_seed(0)
        student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
        compare(student, teacher, temperature).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-3, rtol=2e-2)
    assert gradients[0].abs().max() > 1e-2


@pytest.mark.parametrize("compare", BOTH)
def test_gradient_reaches_the_student_only(compare):
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    compare(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("compare", BOTH)
def test_a_batch_is_the_mean_of_its_rows(compare):
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    alone = [compare(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(3)]
    torch.testing.assert_close(compare(student, teacher, 2.0), torch.stack(alone).mean())


@pytest.mark.parametrize("compare", BOTH)
def test_large_and_half_precision_logits_stay_finite(compare):
    student, teacher = torch.randn(3, 5) * 1e4, torch.randn(3, 5) * 1e4
    student.requires_grad_()
    loss = compare(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert compare(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("compare", BOTH)
def test_refusals(compare):
    with pytest.raises(ValueError, match=r"student_logits has shape \(3, 5\), teacher_logits \(3, 4\)"):
        compare(torch.zeros(3, 5), torch.zeros(3, 4))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature is {temperature}; give a number above 0"):
            compare(torch.zeros(3, 5), torch.zeros(3, 5), temperature)
