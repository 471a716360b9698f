"""The attention loss against numbers known beforehand and against loops written out."""

import math

import pytest
import torch

from dual_distill.objectives import attention_distillation_loss, attention_probs_to_scores, relation_scores


def slow_loss(student, teacher, key_mask, query_mask):
    """The definition, one number at a time, in double precision."""
    rows, heads, queries, keys = student.shape
    total = 0.0
    for b in range(rows):
        real_keys = [k for k in range(keys) if key_mask[b, k]]
        real_queries = [q for q in range(queries) if query_mask[b, q]]
        row = 0.0
        for h in range(heads):
            for q in real_queries:
                p, r = (
                    [
                        math.exp(scores[b, h, q, k].item() - max(scores[b, h, q, j].item() for j in real_keys))
                        for k in real_keys
                    ]
                    for scores in (teacher, student)
                )
                p, r = ([value / sum(values) for value in values] for values in (p, r))
                row += sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, r, strict=True))
        total += row / (heads * len(real_queries))
    return total / rows


def random_case(rows=4, heads=3, queries=5, keys=6):
    key_mask, query_mask = torch.rand(rows, keys) < 0.6, torch.rand(rows, queries) < 0.6
    key_mask[:, 2] = query_mask[:, 1] = True
    return (
        torch.randn(rows, heads, queries, keys) * 2,
        torch.randn(rows, heads, queries, keys) * 2,
        key_mask,
        query_mask,
    )


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loops(seed):
    torch.manual_seed(seed)
    case = random_case()
    assert attention_distillation_loss(*case).item() == pytest.approx(slow_loss(*case), abs=1e-5)


@pytest.mark.parametrize("keys", [1, 2, 4, 7])
def test_a_teacher_of_one_key_against_an_even_student_is_ln_k(keys):
    student, teacher = torch.zeros(2, 3, 4, keys), torch.zeros(2, 3, 4, keys)
    teacher[..., 0] = 80.0
    loss = attention_distillation_loss(student, teacher, torch.ones(2, keys).bool(), torch.ones(2, 4).bool())
    assert loss.item() == pytest.approx(math.log(keys), abs=1e-6)


def test_ln_of_the_real_keys_counts_no_padding():
    student, teacher = torch.zeros(1, 1, 2, 9), torch.zeros(1, 1, 2, 9)
    teacher[..., 1] = 80.0
    keys = torch.arange(9)[None] < 3
    loss = attention_distillation_loss(student, teacher, keys, torch.ones(1, 2).bool())
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_zero_and_flat_where_the_two_agree():
    student, _, keys, queries = random_case()
    student.requires_grad_()
    shift = torch.randn(*student.shape[:3], 1)  # a softmax does not see it
    loss = attention_distillation_loss(student, student.detach() + shift, keys, queries)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert student.grad.abs().max() < 1e-6


def test_the_direction_is_teacher_to_student():
    """KL(p || r) of p = (3/4, 1/4) and r = (1/2, 1/2); the other direction would be 0.1438."""
    teacher = torch.tensor([3.0, 1.0]).log().view(1, 1, 1, 2)
    ones = torch.ones(1, 2).bool()
    loss = attention_distillation_loss(torch.zeros(1, 1, 1, 2), teacher, ones, ones[:, :1])
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


@pytest.mark.parametrize("content", [0.0, 1e4, -1e4, 1e30, -1e30])
def test_padding_of_any_content_changes_neither_value_nor_gradient(content):
    student, teacher, keys, queries = random_case()
    narrow = student.clone().requires_grad_()
    expected = attention_distillation_loss(narrow, teacher, keys, queries)
    expected.backward()

    def padded(scores):
        wide = torch.full((4, 3, 8, 10), content)
        wide += torch.randn_like(wide)
        wide[:, :, :5, :6] = scores
        return wide

    wide = padded(student).requires_grad_()
    wide_keys, wide_queries = torch.zeros(4, 10).bool(), torch.zeros(4, 8).bool()
    wide_keys[:, :6], wide_queries[:, :5] = keys, queries
    found = attention_distillation_loss(wide, padded(teacher), wide_keys, wide_queries)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(wide.grad[:, :, :5, :6], narrow.grad)
    assert not wide.grad[:, :, 5:].any()
    assert not wide.grad[..., 6:].any()


def test_padded_keys_and_queries_give_no_nan():
    student, teacher, keys, queries = random_case()
    student.requires_grad_()
    keys[0], queries[1], queries[2] = torch.arange(6) < 1, False, torch.arange(5) < 1
    loss = attention_distillation_loss(student, teacher, keys, queries)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()


