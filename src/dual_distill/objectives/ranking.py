"""What a dual encoder imitates of a fusion encoder in retrieval: the order of what is hard to tell apart.

The logits of a cross-encoder over a whole batch teach a dual encoder little, for nearly all of them are easy noes. So
the student's own similarities choose, for each text, the images that it finds nearest without being right (and for each
image such texts), and the teacher is asked about these alone.
"""

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from .base import Settings
from .dide import DIDE_PAPER, CrossModalObjective
from .losses.logits import listwise_distillation_loss


class RankingObjective(CrossModalObjective):
    """Contrastive loss on labels, the teacher's ranking of hard negatives, and its attention on matched pairs.

    loss = itc_weight * the student's `loss` + ranking_weight * listwise distillation of its cosines + match_weight *
    the same of its interaction layers' scores + attention_weight * attention; a term of weight 0 is not computed.

    Args:
        itc_weight: >= 0; of the student's own contrastive loss.
        ranking_weight: >= 0; of `listwise_distillation_loss`.
        match_weight: >= 0, for students with interaction layers, which order the nearest anew; of the same loss.
        attention_weight: >= 0; attention of matched pairs, as in `DiDEObjective`.
        temperature: > 0, of the rankings.
        layer_map: student layer -> teacher layer, negative counts from the last; None: last to last.
        relation_heads: as in `DiDEObjective`.

    Raises:
        ValueError: a weight is negative, all are 0, the temperature or relation_heads is not positive, or the layer map
            is empty.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723 (attention). The ranking of hard negatives is ours; the listwise loss
        is that of Cao et al., ICML 2007, "Learning to rank: from pairwise approach to listwise approach".

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> student = SimpleNamespace(loss=torch.tensor(1.0), list_scores=torch.zeros(2, 4))
        >>> teacher = SimpleNamespace(list_scores=torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 2))
        >>> losses = RankingObjective(attention_weight=0)(student, teacher, {"is_listed": torch.ones(2, 4).bool()})
        >>> {name: round(value.item(), 4) for name, value in losses.items()}  # ln 4
        {'itc_loss': 1.0, 'ranking_loss': 1.3863, 'loss': 2.3863}
    """

    paper = DIDE_PAPER
    label_weight = 1.0

    def __init__(
        self,
        itc_weight: float = 1.0,
        ranking_weight: float = 1.0,
        attention_weight: float = 1.0,
        match_weight: float = 0.0,
        **settings: Unpack[Settings],
    ):
        weights = {"itc_weight": itc_weight, "ranking_weight": ranking_weight, "attention_weight": attention_weight}
        # Named only where there are layers to weigh.
        weights |= {"match_weight": match_weight} if match_weight else {}
        super().__init__(weights, **settings)

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `loss`; `list_scores` `(L, 1 + K)`, similarities of each list's right pair (first) and of
                its hard negatives, over the temperature that the student learned; `list_match_scores` of the same
                pairs for `match_loss`; of matched pairs as for `attention_loss`.
            teacher_view: `list_scores` `(L, 1 + K)`, matching scores of the same pairs; as for `attention_loss`.
            batch: `attention_mask` `(B, T)`, and `is_listed` `(L, 1 + K)` bool, False where a list has no further
                negative.

        Returns:
            Scalars in nats: `loss`, and unweighted `itc_loss`, `ranking_loss`, `match_loss`, `attention_loss` as far as
            they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, Tensor] = {}
        if self.weights["itc_weight"]:
            if student_outputs.loss is None:
                raise ValueError("the student returned no contrastive loss; give it image_ids and caption_ids.")
            losses["itc_loss"] = student_outputs.loss
        for term, scores in (("ranking", "list_scores"), ("match", "list_match_scores")):
            if not self.weights.get(f"{term}_weight"):
                continue
            given = getattr(student_outputs, scores)
            if given is None:
                raise ValueError(f"the student has no interaction layers to score pairs; set {term}_weight to 0.")
            lists = (given, teacher_view.list_scores, batch["is_listed"])
            losses[f"{term}_loss"] = listwise_distillation_loss(*lists, self.temperature)
        if self.attention_weight:
            losses["attention_loss"] = self.attention_loss(student_outputs, teacher_view, batch["attention_mask"])
        return self.weighted(losses)
