"""The student looks where the teacher looks: KL divergence of cross-modal attention, MSE of whole matrices."""

import torch
from torch import Tensor

from .logits import check_shapes, kl_divergence
from .tokens import mean_over_rows

UNEQUAL_HEADS = "unequal head counts need relation heads (relation_heads=)"


def attention_distillation_loss(
    student_scores: Tensor, teacher_scores: Tensor, key_mask: Tensor, query_mask: Tensor
) -> Tensor:
    """KL divergence from the student's cross-modal attention to the teacher's, in nats per query.

    One call covers one direction; the caller adds the two. Per example, head and real query,
    KL(softmax_k teacher || softmax_k student) over the real keys of the other modality; averaged over the heads and
    real queries of an example, then over examples.

    Args:
        student_scores: `(B, H, Q, K)` queries @ keys / sqrt(head width), before softmax and mask. Receives the
            gradient.
        teacher_scores: `(B, H, Q, K)`, the same block of the teacher. No gradient reaches it.
        key_mask: `(B, K)` bool, True for a real key; each row needs one.
        query_mask: `(B, Q)` bool, True for a real query.

    Returns:
        Scalar float32, nats, >= 0; 0 when the two agree.

    Raises:
        ValueError: the score shapes differ (most often unequal head counts), or a mask does not fit them.

    Note:
        Padded queries are left out of the mean; the authors' code counts them, so its value moves with the padding (a
        query mask of ones gives it: `DiDEObjective(count_padded_queries=True)`). The mean is taken inside each example
        first, so that a row weighs the same alone, in a batch and across processes.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723, cross-modal attention distillation.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 1, 4), torch.tensor([[[[50.0, 0.0, 0.0, 0.0]]]])
        >>> keys, queries = torch.ones(1, 4).bool(), torch.ones(1, 1).bool()
        >>> round(attention_distillation_loss(student, teacher, keys, queries).item(), 4)   # ln 4
        1.3863
    """
    given = {"student_scores": student_scores, "teacher_scores": teacher_scores}
    fit = student_scores.shape == teacher_scores.shape and student_scores.dim() == 4
    check_shapes(fit, f"(B, H, Q, K) twice; {UNEQUAL_HEADS}", **given)
    rows, _, queries, keys = student_scores.shape
    check_mask("key_mask", key_mask, (rows, keys))
    check_mask("query_mask", query_mask, (rows, queries))

    divergence = kl_divergence(student_scores, teacher_scores, mask=key_mask.bool()[:, None, None, :]).mean(1)
    real = query_mask.to(divergence.dtype)
    return ((divergence * real).sum(1) / real.sum(1).clamp(min=1)).mean()