def test_a_row_without_a_real_key_adds_nothing():
    student, teacher, keys, queries = random_case()
    student.requires_grad_()
    keys[0] = False
    loss = attention_distillation_loss(student, teacher, keys, queries)
    loss.backward()
    others = attention_distillation_loss(student[1:], teacher[1:], keys[1:], queries[1:])
    torch.testing.assert_close(loss, others * 3 / 4)
    assert student.grad.isfinite().all()
    assert not student.grad[0].any()


def test_gradient_reaches_the_student_only():
    student, teacher, keys, queries = random_case()
    student.requires_grad_()
    teacher.requires_grad_()
    attention_distillation_loss(student, teacher, keys, queries).backward()
    assert teacher.grad is None
    real = student.grad.abs().sum((1, 3)) > 0
    assert torch.equal(real, queries & (keys.sum(1, keepdim=True) > 1))


def test_a_row_weighs_the_same_alone_and_in_a_batch():
    """Whatever its number of real queries and keys: the batch is the mean of its rows."""
    case = random_case()
    alone = [attention_distillation_loss(*(part[i : i + 1] for part in case)) for i in range(4)]
    torch.testing.assert_close(attention_distillation_loss(*case), torch.stack(alone).mean())


def test_half_precision_scores_are_compared_in_float32():
    student, teacher, keys, queries = random_case()
    expected = attention_distillation_loss(student.bfloat16().float(), teacher.bfloat16().float(), keys, queries)
    found = attention_distillation_loss(student.bfloat16(), teacher.bfloat16(), keys, queries)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_integer_masks_are_read_as_true_and_false():
    student, teacher, keys, queries = random_case()
    torch.testing.assert_close(
        attention_distillation_loss(student, teacher, keys.long(), queries.long()),
        attention_distillation_loss(student, teacher, keys, queries),
    )


def test_refusals():
    student, teacher, keys, queries = random_case()
    with pytest.raises(ValueError, match=r"student_scores has shape \(4, 3, 5, 6\), teacher_scores \(4, 2, 5, 6\)"):
        attention_distillation_loss(student, teacher[:, :2], keys, queries)
    with pytest.raises(ValueError, match="need relation heads"):
        attention_distillation_loss(student[0], teacher[0], keys, queries)
    with pytest.raises(ValueError, match=r"key_mask has shape \(4, 5\), the scores ask for \(4, 6\)"):
        attention_distillation_loss(student, teacher, queries, queries)
    with pytest.raises(ValueError, match=r"query_mask has shape \(3, 5\), the scores ask for \(4, 5\)"):
        attention_distillation_loss(student, teacher, keys, queries[:3])


def slow_relation_scores(queries, keys, heads):
    """Concatenate the heads of a token, cut into R pieces, dot each pair, divide by the root of their width."""
    rows, _, num_queries, _ = queries.shape
    num_keys = keys.shape[2]
    width = queries.shape[1] * queries.shape[3] // heads
    scores = torch.zeros(rows, heads, num_queries, num_keys)
    for b in range(rows):
        for q in range(num_queries):
            for k in range(num_keys):
                one, other = queries[b, :, q].reshape(-1), keys[b, :, k].reshape(-1)
                for r in range(heads):
                    piece = slice(r * width, (r + 1) * width)
                    scores[b, r, q, k] = (one[piece] * other[piece]).sum() / math.sqrt(width)
    return scores


@pytest.mark.parametrize("heads, width, relation_heads", [(4, 3, 2), (4, 3, 6), (2, 6, 12), (3, 4, 1), (4, 3, 4)])
def test_relation_scores_equal_the_loops(heads, width, relation_heads):
    queries, keys = torch.randn(2, heads, 3, width), torch.randn(2, heads, 5, width)
    expected = slow_relation_scores(queries, keys, relation_heads)
    torch.testing.assert_close(relation_scores(queries, keys, relation_heads), expected)


def test_without_relation_heads_the_heads_stay_as_they_are():
    queries, keys = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 6, 5)
    expected = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / math.sqrt(5)
    torch.testing.assert_close(relation_scores(queries, keys), expected)
    torch.testing.assert_close(relation_scores(queries, keys, relation_heads=4), expected)


def test_relation_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 relation heads do not divide the width 12"):
        relation_scores(torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, 3), relation_heads=5)


def test_a_block_of_probabilities_rescaled_is_the_softmax_of_its_scores():
    scores = torch.randn(2, 3, 4, 9)
    block = attention_probs_to_scores(scores.softmax(-1)[..., 5:]).softmax(-1)
    torch.testing.assert_close(block, scores[..., 5:].softmax(-1))


def test_scores_of_probabilities_are_finite_float32_without_gradient():
    probs = torch.tensor([[[[0.0, 1e-45, 1.0]]]], requires_grad=True)
    scores = attention_probs_to_scores(probs)
    assert scores.isfinite().all()
    assert not scores.requires_grad
    assert attention_probs_to_scores(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.float32
