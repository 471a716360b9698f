"""The attention term of models that read `[text; image CLS; patches]`: cross-modal blocks of mapped layers."""

from typing import Any, NamedTuple

import torch

from .base import Objective, check_num_tokens, given_attention, recorded_layer
from .losses.attention import attention_distillation_loss, attention_probs_to_scores, relation_scores
from .losses.chunked_attention import chunked_attention_loss

ScorePair = tuple[torch.Tensor, torch.Tensor]
"""Text-to-image `(B * N, H, T, 1 + I)` and image-to-text `(B * N, H, 1 + I, T)`."""


class CrossModalObjective(Objective):
    """An objective with the attention term of DiDE, the base of those that distil a dual encoder."""

    def teacher_scores(self, teacher_view: Any, attention_mask: torch.Tensor, num_tokens: int) -> list[ScorePair]:
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
            queries, keys = _recorded(teacher_view, "teacher", index, num_text_tokens, num_tokens)
            text_to_image = relation_scores(queries.text.detach(), keys.image.detach(), self.relation_heads)
            image_to_text = relation_scores(queries.image.detach(), keys.text.detach(), self.relation_heads)
            scores.append((text_to_image, image_to_text))
        return scores

    def attention_loss(self, student_outputs: Any, teacher_view: Any, attention_mask: torch.Tensor) -> torch.Tensor:
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

        total = torch.zeros((), device=image_mask.device)
        for index in range(len(self.layer_map)):
            queries, keys = _recorded(student_outputs, "student", index, num_text_tokens, num_tokens)
            text_to_image, image_to_text = (queries.text, keys.image), (queries.image, keys.text)
            if getattr(teacher_view, "query_states", None):
                theirs, their_keys = _recorded(teacher_view, "teacher", index, num_text_tokens, num_tokens)
                for student, teacher, key_mask, query_mask in (
                    (text_to_image, (theirs.text, their_keys.image), image_mask, text_mask),
                    (image_to_text, (theirs.image, their_keys.text), text_mask, image_mask),
                ):
                    loss = chunked_attention_loss(*student, *teacher, key_mask, query_mask, self.relation_heads)
                    total = total + loss
                continue

            # A teacher that gives matrices has them in memory already: chunks would save nothing.
            given = self._given_scores(teacher_view, index, num_text_tokens, num_tokens)
            for student, scores, key_mask, query_mask in (
                (text_to_image, given[0], image_mask, text_mask),
                (image_to_text, given[1], text_mask, image_mask),
            ):
                student_scores = relation_scores(*student, self.relation_heads)
                total = total + attention_distillation_loss(student_scores, scores, key_mask, query_mask)
        return total * num_images / len(self.layer_map)

    def _given_scores(self, view: Any, index: int, num_text_tokens: int, num_tokens: int) -> ScorePair:
        """Return the scores that a cache gave back, or those of a foreign teacher's probabilities."""
        if getattr(view, "cross_modal_scores", None):
            scores: ScorePair = view.cross_modal_scores[index]
            return scores
        probs = given_attention(view, self.teacher_layers[index], self.relation_heads, num_tokens)

        # Cut first: the blocks within one modality are not needed.
        text_to_image = probs[:, :, :num_text_tokens, num_text_tokens:]
        image_to_text = probs[:, :, num_text_tokens:, :num_text_tokens]
        return attention_probs_to_scores(text_to_image), attention_probs_to_scores(image_to_text)


class _States(NamedTuple):
    """Queries or keys of one layer: text `(B * N, H, T, D)`, image `(B * N, H, 1 + I, D)`."""

    text: torch.Tensor
    image: torch.Tensor


def _recorded(outputs: Any, role: str, index: int, num_text_tokens: int, num_tokens: int) -> tuple[_States, _States]:
    """Queries and keys of a mapped layer, each taken apart into text and image."""
    queries, keys = recorded_layer(outputs, role, index)
    return _split(queries, role, num_text_tokens, num_tokens), _split(keys, role, num_text_tokens, num_tokens)


def _split(states: torch.Tensor | ScorePair, role: str, num_text_tokens: int, num_tokens: int) -> _States:
    """One sequence `[text; image]` taken apart, or what two towers recorded as it is, without a copy either way."""
    if isinstance(states, torch.Tensor):
        split = _States(states[:, :, :num_text_tokens], states[:, :, num_text_tokens:])
    else:
        split = _States(*states)

    check_num_tokens(role, "recorded states", split.text.shape[2] + split.image.shape[2], num_tokens)
    check_num_tokens(role, "recorded states of text", split.text.shape[2], num_text_tokens)
    return split
