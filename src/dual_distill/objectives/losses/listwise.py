"""Short lists of candidates that are hard to tell apart: chosen by the student, ranked by teacher or label."""

import torch
from torch import Tensor

from .kl_divergence import kl_divergence


def listwise_distillation_loss(
    student_scores: Tensor, teacher_scores: Tensor, is_listed: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL divergence from the student's distribution over a short list to the teacher's, in nats per list.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) over the entries of each list,
    averaged over lists.

    Args:
        student_scores: `(L, 1 + K)`. Receives the gradient.
        teacher_scores: `(L, 1 + K)` of the same pairs. No gradient reaches it.
        is_listed: `(L, 1 + K)` bool, False for an index that holds no entry; each list needs one.
        temperature: > 0.

    Returns:
        Scalar float32, >= 0; 0 when the two agree up to a constant a list, or no list has a second entry.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    References:
        Cao et al., ICML 2007, "Learning to rank: from pairwise approach to listwise approach".

    Example:
        >>> teacher = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 9.0]])
        >>> listed = torch.tensor([[True, True, False], [True, True, False]])
        >>> round(listwise_distillation_loss(torch.zeros(2, 3), teacher, listed).item(), 4)  # ln 2
        0.6931
    """
    _check_lists(is_listed, student_scores=student_scores, teacher_scores=teacher_scores)
    return kl_divergence(student_scores, teacher_scores, temperature, is_listed).mean()


def listwise_cross_entropy(scores: Tensor, is_listed: Tensor) -> Tensor:
    """Cross-entropy of each list's first entry, the right one, against the others, in nats per list.

    Args:
        scores: `(L, 1 + K)`. Receives the gradient.
        is_listed: `(L, 1 + K)` bool, False for an index that holds no entry.

    Returns:
        Scalar float32, the mean over lists; 0 for a list without a second entry.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> round(listwise_cross_entropy(torch.zeros(2, 5), torch.ones(2, 5).bool()).item(), 4)  # ln 5
        1.6094
    """
    _check_lists(is_listed, scores=scores)
    floor = torch.finfo(torch.float32).min
    return -scores.float().masked_fill(~is_listed, floor).log_softmax(-1)[:, 0].mean()


def hardest_negatives(similarities: Tensor, is_allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar entries of the gallery that a row may be held against.

    Args:
        similarities: `(B, G)`, higher is nearer. No gradient passes.
        is_allowed: `(B, G)` bool, False for what belongs to the row or equals what does.
        count: K >= 1, cut down to G.

    Returns:
        Indices into the gallery, `(B, K)` int64, nearest first; and whether there is such an entry, `(B, K)` bool
        (where there is none the index is valid and means nothing).

    Raises:
        ValueError: the shapes differ, or count is below 1.

    Example:
        >>> similarities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.9, 0.3]])
        >>> allowed = torch.tensor([[False, True, True], [True, False, False]])
        >>> indices, found = hardest_negatives(similarities, allowed, 2)
        >>> indices[0], found
        (tensor([2, 1]), tensor([[ True,  True],
                [ True, False]]))
    """
    if similarities.shape != is_allowed.shape or similarities.dim() != 2:
        raise ValueError(
            f"similarities has shape {tuple(similarities.shape)}, is_allowed {tuple(is_allowed.shape)}; both must be "
            "(rows, gallery)."
        )
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1.")

    scores = similarities.detach().float().masked_fill(~is_allowed, -torch.inf)
    found = scores.topk(min(count, scores.shape[1]), dim=1)
    return found.indices, found.values > -torch.inf


def _check_lists(is_listed: Tensor, **scores: Tensor) -> None:
    """Refuse scores that do not fit the lists."""
    for name, values in scores.items():
        if values.shape != is_listed.shape or values.dim() != 2:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, is_listed {tuple(is_listed.shape)}; both must be (lists, "
                "entries)."
            )
