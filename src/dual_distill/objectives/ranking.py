"""What a dual encoder imitates of a fusion encoder in retrieval: the order of the few entries that are hard to tell
apart.

The logits of a cross-encoder over a whole batch teach a dual encoder little, for nearly all of them are easy noes. So
the student's own similarities choose, for each text, the images that it finds nearest without being right (and for each
image such texts), and the teacher is asked about these alone.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .dide import DiDEObjective


class RankingObjective(DiDEObjective):
    """Contrastive loss on labels, the teacher's ranking of hard negatives, and its attention on matched pairs.

    loss = itc_weight * the student's `loss` + ranking_weight * ranking + attention_weight * attention; a term
    of weight 0 is not computed.

    Args:
        itc_weight: >= 0; of the student's own contrastive loss.
        ranking_weight: >= 0; of `ranking_distillation_loss`.
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
        >>> from types import SimpleNamespace
        >>> student = SimpleNamespace(loss=torch.tensor(1.0), list_scores=torch.zeros(2, 4))
        >>> teacher = SimpleNamespace(list_scores=torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 2))
        >>> losses = RankingObjective(attention_weight=0)(student, teacher, {"is_listed": torch.ones(2, 4).bool()})
        >>> {name: round(value.item(), 4) for name, value in losses.items()}  # ln 4
        {'itc_loss': 1.0, 'ranking_loss': 1.3863, 'loss': 2.3863}
    """

    def __init__(
        self,
        itc_weight: float = 1.0,
        ranking_weight: float = 1.0,
        attention_weight: float = 1.0,
        temperature: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
    ):
        weights = {"itc_weight": itc_weight, "ranking_weight": ranking_weight, "attention_weight": attention_weight}
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):  # not: NaN is refused too
            raise ValueError(f"the weights are {weights}; give numbers >= 0, at least one above 0.")
        super().__init__(attention_weight, 0.0, 1.0, temperature, layer_map, relation_heads)
        self.itc_weight = itc_weight
        self.ranking_weight = ranking_weight

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return bool(self.ranking_weight or self.attention_weight)

    def forward(
        self, student_outputs: Any, teacher_outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `loss`; `list_scores` `(L, 1 + K)`, similarities of each list's right pair (first) and of
                its hard negatives, over the temperature that the student learned; states and `image_mask` of matched
                pairs.
            teacher_outputs: `list_scores` `(L, 1 + K)`, matching scores of the same pairs; states or `attentions`.
            batch: `attention_mask` `(B, T)`, and `is_listed` `(L, 1 + K)` bool, False where a list has no further
                negative.

        Returns:
            Scalars in nats: `loss`, and unweighted `itc_loss`, `ranking_loss`, `attention_loss` as far as they
            have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, torch.Tensor] = {}
        total: torch.Tensor | float = 0.0
        if self.itc_weight:
            if student_outputs.loss is None:
                raise ValueError("the student returned no contrastive loss; give it image_ids and caption_ids.")
            losses["itc_loss"] = student_outputs.loss
            total = total + self.itc_weight * losses["itc_loss"]
        if self.ranking_weight:
            losses["ranking_loss"] = ranking_distillation_loss(
                student_outputs.list_scores, teacher_outputs.list_scores, batch["is_listed"], self.temperature
            )
            total = total + self.ranking_weight * losses["ranking_loss"]
        if self.attention_weight:
            losses["attention_loss"] = self._attention_loss(student_outputs, teacher_outputs, batch["attention_mask"])
            total = total + self.attention_weight * losses["attention_loss"]
        assert isinstance(total, torch.Tensor)
        return losses | {"loss": total}


def ranking_distillation_loss(
    student_scores: torch.Tensor, teacher_scores: torch.Tensor, is_listed: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL divergence from the student's distribution over a short list to the teacher's, in nats per list.

    temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) over the entries of each list,
    averaged over lists.

    Args:
        student_scores: `(L, 1 + K)`. Receives the gradient.
        teacher_scores: `(L, 1 + K)` of the same pairs. No gradient reaches it.
        is_listed: `(L, 1 + K)` bool, False for a place that holds no entry; each list needs one.
        temperature: > 0.

    Returns:
        Scalar float32, >= 0; 0 when the two agree up to a constant a list, or no list has a second entry.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Example:
        >>> teacher = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 9.0]])
        >>> listed = torch.tensor([[True, True, False], [True, True, False]])
        >>> round(ranking_distillation_loss(torch.zeros(2, 3), teacher, listed).item(), 4)  # ln 2
        0.6931
    """
    _check_lists(is_listed, student_scores=student_scores, teacher_scores=teacher_scores)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0.")
    # A finite floor: -inf would give 0 * inf = NaN in the divergence wherever a place is empty.
    floor = torch.finfo(torch.float32).min
    student = (student_scores.float() / temperature).masked_fill(~is_listed, floor).log_softmax(-1)
    teacher = (teacher_scores.detach().float() / temperature).masked_fill(~is_listed, floor).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student).masked_fill(~is_listed, 0.0)).sum(-1)
    return divergence.mean() * temperature**2


def right_first_loss(scores: torch.Tensor, is_listed: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each list's first entry, the right one, against the others, in nats per list.

    Args:
        scores: `(L, 1 + K)`. Receives the gradient.
        is_listed: `(L, 1 + K)` bool, False for a place that holds no entry.

    Returns:
        Scalar float32, the mean over lists; 0 for a list without a second entry.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> round(right_first_loss(torch.zeros(2, 5), torch.ones(2, 5).bool()).item(), 4)  # ln 5
        1.6094
    """
    _check_lists(is_listed, scores=scores)
    floor = torch.finfo(torch.float32).min
    return -scores.float().masked_fill(~is_listed, floor).log_softmax(-1)[:, 0].mean()


def hardest_negatives(
    similarities: torch.Tensor, is_allowed: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar entries of the gallery that a row may be held against.

    Args:
        similarities: `(B, G)`, higher is nearer. No gradient passes.
        is_allowed: `(B, G)` bool, False for what belongs to the row or equals what does.
        count: K >= 1, cut down to G.

    Returns:
        Places in the gallery, `(B, K)` int64, nearest first; and whether there is such an entry, `(B, K)` bool (places
        where there is none are valid indices of no meaning).

    Raises:
        ValueError: the shapes differ, or count is below 1.

    Example:
        >>> similarities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.9, 0.3]])
        >>> places, found = hardest_negatives(similarities, torch.tensor([[False, True, True], [True, False, False]]), 2)
        >>> places[0], found
        (tensor([2, 1]), tensor([[ True,  True],
                [ True, False]]))
    """
    if similarities.shape != is_allowed.shape or similarities.dim() != 2:
        raise ValueError(
            f"similarities has shape {tuple(similarities.shape)}, is_allowed {tuple(is_allowed.shape)}; both must be "
            f"(rows, "
            "gallery)."
        )
    if count < 1:
        raise ValueError(f"count is {count}; ask for 1 negative or more.")
    scores = similarities.detach().float().masked_fill(~is_allowed, -torch.inf)
    found = scores.topk(min(count, scores.shape[1]), dim=1)
    return found.indices, found.values > -torch.inf


def _check_lists(is_listed: torch.Tensor, **scores: torch.Tensor) -> None:
    for name, values in scores.items():
        if values.shape != is_listed.shape or values.dim() != 2:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, is_listed {tuple(is_listed.shape)}; both must be (lists, "
                f"entries)."
            )


__all__ = ["RankingObjective", "hardest_negatives", "ranking_distillation_loss", "right_first_loss"]
