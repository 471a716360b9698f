"""The chunked attention loss against the plain one: value, gradient, and what each keeps and allocates."""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from dual_distill.objectives import attention_distillation_loss, chunked_attention_loss, relation_scores


def random_states(rows=3, heads=4, queries=5, keys=7, width=6, teacher=None):
    teacher_heads, teacher_width = teacher or (heads, width)
    key_mask, query_mask = torch.rand(rows, keys) < 0.6, torch.rand(rows, queries) < 0.6
    key_mask[:, 2] = query_mask[:, 1] = True
    student = [torch.randn(rows, heads, size, width).mul_(1.5).requires_grad_() for size in (queries, keys)]
    shown = [torch.randn(rows, teacher_heads, size, teacher_width) * 1.5 for size in (queries, keys)]
    return student, shown, key_mask, query_mask


def plain(student, teacher, key_mask, query_mask, relation_heads=None):
    return attention_distillation_loss(
        relation_scores(*student, relation_heads), relation_scores(*teacher, relation_heads), key_mask, query_mask
    )


def value_and_gradient(loss, states, factor=1.0):
    for state in states:
        state.grad = None
    (loss * factor).backward()
    return loss.detach(), *(state.grad.clone() for state in states)


# 1: a query at a time; 30: some queries of a row; 150 and 300: one row, two rows; the rest: everything at once.
@pytest.mark.parametrize("max_scores", [1, 30, 60, 150, 300, 2**19])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_version_in_value_and_gradient(max_scores, seed):
    torch.manual_seed(seed)
    student, teacher, *masks = random_states()
    expected = value_and_gradient(plain(student, teacher, *masks), student, factor=3.0)
    found = value_and_gradient(
        chunked_attention_loss(*student, *teacher, *masks, max_scores=max_scores), student, factor=3.0
    )
    assert expected[0] > 0.1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("relation_heads", [2, 12])
def test_equals_the_plain_version_over_relation_heads(relation_heads):
    student, teacher, *masks = random_states(teacher=(3, 12))
    expected = value_and_gradient(plain(student, teacher, *masks, relation_heads), student)
    loss = chunked_attention_loss(*student, *teacher, *masks, relation_heads=relation_heads, max_scores=40)
    for one, other in zip(value_and_gradient(loss, student), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_gradient_is_that_of_finite_differences():
    student, teacher, *masks = random_states(rows=2, heads=2, queries=3, keys=4, width=3)
    loss = chunked_attention_loss(*student, *teacher, *masks, max_scores=9)
    loss.backward()
    queries, keys = (state.detach() for state in student)
    for state, position in ((queries, (0, 1, 1, 2)), (keys, (1, 0, 2, 1))):
        values = []
        for step in (1e-2, -1e-2):
            moved = state.clone()
            moved[position] += step
            pair = (moved, keys) if state is queries else (queries, moved)
            values.append(chunked_attention_loss(*pair, *teacher, *masks))
        grad = (student[0] if state is queries else student[1]).grad[position]
        assert grad.item() == pytest.approx((values[0] - values[1]).item() / 2e-2, abs=1e-3)


def test_rows_without_keys_or_queries_give_no_nan_and_no_gradient():
    student, teacher, keys, queries = random_states()
    keys[0], queries[1] = False, False
    expected = value_and_gradient(plain(student, teacher, keys, queries), student)
    found = value_and_gradient(chunked_attention_loss(*student, *teacher, keys, queries), student)
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert not found[1][:2].any()


@pytest.mark.parametrize("content", [1e6, -1e15])
def test_padding_of_any_content_changes_neither_value_nor_gradient(content):
    student, teacher, keys, queries = random_states()
    expected = value_and_gradient(chunked_attention_loss(*student, *teacher, keys, queries), student)
    with torch.no_grad():
        for side in (student, teacher):
            for state, mask in zip(side, (queries, keys), strict=True):
                state.masked_fill_(~mask[:, None, :, None], content)
    found = value_and_gradient(chunked_attention_loss(*student, *teacher, keys, queries), student)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("max_scores", [30, 2**19])
def test_what_is_padding_in_every_row_is_not_read(max_scores):
    student, teacher, keys, queries = random_states()
    keys[:, 5:], queries[:, 3:] = False, False
    cut = [[state.detach()[:, :, :end] for state, end in zip(side, (3, 5), strict=True)] for side in (student, teacher)]
    for state in cut[0]:
        state.requires_grad_()
    expected = value_and_gradient(plain(*cut, keys[:, :5], queries[:, :3]), cut[0])
    with torch.no_grad():
        for side in (student, teacher):
            side[0][:, :, 3:], side[1][:, :, 5:] = torch.nan, torch.nan
    found = value_and_gradient(
        chunked_attention_loss(*student, *teacher, keys, queries, max_scores=max_scores), student
    )
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient[:, :, : wanted.shape[2]], wanted, atol=1e-6, rtol=0)
        assert not gradient[:, :, wanted.shape[2] :].any()


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__.rstrip("_")] += 1
        return function(*args, **(kwargs or {}))


