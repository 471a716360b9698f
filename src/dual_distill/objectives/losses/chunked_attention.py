"""The attention loss without its score matrices: a chunk of them exists at a time, in the forward pass alone.

`attention_distillation_loss` keeps about six `(B, H, Q, K)` matrices a layer and direction until the backward pass.
Here the gradient is made of each chunk while it is there, and what is kept is the smaller: that of queries and keys,
which is as large as they are, or that of the scores, one matrix. Each score and each exponential is computed once, and
none of what is padding in every row. `attention_distillation_loss` stays the reference that this is held to.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .attention import UNEQUAL_HEADS, check_mask, regroup_heads

MAX_SCORES = {"cpu": 2**17}
"""Scores in a chunk by kind of device: on a processor half a MB a matrix in float32, which its cache holds."""

MAX_SCORES_ELSEWHERE = 2**23
"""Scores in a chunk on any other device, 32 MB a matrix: a GPU loses more by many small kernels than by memory."""

_LOWEST = torch.finfo(torch.float32).min / 2  # -inf would give NaN where a row has no real key
_TINY = torch.finfo(torch.float32).tiny
Part = tuple[slice, slice, slice]
"""Indices of (rows, heads, queries) of a chunk; heads are always all."""
Pair = tuple[Tensor, Tensor]
Scores = Callable[[Part], Tensor]


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

    last_query, last_key = _last_real(query_mask), _last_real(key_mask)
    states = [each[:, :, : (last_query, last_key)[index % 2]] for index, each in enumerate(states)]
    key_mask, query_mask = key_mask[:, :last_key].bool(), query_mask[:, :last_query]

    of_teacher = partial(_masked_scores, states[2], states[3], _padding(key_mask))
    is_copied = states[0].untyped_storage().data_ptr() != student_queries.untyped_storage().data_ptr()
    return _loss((states[0], states[1]), of_teacher, (key_mask, query_mask), max_scores, is_copied=is_copied)


class AttentionInParts(Protocol):
    """What a teacher's attention says about the tokens of a student, in one direction, computed part by part.

    Attributes:
        heads: of the teacher.
        has_states: whether queries and keys are known, which can be split into other heads; else probabilities are.
        key_mask: `(B, K)` bool, keys of the student that the teacher says anything about.
        query_mask: `(B, Q)` bool, queries likewise.
        scores_a_query: scores that the teacher computes for one query of the student.
    """

    heads: int
    has_states: bool
    key_mask: Tensor
    query_mask: Tensor
    scores_a_query: int

    def over_heads(self, heads: int) -> "AttentionInParts":
        """The same over relation heads, or as the mean over heads where probabilities are known."""

    def scores(self, part: Part) -> Tensor:
        """Finite scores, whose softmax over the student's keys is the attention, `(b, H, q, K)` float32."""


