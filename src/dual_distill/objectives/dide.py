"""The DiDE objective: soft labels and cross-modal attention of the last layer, both weight 1 in the paper's recipe."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import torch

from .attention import attention_distillation_loss, attention_probs_to_scores, relation_scores
from .chunked_attention import chunked_attention_loss
from .labels import soft_answer_loss, soft_label_loss
from .objective import Objective, attention_requests


class DiDEObjective(Objective):
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

    def __init__(
        self,
        attention_weight: float = 1.0,
        soft_label_weight: float = 1.0,
        label_weight: float = 0.0,
        temperature: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
        multi_label: bool = False,
    ):
        super().__init__()
        weights = {
            "attention_weight": attention_weight,
            "soft_label_weight": soft_label_weight,
            "label_weight": label_weight,
        }
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):  # not: NaN is refused too
            raise ValueError(f"the weights are {weights}; give numbers >= 0, at least one above 0.")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; give a number above 0.")
        if relation_heads is not None and relation_heads < 1:
            raise ValueError(
                f"relation_heads is {relation_heads}; give a number above 0, or None for the models' own heads."
            )
        if layer_map is not None and not layer_map:
            raise ValueError("layer_map is empty; map at least one student layer, or set attention_weight to 0.")
        self.attention_weight = attention_weight
        self.soft_label_weight = soft_label_weight
        self.label_weight = label_weight
        self.temperature = temperature
        self.layer_map = dict(layer_map or {-1: -1}) if attention_weight else {}
        self.relation_heads = relation_heads
        self.multi_label = multi_label

    @property
    def student_layers(self) -> list[int]:
        """Layers whose queries and keys the student must record, in order; empty without an attention term."""
        return list(self.layer_map)

    @property
    def teacher_layers(self) -> list[int]:
        """Layers whose queries and keys (or attentions) the teacher must give, in order."""
        return list(self.layer_map.values())

    def student_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Ask for queries and keys; of two towers apart, since side by side they would be a copy."""
        if not self.student_layers:
            return {}
        apart = {"join_states": False} if "join_states" in takes else {}
        return {"output_query_states": self.student_layers, "output_key_states": self.student_layers} | apart

    def teacher_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Ask for queries and keys, or a foreign teacher for its attentions."""
        return attention_requests(self.teacher_layers, takes)

    def forward(
        self, student_outputs: Any, teacher_outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `logits`, `query_states` and `key_states` of `student_layers`, `image_mask`; `loss` when
                `label_weight` is above 0. A layer's states are `(B * N, H, T + 1 + I, D)`, or a pair of text and image.
            teacher_outputs: `logits`, and either `query_states` and `key_states` of `teacher_layers`, or `attentions`
                of all layers, `(B * N, H, T + 1 + I, T + 1 + I)` probabilities, or `cross_modal_scores`
                (`teacher_scores`).
            batch: `attention_mask` `(B, T)`.

        Returns:
            Scalars in nats per row: `loss`, and unweighted `attention_loss`, `soft_label_loss`, `label_loss` as far as
            they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=student_outputs.logits.device)
        if self.attention_weight:
            losses["attention_loss"] = self._attention_loss(student_outputs, teacher_outputs, batch["attention_mask"])
            total = total + self.attention_weight * losses["attention_loss"]
        if self.soft_label_weight:
            compare = soft_answer_loss if self.multi_label else soft_label_loss
            losses["soft_label_loss"] = compare(student_outputs.logits, teacher_outputs.logits, self.temperature)
            total = total + self.soft_label_weight * losses["soft_label_loss"]
        if self.label_weight:
            if student_outputs.loss is None:
                raise ValueError("label_weight is above 0, but the batch has no labels; give labels or set it to 0.")
            losses["label_loss"] = student_outputs.loss
            total = total + self.label_weight * losses["label_loss"]
        return losses | {"loss": total}

    def teacher_scores(
        self, teacher_outputs: Any, attention_mask: torch.Tensor, num_tokens: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Cross-modal scores of the teacher, before softmax: what a cache keeps of its attention.

        Args:
            teacher_outputs: as in `forward`.
            attention_mask: `(B, T)`.
            num_tokens: T + 1 + I, padding included.

        Returns:
            For each of `teacher_layers` text-to-image `(B * N, H, T, 1 + I)` and image-to-text `(B * N, H, 1 + I, T)`,
            over the relation heads where there are some. `forward` takes them in place of states, as
            `cross_modal_scores`.

        Raises:
            ValueError: as `forward`.
        """
        num_text_tokens = attention_mask.shape[1]
        scores = []
        for index in range(len(self.layer_map)):
            if getattr(teacher_outputs, "query_states", None):
                queries, keys = _recorded(teacher_outputs, "teacher", index, num_text_tokens, num_tokens)
                scores.append(
                    (
                        relation_scores(queries.text.detach(), keys.image.detach(), self.relation_heads),
                        relation_scores(queries.image.detach(), keys.text.detach(), self.relation_heads),
                    )
                )
            else:
                scores.append(self._given_scores(teacher_outputs, index, num_text_tokens, num_tokens))
        return scores

    def _attention_loss(self, student_outputs: Any, teacher_outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        image_mask = student_outputs.image_mask
        num_images = image_mask.shape[1]
        text_mask = attention_mask.bool().repeat_interleave(num_images, dim=0)
        image_mask = image_mask.flatten(0, 1)
        num_text_tokens = text_mask.shape[1]
        num_tokens = num_text_tokens + image_mask.shape[1]

        total = torch.zeros((), device=image_mask.device)
        for index in range(len(self.layer_map)):
            queries, keys = _recorded(student_outputs, "student", index, num_text_tokens, num_tokens)
            directions = (  # queries and keys of the student, masks of keys and queries
                (queries.text, keys.image, image_mask, text_mask),
                (queries.image, keys.text, text_mask, image_mask),
            )
            if getattr(teacher_outputs, "query_states", None):
                their_queries, their_keys = _recorded(teacher_outputs, "teacher", index, num_text_tokens, num_tokens)
                theirs = ((their_queries.text, their_keys.image), (their_queries.image, their_keys.text))
                for (of_student, to_student, key_mask, query_mask), (of_teacher, to_teacher) in zip(
                    directions, theirs, strict=True
                ):
                    total = total + chunked_attention_loss(
                        of_student, to_student, of_teacher, to_teacher, key_mask, query_mask, self.relation_heads
                    )
                continue
            # A teacher that gives matrices has them in memory already: chunks would save nothing.
            given = self._given_scores(teacher_outputs, index, num_text_tokens, num_tokens)
            for (of_student, to_student, key_mask, query_mask), teacher_scores in zip(directions, given, strict=True):
                student_scores = relation_scores(of_student, to_student, self.relation_heads)
                total = total + attention_distillation_loss(student_scores, teacher_scores, key_mask, query_mask)
        return total * num_images / len(self.layer_map)

    def _given_scores(
        self, outputs: Any, index: int, num_text_tokens: int, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores that a cache gave back, or those of a foreign teacher's probabilities."""
        if getattr(outputs, "cross_modal_scores", None):
            scores: tuple[torch.Tensor, torch.Tensor] = outputs.cross_modal_scores[index]
            return scores
        attentions = getattr(outputs, "attentions", None)
        if not attentions:
            raise ValueError(
                "the teacher returned neither query_states nor attentions; a foreign teacher must return attention "
                'probabilities, which needs attn_implementation="eager" (sdpa returns an empty tuple).'
            )
        if self.relation_heads is not None:
            raise ValueError(
                f"relation_heads is {self.relation_heads}, but the teacher returns attention probabilities, which "
                f"cannot be "
                "split into other heads; leave relation_heads out or use a teacher that returns queries and keys."
            )
        probs = attentions[self.teacher_layers[index]]
        if probs.shape[-2:] != (num_tokens, num_tokens):
            raise ValueError(
                f"the teacher's attention covers {probs.shape[-1]} tokens, the student's sequence has {num_tokens}; "
                "both must read [text; image CLS; patches] in raster order, padding included."
            )
        # Cut first: the blocks within one modality are not needed.
        text_to_image, image_to_text = (
            probs[:, :, :num_text_tokens, num_text_tokens:],
            probs[:, :, num_text_tokens:, :num_text_tokens],
        )
        return attention_probs_to_scores(text_to_image), attention_probs_to_scores(image_to_text)


class _States(NamedTuple):
    """Queries or keys of one layer: text `(B * N, H, T, D)`, image `(B * N, H, 1 + I, D)`."""

    text: torch.Tensor
    image: torch.Tensor


def _recorded(outputs: Any, role: str, index: int, num_text_tokens: int, num_tokens: int) -> tuple[_States, _States]:
    queries, keys = outputs.query_states, outputs.key_states
    if not queries or not keys or len(queries) <= index or len(keys) <= index:
        raise ValueError(
            f"the {role} recorded queries of {len(queries or ())} layers and keys of {len(keys or ())}, the objective "
            f"maps "
            f"more; call it with output_query_states and output_key_states = {role}_layers."
        )
    return (
        _split(queries[index], role, num_text_tokens, num_tokens),
        _split(keys[index], role, num_text_tokens, num_tokens),
    )


def _split(
    states: torch.Tensor | tuple[torch.Tensor, torch.Tensor], role: str, num_text_tokens: int, num_tokens: int
) -> _States:
    """Take one sequence `[text; image]` apart, or take what two towers recorded as it is, without a copy either way."""
    if isinstance(states, torch.Tensor):
        found = states.shape[2]
        split = _States(states[:, :, :num_text_tokens], states[:, :, num_text_tokens:])
    else:
        split = _States(*states)
        found = split.text.shape[2] + split.image.shape[2]
    if found != num_tokens or split.text.shape[2] != num_text_tokens:
        raise ValueError(
            f"the {role} recorded {found} tokens, the batch has {num_tokens}; teacher and student must "
            "read the same text and the same patches."
        )
    return split


__all__ = ["DiDEObjective"]
