"""The main job in one call: a teacher and a dataset in; a student out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from dual_distill.data import CustomDataset
from dual_distill.hub_cards import origin_of
from dual_distill.modeling import DualDistillProcessor
from dual_distill.teachers import load_config, load_model, load_teacher
from dual_distill.trainer import DistillationTrainingArguments, reads_student_tokens

from .continuation import train
from .data import splits_of
from .heads import head_of


class DistilledStudent(NamedTuple):
    """What `distill` returns.

    Attributes:
        student: the dual encoder.
        processor: turns texts and images into its batches.
        metrics: of training and, where there is a validation split, of evaluation.
    """

    student: PreTrainedModel
    processor: DualDistillProcessor
    metrics: dict[str, float]


def distill(
    teacher: str | Path,
    dataset: Dataset | Mapping[str, Dataset] | CustomDataset | str | Path,
    output_dir: str | Path,
    student: PreTrainedModel | str | Path | None = None,
    *,
    interaction_layers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **training_arguments: Any,
) -> DistilledStudent:
    """Teach a dual encoder what a fusion encoder knows, and save it with its processor and the record of the run.

    It is a `DistillationTrainer` whose teacher, student, processor and collator follow from the name of the teacher. A
    run that was stopped goes on from the last checkpoint in `output_dir`.

    Args:
        teacher: name of a checkpoint with answers or classes: ours, or a ViLT, which is converted on the way in; or one
            of any family of `teachers.FAMILIES`, or what `dual-distill teach` wrote of it, for a student that is named.
        dataset: rows with the columns image (image_0, image_1), question, text or sentence, and answer, label or
            answers; splits of such rows, of which `train` is learned from and `validation` evaluated; or what
            `load_custom_dataset` returns, or takes as its first argument.
        output_dir: folder of the student.
        student: a model, or the name of its checkpoint; None: a dual encoder that starts from the teacher's weights.
        interaction_layers: layers in which words look at the image's stored tokens, of a student that starts so. None:
            one; 0: the paper's interaction of two vectors. With layers `interaction_attention_weight` and
            `interaction_hidden_weight` are 1 unless they are given, or a teacher's cache lacks what they compare.
        resume: whether a run of other settings in `output_dir` is gone on with.
        overwrite: whether a run in `output_dir` is removed first.
        **training_arguments: of `DistillationTrainingArguments`: `num_train_epochs`, `learning_rate`, `label_weight`.

    Returns:
        Student, processor and metrics; the student stays on the device of the run.

    Raises:
        ValueError: the teacher has no labels, there are no training rows, `output_dir` holds a run of other settings,
            interaction layers are asked of a student that is given, or what `DistillationTrainer` raises.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.

    Example:
        >>> distill("no/teacher", {"test": None}, "student")
        Traceback (most recent call last):
        ValueError: the dataset has the splits test, but a student learns from one named train; name it so.
    """
    if not isinstance(teacher, str | Path):
        way_out = "give the folder or the name that it is saved under, or take DistillationTrainer"
        raise ValueError(f"the teacher is a {type(teacher).__name__}, whose processor is not known; {way_out}.")
    splits = {} if isinstance(dataset, str | Path) else splits_of(dataset)
    if student is not None and interaction_layers is not None:
        has_own = "but the student that was given has as many as it has"
        raise ValueError(f"interaction_layers is {interaction_layers}, {has_own}; leave one of them out.")
    layers = 1 if student is None and interaction_layers is None else interaction_layers or 0
    cached, is_compared = training_arguments.get("cache_teacher"), training_arguments.get("method", "dide") == "dide"
    kept = {"interaction_attention_weight": cached != "logits", "interaction_hidden_weight": cached is None}
    weights = {name: float(is_kept) for name, is_kept in kept.items()} if layers and is_compared else {}
    args = DistillationTrainingArguments(output_dir=str(output_dir), **{**weights, **training_arguments})
    named: Any = teacher  # whose answers and processor are the student's
    if not reads_student_tokens(teacher):
        if not isinstance(student, str | Path):
            lacks, way_out = "has tokens of its own, from which no student starts", "the folder of one with a processor"
            raise ValueError(f"the teacher {str(teacher)!r} {lacks}; give student=, {way_out}.")
        named = student
    config = load_config(named)
    head = head_of(config)
    if head is None or not head.has_labels:
        role, [found] = "teacher" if named is teacher else "student", config.architectures or ["model without a head"]
        way_out = "which gives no answers or classes; use its trainer, or `dual-distill train`"
        raise ValueError(f"the {role} {str(named)!r} is a {found}, {way_out}.")

    # What is read here is spelled as these answers, and before the weights: a name may be misspelt.
    splits = splits or splits_of(dataset, [config.id2label[index] for index in range(len(config.id2label))])
    labelled: Any
    labelled, processor = load_teacher(named) if named is teacher else load_model(named)
    taught_by = labelled if named is teacher else teacher

    # Layers that have no counterpart in the teacher are drawn from the seed of the run.
    set_seed(args.seed)
    dual_class: Any = head.dual_class
    learner: Any = student
    if student is None:
        learner = dual_class.from_fusion_encoder(taught_by, interaction_layers=layers)
    learner = learner if taught_by is not teacher else labelled
    told = {"train_dataset": splits["train"], "eval_dataset": splits.get("validation"), **head.metrics(learner)}
    trainer = head.trainer(learner, args, teacher=taught_by, processing_class=processor, **told)
    if taught_by is not teacher:
        trainer.describe_run(teacher=origin_of(teacher))

    metrics = train(trainer, resume, overwrite)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trained: Any = trainer.model
    return DistilledStudent(trained.eval(), processor, metrics)
