"""Pre-training on image-text data: a model's own three losses, and what a frozen fusion encoder shows on the same.

Unusual here:

* The student's forward pass draws the hard negatives, out of the rows of all processes. The teacher is asked about the
  very same pairs afterwards, so it can only give soft labels to what the student found hard.
* The teacher runs up to four times a step: on clean matched pairs, on both kinds of drawn pairs, and on masked texts. A
  pass that no weight asks for does not happen.
"""

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from dual_distill.modeling import (
    FusionEncoderForPreTraining,
    allowed_negatives,
    gather_pair_ids,
    gather_rows,
    pair_similarities,
)
from dual_distill.objectives import PreTrainingObjective, hard_terms

from .distillation_trainer import Batch, Losses
from .image_text_trainer import IMAGE_INPUTS, TEXT_INPUTS, ImageTextTrainer, image_text_inputs


class PreTrainingTrainer(ImageTextTrainer):
    """Pre-trains a fusion encoder, or a dual encoder with a frozen fusion encoder as teacher or without.

    Args:
        model: `FusionEncoderForPreTraining` or `DualEncoderForPreTraining`. The hard terms' weights that `args` holds
            are written into its configuration.
        args: a `DistillationTrainingArguments`.
        teacher: a `FusionEncoderForPreTraining`, or the name of a checkpoint of one; frozen.
        objective: what is compared; None: `args.make_objective(PreTrainingObjective)` when there is a teacher.
        **kwargs: as for `ImageTextTrainer`; batches are those of `PreTrainingCollator`.

    Raises:
        ValueError: a teacher that no weight asks for anything, a cache for it (its pairs and masked words are new in
            every step), a contrastive weight for a fusion encoder, or a pair that cannot be compared.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723; its pre-training half was not released.
    """

    teacher_class = FusionEncoderForPreTraining
    objective_class = PreTrainingObjective
    label_columns: ClassVar[list[str]] = ["image_ids", "caption_ids"]

    def _prepare_model(self, model: Any) -> None:
        self.args.write_weights(model.config)

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss and its terms, in nats; of the outputs nothing, for the terms say what there is to say."""
        objective = self.distillation_objective
        if objective is None:
            outputs = model(**inputs)
            if outputs.loss is None:
                raise ValueError("every term of pre-training has weight 0, so nothing is learned; give one a weight.")
            losses = {**hard_terms(outputs), "loss": outputs.loss}
        else:
            outputs = self._ask_student(model, inputs, objective)
            losses = objective(outputs, self._ask_teacher(inputs, outputs), inputs)

        if not model.training and getattr(outputs, "text_embeds", None) is not None:
            recall = in_batch_recall(outputs.text_embeds, outputs.image_embeds, inputs)
            losses = {**losses, "in_batch_recall": recall}
        return losses, {}

    def _ask_teacher(self, inputs: Batch, student_outputs: Any = None) -> SimpleNamespace:
        """Ask the teacher about matched pairs, the pairs that the student drew, and the masked texts.

        Args:
            inputs: the batch.
            student_outputs: `negative_image_rows`, `negative_text_rows` `(B,)`, -1 = none.

        Returns:
            As far as the objective asks: states (or attentions) of the matched pairs, `itm_logits` `(3 * B, 2)` of
            the student's pairs in its order, `mlm_logits` `(B, T, V)`.
        """
        objective: Any = self.distillation_objective
        answers = SimpleNamespace()
        pairs = image_text_inputs(inputs)
        if objective.attention_weight or objective.itm_distillation_weight:
            answers = SimpleNamespace(**self._pass_to_teacher(pairs, self._teacher_requests))
        if objective.itm_distillation_weight:
            drawn = self._drawn_pairs(student_outputs, pairs)
            logits = [answers.itm_logits, *(self._pass_to_teacher(each).itm_logits for each in drawn)]
            answers.itm_logits = torch.cat(logits)
        if objective.mlm_distillation_weight:
            answers.mlm_logits = self._masked_words(inputs)
        return answers

    def _masked_words(self, inputs: Batch) -> torch.Tensor:
        """The teacher's logits for every token of the masked texts, by its own head, so that nothing runs twice."""
        teacher: Any = self.teacher
        text = inputs["masked_input_ids"]
        seen = {name: inputs[name] for name in ("attention_mask", *IMAGE_INPUTS) if name in inputs}
        with torch.no_grad(), self.accelerator.autocast():
            encoded = teacher.fusion_encoder(input_ids=text, **seen).last_hidden_state
            logits: torch.Tensor = teacher.mlm_score(encoded[:, : text.shape[1]])
        return logits

    def _drawn_pairs(self, student_outputs: Any, pairs: Batch) -> tuple[Batch, Batch]:
        """Each own text with its drawn image, and each own image with its drawn text, out of all processes."""
        with torch.no_grad():
            gallery = {name: gather_rows(tensor) for name, tensor in pairs.items()}
        # An index of -1, without a drawn pair, is filled with the first row: its label says that it does not count.
        images = student_outputs.negative_image_rows.clamp(min=0)
        texts = student_outputs.negative_text_rows.clamp(min=0)
        return (
            {name: gallery[name][images] if name in IMAGE_INPUTS else own for name, own in pairs.items()},
            {name: gallery[name][texts] if name in TEXT_INPUTS else own for name, own in pairs.items()},
        )


@torch.no_grad()
def in_batch_recall(text_embeds: torch.Tensor, image_embeds: torch.Tensor, inputs: Batch) -> torch.Tensor:
    """Share of texts and images that are nearest to their own partner in the batch of all processes, in [0, 1].

    What equals the partner is not held against it; a tie with another counts as not found. It depends on the size of
    the batch.

    Args:
        text_embeds: `(B, P)` of length 1.
        image_embeds: `(B, P)` of length 1.
        inputs: `image_ids` and `caption_ids` `(B,)`.

    Example:
        >>> ids = torch.arange(2)
        >>> in_batch_recall(torch.eye(2), torch.eye(2)[[0, 0]], {"image_ids": ids, "caption_ids": ids})
        tensor(0.2500)
    """
    ids = gather_pair_ids(inputs["image_ids"], inputs["caption_ids"])
    own = ids.own_rows[:, None]
    found = []
    similarities = pair_similarities(text_embeds, image_embeds, text_embeds.new_zeros(()))
    for scores, texts_ask in zip(similarities, (True, False), strict=True):
        is_as_near = (scores >= scores.gather(1, own)) & allowed_negatives(ids, texts_ask)
        found.append(~is_as_near.any(1))
    return torch.cat(found).float().mean()
