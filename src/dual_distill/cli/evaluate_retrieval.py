"""What `dual-distill evaluate` does with a task of images and captions: recall both ways, alone and re-ranked, and seconds."""

import argparse
import json
from typing import Any

from dual_distill.data import TASKS, Task, load_task
from dual_distill.inference import RetrievalReport, evaluate_retrieval
from dual_distill.modeling import FusionEncoderForImageTextRetrieval
from dual_distill.runs import HEADS
from dual_distill.teachers import load_model

RETRIEVAL = "image_text_retrieval"
RERANK_TOP = 16
FOLD_IMAGES = 1000
_WAYS = {"dual": "dual encoder alone", "reranked": "top {} re-ranked", "fusion": "fusion encoder alone"}
_DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of retrieval to the parser of `evaluate`."""
    group = parser.add_argument_group("tasks of images and captions (coco_retrieval)")
    group.add_argument(
        "--rerank", metavar="CHECKPOINT", help="fusion encoder that orders the model's best candidates anew"
    )
    group.add_argument(
        "--rerank-top", type=int, metavar="K", help=f"candidates of each query that it reads (default: {RERANK_TOP})"
    )
    group.add_argument(
        "--all-pairs", action="store_true", help="let it read every pair too, instead of an estimate: slow"
    )
    group.add_argument(
        "--fold-images",
        type=int,
        metavar="N",
        help=f"also the mean over parts of N images, where there are several; 0: not (default: {FOLD_IMAGES}, as COCO's 1K)",
    )


def retrieval_task(options: argparse.Namespace) -> Task | None:
    """Return the task when it is one of images and captions.

    Raises:
        ValueError: options of retrieval are given for another task, or the other way round.
    """
    task = TASKS.get(options.task)
    is_retrieval = task is not None and task.head == RETRIEVAL
    if is_retrieval:
        unfit = [f"--{name}" for name in ("submission",) if getattr(options, name)]
    else:
        given = {"--rerank": options.rerank, "--rerank-top": options.rerank_top, "--fold-images": options.fold_images}
        unfit = [name for name, value in given.items() if value is not None] + ["--all-pairs"] * options.all_pairs
    if unfit:
        kind = "has images and captions" if is_retrieval else "has no images with captions to search"
        raise ValueError(f"task {options.task!r} {kind}, for which there is no {', '.join(unfit)}; leave it out.")
    return task if is_retrieval else None


def evaluate_pairs(options: argparse.Namespace, task: Task) -> RetrievalReport:
    """Load data and models, search both ways.

    Raises:
        ValueError: an option does not fit, or data or models cannot be read.
    """
    if options.rerank is None and (options.all_pairs or options.rerank_top is not None):
        raise ValueError("--rerank-top and --all-pairs are about a fusion encoder; name it by --rerank CHECKPOINT.")
    reader_options = _read_json(options.data_options)
    if options.skip_bad:
        reader_options["skip_bad"] = True
    data = load_task(task.name, options.data, **reader_options)
    if options.split not in data:
        raise ValueError(f"task {task.name!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    model, processor = load_model(options.model, options.revision, HEADS[RETRIEVAL].classes)
    if isinstance(model, FusionEncoderForImageTextRetrieval):
        raise ValueError(
            f"{options.model!r} is a fusion encoder, which reads each pair; give the dual encoder that finds the "
            f"candidates, "
            "and this one by --rerank (with --all-pairs its own recall is given too)."
        )
    fusion, fusion_processor = (
        load_model(options.rerank, model_class=HEADS[RETRIEVAL].classes) if options.rerank is not None else (None, None)
    )
    fold_images = FOLD_IMAGES if options.fold_images is None else options.fold_images
    return evaluate_retrieval(
        rows,
        task,
        model.to(options.device),
        processor,
        fusion if fusion is None else fusion.to(options.device),
        fusion_processor,
        rerank_top=RERANK_TOP if options.rerank_top is None else options.rerank_top,
        all_pairs=options.all_pairs,
        fold_images=fold_images or None,
        batch_size=options.batch_size,
        show_progress=True,
    )


def retrieval_table(report: RetrievalReport, title: str) -> str:
    """Lay a report out for reading, recalls in per cent."""
    lines = [f"{title}: {report.images:,} images, {report.captions:,} captions"]
    parts = [("", report.whole)]
    if report.mean_of_folds:
        parts.append((f"mean over {report.folds} parts of {report.fold_images:,} images", report.mean_of_folds))
    for heading, recalls in parts:
        if heading:
            lines += ["", heading]
        for direction, words in _DIRECTIONS.items():
            lines.append(f"{words:<24}   R@1    R@5   R@10   median rank")
            for way, directions in recalls.items():
                numbers = directions[direction]
                shares = "  ".join(f"{100 * numbers[f'recall@{k}']:5.1f}" for k in (1, 5, 10))
                lines.append(f"  {_WAYS[way].format(report.rerank_top):<22} {shares}   {numbers['median_rank']:11,.1f}")
    lines.append("")
    names = {"dual": "dual encoder, all pairs", "rerank": "re-ranking", "fusion": "fusion encoder, all pairs"}
    for time in report.times:
        how = "measured" if time.measured else "estimated from measured pairs per second"
        lines.append(f"{names[time.way]:<26} {time.seconds:12,.2f} s  {time.pairs:>13,} pairs, {how}")
    return "\n".join(lines)


def _read_json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"--data-options is {text!r}, which is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"--data-options is {text!r}; give a JSON object of option and value.")
    return found


__all__ = ["add_options", "evaluate_pairs", "retrieval_table", "retrieval_task"]
