"""The heads in one table: their classes, what they learn from, who trains them. A new one: its classes, an entry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill import data, modeling, trainer
from dual_distill.evaluation import accuracy_of_logits, recall_of_vectors
from dual_distill.trainer import DistillationTrainer

Batch = Mapping[str, torch.Tensor]


def _label_metrics(model: PreTrainedModel) -> dict[str, Any]:
    # The chosen class is kept in place of the logits, which would fill the memory for thousands of labels.
    kept = {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    return {"compute_metrics": accuracy_of_logits, **kept}


def _retrieval_metrics(model: PreTrainedModel) -> dict[str, Any]:
    # Recall over a whole split takes one vector a text and an image; a fusion encoder has none.
    has_vectors = isinstance(model, modeling.DualEncoderForImageTextRetrieval)
    return {"compute_metrics": recall_of_vectors} if has_vectors else {}


def _with_ids(batch: Batch) -> dict[str, torch.Tensor]:
    ids = torch.arange(len(batch["input_ids"]))
    return {**batch, "image_ids": ids, "caption_ids": ids.clone()}


def _pretraining_example(batch: Batch, config: PreTrainedConfig, arguments: Any) -> Batch:
    return {**_with_ids(batch), "masked_input_ids": batch["input_ids"], "masked_labels": batch["input_ids"]}


def _retrieval_example(batch: Batch, config: PreTrainedConfig, arguments: Any) -> Batch:
    if config.model_type != modeling.FusionEncoderConfig.model_type:
        return _with_ids(batch)
    # Every pair of every list goes through in one pass.
    pairs_a_row = 1 + 2 * arguments.ranking_negatives
    return {name: tensor.repeat(pairs_a_row, *(1,) * (tensor.dim() - 1)) for name, tensor in batch.items()}


@dataclass(frozen=True)
class HeadSpec:
    """One head; the defaults are those of heads with one logit a label.

    Attributes:
        name: the word of recipes and of `Task.head`.
        fusion_class: its fusion encoder.
        dual_class: its dual encoder; None: there is none.
        reads: what a row gives; a task may be learned with any head that reads image_text, where its own does.
        writes: what an evaluation scores; None: nothing.
        collator: makes its batches of processor, task and `collator_input`.
        collator_input: `(tokenizer, label_names, training_arguments)` -> the label names, or what masks the words.
        trainer: trains it on a teacher and on what the rows hold.
        reward_trainer: trains it on a reward for what it writes; None: it writes nothing.
        metrics: model -> arguments of the trainer that say what is measured in training.
        has_own_losses: whether its models compute losses, whose weights their configuration holds.
        prepare: `(model, tokenizer)`, called once the model is there.
        example: `(batch, config, training_arguments)` -> what a model reads of a batch, to plan memory.
    """

    name: str
    fusion_class: type[PreTrainedModel]
    dual_class: type[PreTrainedModel] | None
    reads: Literal["answers", "classes", "image_text", "captions"]
    writes: Literal["answers", "ranking", "captions"] | None = "answers"
    collator: Callable[..., Any] = data.DistillationCollator
    collator_input: Callable[[Any, Any, Any], Any] = lambda tokenizer, label_names, args: label_names
    trainer: type[DistillationTrainer] = DistillationTrainer
    reward_trainer: type[DistillationTrainer] | None = None
    metrics: Callable[[PreTrainedModel], dict[str, Any]] = lambda model: {}
    has_own_losses: bool = False
    prepare: Callable[[Any, Any], None] | None = None
    example: Callable[[Batch, Any, Any], Batch] = lambda batch, config, args: batch

    @property
    def has_labels(self) -> bool:
        """Whether there is one logit a label, the labels being those of the data or of a checkpoint."""
        return self.reads in ("answers", "classes")

    @property
    def classes(self) -> tuple[type[PreTrainedModel], ...]:
        """The classes with this head, one for each type of model that can have it."""
        return tuple(each for each in (self.fusion_class, self.dual_class) if each is not None)

    def trainer_class(self, caption_training: str) -> type[DistillationTrainer]:
        """Return who trains it; refuse the reward for what is written where nothing is."""
        found = self.reward_trainer if caption_training == "self_critical" else self.trainer
        if found is None:
            writes = f"a {self.name} head writes nothing"
            raise ValueError(f"caption_training is 'self_critical', but {writes}; leave it out.")
        return found

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """Return the class of a model with this head.

        Raises:
            ValueError: there is no such dual encoder.
        """
        found = self.fusion_class if config.model_type == modeling.FusionEncoderConfig.model_type else self.dual_class
        if found is None:
            raise ValueError(f"there is no {self.name} head for a {config.model_type}; train a fusion_encoder.")
        return found


def _spec(name: str, classes: str, **fields: Any) -> HeadSpec:
    """Make a head of the classes of `modeling` that end alike."""
    dual_class = getattr(modeling, f"DualEncoder{classes}", None)
    return HeadSpec(name, getattr(modeling, f"FusionEncoder{classes}"), dual_class, **fields)


_SPECS = (
    _spec("question_answering", "ForQuestionAnswering", reads="answers", metrics=_label_metrics),
    _spec("images_and_text_classification", "ForImagesAndTextClassification", reads="classes", metrics=_label_metrics),
    _spec(
        "image_text_retrieval",
        "ForImageTextRetrieval",
        reads="image_text",
        writes="ranking",
        collator=data.PreTrainingCollator,
        collator_input=lambda tokenizer, label_names, args: None,
        trainer=trainer.RetrievalTrainer,
        metrics=_retrieval_metrics,
        example=_retrieval_example,
    ),
    _spec(
        "pretraining",
        "ForPreTraining",
        reads="image_text",
        writes=None,
        collator=data.PreTrainingCollator,
        collator_input=lambda tokenizer, _, args: data.WholeWordMasker(tokenizer, args.masking_share, args.seed),
        trainer=trainer.PreTrainingTrainer,
        has_own_losses=True,
        example=_pretraining_example,
    ),
    _spec(
        "captioning",
        "ForCaptioning",
        reads="captions",
        writes="captions",
        collator=data.CaptioningCollator,
        collator_input=lambda tokenizer, label_names, args: data.CaptionMasker(tokenizer, seed=args.seed),
        trainer=trainer.CaptioningTrainer,
        reward_trainer=trainer.SelfCriticalTrainer,
        prepare=modeling.FusionEncoderForCaptioning.use_tokens_of,
    ),
)
HEADS: Mapping[str, HeadSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every head that a task can be learned with, by its name."""


def choose_head(task: data.Task, name: str | None) -> data.Task:
    """Return a task with the head that a run asks for: image-text data may be learned from in two ways, answers in one.

    Raises:
        ValueError: there is no such head, or it does not learn from what the task has.

    Example:
        >>> from dual_distill.data import get_task
        >>> choose_head(get_task("coco_retrieval"), "pretraining").head, choose_head(get_task("vqa"), None).head
        ('pretraining', 'question_answering')
    """
    if name is None or name == task.head:
        return task
    if name not in HEADS:
        raise ValueError(f"there is no head {name!r}; choose one of {', '.join(HEADS)}, or leave head out.")
    if not HEADS[name].reads == HEADS[task.head].reads == "image_text":
        own = f"task {task.name!r} has the head {task.head!r}; leave head out, or take another task"
        raise ValueError(f"head is {name!r}, which learns from {HEADS[name].reads}, but {own}.")
    return replace(task, head=name)


def head_of(config: PreTrainedConfig) -> HeadSpec | None:
    """Return the head that a model was saved with; None where its configuration names no class of the table."""
    saved = (config.architectures or [None])[0]
    return next((spec for spec in HEADS.values() if saved in [each.__name__ for each in spec.classes]), None)
