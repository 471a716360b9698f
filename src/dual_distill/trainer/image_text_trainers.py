"""Pre-training and retrieval: image-text data out of a table or a stream, and what a fusion encoder says of pairs.

Unusual here:

* A stream of pairs is read by each process for itself and never prepared by accelerate, which would read it in one
  process and send the rows around. Its position lies in every checkpoint, so a resumed run goes on at once instead of
  running through all rows.
* Pre-training: the student's forward pass draws the hard negatives, out of the rows of all processes. The teacher is
  asked about the very same pairs afterwards, so it can only give soft labels to what the student found hard. It runs up
  to four times a step: on clean matched pairs, on both kinds of drawn pairs, and on masked texts. A pass that no weight
  asks for does not happen.
* Retrieval: a teacher is asked about few pairs: the matched ones, and for each text (and each image) those of the batch
  of all processes that the student finds hardest. Everything else in the batch is left to the contrastive loss. A
  fusion encoder has no similarities to choose by and no contrastive loss. It learns to put each text's own image first
  among random ones, and each image's own text; all pairs go through it in one forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel

from dual_distill import modeling
from dual_distill.data import ImageTextLoader, ImageTextStream, ImageTextStreamCallback, varies_in_shape
from dual_distill.objectives import PreTrainingObjective, RankingObjective, hard_terms, listwise_cross_entropy
from dual_distill.teachers import AlignedTeacher, ForeignTeacher

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import NOT_READ, Batch, DistillationTrainer, Losses

TEXT_INPUTS, IMAGE_INPUTS = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")


class ImageTextTrainer(DistillationTrainer):
    """A `DistillationTrainer` for batches of `PreTrainingCollator`.

    Args:
        model: as for `DistillationTrainer`.
        args: a `DistillationTrainingArguments`; of a stream, `max_steps` says how long it is trained on, and
            `ignore_data_skip` is set, for its position is restored instead.
        **kwargs: as for `DistillationTrainer`; `train_dataset` may be a `ImageTextStream`.

    Raises:
        ValueError: a stream without `max_steps`.
    """

    compares_rows = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        **kwargs: Any,
    ):
        if isinstance(kwargs.get("train_dataset"), ImageTextStream):
            steps = -1 if args is None else args.max_steps
            if args is None or steps < 1:
                raise ValueError(f"max_steps is {steps}, but a stream of pairs has no end; say how many to train.")
            args.ignore_data_skip = True
        super().__init__(model, args, **kwargs)
        self._position = ImageTextStreamCallback()
        if isinstance(self.train_dataset, ImageTextStream):
            self.add_callback(self._position)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; a stream goes on from its position in the checkpoint that is resumed from."""
        self._position.checkpoint = resume_from_checkpoint if isinstance(resume_from_checkpoint, str | Path) else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        loader = self.callback_handler.train_dataloader
        if isinstance(loader, ImageTextLoader):
            loader.save_position(output_dir)

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process, of a stream those of its own shards."""
        if not isinstance(self.train_dataset, ImageTextStream):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        options: dict[str, Any] = {"pin_memory": self.args.dataloader_pin_memory}
        if workers:
            options["persistent_workers"] = self.args.dataloader_persistent_workers
            options["prefetch_factor"] = self.args.dataloader_prefetch_factor
        # Where the processor makes all images alike, there is no padding to save.
        processor = getattr(self.data_collator, "processor", None)
        is_grouped = self.args.group_by_shape and processor is not None and varies_in_shape(processor)
        group = self._train_batch_size if is_grouped else 0
        stream = self.train_dataset.split(self.args.process_index, self.args.world_size, group)
        return ImageTextLoader(stream, self._train_batch_size, self.data_collator, workers, **options)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that weight decay pulls to 0: not the temperature, for which 0 means nothing."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("logit_scale")]


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

    teacher_class = modeling.FusionEncoderForPreTraining
    objective_class = PreTrainingObjective
    own_options = ("itc_weight", "itm_weight", "mlm_weight", "masking_share")
    label_columns: ClassVar[list[str]] = ["image_ids", "caption_ids"]
    own_loss = "the model's own terms"
    gives_predictions = False

    def _prepare_model(self, model: Any) -> None:
        super()._prepare_model(model)
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
            rows, draw = (student_outputs.negative_image_rows, student_outputs.negative_text_rows), drawing(inputs)
            # An index of -1, without a drawn pair, is filled with the first row: its label says that it does not count.
            drawn = [self._pass_to_teacher(draw(side, row.clamp(min=0))) for side, row in enumerate(rows)]
            answers.itm_logits = torch.cat([answers.itm_logits, *(each.itm_logits for each in drawn)])
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
            return teacher.mlm_score(encoded[:, : text.shape[1]])


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
    ids = modeling.gather_pair_ids(inputs["image_ids"], inputs["caption_ids"])
    own = ids.own_rows[:, None]
    found = []
    similarities = modeling.pair_similarities(text_embeds, image_embeds, text_embeds.new_zeros(()))
    for scores, texts_ask in zip(similarities, (True, False), strict=True):
        is_as_near = (scores >= scores.gather(1, own)) & modeling.allowed_negatives(ids, texts_ask)
        found.append(~is_as_near.any(1))
    return torch.cat(found).float().mean()


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

    teacher_class = modeling.FusionEncoderForImageTextRetrieval
    objective_class = RankingObjective
    own_options = ("itc_weight", "match_weight", "ranking_negatives")
    leaves_parameters_unused = True  # the shallow interaction, which no similarity passes through
    label_columns: ClassVar[list[str]] = ["image_ids"]
    own_loss = "the ranking"

    def _prepare_model(self, model: Any) -> None:
        super()._prepare_model(model)
        self.is_fusion = model.config.model_type == modeling.FusionEncoderConfig.model_type
        self.match_weight = self.args.weight_of_matches(model.config)

    def _set_objective(self, student: Any) -> Any:
        """Set what is compared; a teacher of another family is asked whether text and image match."""
        objective: Any = super()._set_objective(student)
        if self.match_weight or objective.ranking_weight:
            if isinstance(self.teacher, ForeignTeacher):
                self.teacher.ask_for_matches()
            elif isinstance(self.teacher, AlignedTeacher):
                holds = f"the store of {self.teacher.name} holds rows, and ranking asks about pairs of other rows"
                raise ValueError(f"{holds}; give the teacher itself, or set ranking_weight and match_weight to 0.")
        return objective

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss and its terms, in nats per row, and the vectors of a dual encoder, for recall."""
        return (self._rank_by_fusion(model, inputs), {}) if self.is_fusion else self._rank_by_vectors(model, inputs)

    def _rank_by_vectors(self, model: nn.Module, inputs: Batch) -> Losses:
        objective: Any = self.distillation_objective
        has_lists = self.match_weight or (objective is not None and objective.ranking_weight)
        requests = {} if objective is None else self._student_requests
        seen = {name: given for name, given in inputs.items() if not name.startswith(NOT_READ)}
        outputs = model(**seen, **requests, num_listed=self.args.ranking_negatives if has_lists else 0)
        vectors = {"text_vectors": outputs.text_embeds, "image_vectors": outputs.image_embeds}

        if objective is None:
            weight = 1.0 if self.args.itc_weight is None else self.args.itc_weight
            losses = {"itc_loss": outputs.loss, "loss": weight * outputs.loss}
            if self.match_weight:
                losses["match_loss"] = listwise_cross_entropy(outputs.list_match_scores, outputs.is_listed)
                losses["loss"] = losses["loss"] + self.match_weight * losses["match_loss"]
            return losses, vectors

        # Attention is that of matched pairs.
        batch = dict(inputs)
        if isinstance(self.teacher, AlignedTeacher):
            asked = self._ask_teacher(inputs, outputs)
        else:
            asked = self._pass_to_teacher(image_text_inputs(inputs), self._teacher_requests)
        answers = SimpleNamespace(**(asked if isinstance(asked, Mapping) else vars(asked)))
        if has_lists:
            batch["is_listed"], rows = outputs.is_listed, (outputs.listed_images, outputs.listed_texts)
            answers.list_scores = self._teachers_list_scores(inputs, self._scores(asked), rows)
        return objective(outputs, answers, batch), vectors

    def _scores(self, outputs: Any) -> torch.Tensor:
        """Log-odds `(B,)` of what a teacher returned."""
        if not isinstance(self.teacher, AlignedTeacher):
            return pair_scores(outputs)
        if outputs.match_scores is None:
            lacks = f"{self.teacher.name} does not say whether text and image match"
            raise ValueError(f"{lacks}; give a model with a matching head, or set ranking_weight to 0.")
        return torch.as_tensor(outputs.match_scores)

    def _teachers_list_scores(self, inputs: Batch, matched: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Ask the teacher for the scores of lists, `(2 * B, 1 + K)`: of texts with drawn images, and the reverse."""
        is_aligned = isinstance(self.teacher, AlignedTeacher)
        draw = self._drawn_rows(inputs) if is_aligned else drawing(inputs)

        # One negative a row at a time: no pass is larger than that of the matched pairs.
        both = []
        for side, lists in enumerate(rows):
            drawn = [self._scores(self._pass_to_teacher(draw(side, row))) for row in lists.unbind(1)]
            both.append(torch.stack([matched, *drawn], dim=1))
        return torch.cat(both)

    def _drawn_rows(self, inputs: Any) -> Callable[[int, torch.Tensor], Batch]:
        """As `drawing`, for a teacher of another family, which reads images and texts by its own processor."""
        teacher: Any = self.teacher
        own = [inputs["student_images"], inputs["student_texts"]]
        gallery = [gather_object(side) for side in own]

        def draw(side: int, row: torch.Tensor) -> Batch:
            pairs = [*own]
            pairs[side] = [gallery[side][index] for index in row.tolist()]
            return dict(self._prepare_inputs(teacher.inputs(*pairs)))

        return draw

    def _rank_by_fusion(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        """Rank each text's image and each image's text first among drawn ones; `2 * K + 1` pairs a row in one pass."""
        ids = modeling.gather_pair_ids(inputs["image_ids"], inputs["caption_ids"])
        rows, is_listed = modeling.choose_lists(drawn_scores(ids), ids, self.args.ranking_negatives)
        with torch.no_grad():
            gallery = {name: modeling.gather_rows(tensor) for name, tensor in image_text_inputs(inputs).items()}

        def score(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            pairs = {name: gallery[name][texts if name in TEXT_INPUTS else images] for name in gallery}
            return pair_scores(model(**pairs))

        listed = modeling.scored_lists(ids, rows, score)
        losses = {"loss": listwise_cross_entropy(listed, is_listed)}
        if not model.training:
            beaten = listed.masked_fill(~is_listed, -torch.inf)[:, 1:].amax(1) < listed[:, 0]
            losses["right_first_share"] = beaten.float().mean()
        return losses


def drawing(inputs: Batch) -> Callable[[int, torch.Tensor], Batch]:
    """What a fusion encoder reads of own texts with drawn images (side 0), or of own images with drawn texts (1).

    Args:
        inputs: a batch of `PreTrainingCollator`.

    Returns:
        Side and rows `(B,)` among those of all processes -> the pairs.
    """
    pairs = image_text_inputs(inputs)
    with torch.no_grad():
        gallery = {name: modeling.gather_rows(tensor) for name, tensor in pairs.items()}

    def draw(side: int, row: torch.Tensor) -> Batch:
        drawn = (IMAGE_INPUTS, TEXT_INPUTS)[side]
        return {name: gallery[name][row] if name in drawn else tensor for name, tensor in pairs.items()}

    return draw


def pair_scores(outputs: Any) -> torch.Tensor:
    """Return how well text and image of each pair belong together, `(B,)` log-odds, of either fusion encoder.

    Args:
        outputs: with `itm_logits` `(B, 2)` of a model for pre-training, or `logits` `(B, 1)` of one for retrieval.
    """
    matching = getattr(outputs, "itm_logits", None)
    return torch.as_tensor(outputs.logits[:, 0] if matching is None else matching[:, 1] - matching[:, 0])


def drawn_scores(ids: modeling.PairIds) -> torch.Tensor:
    """Draw a random score for each own text with each image and the reverse, `(2, B, G)`, the same for a batch."""
    seed = int(ids.image_ids.sum() ^ ids.caption_ids.sum()) & 0x7FFFFFFF
    # On the CPU, so that every device draws the same.
    generator = torch.Generator().manual_seed(seed + ids.first_row)
    return torch.rand(2, ids.num_rows, len(ids.image_ids), generator=generator).to(ids.image_ids.device)


def image_text_inputs(inputs: Batch) -> dict[str, torch.Tensor]:
    """Return what of a batch a fusion encoder reads of its pairs.

    Args:
        inputs: a batch of `PreTrainingCollator`.

    Example:
        >>> list(image_text_inputs({"input_ids": torch.ones(1, 2), "image_ids": torch.ones(1)}))
        ['input_ids']
    """
    return {name: inputs[name] for name in (*TEXT_INPUTS, *IMAGE_INPUTS) if name in inputs}
