"""Hidden states of student and teacher held against each other, token by token: by a noise-contrastive loss or MSE."""

import torch
from torch import Tensor, nn


def noise_contrastive_loss(
    anchors: Tensor, positives: Tensor, negatives: Tensor, token_mask: Tensor, temperature: float = 0.1
) -> Tensor:
    """How well a student's token finds the teacher's state of the same token among others, in nats per token.

    With everything scaled to length 1, per real token -ln(exp(a . p / t) / (exp(a . p / t) + sum_k exp(a . n_k / t)));
    averaged over the real tokens of a row, then over rows. Other tokens of the same batch are no negatives: most are
    words and regions of the same image.

    Args:
        anchors: `(B, L, P)` projected states of the student. Receives the gradient.
        positives: `(B, L, P)` states of the teacher, of the same tokens. No gradient reaches it.
        negatives: `(K, P)` states of earlier tokens of the teacher; K may be 0. No gradient reaches it.
        token_mask: `(B, L)` bool, True for a real token.
        temperature: t > 0.

    Returns:
        Scalar float32, >= 0; ln(1 + K) when all negatives equal the positive, 0 when there are none.

    Raises:
        ValueError: the shapes do not fit one another, or the temperature is not positive.

    Note:
        One `(real tokens, 1 + K)` float32 matrix is kept for the backward pass: 84 MB for 64 rows of 80 tokens and
        4,096 negatives.

    References:
        Fang et al., ICCV 2021, arXiv 2104.02096. It publishes neither temperature nor projection.

    Example:
        >>> one = torch.ones(1, 2, 3)
        >>> loss = noise_contrastive_loss(torch.randn(1, 2, 3), one, torch.ones(7, 3), torch.ones(1, 2).bool())
        >>> round(loss.item(), 4)   # ln 8
        2.0794
    """
    _check_states(anchors, positives, token_mask)
    if negatives.dim() != 2 or negatives.shape[1] != anchors.shape[2]:
        raise ValueError(
            f"negatives have shape {tuple(negatives.shape)}, anchors {tuple(anchors.shape)}; "
            f"give (K, {anchors.shape[2]})."
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0.")

    real = token_mask.bool()
    # Padded tokens would cost as much as real ones.
    anchor = nn.functional.normalize(anchors[real].float(), dim=-1)
    positive = nn.functional.normalize(positives.detach()[real].float(), dim=-1)
    negative = nn.functional.normalize(negatives.detach().float(), dim=-1)

    with torch.autocast(anchors.device.type, enabled=False):
        own = (anchor * positive).sum(-1, keepdim=True)
        logits = torch.cat([own, anchor @ negative.T], dim=1) / temperature
        of_token = logits.logsumexp(1) - logits[:, 0]
    return mean_over_rows(of_token.new_zeros(real.shape).masked_scatter(real, of_token), real)


def hidden_state_mse_loss(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """MSE of hidden states, over the real tokens of a row and their width, then over rows.

    Args:
        student: `(B, L, P)` projected states. Receives the gradient.
        teacher: `(B, L, P)` states of the same tokens. No gradient reaches it.
        token_mask: `(B, L)` bool, True for a real token.

    Returns:
        Scalar float32, >= 0; 0 when the two agree.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> hidden_state_mse_loss(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 3.0), torch.ones(1, 2).bool()).item()
        9.0
    """
    _check_states(student, teacher, token_mask)
    return mean_over_rows((student.float() - teacher.detach().float()).square().mean(-1), token_mask.bool())


def pool_tokens(states: Tensor, token_mask: Tensor) -> Tensor:
    """Mean state of the real tokens of a row, `(B, L, C)` -> `(B, 1, C)`; zeros for a row without any.

    Example:
        >>> pool_tokens(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).item()
        2.0
    """
    real = token_mask.to(states.dtype)[:, :, None]
    return (states * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


def mean_over_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values at True inside each row, then over the rows that have any: `(B, ...)` -> scalar.

    A row weighs the same alone, in a batch and across processes, however long it is.

    Example:
        >>> values = torch.tensor([[1.0, 3.0], [8.0, 9.0], [7.0, 7.0]])
        >>> mean_over_rows(values, torch.tensor([[True, True], [True, False], [False, False]])).item()   # (2 + 8) / 2
        5.0
    """
    mask = mask.to(values.dtype)
    counts = mask.flatten(1).sum(1)
    means = (values * mask).flatten(1).sum(1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def _check_states(student: Tensor, teacher: Tensor, token_mask: Tensor) -> None:
    """Refuse states and a mask of unlike shapes."""
    if student.dim() != 3 or student.shape != teacher.shape or token_mask.shape != student.shape[:2]:
        raise ValueError(
            f"the student's states have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}, the mask "
            f"{tuple(token_mask.shape)}; give (B, tokens, width) of the same tokens twice, and (B, tokens)."
        )
