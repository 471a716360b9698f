"""The attention loss without its score matrices: computed in chunks, and once more in the backward pass.

`attention_distillation_loss` keeps about six `(B, H, Q, K)` matrices a layer and direction until the backward pass.
Here a chunk of them exists at a time; what is kept is the queries and keys that the models hold anyway. The price is
each chunk's matrix products once more. `attention_distillation_loss` stays the reference that this is held to.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .attention import UNEQUAL_HEADS, check_mask, regroup_heads

MAX_SCORES = {"cpu": 2**17}
"""Scores in a chunk by kind of device: on a processor half a MB a matrix in float32, which its cache holds."""

MAX_SCORES_ELSEWHERE = 2**23
"""Scores in a chunk on any other device, 32 MB a matrix: a GPU loses more by many small kernels than by memory."""


def chunked_attention_loss(
    student_queries: Tensor,
    student_keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    key_mask: Tensor,
    query_mask: Tensor,
    relation_heads: int | None = None,
    max_scores: int | None = None,
) -> Tensor:
    """`attention_distillation_loss` of `relation_scores`, in memory that does not grow with queries times keys.

    One call covers one direction of one layer. Scores are computed in the dtype of the queries and keys, softmax and
    divergence in float32, inside autocast too.

    Args:
        student_queries: `(B, H, Q, D)`. Receives the gradient.
        student_keys: `(B, H, K, D)`, of the other modality. Receives the gradient.
        teacher_queries: `(B, H', Q, D')`. No gradient reaches it.
        teacher_keys: `(B, H', K, D')`. No gradient reaches it.
        key_mask: `(B, K)` bool, True for a real key.
        query_mask: `(B, Q)` bool, True for a real query.
        relation_heads: as in `relation_scores`; needed when H and H' differ.
        max_scores: most scores in a chunk, but at least those of one query; None: what suits the device.

    Returns:
        Scalar float32, nats, >= 0; equal to the plain version to 1e-5, and so is its gradient.

    Raises:
        ValueError: heads, queries or keys of the two sides differ in number, or a mask does not fit them.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
        >>> teacher[..., 0, 0] = 100.0
        >>> real = torch.ones(1, 4).bool()
        >>> loss = chunked_attention_loss(student[:, :, :1], student, teacher[:, :, :1], teacher, real, real[:, :1])
        >>> round(loss.item(), 4)   # ln 4
        1.3863
    """
    given = (student_queries, student_keys, teacher_queries, teacher_keys)
    states = [regroup_heads(each, relation_heads) for each in given]
    student, teacher = ((*states[i].shape[:3], states[i + 1].shape[2]) for i in (0, 2))
    if student != teacher:
        raise ValueError(f"student_scores would have shape {student}, teacher_scores {teacher}; {UNEQUAL_HEADS}.")
    rows, _, queries, keys = student
    check_mask("key_mask", key_mask, (rows, keys))
    check_mask("query_mask", query_mask, (rows, queries))

    if max_scores is None:
        max_scores = MAX_SCORES.get(student_queries.device.type, MAX_SCORES_ELSEWHERE)
    loss: Tensor = _ChunkedAttentionLoss.apply(*states, key_mask.bool(), query_mask.bool(), max_scores)
    return loss


class _ChunkedAttentionLoss(torch.autograd.Function):
    """KL(teacher || student) and its gradient, (student probabilities - teacher's) times the query's weight."""

    @staticmethod
    def forward(
        ctx: Any,
        student_queries: Tensor,
        student_keys: Tensor,
        teacher_queries: Tensor,
        teacher_keys: Tensor,
        key_mask: Tensor,
        query_mask: Tensor,
        max_scores: int,
    ) -> Tensor:
        weights = _query_weights(key_mask, query_mask, student_queries.shape[1])
        total = weights.new_zeros(())
        with torch.autocast(student_queries.device.type, enabled=False):
            for part in _chunks(student_queries, student_keys, max_scores):
                student = _masked_scores(student_queries, student_keys, key_mask, part).log_softmax(-1)
                teacher = _masked_scores(teacher_queries, teacher_keys, key_mask, part)
                # At a padded key the probability is 0 and the difference finite.
                divergence = teacher.softmax(-1).mul_(teacher.log_softmax(-1).sub_(student)).sum(-1)
                total += divergence.mul_(weights[part]).sum()

        ctx.save_for_backward(student_queries, student_keys, teacher_queries, teacher_keys, key_mask, weights)
        ctx.max_scores = max_scores
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student_queries, student_keys, teacher_queries, teacher_keys, key_mask, weights = ctx.saved_tensors
        weights = weights * grad_output
        grad_queries, grad_keys = torch.empty_like(student_queries), torch.zeros_like(student_keys)
        scale = student_queries.shape[-1] ** -0.5

        with torch.autocast(student_queries.device.type, enabled=False):
            for part in _chunks(student_queries, student_keys, ctx.max_scores):
                # Scores are computed once more: to keep those of the forward pass is what this loss avoids.
                student = _masked_scores(student_queries, student_keys, key_mask, part).softmax(-1)
                teacher = _masked_scores(teacher_queries, teacher_keys, key_mask, part).softmax(-1)
                scores = student.sub_(teacher).mul_(weights[part].unsqueeze(-1)).to(student_queries.dtype)
                grad_queries[part] = scores @ (student_keys[part[0]] * scale)
                grad_keys[part[0]] += scores.transpose(-1, -2) @ (student_queries[part] * scale)
        return grad_queries, grad_keys, None, None, None, None, None


def _chunks(queries: Tensor, keys: Tensor, max_scores: int) -> Iterator[tuple[slice, slice, slice]]:
    """Indices of (rows, heads, queries): rows, and the queries of a row where one row has more than `max_scores`."""
    rows, heads, num_queries, _ = queries.shape
    of_a_query = heads * keys.shape[2]
    queries_at_a_time = min(num_queries, max(1, max_scores // of_a_query))
    rows_at_a_time = max(1, max_scores // (of_a_query * num_queries))

    for row in range(0, rows, rows_at_a_time):
        for query in range(0, num_queries, queries_at_a_time):
            yield slice(row, row + rows_at_a_time), slice(None), slice(query, query + queries_at_a_time)


def _masked_scores(queries: Tensor, keys: Tensor, key_mask: Tensor, part: tuple[slice, slice, slice]) -> Tensor:
    """Scores of a chunk in float32, padded keys at a finite floor: -inf would give NaN where a row has no real key."""
    scores = (queries[part] * queries.shape[-1] ** -0.5) @ keys[part[0]].transpose(-1, -2)
    return scores.float().masked_fill_(~key_mask[part[0], None, None], torch.finfo(torch.float32).min / 2)


def _query_weights(key_mask: Tensor, query_mask: Tensor, heads: int) -> Tensor:
    """Share of each query in the mean, `(B, 1, Q)`: equal inside an example, 0 for padding or a row without a key."""
    real = query_mask.float()
    shares = real / real.sum(1, keepdim=True).clamp(min=1) / (heads * max(1, len(real)))
    return (shares * key_mask.any(1, keepdim=True))[:, None]
