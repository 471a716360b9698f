"""Before the first step: is the teacher any better than the words alone, and than the student as it starts?

Whoever distils a teacher that is not learns its mistakes, and finds out after the run. So all three answer the same few
validation rows; the question-only baseline learns from training rows, the others as they are.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from dual_distill.evaluation import question_only_baseline
from dual_distill.hub_cards import Preflight, read_run

from .distillation_trainer import TEACHER_PREFIX, DistillationTrainer
from .stored_teacher import StoredTeacher
from .teacher_cache import ROW_KEYS

_logger = logging.getLogger(__name__)
_ROWS, _TRAIN_ROWS = 500, 5000
_CLEARLY = 2  # standard errors
_WORDS = "question-only baseline"


def note_preflight(trainer: DistillationTrainer, checkpoint: str | None) -> None:
    """Run the preflight and note it in the record; once in a run: a checkpoint that is resumed from holds it."""
    teacher, rows, collator = trainer.teacher, trainer.eval_dataset, trainer.data_collator
    if isinstance(teacher, StoredTeacher) and teacher.teacher is None and isinstance(rows, Dataset) and len(rows):
        # Of two, for otherwise the run would fail behind its last step, where they are evaluated.
        keys = collator.of_teacher([rows[0], rows[len(rows) - 1]])[TEACHER_PREFIX + ROW_KEYS]
        teacher.lacking(keys, "validation that were looked up")
    if checkpoint is not None:
        trainer.describe_run(preflight=getattr(read_run(checkpoint), "preflight", None))
    elif trainer.args.preflight and trainer.is_world_process_zero():
        trainer.describe_run(preflight=run_preflight(trainer))


def run_preflight(trainer: DistillationTrainer) -> Preflight | None:
    """Hold teacher, question-only baseline and the student's start against validation rows; say what they answer right.

    A teacher that is not clearly better (two standard errors) than either is a warning. No random number is used up.

    Args:
        trainer: of the run, before its first step.

    Returns:
        The figures; None without a teacher that answers, or without labelled rows of a `datasets.Dataset`: it says so.
    """
    collator = getattr(trainer.data_collator, "collator", trainer.data_collator)
    names: Any = getattr(collator, "label_names", None)
    column = getattr(getattr(collator, "task", None), "label_column", "")
    rows, objective, began = trainer.eval_dataset, trainer.distillation_objective, time.perf_counter()
    if objective is None:
        return None
    lacks = {
        "its store may lack validation rows": isinstance(trainer.teacher, StoredTeacher),
        "soft_label_weight is 0, so the teacher is asked no answers": getattr(trainer.teacher, "answers", ()) is None,
        "there are no labels": not names,
        "there are fewer than two labelled validation rows": not isinstance(rows, Dataset)
        or column not in rows.column_names
        or len(_some_labelled(rows, column, 2, 0)) < 2,
    }
    if reason := next((reason for reason, is_so in lacks.items() if is_so), None):
        _logger.warning("the teacher is not tried before the first step: %s", reason)
        return None

    def answers(split: Dataset) -> list[str]:
        return [normalize("NFC", names[one] if isinstance(one, int) else one) for one in split[column]]

    rows = _some_labelled(rows, column, _ROWS, trainer.args.seed)
    labels, train = answers(rows), getattr(trainer.train_dataset, "dataset", trainer.train_dataset)
    batches: Any = DataLoader(rows, trainer.args.eval_batch_size, collate_fn=trainer.data_collator)
    said = _answers_of_models(trainer, batches, names)
    train = _some_labelled(train, column, _TRAIN_ROWS, trainer.args.seed) if isinstance(train, Dataset) else ()
    if len(train) > 1:
        texts = [list(split[collator.task.text_column]) for split in (train, rows)]
        baseline = question_only_baseline(texts[0], answers(train), texts[1], labels, trainer.args.seed)
        said[_WORDS] = list(baseline.predictions)

    right = {
        who: torch.tensor([normalize("NFC", one) == label for one, label in zip(its, labels, strict=True)]).float()
        for who, its in said.items()
    }
    shares = {who: round(one.mean().item(), 4) for who, one in right.items()}
    error = round(max((share * (1 - share) / len(rows)) ** 0.5 for share in shares.values()), 4)
    unknown = len(labels) - sum(map(labels.count, {normalize("NFC", name) for name in names}))
    among = f" ({unknown} of them with an answer that is none of the model's)" if unknown else ""
    figures = ", ".join(f"{who} {100 * share:.1f} %" for who, share in shares.items())
    seconds = round(time.perf_counter() - began, 1)
    _logger.warning(
        "before the first step, of %d validation rows%s: %s right (%s s)", len(rows), among, figures, seconds
    )

    taught = right.pop("teacher")
    for who, one in right.items():
        # Of the difference on the same rows.
        points, of_points = 100 * (taught - one).mean(), 100 * (taught - one).std() / len(rows) ** 0.5
        if points <= _CLEARLY * of_points:
            by = f"{points:+.1f} points, standard error {of_points:.1f}"
            _logger.warning("the teacher is no better than the %s (%s): it may teach its mistakes", who, by)
    return Preflight(len(rows), shares["teacher"], shares["student's start"], error, shares.get(_WORDS), seconds)


def _some_labelled(rows: Dataset, column: str, most: int, seed: int) -> Dataset:
    """At most so many of the rows that have a label, drawn by the seed."""
    rows = rows.select([index for index, label in enumerate(rows[column]) if label is not None])
    return rows.shuffle(seed=seed).select(range(min(most, len(rows))))


def _answers_of_models(trainer: Any, batches: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """What teacher and student answer, both as the trainer asks them."""
    student, objective = trainer.accelerator.unwrap_model(trainer.model), trainer.distillation_objective
    # A teacher that gives no soft labels may have answers of its own.
    labels = getattr(getattr(trainer.teacher, "config", None), "id2label", None) or dict(enumerate(names))
    known = (dict(enumerate(names)) if objective.soft_label_weight else labels, names)
    found: dict[str, list[Any]] = {"teacher": [], "student's start": []}
    was_training = student.training
    student.eval()
    with torch.random.fork_rng([]), torch.inference_mode(), trainer.accelerator.autocast():
        for batch in map(trainer._prepare_inputs, batches):
            outputs = trainer._ask_student(student, batch, objective)
            both = (trainer._ask_teacher(batch, outputs), outputs)
            for taken, its, answers in zip(found.values(), both, known, strict=True):
                taken += [answers[index] for index in its.logits.argmax(-1).tolist()]
    student.train(was_training)
    return found
