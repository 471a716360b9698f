"""Losses that compare logits: soft labels, short lists, pairs and masked words; all but one are a KL divergence.

Short lists hold candidates that are hard to tell apart: chosen by the student, ranked by teacher or label. Pairs and
masked words are those of pre-training: the teacher's logits on matched and unmatched pairs, and at masked tokens.
"""

import torch
from torch import Tensor, nn

_IGNORED = -100


def check_shapes(fit: bool, wanted: str, **tensors: Tensor) -> None:
    """Refuse tensors whose shapes do not fit one another; the message names them all."""
    if not fit:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{shapes.replace(' ', ' has shape ', 1)}; give {wanted}.")


def check_same(wanted: str, **tensors: Tensor) -> None:
    """Refuse tensors of unlike shapes."""
    check_shapes(len({tensor.shape for tensor in tensors.values()}) == 1, wanted, **tensors)


def check_positive(**numbers: float) -> None:
    """Refuse a number that is not above 0, NaN too."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; give a number above 0.")


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
    check_positive(temperature=temperature)

    student, teacher = student_scores.float() / temperature, teacher_scores.detach().float() / temperature
    if mask is not None:
        # A finite floor: where an entry is left out its probability is 0 and the difference finite, not 0 * inf = NaN.
        floor = torch.finfo(torch.float32).min / 2
        student, teacher = student.masked_fill(~mask, floor), teacher.masked_fill(~mask, floor)

    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1) * temperature**2


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
    check_same("one logit for each of the same labels", student_logits=student_logits, teacher_logits=teacher_logits)
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
    check_same("one logit for each of the same labels", student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)

    targets = (teacher_logits.detach().float() / temperature).sigmoid()
    logits = student_logits.float() / temperature
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return loss / len(student_logits) * temperature**2


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
    # A finite floor: -inf would give NaN in the gradient of a list without a second entry.
    floor = torch.finfo(torch.float32).min
    return -scores.float().masked_fill(~is_listed, floor).log_softmax(-1)[:, 0].mean()


def _check_lists(is_listed: Tensor, **scores: Tensor) -> None:
    """Refuse scores that do not fit the lists."""
    for name, values in scores.items():
        fit = values.shape == is_listed.shape and values.dim() == 2
        check_shapes(fit, "(lists, entries) twice", **{name: values}, is_listed=is_listed)


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
    wanted = "(pairs, 2) logits of the same pairs, and (pairs,) labels"
    return _distillation_where_labelled(student_logits, teacher_logits, labels, temperature, wanted)


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
    return _distillation_where_labelled(student_logits, teacher_logits, labels, temperature, wanted)


def _distillation_where_labelled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, wanted: str
) -> Tensor:
    """Divergence where there is a label, over the average number of labels of a process."""
    fit = student.shape == teacher.shape and labels.shape == student.shape[:-1]
    check_shapes(fit, wanted, student_logits=student, teacher_logits=teacher, labels=labels)

    is_labelled = labels != _IGNORED
    total = kl_divergence(student[is_labelled], teacher[is_labelled], temperature).sum()

    # Every process divides by the same number, so averaged gradients are those of one process with the whole batch.
    count = is_labelled.sum().to(total.dtype)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return total / count.clamp(min=torch.finfo(count.dtype).eps)
