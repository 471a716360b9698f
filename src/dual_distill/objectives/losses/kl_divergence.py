"""The divergence that soft labels, lists and attention share."""

import torch
from torch import Tensor


def kl_divergence(
    student_scores: Tensor, teacher_scores: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) over the last dimension.

    Args:
        student_scores: `(..., K)`. Receives the gradient.
        teacher_scores: `(..., K)`. No gradient reaches it.
        temperature: > 0.
        mask: bool, broadcast to the scores, False for an entry that is left out; None: all count.

    Returns:
        `(...)` float32, nats, >= 0.

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> round(kl_divergence(torch.zeros(4), torch.tensor([50.0, 0.0, 0.0, 0.0])).item(), 4)  # ln 4
        1.3863
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0.")

    student, teacher = student_scores.float() / temperature, teacher_scores.detach().float() / temperature
    if mask is not None:
        # A finite floor: -inf would give 0 * inf = NaN wherever an entry is left out.
        floor = torch.finfo(torch.float32).min
        student, teacher = student.masked_fill(~mask, floor), teacher.masked_fill(~mask, floor)

    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    difference = teacher - student
    if mask is not None:
        difference = difference.masked_fill(~mask, 0.0)
    return (teacher.exp() * difference).sum(-1) * temperature**2
