"""ITM and MLM distillation: the teacher's logits on matched and unmatched pairs, and on masked words."""

import torch
from torch import Tensor

from .kl_divergence import kl_divergence

_IGNORED = -100


def itm_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL divergence from the student's image-text matching distribution to the teacher's, in nats per pair.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), averaged over the pairs.

    Args:
        student_logits: `(P, 2)`. Receives the gradient.
        teacher_logits: `(P, 2)` of the same pairs. No gradient reaches it.
        labels: `(P,)`, -100 for an index that holds no pair (a text without an allowed negative); other values are not
            read.
        temperature: > 0.

    Returns:
        Scalar float32, >= 0; 0 when the two agree or there is no pair.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Note:
        In several processes the mean is over the pairs of all: each divides by their average number, so that averaged
        gradients are those of one process with the whole batch.

    Example:
        >>> teacher = torch.tensor([[0.0, 50.0], [7.0, 7.0]])
        >>> round(itm_distillation_loss(torch.zeros(2, 2), teacher, torch.tensor([1, -100])).item(), 4)  # ln 2
        0.6931
    """
    _check_logits(student_logits, teacher_logits, labels, "(pairs, 2) logits of the same pairs, and (pairs,) labels")
    is_pair = labels != _IGNORED
    divergence = kl_divergence(student_logits, teacher_logits, temperature)
    return _mean_over_processes(torch.where(is_pair, divergence, 0.0).sum(), is_pair.sum())


def mlm_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL divergence from the student's masked language modelling to the teacher's, in nats per masked token.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) over the vocabulary, at masked
    tokens only, averaged over them.

    Args:
        student_logits: `(B, T, V)`. Receives the gradient.
        teacher_logits: `(B, T, V)` of the same masked texts. No gradient reaches it.
        labels: `(B, T)`, -100 where no word was masked; other values are not read.
        temperature: > 0.

    Returns:
        Scalar float32, >= 0; 0 when the two agree or nothing was masked.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Note:
        In several processes the mean is over the masked tokens of all, as in `itm_distillation_loss`.

    Example:
        >>> teacher = torch.zeros(1, 2, 8)
        >>> teacher[0, 1, 3] = 50.0
        >>> labels = torch.tensor([[-100, 5]])
        >>> round(mlm_distillation_loss(torch.zeros(1, 2, 8), teacher, labels).item(), 4)  # ln 8
        2.0794
    """
    wanted = "(B, T, vocabulary) logits of the same masked texts, and (B, T) labels"
    _check_logits(student_logits, teacher_logits, labels, wanted)
    is_masked = labels != _IGNORED
    divergence = kl_divergence(student_logits[is_masked], teacher_logits[is_masked], temperature)
    return _mean_over_processes(divergence.sum(), is_masked.sum())


def _check_logits(student: Tensor, teacher: Tensor, labels: Tensor, wanted: str) -> None:
    """Refuse logits and labels of unlike shapes."""
    if student.shape != teacher.shape or labels.shape != student.shape[:-1]:
        raise ValueError(
            f"student_logits has shape {tuple(student.shape)}, teacher_logits {tuple(teacher.shape)}, labels "
            f"{tuple(labels.shape)}; give {wanted}."
        )


def _mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """Divide a sum over this process's entries by the average number of entries of a process."""
    count = count.to(total.dtype)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return total / count.clamp(min=torch.finfo(count.dtype).eps)
