"""`dual-distill evaluate MODEL --task ... --data ...`: how well a checkpoint does, and how well one can do without it."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from dual_distill.data import DistillationCollator, get_task, load_task
from dual_distill.modeling import DualDistillProcessor
from dual_distill.trainer import EvaluationReport, load_model, predict_answers, report_answers


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill evaluate",
        description="Evaluate a checkpoint: accuracy, overall and by group, beside what the text alone gives.",
        epilog="example: dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --json",
    )
    parser.add_argument("model", help="checkpoint folder or Hub repository")
    parser.add_argument("--task", required=True, help="scenes, easy_vqa or nlvr")
    parser.add_argument("--data", help="folder with the task's files; scenes needs none")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the task's reader, as JSON")
    parser.add_argument("--split", default="test", help="which split (default: %(default)s)")
    parser.add_argument("--revision", help="revision of a Hub repository")
    parser.add_argument("--batch-size", type=int, default=128, help="rows a batch (default: %(default)s)")
    parser.add_argument("--max-rows", type=int, help="evaluate the first so many rows (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--no-baselines", action="store_true", help="leave out text-only and majority baselines")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Evaluate and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = evaluate(options)
    result = {"model": options.model, "task": options.task, "split": options.split, **report.to_dict()}
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else table(report, f"{options.model} on {options.task}, {options.split}"))


def evaluate(options: argparse.Namespace) -> EvaluationReport:
    """Load, answer, and hold the answers against the split."""
    task = get_task(options.task)
    model = load_model(options.model, task, revision=options.revision).to(options.device)
    processor = DualDistillProcessor.from_pretrained(options.model, revision=options.revision)
    data = load_task(options.task, options.data, **options.data_options)
    if options.split not in data:
        raise ValueError(f"task {options.task!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    answers = predict_answers(model, rows, DistillationCollator(processor, task, label_names), options.batch_size)
    return report_answers(answers, rows, task, None if options.no_baselines else data["train"])


def table(report: EvaluationReport, title: str) -> str:
    """Lay a report out for reading, shares in per cent."""
    lines = [(f"accuracy, {report.rows} rows", report.accuracy)]
    lines += [(f"  {group}", share) for group, share in report.accuracy_by_group.items()]
    optional = {
        "consistency": report.consistency,
        f"text only ({report.text_only_method})": report.text_only,
        "most frequent answer": report.majority,
    }
    lines += [(name, share) for name, share in optional.items() if share is not None]
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"{name:<{width}}  {100 * share:5.1f} %" for name, share in lines)])
