"""Ranking of hard negatives: which are chosen, closed forms, a slow loop, and who receives the gradient."""

import math
from types import SimpleNamespace

import pytest
import torch

from dual_distill.modeling import hardest_negatives
from dual_distill.objectives import RankingObjective, listwise_cross_entropy, listwise_distillation_loss

LISTED = torch.tensor([[True, True, True, True], [True, True, False, True], [True, False, False, False]])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_list_is_a_distribution_over_what_it_holds(temperature):
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    expected = 0.0
    for row in range(3):
        kept = LISTED[row].nonzero().flatten()
        p, q = ((scores[row, kept] / temperature).softmax(0).tolist() for scores in (teacher, student))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    found = listwise_distillation_loss(student, teacher, LISTED, temperature).item()
    assert found == pytest.approx(expected * temperature**2, rel=1e-4)


def test_only_differences_within_a_list_count():
    scores = torch.randn(3, 4)
    assert listwise_distillation_loss(scores + torch.randn(3, 1), scores, LISTED).item() == pytest.approx(0, abs=1e-6)
    alone = LISTED & torch.tensor([True, False, False, False])
    assert listwise_distillation_loss(torch.randn(3, 4), scores, alone).item() == 0
    assert listwise_cross_entropy(torch.randn(3, 4), alone).item() == 0


def test_right_first_is_cross_entropy_over_what_a_list_holds():
    scores = torch.randn(3, 4)
    expected = -sum((scores[row, LISTED[row]].softmax(0)[0]).log().item() for row in range(3)) / 3
    assert listwise_cross_entropy(scores, LISTED).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_reaches_the_student_and_what_is_listed_alone():
    student, teacher = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4).requires_grad_()
    listwise_distillation_loss(student, teacher, LISTED).backward()
    assert teacher.grad is None
    assert torch.equal(student.grad != 0, LISTED & (LISTED.sum(1, keepdim=True) > 1))


def test_the_hardest_are_the_nearest_that_are_allowed():
    similarities = torch.tensor([[0.9, 0.5, 0.7, 0.8], [0.1, 0.9, 0.2, 0.3]]).requires_grad_()
    allowed = torch.tensor([[False, True, True, True], [False, False, False, True]])
    places, found = hardest_negatives(similarities, allowed, 2)
    assert places[0].tolist() == [3, 2]
    assert places[1, 0] == 3
    assert found.tolist() == [[True, True], [True, False]]
    assert hardest_negatives(similarities, allowed, 9)[0].shape == (2, 4)


def objective_inputs(**states):
    tokens = {"query_states": (torch.randn(2, 1, 5, 3),), "key_states": (torch.randn(2, 1, 5, 3),)}
    mask = {"image_mask": torch.ones(2, 1, 3).bool(), "loss": torch.tensor(0.75)}
    return SimpleNamespace(list_scores=torch.randn(3, 4), **{**tokens, **mask, **states})


def test_the_objective_weighs_its_terms():
    student, teacher, batch = (
        objective_inputs(),
        objective_inputs(),
        {"attention_mask": torch.ones(2, 2), "is_listed": LISTED},
    )
    losses = RankingObjective(0.5, 2.0, 3.0)(student, teacher, batch)
    assert list(losses) == ["itc_loss", "ranking_loss", "attention_loss", "loss"]
    total = 0.5 * 0.75 + 2 * losses["ranking_loss"] + 3 * losses["attention_loss"]
    torch.testing.assert_close(losses["loss"], total)
    assert list(RankingObjective(1.0, 0.0, 0.0)(student, teacher, batch)) == ["itc_loss", "loss"]
    assert not RankingObjective(1.0, 0.0, 0.0).needs_teacher


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="give numbers >= 0, at least one above 0"):
        RankingObjective(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"'ranking_weight': -1"):
        RankingObjective(ranking_weight=-1)
    with pytest.raises(ValueError, match=r"teacher_scores has shape \(3, 5\), is_listed \(3, 4\)"):
        listwise_distillation_loss(torch.zeros(3, 4), torch.zeros(3, 5), LISTED)
    with pytest.raises(ValueError, match="count is 0; it must be at least 1"):
        hardest_negatives(torch.zeros(2, 2), torch.ones(2, 2).bool(), 0)
    with pytest.raises(ValueError, match=r"similarities has shape \(2, 2\), is_allowed \(2, 3\)"):
        hardest_negatives(torch.zeros(2, 2), torch.ones(2, 3).bool(), 1)
    with pytest.raises(ValueError, match="the student returned no contrastive loss"):
        RankingObjective()(objective_inputs(loss=None), objective_inputs(), {})
