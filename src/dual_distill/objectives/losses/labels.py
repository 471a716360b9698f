"""Soft labels: the student gives the teacher's answers."""

from torch import Tensor, nn

from .kl_divergence import kl_divergence


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence from the student's label distribution to the teacher's, in nats per row.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), averaged over rows.

    Args:
        student_logits: `(B, labels)`. Receives the gradient.
        teacher_logits: `(B, labels)`. No gradient reaches it.
        temperature: > 0; above 1 flattens both. Its square keeps the gradient's size.

    Returns:
        Scalar float32, >= 0; 0 when the two agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    References:
        Hinton et al., arXiv 1503.02531; Wang et al., EMNLP 2022, arXiv 2112.08723 (temperature 1).

    Example:
        >>> teacher = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
        >>> round(soft_label_loss(torch.zeros(1, 4), teacher).item(), 4)  # ln 4
        1.3863
    """
    _check_logits(student_logits, teacher_logits)
    return kl_divergence(student_logits, teacher_logits, temperature).mean()


def soft_answer_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Binary cross-entropy against the teacher's answer probabilities, in nats per row, summed over answers.

    For VQA with several right answers, where each answer is a yes-or-no of its own:
    temperature^2 * sum_a BCE(sigmoid(teacher_a / temperature), sigmoid(student_a / temperature)), averaged over rows.

    Args:
        student_logits: `(B, answers)`. Receives the gradient.
        teacher_logits: `(B, answers)`. No gradient reaches it.
        temperature: > 0.

    Returns:
        Scalar float32. It is smallest, not 0, when the two agree: the teacher's own entropy remains.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723 (temperature 1).

    Example:
        >>> round(soft_answer_loss(torch.zeros(1, 3), torch.zeros(1, 3)).item(), 4)  # 3 ln 2
        2.0794
    """
    _check_logits(student_logits, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0.")

    targets = (teacher_logits.detach().float() / temperature).sigmoid()
    logits = student_logits.float() / temperature
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return loss / len(student_logits) * temperature**2


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits of unlike shapes."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)}; "
            "both must have one logit for each of the same labels."
        )