def test_each_score_and_each_exponential_is_computed_once():
    """Products of both sides and of two gradients, powers of both sides, in one chunk; nothing again going back."""
    student, teacher, *_ = random_states()
    with Operations() as counted:
        real = [torch.ones(3, size).bool() for size in (7, 5)]
        chunked_attention_loss(*student, *teacher, *real).backward()
    assert counted.calls["bmm"] == 4
    assert counted.calls["exp2"] == 2
    assert not {"exp", "_softmax", "_log_softmax", "masked_fill", "logsumexp"} & set(counted.calls)


def test_zero_where_the_two_agree_and_gradient_to_the_student_only():
    student, teacher, *masks = random_states()
    assert chunked_attention_loss(*student, *student, *masks).item() == pytest.approx(0, abs=1e-6)
    for state in teacher:
        state.requires_grad_()
    chunked_attention_loss(*student, *teacher, *masks).backward()
    assert all(state.grad is None for state in teacher)
    assert all(state.grad.any() for state in student)


def test_half_precision_states_are_compared_in_float32_inside_autocast_too():
    student, teacher, *masks = random_states()
    half = [state.detach().bfloat16().requires_grad_() for state in student]
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_attention_loss(*half, *teacher, *masks)
    outside = chunked_attention_loss(*half, *teacher, *masks)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, outside, atol=0, rtol=0)
    torch.testing.assert_close(loss, plain([state.float() for state in half], teacher, *masks), atol=0.02, rtol=0)
    loss.backward()
    assert half[0].grad.dtype == torch.bfloat16


def peak_bytes(call):
    """Most bytes of tensors that lived at a time during a call, beyond those that lived before it."""
    return peak_and_now(call)[0]


def peak_and_now(call):
    """Those, and what is left of them behind the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, now


def all_layers(loss, layers, tokens):
    """Forward and backward of many layers, each `(2, 4, tokens, 8)` queries and keys; bytes beyond the gradients."""
    masks = [torch.ones(2, tokens).bool()] * 2
    states = [[torch.randn(2, 4, tokens, 8) for _ in range(4)] for _ in range(layers)]
    for layer in states:
        for state in layer[:2]:
            state.requires_grad_()
    peak = peak_bytes(lambda: sum(loss(layer[:2], layer[2:], *masks) for layer in states).backward())
    return peak - layers * 2 * states[0][0].numel() * 4


def test_memory_does_not_grow_with_layers_times_tokens_squared():
    """Plain: at least two float32 matrices of each layer live until the backward pass. Chunked: a few of one chunk."""

    def chunked(student, teacher, *masks):
        return chunked_attention_loss(*student, *teacher, *masks, max_scores=4096)

    matrices = 6 * 2 * 4 * 128 * 128 * 4
    assert all_layers(plain, 6, 128) > 2 * matrices
    small, wide, deep = all_layers(chunked, 6, 64), all_layers(chunked, 6, 128), all_layers(chunked, 12, 128)
    assert wide < matrices / 4
    assert wide < 3 * small  # linear in the tokens, with a constant part
    assert deep < 2.2 * wide


def kept_bytes(student, teacher, *masks):
    """What a loss keeps until the backward pass, beyond queries and keys, and its gradients."""
    losses = []
    now = peak_and_now(lambda: losses.append(chunked_attention_loss(*student, *teacher, *masks, max_scores=64)))[1]
    return now, value_and_gradient(losses[0], student)


# 6 x 7 scores and 13 x width numbers of queries and keys.
@pytest.mark.parametrize("width, kept", [(2, 13 * 2), (8, 6 * 7)])
def test_the_smaller_gradient_is_kept_of_scores_or_of_queries_and_keys(width, kept):
    student, teacher, *_ = random_states(rows=3, heads=4, queries=6, keys=7, width=width)
    masks = [torch.ones(3, size).bool() for size in (7, 6)]
    found, values = kept_bytes(student, teacher, *masks)
    # A few numbers beside it.
    assert 0 <= found - 3 * 4 * kept * 4 < 200
    for one, other in zip(values, value_and_gradient(plain(student, teacher, *masks), student), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_refusals():
    student, teacher, keys, queries = random_states()
    with pytest.raises(
        ValueError, match=r"would have shape \(3, 4, 5, 7\), teacher_scores \(3, 2, 5, 7\).* relation heads"
    ):
        chunked_attention_loss(*student, teacher[0][:, :2], teacher[1][:, :2], keys, queries)
    with pytest.raises(ValueError, match=r"key_mask has shape \(3, 5\), the scores ask for \(3, 7\)"):
        chunked_attention_loss(*student, *teacher, queries, queries)
    with pytest.raises(ValueError, match=r"query_mask has shape \(2, 5\), the scores ask for \(3, 5\)"):
        chunked_attention_loss(*student, *teacher, keys, queries[:2])
    with pytest.raises(ValueError, match="5 relation heads do not divide the width 24"):
        chunked_attention_loss(*student, *teacher, keys, queries, relation_heads=5)
