"""The DiDE objective: soft labels and cross-modal attention of the last layer, both weight 1 in the paper's recipe."""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from .base import Paper, Settings, student_loss
from .cross_modal import CrossModalObjective
from .losses.labels import soft_answer_loss, soft_label_loss

DIDE_PAPER = Paper(
    method="cross-modal attention distillation (DiDE)",
    title="Distilled Dual-Encoder Model for Vision-Language Understanding",
    url="https://arxiv.org/abs/2112.08723",
    bibtex="@inproceedings{wang2022distilled,\n"
    "  title = {Distilled Dual-Encoder Model for Vision-Language Understanding},\n"
    "  author = {Wang, Zekun and Wang, Wenhui and Zhu, Haichao and Liu, Ming and Qin, Bing and Wei, Furu},\n"
    "  booktitle = {EMNLP},\n  year = {2022},\n  url = {https://arxiv.org/abs/2112.08723}\n}",
    reference="Wang et al., *Distilled Dual-Encoder Model for Vision-Language Understanding*, EMNLP 2022",
)


class DiDEObjective(CrossModalObjective):
    """What a dual encoder imitates of a fusion encoder: its answers and its cross-modal attention.

    loss = attention_weight * attention + soft_label_weight * soft labels + label_weight * hard labels; a term of weight
    0 is not computed. The attention term adds text-to-image and image-to-text, is averaged over the mapped layers, and
    is summed over the N images of a row.

    Args:
        attention_weight: >= 0.
        soft_label_weight: >= 0.
        label_weight: >= 0; the student's own loss on hard labels, 0 in the authors' release.
        temperature: > 0, of the soft labels.
        layer_map: student layer -> teacher layer, negative counts from the last; None: last to last, as in the paper.
        relation_heads: heads over which attention is compared when widths or head counts differ; None: the models' own.
        multi_label: whether each answer is a yes-or-no of its own (VQA with soft scores), so that soft labels are
            compared by `soft_answer_loss` instead of `soft_label_loss`.

    Raises:
        ValueError: a weight is negative, all are 0, the temperature or relation_heads is not positive, or the layer map
            is empty.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723. The paper writes which layers and weights; hard labels, temperature,
        layer map and relation heads are options of ours.

    Example:
        >>> from types import SimpleNamespace
        >>> states = (torch.zeros(1, 1, 3, 2),)
        >>> outputs = dict(query_states=states, key_states=states, image_mask=torch.ones(1, 1, 1).bool())
        >>> student = SimpleNamespace(logits=torch.zeros(1, 4), **outputs)
        >>> teacher = SimpleNamespace(logits=torch.tensor([[50.0, 0.0, 0.0, 0.0]]), **outputs)
        >>> losses = DiDEObjective()(student, teacher, {"attention_mask": torch.ones(1, 2)})
        >>> {name: round(value.item(), 4) for name, value in losses.items()}
        {'attention_loss': 0.0, 'soft_label_loss': 1.3863, 'loss': 1.3863}
    """

    paper = DIDE_PAPER

    def __init__(
        self,
        attention_weight: float = 1.0,
        soft_label_weight: float = 1.0,
        label_weight: float = 0.0,
        multi_label: bool = False,
        **settings: Unpack[Settings],
    ):
        weights = {
            "attention_weight": attention_weight,
            "soft_label_weight": soft_label_weight,
            "label_weight": label_weight,
        }
        super().__init__(weights, **settings)
        self.multi_label = multi_label

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `logits`, `loss` when `label_weight` is above 0, and as for `attention_loss`.
            teacher_view: `logits`, and as for `attention_loss`.
            batch: `attention_mask` `(B, T)`.

        Returns:
            Scalars in nats per row: `loss`, and unweighted `attention_loss`, `soft_label_loss`, `label_loss` as far as
            they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, Tensor] = {}
        if self.attention_weight:
            losses["attention_loss"] = self.attention_loss(student_outputs, teacher_view, batch["attention_mask"])
        if self.soft_label_weight:
            compare = soft_answer_loss if self.multi_label else soft_label_loss
            losses["soft_label_loss"] = compare(student_outputs.logits, teacher_view.logits, self.temperature)
        if self.label_weight:
            losses["label_loss"] = student_loss(student_outputs)
        return self.weighted(losses)
