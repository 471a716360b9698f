"""The hard-label loss against torch or a number known beforehand, and the halves of a two-sided map."""

import math

import pytest
import torch
from torch import nn

from dual_distill.modeling import SplitLinear
from dual_distill.modeling.modeling_losses import classification_loss


def test_a_two_sided_map_is_the_sum_of_its_halves():
    layer, one, two = SplitLinear(6, 4), torch.randn(5, 3), torch.randn(5, 3)
    whole = nn.functional.linear(torch.cat([one, two], dim=-1), layer.weight, layer.bias)
    torch.testing.assert_close(layer(torch.cat([one, two], dim=-1)), whole)
    torch.testing.assert_close(layer(one, half="first") + layer(two, half="second"), whole)
    torch.testing.assert_close(layer(torch.zeros(1, 3), half="first")[0], layer.bias)


def test_hard_labels_are_cross_entropy_over_all_rows():
    logits = torch.randn(4, 5)
    labels = torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(classification_loss(logits, labels), nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(classification_loss(torch.zeros(2, 8), torch.tensor([1, 7])), torch.tensor(math.log(8)))


def test_rows_without_a_label_count_as_rows_but_give_no_loss_and_no_gradient():
    logits = torch.zeros(4, 5, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, -100, -100, 2]))
    torch.testing.assert_close(loss, torch.tensor(math.log(5) / 2))
    loss.backward()
    assert logits.grad[[0, 3]].abs().min() > 0
    assert not logits.grad[[1, 2]].any()
    assert classification_loss(logits, torch.full((4,), -100)).item() == 0


def test_soft_scores_are_binary_cross_entropy_summed_over_answers():
    logits, scores = torch.randn(3, 4), torch.rand(3, 4)
    expected = sum(
        -(scores[i, j] * logits[i, j].sigmoid().log() + (1 - scores[i, j]) * (1 - logits[i, j].sigmoid()).log())
        for i in range(3)
        for j in range(4)
    )
    torch.testing.assert_close(classification_loss(logits, scores), expected / 3)


def test_two_half_batches_add_up_to_the_whole():
    logits, labels = torch.randn(4, 5), torch.tensor([1, -100, 3, 0])
    halves = (classification_loss(logits[:2], labels[:2]) + classification_loss(logits[2:], labels[2:])) / 2
    torch.testing.assert_close(classification_loss(logits, labels), halves)


@pytest.mark.parametrize(
    "labels", [torch.zeros(3), torch.zeros(4, dtype=torch.long), torch.zeros(3, 5).long()], ids=str
)
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"give integer classes \(B,\) or soft scores \(B, labels\)"):
        classification_loss(torch.zeros(3, 5), labels)


def test_half_precision_logits_give_a_float32_loss():
    assert classification_loss(torch.zeros(2, 4, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32
