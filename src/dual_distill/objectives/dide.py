"""The DiDE objective: soft labels and cross-modal attention of the last layer, both weight 1 in the paper's recipe."""

from collections.abc import Container, Mapping
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from .base import Objective, Paper, Settings, check_num_tokens, given_attention, recorded_layer, student_loss
from .losses.attention import attention_distillation_loss, attention_probs_to_scores, relation_scores
from .losses.chunked_attention import AttentionInParts, aligned_attention_loss, chunked_attention_loss
from .losses.logits import soft_answer_loss, soft_label_loss
from .losses.tokens import hidden_state_mse_loss

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
Pair = tuple[Tensor, Tensor]
"""Scores: text-to-image `(B * N, H, T, 1 + I)`, image-to-text `(B * N, H, 1 + I, T)`. States: of text and of image."""


class CrossModalObjective(Objective):
    """An objective with the attention term of DiDE, the base of those that distil a dual encoder.

    Attributes:
        count_padded_queries: whether the mean over queries counts padded ones, whose rows then weigh by the padding.
    """

    count_padded_queries: bool = False

    def add_projections(self, width: int, heads: int) -> Self:
        """Compare learned queries and keys of the student's final tokens, for towers whose own do not fit each other.

        Args:
            width: of the student's tokens.
            heads: as many as the teacher's, or relation heads.

        Returns:
            This objective, whose projections a trainer trains and saves; they are no part of the student.
        """
        size = heads * max(1, width // heads)
        roles = ("text_query", "text_key", "image_query", "image_key")
        self.attention_projections = nn.ModuleDict({role: nn.Linear(width, size) for role in roles})
        self.projected_heads = heads
        return self

    def _projected(self, role: str, tokens: Tensor) -> Tensor:
        """Final tokens `(B, 1, L, C)` as queries or keys `(B, H, L, D)`; recorded ones are those already."""
        if self.attention_projections is None:
            return tokens
        # In float32, whatever the student's states are: a projection is not cast with the model.
        states = self.attention_projections[role](tokens[:, 0].float())
        return states.unflatten(-1, (self.projected_heads, -1)).transpose(1, 2)

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
        scores: list[Any] = []
        for index in range(len(self.layer_map)):
            both: Any = self._teacher_pair(teacher_view, index, attention_mask.shape[1], num_tokens)
            if isinstance(both[0], tuple):
                with torch.no_grad():
                    both = tuple(relation_scores(queries, keys, self.relation_heads) for queries, keys in both)
            scores.append(both)
        return scores

    def attention_loss(self, student_outputs: Any, teacher_view: Any, attention_mask: Tensor) -> Tensor:
        """KL divergence of the two cross-modal blocks, summed over directions and images, averaged over layers.

        Args:
            student_outputs: `query_states` and `key_states` of `student_layers`, each `(B * N, H, T + 1 + I, D)` or a
                pair of text and image; `image_mask` `(B, N, 1 + I)`.
            teacher_view: states likewise of `teacher_layers`; or `attentions` of all layers, `(B * N, H, T + 1 + I,
                T + 1 + I)` probabilities; or `cross_modal_scores` as `teacher_scores` gives them, or of each layer two
                `AttentionInParts`, None for a direction that the teacher lacks, which is left out.
            attention_mask: `(B, T)`.

        Returns:
            Scalar float32, nats per row.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        text_mask, image_mask, num_images = _pair_masks(student_outputs, attention_mask)
        num_text_tokens = text_mask.shape[1]
        num_tokens = num_text_tokens + image_mask.shape[1]

        # Of keys and of queries, for text to image and for image to text.
        masks = ((image_mask, text_mask), (text_mask, image_mask))

        total = torch.zeros((), device=image_mask.device)
        for index in range(len(self.layer_map)):
            of_text, of_image = _recorded(student_outputs, "student", index, num_text_tokens, num_tokens)
            students = (
                (self._projected("text_query", of_text[0]), self._projected("image_key", of_text[1])),
                (self._projected("image_query", of_image[0]), self._projected("text_key", of_image[1])),
            )
            teachers = self._teacher_pair(teacher_view, index, num_text_tokens, num_tokens)
            for student, teacher, mask in zip(students, teachers, masks, strict=True):
                # Causal teachers have no image that looks at words.
                if teacher is not None:
                    total = total + self._direction_loss(student, teacher, *mask)

        # A mean over rows of pairs becomes a sum over the images of a row.
        return total * num_images / len(self.layer_map)

    def _teacher_pair(self, view: Any, index: int, num_text_tokens: int, num_tokens: int) -> tuple[Any, Any]:
        """Both directions of a mapped layer: queries and keys each, or the scores of a teacher that gave no states."""
        if getattr(view, "query_states", None):
            return _recorded(view, "teacher", index, num_text_tokens, num_tokens)
        if getattr(view, "cross_modal_scores", None):
            return view.cross_modal_scores[index]
        probs = given_attention(view, self.teacher_layers[index], self.relation_heads, num_tokens)

        # Cut first: the blocks within one modality are not needed.
        text_to_image = probs[:, :, :num_text_tokens, num_text_tokens:]
        image_to_text = probs[:, :, num_text_tokens:, :num_text_tokens]
        return attention_probs_to_scores(text_to_image), attention_probs_to_scores(image_to_text)

    def _direction_loss(
        self, student: Pair, teacher: Pair | Tensor | AttentionInParts, key_mask: Tensor, query_mask: Tensor
    ) -> Tensor:
        """One direction of a layer; `teacher` as `_teacher_pair` gives it."""
        if self.count_padded_queries:
            query_mask = torch.ones_like(query_mask)
        if isinstance(teacher, tuple):
            return chunked_attention_loss(*student, *teacher, key_mask, query_mask, self.relation_heads)
        if not isinstance(teacher, Tensor):
            return aligned_attention_loss(*student, teacher, key_mask, query_mask, self.relation_heads)
        # A teacher that gives matrices has them in memory already: chunks would save nothing.
        scores = relation_scores(*student, self.relation_heads)
        return attention_distillation_loss(scores, teacher, key_mask, query_mask)


def _pair_masks(student_outputs: Any, attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Real tokens of text and image of each pair, `(B * N, T)` and `(B * N, 1 + I)`, and N."""
    num_images = student_outputs.image_mask.shape[1]
    text_mask = attention_mask.bool().repeat_interleave(num_images, dim=0)
    return text_mask, student_outputs.image_mask.flatten(0, 1), num_images


def _recorded(outputs: Any, role: str, index: int, num_text_tokens: int, num_tokens: int) -> tuple[Pair, Pair]:
    """Queries and keys of a mapped layer: text queries with image keys, image queries with text keys."""
    both = recorded_layer(outputs, role, index)
    queries, keys = (_split(states, role, num_text_tokens, num_tokens) for states in both)
    return (queries[0], keys[1]), (queries[1], keys[0])


def _split(states: Tensor | Pair, role: str, num_text_tokens: int, num_tokens: int) -> Pair:
    """One sequence `[text; image]` taken apart, or what two towers recorded as it is, without a copy either way."""
    if isinstance(states, Tensor):
        states = (states[:, :, :num_text_tokens], states[:, :, num_text_tokens:])

    text, image = states
    check_num_tokens(role, "recorded states", text.shape[2] + image.shape[2], num_tokens)
    check_num_tokens(role, "recorded states of text", text.shape[2], num_text_tokens)
    return text, image


class DiDEObjective(CrossModalObjective):
    """What a dual encoder imitates of a fusion encoder: its answers and its cross-modal attention.

    loss = attention_weight * attention + soft_label_weight * soft labels + label_weight * hard labels; a term of weight
    0 is not computed. The attention term adds text-to-image and image-to-text, is averaged over the mapped layers, and
    is summed over the N images of a row.

    A student with interaction layers has text tokens that have read the image, as the teacher's have, so two further
    terms can be added for it: `interaction_attention`, the text-to-image direction once more, of the last interaction
    layer and the last mapped layer of the teacher; and `interaction_hidden`, the MSE between the text tokens behind the
    interaction layers and those behind the teacher's last layer, each token scaled to mean 0 and variance 1. Both are
    summed over the N images of a row.

    Args:
        attention_weight: >= 0.
        soft_label_weight: >= 0.
        label_weight: >= 0; the student's own loss on hard labels, 0 in the authors' release.
        interaction_attention_weight: >= 0, for students with interaction layers.
        interaction_hidden_weight: >= 0, for students with interaction layers.
        student_size: width of the student, for `interaction_hidden`.
        teacher_size: width of the teacher; a student of another width is compared through a linear map, which is
            trained with it.
        temperature: > 0, of the soft labels.
        layer_map: student layer -> teacher layer, negative counts from the last; None: last to last, as in the paper.
        relation_heads: heads over which attention is compared when widths or head counts differ; None: the models' own.
        multi_label: whether each answer is a yes-or-no of its own (VQA with soft scores), so that soft labels are
            compared by `soft_answer_loss` instead of `soft_label_loss`.
        count_padded_queries: True: attention is averaged over padded queries too, as in the authors' release, so that
            its value depends on the padding (40 tokens there).

    Raises:
        ValueError: a weight is negative, all are 0, the temperature or relation_heads is not positive, or the layer map
            is empty.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723. The paper writes which layers and weights; hard labels, temperature,
        layer map, relation heads, interaction layers and their terms are options of ours.

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
        interaction_attention_weight: float = 0.0,
        interaction_hidden_weight: float = 0.0,
        student_size: int = 1,
        teacher_size: int = 1,
        count_padded_queries: bool = False,
        **settings: Unpack[Settings],
    ):
        weights = {
            "attention_weight": attention_weight,
            "soft_label_weight": soft_label_weight,
            "label_weight": label_weight,
            "interaction_attention_weight": interaction_attention_weight,
            "interaction_hidden_weight": interaction_hidden_weight,
        }
        super().__init__(weights, **settings)
        self.multi_label = multi_label
        self.count_padded_queries = count_padded_queries

        self.projection: nn.Module = nn.Identity()
        if interaction_hidden_weight:
            self.hidden_layers = {-1: -1}
            self.hidden_sizes = (student_size, teacher_size)
            if student_size != teacher_size:
                self.projection = nn.Linear(student_size, teacher_size)

    def student_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Return the keyword arguments that make a student hand out what is compared."""
        of_interaction = {"output_interaction_states": True} if self.interaction_attention_weight else {}
        return super().student_requests(takes) | of_interaction

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch.

        Args:
            student_outputs: `logits`, `loss` when `label_weight` is above 0, `interaction_model_output` for the terms
                of interaction layers, and as for `attention_loss`.
            teacher_view: `logits`, `hidden_states` for `interaction_hidden`, and as for `attention_loss`.
            batch: `attention_mask` `(B, T)`.

        Returns:
            Scalars in nats per row: `loss`, and unweighted `attention_loss`, `soft_label_loss`, `label_loss`,
            `interaction_attention_loss` and `interaction_hidden_loss` (MSE) as far as they have a weight.

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
        losses |= self._interaction_losses(student_outputs, teacher_view, batch["attention_mask"])
        return self.weighted(losses)

    def _interaction_losses(self, student_outputs: Any, teacher_view: Any, attention_mask: Tensor) -> dict[str, Tensor]:
        """The two terms of interaction layers, as far as they have a weight."""
        losses: dict[str, Tensor] = {}
        if not (self.interaction_attention_weight or self.interaction_hidden_weight):
            return losses
        interaction = getattr(student_outputs, "interaction_model_output", None)
        if interaction is None:
            raise ValueError("the student has no interaction layers to compare; set both interaction weights to 0.")

        text_mask, image_mask, num_images = _pair_masks(student_outputs, attention_mask)
        num_text_tokens = text_mask.shape[1]

        if self.interaction_attention_weight:
            num_tokens = num_text_tokens + image_mask.shape[1]
            states = interaction.query_states[-1], interaction.key_states[-1][1]
            # The deepest that is mapped, in whatever order: one counted from the last is behind one from the first.
            layers = self.teacher_layers
            deepest = max(range(len(layers)), key=lambda index: (layers[index] < 0, layers[index]))
            of_text = self._teacher_pair(teacher_view, deepest, num_text_tokens, num_tokens)[0]
            attention = self._direction_loss(states, of_text, image_mask, text_mask)
            losses["interaction_attention_loss"] = num_images * attention
        if self.interaction_hidden_weight:
            if not getattr(teacher_view, "hidden_states", None):
                raise ValueError("the teacher gave no hidden_states; set interaction_hidden_weight to 0.")
            # A residual stream grows with depth: what a layer norm behind it would see is compared.
            student, teacher = self.projection(interaction.last_hidden_state.float()), teacher_view.hidden_states[-1]
            both = (student, teacher[:, :num_text_tokens])
            student, teacher = (nn.functional.layer_norm(states.float(), states.shape[-1:]) for states in both)
            losses["interaction_hidden_loss"] = num_images * hidden_state_mse_loss(student, teacher, text_mask)
        return losses