def check_mask(name: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a mask of another shape than the scores ask for."""
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, the scores ask for {tuple(shape)}.")


def relation_scores(queries: Tensor, keys: Tensor, relation_heads: int | None = None) -> Tensor:
    """Scaled dot products of queries and keys, over the model's own heads or over relation heads.

    Relation heads concatenate all heads and split them again into R: teacher and student may then differ in width and
    in head count. Each model is scaled by the root of its own (relation) head width.

    Args:
        queries: `(B, H, Q, D)`.
        keys: `(B, H, K, D)`.
        relation_heads: R, must divide H * D; None: the H heads as they are.

    Returns:
        `(B, R or H, Q, K)`.

    Raises:
        ValueError: R does not divide the width.

    References:
        Wang et al., MiniLMv2, arXiv 2012.15828, section 3.

    Example:
        >>> relation_scores(torch.ones(1, 4, 2, 3), torch.ones(1, 4, 5, 3), relation_heads=2).shape
        torch.Size([1, 2, 2, 5])
    """
    queries, keys = regroup_heads(queries, relation_heads), regroup_heads(keys, relation_heads)
    return queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5


def regroup_heads(states: Tensor, relation_heads: int | None) -> Tensor:
    """Split the width of all heads anew: `(B, H, L, D)` -> `(B, R, L, H * D / R)`; None: as they are."""
    if relation_heads is None or relation_heads == states.shape[1]:
        return states
    width = states.shape[1] * states.shape[3]
    if width % relation_heads:
        raise ValueError(f"{relation_heads} relation heads do not divide the width {width}; choose a divisor of it.")

    return states.transpose(1, 2).flatten(2).unflatten(2, (relation_heads, -1)).transpose(1, 2)


def attention_probs_to_scores(probs: Tensor) -> Tensor:
    """Turn attention probabilities into scores whose softmax over any subset of keys is that subset, rescaled to sum 1.

    Args:
        probs: `(B, H, Q, K)`, >= 0; rows may sum to less than 1 (a block cut out of the joint attention).

    Returns:
        `(B, H, Q, K)` float32 log probabilities, finite.

    Example:
        >>> joint = torch.tensor([[[[0.1, 0.3, 0.6]]]])
        >>> attention_probs_to_scores(joint[..., 1:]).softmax(-1)
        tensor([[[[0.3333, 0.6667]]]])
    """
    return probs.detach().float().clamp(min=torch.finfo(torch.float32).tiny).log()


def attention_matrix_loss(student_probs: Tensor, teacher_probs: Tensor, pattern: Tensor) -> Tensor:
    """MSE of two attention matrices, over the query/key pairs that may attend.

    Averaged over the heads and pairs of a row, then over rows; a row without any pair is left out.

    Args:
        student_probs: `(B, H, S, S)` attention probabilities, query by key. Receives the gradient.
        teacher_probs: `(B, H, S, S)`. No gradient reaches it.
        pattern: `(B, S, S)` bool, True where a real query may look at a real key.

    Returns:
        Scalar float32 in [0, 1]; 0 when the two agree.

    Raises:
        ValueError: the shapes differ (most often unequal head counts), or the pattern does not fit them.

    Note:
        Pairs with padding are left out of the mean, or the value would shrink with the padding. Probabilities of S
        tokens are about 1 / S, so the value shrinks with the square of the sequence: weigh the term by what is logged.

    References:
        Fang et al., ICCV 2021, arXiv 2104.02096, attention distribution loss.

    Example:
        >>> looks_at_itself, looks_at_both = torch.eye(2)[None, None], torch.full((1, 1, 2, 2), 0.5)
        >>> attention_matrix_loss(looks_at_both, looks_at_itself, torch.ones(1, 2, 2).bool()).item()
        0.25
    """
    fit = student_probs.shape == teacher_probs.shape and student_probs.dim() == 4
    check_shapes(fit, f"(B, H, S, S) twice; {UNEQUAL_HEADS}", student_probs=student_probs, teacher_probs=teacher_probs)
    check_mask("pattern", pattern, student_probs[:, 0].shape)

    difference = (student_probs.float() - teacher_probs.detach().float()).square().mean(1)
    return mean_over_rows(difference, pattern)


def attention_probs(queries: Tensor, keys: Tensor, pattern: Tensor, relation_heads: int | None = None) -> Tensor:
    """Attention probabilities of recorded queries and keys, before dropout, over the keys that a query may look at.

    Args:
        queries: `(B, H, S, D)`.
        keys: `(B, H, S, D)`.
        pattern: `(B, S, S)` bool, True where a query may look at a key.
        relation_heads: as in `relation_scores`.

    Returns:
        `(B, R or H, S, S)` float32, 0 outside the pattern; rows sum to 1, or to 0 where a query may look nowhere.

    Example:
        >>> states = torch.zeros(1, 1, 3, 2)
        >>> pattern = torch.tensor([[[True, False, False], [True, True, False], [False, False, False]]])
        >>> attention_probs(states, states, pattern)[0, 0]
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores = relation_scores(queries.float(), keys.float(), relation_heads)

    allowed = pattern[:, None]
    # A finite floor and a mask behind it: -inf would give NaN where a query may look nowhere.
    return scores.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1) * allowed


def joint_pattern(attention_mask: Tensor, image_mask: Tensor) -> Tensor:
    """Return which query may look at which key where every real token sees every other: `(B, S, S)` bool.

    Args:
        attention_mask: `(B, T)`, 1 = real text token (tags among them).
        image_mask: `(B, N, R)` bool, True = real image token or region; with N > 1 each image is a row.

    Returns:
        `(B * N, T + R, T + R)`, True between real tokens.

    Example:
        >>> joint_pattern(torch.tensor([[1, 0]]), torch.tensor([[[True]]])).int()
        tensor([[[1, 0, 1],
                 [0, 0, 0],
                 [1, 0, 1]]], dtype=torch.int32)
    """
    text = attention_mask.bool().repeat_interleave(image_mask.shape[1], dim=0)
    real = torch.cat([text, image_mask.bool().flatten(0, 1)], dim=1)
    return real[:, :, None] & real[:, None, :]
