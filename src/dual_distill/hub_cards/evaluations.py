"""What `dual-distill evaluate` measured, added to the record of a run: whose number, on which data, beside whose."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .run_record import DataOrigin, Measurement, RunRecord

_logger = logging.getLogger(__name__)


def add_evaluation(
    record: RunRecord, evaluation: Mapping[str, Any], source: str, teacher: Mapping[str, Any] | None = None
) -> RunRecord:
    """Add what `dual-distill evaluate --output-dir` wrote; an earlier number of metric, split and data gives way.

    Numbers on other data than the run's own keep the name of their task. Weights of which one side knows the commit and
    the other a digest cannot be compared: the numbers are taken, with a warning.

    Args:
        record: the run.
        evaluation: of this model.
        source: the command or file that it comes from.
        teacher: the same of the teacher, on the same rows.

    Raises:
        ValueError: the evaluation lacks task, split, rows or a number, the two are of different rows, one is of other
            weights than those of the run, or the run has no teacher.

    Example:
        >>> from dual_distill.hub_cards import DataOrigin
        >>> run = RunRecord(data=DataOrigin("scenes"))
        >>> found = {"task": "scenes", "split": "test", "rows": 30, "accuracy": 0.5, "text_only": 0.4}
        >>> [(m.metric, m.value, m.text_only) for m in add_evaluation(run, found, "dual-distill evaluate").measurements]
        [('accuracy', 0.5, 0.4)]
    """
    for name in ("task", "split", "rows"):
        if name not in evaluation:
            raise ValueError(f"{source} has no {name!r}; give what `dual-distill evaluate --output-dir` wrote.")
    if teacher is not None:
        _check_same_rows(evaluation, teacher)
        if record.teacher is None:
            way_out = "leave its evaluation out, or say it by `describe_run(teacher=...)`"
            raise ValueError(f"the run names no teacher, so {teacher.get('model')!r} is none that is known; {way_out}.")

    # Whose number it is.
    for measured, known in ((evaluation, record.weights), (teacher or {}, record.teacher and record.teacher.revision)):
        weights = str(measured.get("weights") or "")
        if weights and known and weights != known:
            both = f"measured on weights {weights[:19]}, but the run is about {known[:19]}"
            wrong = f"the evaluation of {measured.get('model')!r} was {both}"
            # The Hub's commit, a digest of files and one of parameters in memory may be of the same weights.
            if weights.rpartition(":")[0] == known.rpartition(":")[0]:
                raise ValueError(f"{wrong}; evaluate these again.")
            _logger.warning("%s; it is not known whether these are the same", wrong)

    # The baselines are measured by the main metric only.
    main = next((name for name in ("vqa_score", "cider") if evaluation.get(name) is not None), "accuracy")
    baselines = {name: evaluation.get(name) for name in ("text_only", "majority")}
    found, of_teacher = (evaluation["split"], source, evaluation["rows"]), _numbers(teacher or {}, main)
    task, added = _other_data(evaluation, record.data), []
    for metric, value in _numbers(evaluation, main).items():
        beside: dict[str, Any] = {**(baselines if metric == main else {}), "teacher": of_teacher.get(metric)}
        beside["groups"] = evaluation.get(f"{metric}_by_group") or {}
        beside |= {"edition": evaluation.get(f"{metric}_edition"), "task": task}
        added.append(Measurement(metric, value, *found, **beside))
    if not added:
        raise ValueError(f"{source} gave no number that a card has; give what `evaluate --output-dir` wrote.")

    replaced = {(one.metric, one.split, one.task) for one in added}
    kept = [one for one in record.measurements if (one.metric, one.split, one.task) not in replaced]
    return replace(record, measurements=(*kept, *added))


def _check_same_rows(evaluation: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Refuse a teacher's evaluation on other rows than the model's, or by another edition of the metric."""
    # Evaluations of before do not say what their data are known by.
    known = [name for name in ("split_data", "data") if evaluation.get(name) and teacher.get(name)]
    for name in ("task", "split", "rows", "vqa_score_edition", *known[:1]):
        mine, its = evaluation.get(name), teacher.get(name)
        if mine != its:
            both = f"with {name} {its!r}, the model with {mine!r}"
            raise ValueError(f"the teacher was evaluated {both}; evaluate both on the same rows.")


def _other_data(evaluation: Mapping[str, Any], own: DataOrigin) -> str | None:
    """What to call data that are known not to be the run's own; None: they are, or nothing tells them apart."""
    task, split = evaluation["task"], evaluation["split"]
    # The rows themselves, where both say them; those of train stand for the data.
    rows, data = (own.splits.get(split), evaluation.get("split_data")), (own.content, evaluation.get("data"))
    for name, (mine, its) in ((split, rows), ("train", data)):
        if mine and its:
            return None if mine == its else f"{task} ({name}: {its})" if task == own.task else task
    # A trainer calls rows custom of which it knows the columns alone.
    return None if own.task in (None, "custom", task) else task


def _numbers(evaluation: Mapping[str, Any], main: str) -> dict[str, float]:
    """What an evaluation says of one model: metric -> value, those of a search as the trainer calls them."""
    found = {metric: evaluation.get(metric) for metric in (main, "consistency", "bleu_4")}
    # What another model ordered anew is no number of this one.
    ways = {"dual": ""} if evaluation.get("rerank") else {"dual": "", "reranked": "reranked_"}
    for way, prefix in ways.items():
        for direction, numbers in evaluation.get("whole", {}).get(way, {}).items():
            named = {f"{prefix}{direction}_{name}": value for name, value in numbers.items()}
            found |= {name: value for name, value in named.items() if not name.endswith("num_queries")}
    return {metric: value for metric, value in found.items() if value is not None}