def aligned_attention_loss(
    student_queries: Tensor,
    student_keys: Tensor,
    teacher: AttentionInParts,
    key_mask: Tensor,
    query_mask: Tensor,
    relation_heads: int | None = None,
    max_scores: int | None = None,
) -> Tensor:
    """`chunked_attention_loss` with a teacher that has other tokens, and other heads.

    Heads are compared one to one where both sides have the same number; else over relation heads (as many as divide
    both numbers) where the teacher's queries and keys are known; else the mean over heads of both sides is compared.

    Args:
        student_queries: `(B, H, Q, D)`. Receives the gradient.
        student_keys: `(B, H, K, D)`. Receives the gradient.
        teacher: what it says of the student's tokens.
        key_mask: `(B, K)` bool, True for a real key; those that the teacher says nothing about are left out.
        query_mask: `(B, Q)` bool, likewise.
        relation_heads: as in `relation_scores`.
        max_scores: as in `chunked_attention_loss`.

    Returns:
        Scalar float32, nats, >= 0.

    Raises:
        ValueError: relation heads are asked of probabilities, or do not divide a width.
    """
    if relation_heads not in (None, teacher.heads) and not teacher.has_states:
        cannot = "the teacher gives attention probabilities, which cannot be split into other heads"
        raise ValueError(f"relation_heads is {relation_heads}, but {cannot}; leave relation_heads out.")
    heads = student_queries.shape[1]
    averages = teacher.heads not in (heads, relation_heads) and not teacher.has_states
    student = student_queries, student_keys
    if averages:
        teacher = teacher.over_heads(1)
    elif teacher.heads != heads or relation_heads is not None:
        shared = relation_heads or math.gcd(heads, teacher.heads)
        student = regroup_heads(student_queries, shared), regroup_heads(student_keys, shared)
        teacher = teacher.over_heads(shared)

    key_mask, query_mask = key_mask.bool() & teacher.key_mask, query_mask.bool() & teacher.query_mask

    def of_teacher(part: Part) -> Tensor:
        scores = teacher.scores(part) / math.log(2)
        return scores.masked_fill_(~key_mask[part[0], None, None], _LOWEST)

    settings = max_scores, teacher.scores_a_query, averages, student[0] is not student_queries
    return _loss(student, of_teacher, (key_mask, query_mask), *settings)


def _loss(
    student: Pair,
    teacher: Scores,
    masks: Pair,
    max_scores: int | None,
    scores_a_query: int = 0,
    averages: bool = False,
    is_copied: bool = False,
) -> Tensor:
    """KL divergence of checked queries and keys, with masks of keys and queries, in chunks."""
    (states, keys), (key_mask, query_mask) = student, masks
    if max_scores is None:
        max_scores = MAX_SCORES.get(states.device.type, MAX_SCORES_ELSEWHERE)
    rows, heads, queries, width = states.shape
    chunks = list(_chunks(rows, queries, max(heads * keys.shape[2], scores_a_query), max_scores))

    weights = _query_weights(key_mask, query_mask, 1 if averages else heads)
    is_trained = torch.is_grad_enabled() and (states.requires_grad or keys.requires_grad)
    # The model keeps queries and keys for itself, but not copies of them in other heads.
    keeps_scores = not is_copied and queries * keys.shape[2] < (queries + keys.shape[2]) * width
    settings = averages, is_trained, keeps_scores
    return _ChunkedAttentionLoss.apply(states, keys, teacher, _padding(key_mask.bool()), weights, chunks, *settings)


