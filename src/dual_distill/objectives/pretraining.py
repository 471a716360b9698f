"""What a dual encoder imitates of a fusion encoder while both are shown image-text pairs and masked words.

The authors of DiDE never released their pre-training half. What is here follows from their fine-tuning: attention is
compared on the pairs that belong together, for which alone the teacher's attention means something, and the soft labels
of fine-tuning become the teacher's logits for every pair that the student is asked about and its distribution over
every masked word.
"""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from .base import Settings
from .dide import DIDE_PAPER, CrossModalObjective
from .losses.logits import itm_distillation_loss, mlm_distillation_loss

HARD_TERMS = ("itc_loss", "itm_loss", "mlm_loss")
"""Losses that a model for pre-training computes itself, by the names of its outputs."""


class PreTrainingObjective(CrossModalObjective):
    """The student's own losses on pairs and masked words, and what it imitates of the teacher on the same.

    loss = the student's `loss` (its own terms, weighted by its configuration) + attention_weight * attention +
    itm_distillation_weight * ITM distillation + mlm_distillation_weight * MLM distillation; a term of weight 0 is not
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
        Which terms the paper distils in pre-training is not published; ITM and MLM distillation are ours.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.

    Example:
        >>> import torch
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

    paper = DIDE_PAPER
    label_weight = 1.0

    def __init__(
        self,
        attention_weight: float = 1.0,
        itm_distillation_weight: float = 1.0,
        mlm_distillation_weight: float = 1.0,
        **settings: Unpack[Settings],
    ):
        weights = {
            "attention_weight": attention_weight,
            "itm_distillation_weight": itm_distillation_weight,
            "mlm_distillation_weight": mlm_distillation_weight,
        }
        super().__init__(weights, may_be_idle=True, **settings)

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `loss` (None when every term of its own is switched off) and its terms; `itm_logits`
                `(P, 2)` and `itm_labels` `(P,)`, -100 = no pair; `mlm_logits` `(B, T, V)`; of the matched pairs as for
                `attention_loss`.
            teacher_view: of the matched pairs as for `attention_loss`; `itm_logits` `(P, 2)` of the student's pairs in
                its order; `mlm_logits` `(B, T, V)` of the same masked texts; None when nothing is compared.
            batch: `attention_mask` `(B, T)`, and `masked_labels` `(B, T)`, -100 = not masked.

        Returns:
            Scalars in nats: `loss`, and unweighted `itc_loss`, `itm_loss`, `mlm_loss` as far as the student computed
            them, `attention_loss`, `itm_distillation_loss`, `mlm_distillation_loss` as far as they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, Tensor] = {}
        if self.attention_weight:
            losses["attention_loss"] = self.attention_loss(student_outputs, teacher_view, batch["attention_mask"])

        if self.weights["itm_distillation_weight"]:
            student, teacher = _logits_of_both(student_outputs, teacher_view, "itm_logits")
            labels = student_outputs.itm_labels
            losses["itm_distillation_loss"] = itm_distillation_loss(student, teacher, labels, self.temperature)
        if self.weights["mlm_distillation_weight"]:
            student, teacher = _logits_of_both(student_outputs, teacher_view, "mlm_logits")
            labels = batch["masked_labels"]
            losses["mlm_distillation_loss"] = mlm_distillation_loss(student, teacher, labels, self.temperature)

        # The student's loss is weighed by its configuration; without a hard term it has none.
        own = hard_terms(student_outputs)
        return own | self.weighted(losses, start=student_outputs.loss if own else 0.0)


def hard_terms(outputs: Any) -> dict[str, Tensor]:
    """Return the losses that a model for pre-training computed itself, by name.

    Args:
        outputs: of the model.
    """
    return {name: value for name in HARD_TERMS if (value := getattr(outputs, name, None)) is not None}


def _logits_of_both(student_outputs: Any, teacher_view: Any, name: str) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, or a refusal that names who lacks them."""
    for role, outputs in (("student", student_outputs), ("teacher", teacher_view)):
        if getattr(outputs, name, None) is None:
            needs = "give the batch what it needs (ids for matching, masked text for words)"
            way_out = f"{needs} and switch the student's own term on, or set the distillation weight to 0"
            raise ValueError(f"the {role} returned no {name}, which a term with a weight compares; {way_out}.")
    return getattr(student_outputs, name), getattr(teacher_view, name)
