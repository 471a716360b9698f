"""What a dual encoder imitates of a fusion encoder while both are shown image-text pairs and masked words.

The authors of DiDE never released their pre-training half. What is here follows from their fine-tuning: attention is
compared on the pairs that belong together, for which alone the teacher's attention means something, and the soft labels
of fine-tuning become the teacher's verdict on every pair that the student is asked about and its distribution over
every masked word.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .dide import DiDEObjective

HARD_TERMS = ("itc_loss", "itm_loss", "mlm_loss")
"""Losses that a model for pre-training computes itself, by the names of its outputs."""
_LEFT_OUT = -100


class PreTrainingObjective(DiDEObjective):
    """The student's own losses on pairs and masked words, and what it imitates of the teacher on the same.

    loss = the student's `loss` (its own terms, weighted by its configuration) + attention_weight * attention +
    itm_distillation_weight * soft matching + mlm_distillation_weight * soft masked words; a term of weight 0 is not
    computed.

    Args:
        attention_weight: >= 0; attention of matched pairs, as in `DiDEObjective`.
        itm_distillation_weight: >= 0; `itm_distillation_loss` over matched pairs and hard negatives.
        mlm_distillation_weight: >= 0; `mlm_distillation_loss`.
        temperature: > 0, of both soft terms.
        layer_map: student layer -> teacher layer, negative counts from the last; None: last to last.
        relation_heads: as in `DiDEObjective`.

    Raises:
        ValueError: a weight is negative, the temperature or relation_heads is not positive, or the layer map is empty.

    Note:
        Which terms the paper distils in pre-training is not published; soft matching and soft masked words are ours.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.

    Example:
        >>> from types import SimpleNamespace
        >>> student = SimpleNamespace(
        ...     loss=torch.tensor(0.5), itm_loss=torch.tensor(0.5), itm_logits=torch.zeros(3, 2),
        ...     itm_labels=torch.tensor([1, 0, -100]))
        >>> teacher = SimpleNamespace(itm_logits=torch.tensor([[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]]))
        >>> objective = PreTrainingObjective(attention_weight=0, mlm_distillation_weight=0)
        >>> losses = objective(student, teacher, {})
        >>> {name: round(value.item(), 4) for name, value in losses.items()}  # ln 2 beside the student's own
        {'itm_loss': 0.5, 'itm_distillation_loss': 0.6931, 'loss': 1.1931}
    """

    def __init__(
        self,
        attention_weight: float = 1.0,
        itm_distillation_weight: float = 1.0,
        mlm_distillation_weight: float = 1.0,
        temperature: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
    ):
        weights = {
            "itm_distillation_weight": itm_distillation_weight,
            "mlm_distillation_weight": mlm_distillation_weight,
        }
        if not all(weight >= 0 for weight in weights.values()):  # not: NaN is refused too
            raise ValueError(f"the weights are {weights}; give numbers >= 0.")
        super().__init__(attention_weight, 0.0, 1.0, temperature, layer_map, relation_heads)
        self.itm_distillation_weight = itm_distillation_weight
        self.mlm_distillation_weight = mlm_distillation_weight

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any((self.attention_weight, self.itm_distillation_weight, self.mlm_distillation_weight))

    def forward(
        self, student_outputs: Any, teacher_outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `loss` (None when every term of its own is switched off) and its terms; `query_states`,
                `key_states` and `image_mask` of the matched pairs; `itm_logits` `(P, 2)` and `itm_labels`
                `(P,)`, -100 = no pair; `mlm_logits` `(B, T, V)`.
            teacher_outputs: the states (or `attentions`) of the matched pairs, `itm_logits` `(P, 2)` of the same
                pairs in the same order, `mlm_logits` `(B, T, V)` of the same masked texts; None when nothing is
                compared.
            batch: `attention_mask` `(B, T)`, and `masked_labels` `(B, T)`, -100 = not masked.

        Returns:
            Scalars in nats: `loss`, and unweighted `itc_loss`, `itm_loss`, `mlm_loss` as far as
            the student computed them, `attention_loss`, `itm_distillation_loss`, `mlm_distillation_loss` as far as they
            have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses = hard_terms(student_outputs)
        total = student_outputs.loss
        if total is None and not losses:
            total = 0.0  # every hard term switched off
        if self.attention_weight:
            losses["attention_loss"] = self._attention_loss(student_outputs, teacher_outputs, batch["attention_mask"])
            total = total + self.attention_weight * losses["attention_loss"]
        if self.itm_distillation_weight:
            losses["itm_distillation_loss"] = itm_distillation_loss(
                _given(student_outputs, "itm_logits", "student"),
                _given(teacher_outputs, "itm_logits", "teacher"),
                _given(student_outputs, "itm_labels", "student"),
                self.temperature,
            )
            total = total + self.itm_distillation_weight * losses["itm_distillation_loss"]
        if self.mlm_distillation_weight:
            losses["mlm_distillation_loss"] = mlm_distillation_loss(
                _given(student_outputs, "mlm_logits", "student"),
                _given(teacher_outputs, "mlm_logits", "teacher"),
                batch["masked_labels"],
                self.temperature,
            )
            total = total + self.mlm_distillation_weight * losses["mlm_distillation_loss"]
        return losses | {"loss": total}


def hard_terms(outputs: Any) -> dict[str, torch.Tensor]:
    """Return the losses that a model for pre-training computed itself, by name.

    Args:
        outputs: of the model.
    """
    return {name: value for name in HARD_TERMS if (value := getattr(outputs, name, None)) is not None}


def itm_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL divergence from the student's verdict on a pair (match or not) to the teacher's, in nats per pair.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)), averaged over the pairs.

    Args:
        student_logits: `(P, 2)`. Receives the gradient.
        teacher_logits: `(P, 2)` of the same pairs. No gradient reaches it.
        labels: `(P,)`, -100 for a place that holds no pair (a text without an allowed negative); other values are not
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
    if student_logits.shape != teacher_logits.shape or labels.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)}, "
            f"labels "
            f"{tuple(labels.shape)}; give (pairs, 2) logits of the same pairs, and (pairs,) labels."
        )
    is_pair = labels != _LEFT_OUT
    divergence = _divergence(student_logits, teacher_logits, temperature)
    return _mean_over_processes(torch.where(is_pair, divergence, 0.0).sum(), is_pair.sum())


def mlm_distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL divergence from the student's distribution over a masked word piece to the teacher's, in nats per masked
    token.

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
    if student_logits.shape != teacher_logits.shape or labels.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)}, "
            f"labels "
            f"{tuple(labels.shape)}; give (B, T, vocabulary) logits of the same masked texts, and (B, T) labels."
        )
    is_masked = labels != _LEFT_OUT
    divergence = _divergence(student_logits[is_masked], teacher_logits[is_masked], temperature)
    return _mean_over_processes(divergence.sum(), is_masked.sum())


def _divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) over the last dimension, times temperature^2: `(..., labels)` -> `(...)` float32."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0.")
    student = (student_logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.detach().float() / temperature).log_softmax(-1)
    return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def _mean_over_processes(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Divide a sum over this process's entries by the average number of entries of a process."""
    count = count.to(total.dtype)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return total / count.clamp(min=torch.finfo(count.dtype).eps)


def _given(outputs: Any, name: str, role: str) -> torch.Tensor:
    value: torch.Tensor | None = getattr(outputs, name, None)
    if value is None:
        raise ValueError(
            f"the {role} returned no {name}, which a term with a weight compares; give the batch what it needs (ids "
            f"for "
            "matching, masked text for words) and switch the student's own term on, or set the soft term's weight to 0."
        )
    return value


__all__ = ["HARD_TERMS", "PreTrainingObjective", "hard_terms", "itm_distillation_loss", "mlm_distillation_loss"]
