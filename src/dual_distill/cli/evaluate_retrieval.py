"""What `dual-distill evaluate` does with images and captions: recall both ways, re-ranked too, and seconds."""

import argparse
from typing import Any

from dual_distill.data import Task
from dual_distill.inference import RetrievalReport, evaluate_retrieval
from dual_distill.runs import HEADS
from dual_distill.teachers import load_model

OPTIONS = ("rerank", "rerank_top", "fold_images")
_WAYS = {"dual": "dual encoder alone", "reranked": "top {} re-ranked"}
_DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_TIMED = {"dual": "dual encoder, all pairs", "rerank": "re-ranking", "fusion": "fusion encoder, all pairs"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of retrieval to the parser of `evaluate`."""
    group = parser.add_argument_group("images with captions (coco_retrieval)")
    folds = "also the mean over parts of N images; 0: not (default: 1000, as COCO's 1K)"
    group.add_argument("--rerank", metavar="CHECKPOINT", help="fusion encoder that orders the best candidates anew")
    group.add_argument(
        "--rerank-top", type=int, metavar="K", help="candidates of each query that it reads (default: 16)"
    )
    group.add_argument("--fold-images", type=int, metavar="N", help=folds)


def evaluate_ranking(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> tuple[RetrievalReport, str]:
    """Search the rows both ways.

    Raises:
        ValueError: an option does not fit, or the models cannot be read.
    """
    head = HEADS[task.head]
    if options.rerank is None and options.rerank_top is not None:
        raise ValueError("--rerank-top is about a fusion encoder; name it by --rerank CHECKPOINT.")
    model, processor = load_model(options.model, options.revision, head.classes)
    if isinstance(model, head.fusion_class):
        wrong = f"{options.model!r} is a fusion encoder, which reads each pair"
        raise ValueError(f"{wrong}; give the dual encoder that finds the candidates, and this one by --rerank.")

    again: Any = (None, None)
    if options.rerank is not None:
        again = load_model(options.rerank, model_class=head.classes)
        again.model.to(options.device)
    settings = {name: getattr(options, name) for name in ("rerank_top", "fold_images", "batch_size")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if options.fold_images == 0:
        settings["fold_images"] = None
    searched = (rows, task, model.to(options.device), processor)
    report = evaluate_retrieval(*searched, *again, **settings, show_progress=True)
    return report, table(report)


def table(report: RetrievalReport) -> str:
    """Lay a report out for reading, recalls in per cent."""
    parts = {"": report.whole}
    if report.mean_of_folds:
        parts[f"mean over {report.folds} parts of {report.fold_images:,} images"] = report.mean_of_folds

    lines = [f": {report.images:,} images, {report.captions:,} captions"]
    for heading, recalls in parts.items():
        lines += ["", heading] if heading else []
        for direction, words in _DIRECTIONS.items():
            lines.append(f"{words:<24}   R@1    R@5   R@10   median rank")
            for way, directions in recalls.items():
                numbers = directions[direction]
                shares = "  ".join(f"{100 * numbers[f'recall@{k}']:5.1f}" for k in (1, 5, 10))
                lines.append(f"  {_WAYS[way].format(report.rerank_top):<22} {shares}   {numbers['median_rank']:11,.1f}")

    lines.append("")
    for time in report.times:
        how = "measured" if time.measured else "estimated from measured pairs per second"
        lines.append(f"{_TIMED[time.way]:<26} {time.seconds:12,.2f} s  {time.pairs:>13,} pairs, {how}")
    return "\n".join(lines)
