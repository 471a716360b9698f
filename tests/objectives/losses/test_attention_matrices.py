"""Attention matrices by squared difference: closed forms, a slow reference, padding, patterns."""

import pytest
import torch

from dual_distill.objectives import attention_matrix_loss, attention_probs, joint_pattern

TEXT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
IMAGE = torch.tensor([[[True, True, False]], [[True, True, True]]])


def states(rows=2, heads=3, tokens=7, width=4):
    return torch.randn(rows, heads, tokens, width), torch.randn(rows, heads, tokens, width)


def slow_loss(student, teacher, pattern):
    rows = []
    for row in range(len(student)):
        found = [
            (student[row, head, q, k] - teacher[row, head, q, k]).item() ** 2
            for head in range(student.shape[1])
            for q in range(student.shape[2])
            for k in range(student.shape[3])
            if pattern[row, q, k]
        ]
        if found:
            rows.append(sum(found) / len(found))
    return sum(rows) / len(rows)


def test_against_a_slow_reference():
    pattern = joint_pattern(TEXT, IMAGE)
    pattern[:, 0, 1:] = False  # a query that sees less
    student, teacher = attention_probs(*states(), pattern), attention_probs(*states(), pattern)
    found = attention_matrix_loss(student, teacher, pattern)
    assert found.item() == pytest.approx(slow_loss(student, teacher, pattern), rel=1e-5)
    assert attention_matrix_loss(student, student, pattern).item() == 0


@pytest.mark.parametrize("padding", [1, 5])
def test_padding_does_not_matter(padding):
    """More padded text in the middle, more padded regions at the end, alone and in a batch."""
    student, teacher = states(), states()
    losses = []
    for pad in (0, padding):
        text = torch.cat([TEXT, TEXT.new_zeros(2, pad)], 1)
        image = torch.cat([IMAGE, torch.zeros(2, 1, pad).bool()], 2)
        pattern = joint_pattern(text, image)

        def padded(one, pad=pad):
            return torch.cat([one[:, :, :4], torch.randn(2, 3, pad, 4), one[:, :, 4:], torch.randn(2, 3, pad, 4)], 2)

        probs = [attention_probs(padded(queries), padded(keys), pattern) for queries, keys in (student, teacher)]
        losses.append(attention_matrix_loss(*probs, pattern).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    pattern = joint_pattern(TEXT, IMAGE)
    alone = [
        attention_matrix_loss(
            *(attention_probs(q[i : i + 1], k[i : i + 1], pattern[i : i + 1]) for q, k in (student, teacher)),
            pattern[i : i + 1],
        )
        for i in range(2)
    ]
    assert sum(alone).item() / 2 == pytest.approx(losses[0], rel=1e-6)


def test_a_row_without_anything_real_is_left_out():
    text, image = TEXT.clone(), IMAGE.clone()
    text[1], image[1] = 0, False
    pattern = joint_pattern(text, image)
    (student_queries, student_keys), (teacher_queries, teacher_keys) = states(), states()
    student_queries.requires_grad_()
    student = attention_probs(student_queries, student_keys, pattern)
    teacher = attention_probs(teacher_queries, teacher_keys, pattern)
    loss = attention_matrix_loss(student, teacher, pattern)
    first = attention_matrix_loss(student[:1], teacher[:1], pattern[:1])
    assert loss.item() == pytest.approx(first.item(), rel=1e-6)
    loss.backward()
    assert torch.isfinite(student_queries.grad).all()
    assert student_queries.grad[1].abs().sum() == 0
    assert student_queries.grad[0, :, 0].abs().sum() > 0


def test_probabilities_are_those_of_scaled_dot_product_attention():
    queries, keys = states()
    pattern = joint_pattern(TEXT, IMAGE)
    values = torch.eye(7).expand(2, 3, 7, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=pattern[:, None])
    real = torch.cat([TEXT.bool(), IMAGE[:, 0]], 1)
    found = attention_probs(queries, keys, pattern)
    for row in range(2):
        torch.testing.assert_close(found[row, :, real[row]], expected[row, :, real[row]])
    assert found[0, :, 3].abs().sum() == 0


def test_relation_heads_make_widths_and_head_counts_comparable():
    pattern = joint_pattern(TEXT, IMAGE)
    student, teacher = states(heads=3, width=4), states(heads=2, width=12)
    with pytest.raises(
        ValueError, match=r"student_probs has shape \(2, 3, 7, 7\), teacher_probs \(2, 2, 7, 7\).*relation heads"
    ):
        attention_matrix_loss(attention_probs(*student, pattern), attention_probs(*teacher, pattern), pattern)
    probs = [attention_probs(*side, pattern, relation_heads=6) for side in (student, teacher)]
    assert attention_matrix_loss(*probs, pattern) > 0


def test_a_pattern_of_another_size_is_refused():
    probs = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"pattern has shape \(2, 4, 5\), the scores ask for \(2, 4, 4\)"):
        attention_matrix_loss(probs, probs, torch.ones(2, 4, 5).bool())


def test_several_images_are_rows_of_their_own():
    image = torch.tensor([[[True, False], [True, True]]])
    pattern = joint_pattern(torch.tensor([[1, 1]]), image)
    assert pattern.shape == (2, 4, 4)
    assert pattern.sum((1, 2)).tolist() == [9, 16]
