"""The record of a run (`run.json`): what a model card may say about it, noted where it happened."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from dual_distill.evaluation import RECALL_AT
from dual_distill.hub_cards import DataOrigin, Measurement, ObjectiveRecord, RunRecord, origin_of, write_run
from dual_distill.trainer import DistillationTrainingArguments, differing_fields, versions_now

from .arguments import DataArguments, ModelArguments
from .build import Run
from .data import num_rows

_METRICS = (
    *("accuracy", "soft_accuracy", "in_batch_recall", "right_first_share", "mean_recall"),
    *(f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT),
)


def record_run(
    run: Run, model: ModelArguments, data: DataArguments, metrics: Mapping[str, float], source: str
) -> RunRecord:
    """Write what a finished run did beside its weights, and return it.

    Args:
        run: trained and saved.
        model: its model arguments.
        data: its data arguments.
        metrics: what Trainer reported: `train_runtime`, and `eval_accuracy` or `eval_soft_accuracy` of validation.
        source: the command that trained, as the card names it.
    """
    training = run.trainer.args
    defaults = DistillationTrainingArguments(output_dir="out", use_cpu=training.use_cpu)
    record = RunRecord(
        _objective(run),
        DataOrigin(run.task.name, _rows(run)),
        teacher=origin_of(model.teacher, model.teacher_revision) if model.teacher else None,
        start=origin_of(model.init_from, model.init_revision) if model.init_from else None,
        settings=differing_fields(
            (model, ModelArguments()), (_without_paths(data), DataArguments()), (training, defaults)
        ),
        seed=training.seed,
        steps=run.trainer.state.global_step,
        train_seconds=metrics["train_runtime"],
        measurements=tuple(
            Measurement(name, metrics[f"eval_{name}"], "validation", source, rows=len(run.data["validation"]))
            for name in _METRICS
            if f"eval_{name}" in metrics
        ),
        versions=versions_now(),
    )
    write_run(training.output_dir, record)
    return record


def _objective(run: Run) -> ObjectiveRecord | None:
    """What the student imitated of its teacher."""
    objective = run.trainer.objective
    if objective is None:
        return None
    paper = objective.paper
    return ObjectiveRecord(type(objective).__name__, dict(objective.weights), paper and paper._asdict())


def _rows(run: Run) -> dict[str, int]:
    """Rows of each split, as far as a stream of pairs says."""
    counts = {split: num_rows(rows) for split, rows in run.data.items()}
    return {split: count for split, count in counts.items() if count is not None}


def _without_paths(data: DataArguments) -> DataArguments:
    """Where files lie on one machine is no part of what was done, and a push would refuse it."""
    options = cast("dict[str, Any]", data.data_options or {})
    kept = {name: value for name, value in options.items() if not any(_is_path(item) for item in _items(value))}
    return replace(data, data_options=kept or None, regions=None, teacher_regions=None)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value)


__all__ = ["record_run"]