class _ChunkedAttentionLoss(torch.autograd.Function):
    """KL(teacher || student) and its gradient, (student probabilities - teacher's) times the query's weight."""

    @staticmethod
    def forward(
        ctx: Any,
        student_queries: Tensor,
        student_keys: Tensor,
        teacher_scores: Scores,
        padding: Tensor | None,
        weights: Tensor,
        chunks: list[Part],
        averages_heads: bool,
        is_trained: bool,
        keeps_scores: bool,
    ) -> Tensor:
        total, heads = weights.new_zeros(()), student_queries.shape[1]
        scale = student_queries.shape[-1] ** -0.5
        # Small weights would vanish in half precision: the largest is multiplied in by the backward pass, in float32.
        largest = weights.amax().clamp(min=_TINY)
        if is_trained and keeps_scores:
            kept = student_queries.new_empty(*student_queries.shape[:3], student_keys.shape[2])
            ctx.save_for_backward(student_queries, student_keys, kept)
        elif is_trained:
            ctx.gradients = [torch.zeros_like(each, dtype=torch.float32) for each in (student_queries, student_keys)]

        with torch.autocast(student_queries.device.type, enabled=False):
            for part in chunks:
                scores, shown = _masked_scores(student_queries, student_keys, padding, part), teacher_scores(part)
                (probs, norms), (teacher, teacher_norms) = _softmax(scores), _softmax(shown)
                if averages_heads:
                    mean = probs.mean(1, keepdim=True).clamp_(min=_TINY)
                    scores, norms = mean.log2(), norms.new_zeros(())
                # The difference of logarithms, without a logarithm of each. At a padded key it is finite.
                divergence = shown.sub_(scores).mul_(teacher).sum(-1) + norms - teacher_norms
                total += divergence.mul_(weights[part]).sum()
                if not is_trained:
                    continue

                if averages_heads:
                    # Of a mean, each head answers for its share of it.
                    teacher = teacher * probs / (heads * mean)
                    probs = probs * teacher.sum(-1, keepdim=True)
                gradient = probs.sub_(teacher).mul_(weights[part].unsqueeze(-1) / largest).to(student_queries.dtype)
                if keeps_scores:
                    kept[part] = gradient
                    continue
                of_queries, of_keys = ctx.gradients
                of_queries[part] = gradient @ (student_keys[part[0]] * scale)
                of_keys[part[0]] += gradient.transpose(-1, -2) @ (student_queries[part] * scale)

        ctx.dtype, ctx.largest, ctx.scale = student_queries.dtype, largest, scale
        return total * math.log(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_output * ctx.largest
        if ctx.saved_tensors:
            queries, keys, kept = ctx.saved_tensors
            gradients, factor = (kept @ keys, kept.transpose(-1, -2) @ queries), factor * ctx.scale
        else:
            gradients = ctx.gradients
        of_queries, of_keys = ((each.float() * factor).to(ctx.dtype) for each in gradients)
        return of_queries, of_keys, *[None] * 7


def _chunks(num_rows: int, num_queries: int, of_a_query: int, max_scores: int) -> Iterator[Part]:
    """Rows, and the queries of a row where one row has more than `max_scores`."""
    queries_at_a_time = min(num_queries, max(1, max_scores // of_a_query))
    rows_at_a_time = max(1, max_scores // (of_a_query * num_queries))

    for row in range(0, num_rows, rows_at_a_time):
        for query in range(0, num_queries, queries_at_a_time):
            yield slice(row, row + rows_at_a_time), slice(None), slice(query, query + queries_at_a_time)


def _masked_scores(queries: Tensor, keys: Tensor, padding: Tensor | None, part: Part) -> Tensor:
    """Scores of a chunk in float32, padded keys at a finite floor; to the base 2, whose powers are faster than e's."""
    scale = queries.shape[-1] ** -0.5 / math.log(2)
    scores = ((queries[part] * scale) @ keys[part[0]].transpose(-1, -2)).float()
    return scores if padding is None else scores.masked_fill_(padding[part[0]], _LOWEST)


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities over the last dimension, and the logarithm of what they were divided by, both to the base 2."""
    largest = scores.amax(-1, keepdim=True)
    powers = (scores - largest).exp2_()
    sums = powers.sum(-1, keepdim=True)
    return powers.div_(sums), (largest + sums.log2())[..., 0]


def _last_real(mask: Tensor) -> int:
    """How many tokens there are up to the last that is real in any row; all on a GPU, which would be waited for."""
    return int(mask.any(0).nonzero().amax()) + 1 if mask.device.type == "cpu" and mask.any() else mask.shape[1]


def _padding(key_mask: Tensor) -> Tensor | None:
    """Where keys are padding, `(B, 1, 1, K)`; None where none is, as far as that is known without waiting."""
    return None if key_mask.device.type == "cpu" and key_mask.all() else ~key_mask[:, None, None]


def _query_weights(key_mask: Tensor, query_mask: Tensor, heads: int) -> Tensor:
    """Share of each query in the mean, `(B, 1, Q)`: equal inside an example, 0 for padding or a row without a key."""
    real = query_mask.float()
    shares = real / real.sum(1, keepdim=True).clamp(min=1) / (heads * max(1, len(real)))
    return (shares * key_mask.any(1, keepdim=True))[:, None]
