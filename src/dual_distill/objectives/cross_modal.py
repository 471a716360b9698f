"""The attention term of models that read `[text; image CLS; patches]`: cross-modal blocks of mapped layers."""

from typing import Any

import torch
from torch import Tensor

from .base import Objective, check_num_tokens, given_attention, recorded_layer
from .losses.attention import attention_distillation_loss, attention_probs_to_scores, relation_scores
from .losses.chunked_attention import chunked_attention_loss

Pair = tuple[Tensor, Tensor]
"""Scores: text-to-image `(B * N, H, T, 1 + I)`, image-to-text `(B * N, H, 1 + I, T)`. States: of text and of image."""


class CrossModalObjective(Objective):
    """An objective with the attention term of DiDE, the base of those that distil a dual encoder."""

    def teacher_scores(self, teacher_view: Any, attention_mask: Tensor, num_tokens: int) -> list[Pair]:
        """Cross-modal scores of the teacher, before softmax: what a cache keeps of its attention.

        Args:
            teacher_view: as in `forward`.
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
            if not getattr(teacher_view, "query_states", None):
                scores.append(self._given_scores(teacher_view, index, num_text_tokens, num_tokens))
                continue
            text_to_image, image_to_text = (
                relation_scores(queries.detach(), keys.detach(), self.relation_heads)
                for queries, keys in _recorded(teacher_view, "teacher", index, num_text_tokens, num_tokens)
            )
            scores.append((text_to_image, image_to_text))
        return scores

    def attention_loss(self, student_outputs: Any, teacher_view: Any, attention_mask: Tensor) -> Tensor:
        """KL divergence of the two cross-modal blocks, summed over directions and images, averaged over layers.

        Args:
            student_outputs: `query_states` and `key_states` of `student_layers`, each `(B * N, H, T + 1 + I, D)` or a
                pair of text and image; `image_mask` `(B, N, 1 + I)`.
            teacher_view: states likewise of `teacher_layers`; or `attentions` of all layers, `(B * N, H, T + 1 + I,
                T + 1 + I)` probabilities; or `cross_modal_scores` as `teacher_scores` gives them.
            attention_mask: `(B, T)`.

        Returns:
            Scalar float32, nats per row.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        num_images = student_outputs.image_mask.shape[1]
        image_mask = student_outputs.image_mask.flatten(0, 1)
        text_mask = attention_mask.bool().repeat_interleave(num_images, dim=0)
        num_text_tokens = text_mask.shape[1]
        num_tokens = num_text_tokens + image_mask.shape[1]

        masks = ((image_mask, text_mask), (text_mask, image_mask))  # of keys and queries

        total = torch.zeros((), device=image_mask.device)
        for index in range(len(self.layer_map)):
            students = _recorded(student_outputs, "student", index, num_text_tokens, num_tokens)
            if getattr(teacher_view, "query_states", None):
                teachers = _recorded(teacher_view, "teacher", index, num_text_tokens, num_tokens)
                for student, teacher, mask in zip(students, teachers, masks, strict=True):
                    total = total + chunked_attention_loss(*student, *teacher, *mask, self.relation_heads)
                continue

            # A teacher that gives matrices has them in memory already: chunks would save nothing.
            given = self._given_scores(teacher_view, index, num_text_tokens, num_tokens)
            for student, scores, mask in zip(students, given, masks, strict=True):
                student_scores = relation_scores(*student, self.relation_heads)
                total = total + attention_distillation_loss(student_scores, scores, *mask)
        return total * num_images / len(self.layer_map)

    def _given_scores(self, view: Any, index: int, num_text_tokens: int, num_tokens: int) -> Pair:
        """Return the scores that a cache gave back, or those of a foreign teacher's probabilities."""
        if getattr(view, "cross_modal_scores", None):
            scores: Pair = view.cross_modal_scores[index]
            return scores
        probs = given_attention(view, self.teacher_layers[index], self.relation_heads, num_tokens)

        # Cut first: the blocks within one modality are not needed.
        text_to_image = probs[:, :, :num_text_tokens, num_text_tokens:]
        image_to_text = probs[:, :, num_text_tokens:, :num_text_tokens]
        return attention_probs_to_scores(text_to_image), attention_probs_to_scores(image_to_text)


def _recorded(outputs: Any, role: str, index: int, num_text_tokens: int, num_tokens: int) -> tuple[Pair, Pair]:
    """Queries and keys of a mapped layer: text queries with image keys, image queries with text keys."""
    queries, keys = (
        _split(states, role, num_text_tokens, num_tokens) for states in recorded_layer(outputs, role, index)
    )
    return (queries[0], keys[1]), (queries[1], keys[0])


def _split(states: Tensor | Pair, role: str, num_text_tokens: int, num_tokens: int) -> Pair:
    """One sequence `[text; image]` taken apart, or what two towers recorded as it is, without a copy either way."""
    if isinstance(states, Tensor):
        states = (states[:, :, :num_text_tokens], states[:, :, num_text_tokens:])

    text, image = states
    check_num_tokens(role, "recorded states", text.shape[2] + image.shape[2], num_tokens)
    check_num_tokens(role, "recorded states of text", text.shape[2], num_text_tokens)
    return text, image
