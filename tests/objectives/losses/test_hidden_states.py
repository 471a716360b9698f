"""Losses of hidden states: closed forms, slow references, padding."""

import math
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dual_distill.objectives import hidden_state_mse_loss, noise_contrastive_loss
from dual_distill.objectives.losses.tokens import mean_over_rows, pool_tokens

REAL = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()


def slow_nce(anchors, positives, negatives, mask, temperature):
    def cosine(one, other):
        return float(one @ other / one.norm() / other.norm())

    rows = []
    for row in range(len(anchors)):
        tokens = []
        for token in range(anchors.shape[1]):
            if mask[row, token]:
                own = math.exp(cosine(anchors[row, token], positives[row, token]) / temperature)
                others = sum(math.exp(cosine(anchors[row, token], one) / temperature) for one in negatives)
                tokens.append(-math.log(own / (own + others)))
        if tokens:
            rows.append(sum(tokens) / len(tokens))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_noise_contrastive_loss_against_a_slow_reference(temperature):
    anchors, positives, negatives = torch.randn(3, 4, 6), torch.randn(3, 4, 6), torch.randn(9, 6)
    found = noise_contrastive_loss(anchors, positives, negatives, REAL, temperature)
    assert found.item() == pytest.approx(slow_nce(anchors, positives, negatives, REAL, temperature), rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7, 4096])
def test_negatives_equal_to_the_positive_give_ln_of_one_plus_their_number(count):
    direction = torch.randn(6)
    anchors = torch.randn(3, 4, 6)
    positives = direction * torch.rand(3, 4, 1).add(0.1)  # lengths do not matter
    loss = noise_contrastive_loss(anchors, positives, direction * torch.rand(count, 1).add(0.1), REAL)
    assert loss.item() == pytest.approx(math.log(1 + count), abs=1e-4)


def test_an_anchor_at_its_positive_and_opposite_to_the_others_costs_nothing():
    states = torch.nn.functional.normalize(torch.randn(1, 1, 6), dim=-1)
    loss = noise_contrastive_loss(states, states, -states[0].expand(50, 6), torch.ones(1, 1).bool(), 0.05)
    assert loss.item() == pytest.approx(50 * math.exp(-40), abs=1e-7)


def plain_nce(anchors, positives, negatives, mask, temperature):
    """The whole matrix of similarities at once, in float64."""
    one, other, others = (nn.functional.normalize(each.double(), dim=-1) for each in (anchors, positives, negatives))
    own = (one * other).sum(-1, keepdim=True)
    logits = torch.cat([own, one @ others.T], dim=-1) / temperature
    return mean_over_rows(logits.logsumexp(-1) - logits[..., 0], mask)


# One block of 512 anchors and negatives, and several whose last is not full; the coldest would overflow unshifted.
@pytest.mark.parametrize("tokens, negatives", [(4, 9), (5, 600), (280, 1100)])
@pytest.mark.parametrize("temperature", [0.002, 0.07, 1.0])
def test_value_and_gradient_are_those_of_the_whole_matrix(tokens, negatives, temperature):
    torch.manual_seed(tokens)
    anchors, positives, others = torch.randn(2, tokens, 6), torch.randn(2, tokens, 6), torch.randn(negatives, 6)
    mask = torch.rand(2, tokens) < 0.9
    both = []
    for loss in (noise_contrastive_loss, plain_nce):
        leaf = anchors.clone().requires_grad_()
        found = loss(leaf, positives, others, mask, temperature)
        (3 * found).backward()
        both.append((found.detach().float(), leaf.grad * temperature))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_memory_does_not_grow_with_the_negatives_and_each_similarity_is_computed_once():
    anchors, positives = torch.randn(2, 300, 6, requires_grad=True), torch.randn(2, 300, 6)

    def peak_and_products(number):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            noise_contrastive_loss(anchors, positives, torch.empty(number, 6).normal_(), torch.ones(2, 300)).backward()
        events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        return max(accumulate(sizes)), sum(event.name() in ("aten::mm", "aten::addmm") for event in events)

    few, many = peak_and_products(1024), peak_and_products(8192)
    # The negatives themselves apart, both hold one block of 512 x 512.
    assert many[0] - few[0] < 1.2 * (8192 - 1024) * 6 * 4
    # Two products for each of two blocks of anchors and 512 negatives.
    assert (few[1], many[1]) == (2 * 2 * 2, 2 * 2 * 16)


def test_padding_does_not_matter_and_gets_no_gradient():
    anchors, positives, negatives = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 4, 6), torch.randn(9, 6)
    expected = noise_contrastive_loss(anchors, positives, negatives, REAL)
    expected.backward()
    assert (anchors.grad[~REAL] == 0).all()
    assert (anchors.grad[REAL].abs().sum(-1) > 0).all()
    wider = torch.cat([anchors.detach(), torch.full((3, 2, 6), torch.nan)], 1)
    mask = torch.cat([REAL, torch.zeros(3, 2).bool()], 1)
    found = noise_contrastive_loss(wider, torch.cat([positives, torch.randn(3, 2, 6)], 1), negatives, mask)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_rows_alone_average_to_the_batch():
    anchors, positives, negatives = torch.randn(3, 4, 6), torch.randn(3, 4, 6), torch.randn(9, 6)
    whole = noise_contrastive_loss(anchors, positives, negatives, REAL)
    alone = [
        noise_contrastive_loss(anchors[i : i + 1], positives[i : i + 1], negatives, REAL[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_no_gradient_reaches_positives_and_negatives():
    anchors, positives, negatives = (
        torch.randn(*shape, requires_grad=True) for shape in ((3, 4, 6), (3, 4, 6), (9, 6))
    )
    (
        noise_contrastive_loss(anchors, positives, negatives, REAL) + hidden_state_mse_loss(anchors, positives, REAL)
    ).backward()
    assert anchors.grad is not None
    assert positives.grad is None
    assert negatives.grad is None


def test_squared_distance_against_a_slow_reference():
    student, teacher = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    rows = []
    for row in range(3):
        tokens = [((student[row, i] - teacher[row, i]) ** 2).mean() for i in range(4) if REAL[row, i]]
        rows.append(sum(tokens) / len(tokens))
    assert hidden_state_mse_loss(student, teacher, REAL).item() == pytest.approx(float(sum(rows) / 3), rel=1e-5)
    assert hidden_state_mse_loss(student, student, REAL).item() == 0


def test_pooled_states_are_means_of_real_tokens():
    states = torch.randn(3, 4, 6)
    pooled = pool_tokens(states, REAL)
    torch.testing.assert_close(pooled[0, 0], states[0, :3].mean(0))
    torch.testing.assert_close(pooled[1, 0], states[1, 0])
    assert pool_tokens(states, torch.zeros(3, 4).bool()).abs().sum() == 0


def test_rows_without_anything_are_left_out():
    mask = REAL.clone()
    mask[1] = False
    values = torch.randn(3, 4)
    expected = (values[0, :3].mean() + values[2].mean()) / 2
    torch.testing.assert_close(mean_over_rows(values, mask), expected)
    assert mean_over_rows(values, torch.zeros(3, 4).bool()).item() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(1, 4), torch.ones(2, 3)), r"teacher \(2, 3, 5\)"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(1, 5), torch.ones(2, 3)),
            r"negatives has shape \(1, 5\)",
        ),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(1, 4), torch.ones(2, 2)), r"token_mask \(2, 2\)"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(1, 4), torch.ones(2, 3), 0.0), "temperature is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_contrastive_loss(*arguments)
