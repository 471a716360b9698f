"""Whole attention matrices of two models held against each other by MSE, as DistillVLM does."""

import torch
from torch import Tensor

from .attention import relation_scores
from .hidden_states import mean_over_rows


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
    if student_probs.dim() != 4 or student_probs.shape != teacher_probs.shape:
        raise ValueError(
            f"student_probs has shape {tuple(student_probs.shape)}, teacher_probs {tuple(teacher_probs.shape)}; both "
            "must be (B, H, S, S). Unequal head counts need relation heads (relation_heads=)."
        )
    rows, _, queries, keys = student_probs.shape
    if pattern.shape != (rows, queries, keys):
        wanted = (rows, queries, keys)
        raise ValueError(f"pattern has shape {tuple(pattern.shape)}, the probabilities ask for {wanted}.")

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
