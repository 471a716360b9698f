"""Fine-tuning on image-text retrieval: a dual encoder that a fusion encoder teaches to rank, or that teacher.

Unusual here:

* A teacher is asked about few pairs: the matched ones, and for each text (and each image) those of the batch of all
  processes that the student finds hardest. Everything else in the batch is left to the contrastive loss.
* A fusion encoder has no similarities to choose by and no contrastive loss. It learns to put each text's own image
  first among random ones, and each image's own text; all pairs go through it in one forward pass.
"""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from dual_distill.modeling import (
    FusionEncoderConfig,
    FusionEncoderForImageTextRetrieval,
    PairIds,
    allowed_negatives,
    gather_pair_ids,
    gather_rows,
    pair_similarities,
)
from dual_distill.objectives import RankingObjective, hardest_negatives, listwise_cross_entropy

from .distillation_trainer import Batch, Losses
from .image_text_trainer import IMAGE_INPUTS, TEXT_INPUTS, ImageTextTrainer, image_text_inputs


class RetrievalTrainer(ImageTextTrainer):
    """Fine-tunes a dual encoder on retrieval, with a fusion encoder as teacher or without, or a fusion encoder.

    Args:
        model: `DualEncoderForImageTextRetrieval`, or `FusionEncoderForImageTextRetrieval` (without a teacher).
        args: a `DistillationTrainingArguments`.
        teacher: a `FusionEncoderForImageTextRetrieval`, or a `FusionEncoderForPreTraining`, whose matching score is
            taken; or the name of a checkpoint of one; frozen.
        objective: what is compared; None: `args.make_objective(RankingObjective)` when there is a teacher.
        **kwargs: as for `ImageTextTrainer`; batches are those of `PreTrainingCollator` without masking.

    Raises:
        ValueError: a teacher for a fusion encoder, one that no weight asks for anything, or a cache for it.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723; ranking hard negatives is ours.
    """

    teacher_class = FusionEncoderForImageTextRetrieval
    objective_class = RankingObjective
    leaves_parameters_unused = True  # the shallow interaction, which no similarity passes through
    label_columns: ClassVar[list[str]] = ["image_ids"]

    def _prepare_model(self, model: Any) -> None:
        self.is_fusion = model.config.model_type == FusionEncoderConfig.model_type

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss and its terms, in nats per row, and the vectors of a dual encoder, for recall."""
        return (self._rank_by_fusion(model, inputs), {}) if self.is_fusion else self._rank_by_vectors(model, inputs)

    def _rank_by_vectors(self, model: nn.Module, inputs: Batch) -> Losses:
        objective: Any = self.distillation_objective
        outputs = model(**inputs, **(self._student_requests if objective is not None else {}))
        vectors = {"text_vectors": outputs.text_embeds, "image_vectors": outputs.image_embeds}
        if objective is None:
            weight = 1.0 if self.args.itc_weight is None else self.args.itc_weight
            return {"itc_loss": outputs.loss, "loss": weight * outputs.loss}, vectors

        # Attention is that of matched pairs.
        pairs, batch = image_text_inputs(inputs), dict(inputs)
        matched = self._pass_to_teacher(pairs, self._teacher_requests)
        answers = SimpleNamespace(**matched)
        if objective.ranking_weight:
            ids = gather_pair_ids(inputs["image_ids"], inputs["caption_ids"])
            scale: Any = self.accelerator.unwrap_model(model).logit_scale
            scale = scale.full_tensor() if hasattr(scale, "full_tensor") else scale  # sharded
            similarities = pair_similarities(outputs.text_embeds, outputs.image_embeds, scale)

            rows, batch["is_listed"] = choose_lists(similarities, ids, self.args.ranking_negatives)
            outputs["list_scores"] = listed_scores(similarities, ids, rows)
            answers.list_scores = self._teachers_list_scores(pairs, pair_scores(matched), rows)
        return objective(outputs, answers, batch), vectors

    def _teachers_list_scores(self, pairs: Batch, matched: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Ask the teacher for the scores of lists, `(2 * B, 1 + K)`."""
        with torch.no_grad():
            gallery = {name: gather_rows(tensor) for name, tensor in pairs.items()}

        # One negative a row at a time: no pass is larger than that of the matched pairs.
        both = []
        for drawn, lists in zip((IMAGE_INPUTS, TEXT_INPUTS), rows, strict=True):
            scores = [matched]
            for row in lists.unbind(1):
                chosen = {name: gallery[name][row] if name in drawn else tensor for name, tensor in pairs.items()}
                scores.append(pair_scores(self._pass_to_teacher(chosen)))
            both.append(torch.stack(scores, dim=1))
        return torch.cat(both)

    def _rank_by_fusion(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        """Rank each text's image and each image's text first among drawn ones; `2 * K + 1` pairs a row in one pass."""
        ids = gather_pair_ids(inputs["image_ids"], inputs["caption_ids"])
        (image_rows, text_rows), is_listed = choose_lists(drawn_scores(ids), ids, self.args.ranking_negatives)
        with torch.no_grad():
            gallery = {name: gather_rows(tensor) for name, tensor in image_text_inputs(inputs).items()}

        # The matched pairs, then each text with its images, then each image with its texts.
        own, num_negatives = ids.own_rows, image_rows.shape[1]
        again = own.repeat_interleave(num_negatives)
        texts = torch.cat([own, again, text_rows.flatten()])
        images = torch.cat([own, image_rows.flatten(), again])
        pairs = {name: gallery[name][texts if name in TEXT_INPUTS else images] for name in gallery}
        matched, drawn = pair_scores(model(**pairs)).split([len(own), 2 * len(again)])

        listed = torch.cat([matched.repeat(2)[:, None], drawn.unflatten(0, (-1, num_negatives))], dim=1)
        losses = {"loss": listwise_cross_entropy(listed, is_listed)}
        if not model.training:
            beaten = listed.masked_fill(~is_listed, -torch.inf)[:, 1:].amax(1) < listed[:, 0]
            losses["right_first_share"] = beaten.float().mean()
        return losses


def pair_scores(outputs: Any) -> torch.Tensor:
    """Return how well text and image of each pair belong together, `(B,)` log-odds, of either fusion encoder.

    Args:
        outputs: with `itm_logits` `(B, 2)` of a model for pre-training, or `logits` `(B, 1)` of one for retrieval.
    """
    matching = getattr(outputs, "itm_logits", None)
    return torch.as_tensor(outputs.logits[:, 0] if matching is None else matching[:, 1] - matching[:, 0])


def choose_lists(
    similarities: Iterable[torch.Tensor], ids: PairIds, count: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Choose the hardest allowed negatives of each text and each image, each image or text once a list.

    Args:
        similarities: `(B, G)` own texts against the images of all processes, and own images against all texts.
        ids: of the gallery.
        count: negatives a list at most.

    Returns:
        Of each text's images and of each image's texts the indices among the rows of all processes, `(B, K)`; and
        `(2 * B, 1 + K)` bool, whether such an entry exists: the first, the right one, always does.

    Example:
        >>> ids = gather_pair_ids(torch.tensor([1, 2, 3]), torch.tensor([7, 8, 9]))
        >>> similarities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.9, 0.3], [0.6, 0.4, 0.9]])
        >>> rows, _ = choose_lists((similarities, similarities.T), ids, 1)
        >>> rows[0].flatten()
        tensor([2, 2, 0])
    """
    rows, found = [], []
    for scores, asked, texts_ask in zip(similarities, (ids.image_ids, ids.caption_ids), (True, False), strict=True):
        # An entry that an earlier row holds too.
        is_again = (asked[:, None] == asked).tril(diagonal=-1).any(dim=1)
        is_allowed = allowed_negatives(ids, texts_ask) & ~is_again
        chosen, is_found = hardest_negatives(scores, is_allowed, count)
        rows.append(chosen)
        found.append(is_found)
    is_listed = torch.cat(found)
    return rows, torch.cat([torch.ones_like(is_listed[:, :1]), is_listed], dim=1)


def listed_scores(similarities: Iterable[torch.Tensor], ids: PairIds, rows: Iterable[torch.Tensor]) -> torch.Tensor:
    """Take the lists out of the similarities: `(2 * B, 1 + K)`, the right entry first, texts' lists first."""
    own = ids.own_rows[:, None]
    both = zip(similarities, rows, strict=True)
    return torch.cat([scores.gather(1, torch.cat([own, chosen], dim=1)) for scores, chosen in both])


def drawn_scores(ids: PairIds) -> torch.Tensor:
    """Draw a random score for each own text with each image and the reverse, `(2, B, G)`, the same for a batch."""
    seed = int(ids.image_ids.sum() ^ ids.caption_ids.sum()) & 0x7FFFFFFF
    # On the CPU, so that every device draws the same.
    generator = torch.Generator().manual_seed(seed + ids.first_row)
    return torch.rand(2, ids.num_rows, len(ids.image_ids), generator=generator).to(ids.image_ids.device)
