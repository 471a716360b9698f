r"""Evaluate a checkpoint by what its task is judged by, and by how well one can do without it.

Accuracy, overall and by group, the official VQA score, NLVR2's consistency; beside it what the question without the
image gives. Images with captions: recall@1, @5, @10 and median rank both ways, by itself and re-ranked by a fusion
encoder, and the seconds of each. Captions that are written: CIDEr-D and BLEU-4.

Examples:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --json
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split validation
  dual-distill evaluate path/to/vilt-nlvr2 --task nlvr2 --data path/to/nlvr2 --no-baselines
  dual-distill evaluate runs/custom/distilled --task custom --data shop.csv --image-column photo --split validation
  dual-distill evaluate runs/retrieval/distilled --task coco_retrieval --data path/to/coco \
      --rerank runs/retrieval/teacher --rerank-top 16
  dual-distill evaluate runs/coco_captions/distilled --task coco_captioning --data coco --regions regions/light \
      --num-beams 5

The answers to VQA v2's test questions, for EvalAI:
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split test --submission answers.json \
      --data-options '{"test_questions": "path/to/vqa_v2/v2_OpenEnded_mscoco_test2015_questions.json"}'
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from dual_distill.data import TASKS, DistillationCollator, Task
from dual_distill.evaluation import write_submission
from dual_distill.runs import HEADS, DataArguments, ReadingArguments, head_of, load_data
from dual_distill.teachers import load_config, load_model
from dual_distill.trainer import EvaluationReport, predict_answers, report_answers

from . import evaluate_captions as captions
from . import evaluate_retrieval as retrieval
from .options import add_options, command_parser, default_device, refuse_options


def run(words: Sequence[str]) -> None:
    """Evaluate and print."""
    # What is read is said as in a recipe.
    fields = HfArgumentParser(ReadingArguments, add_help=False, formatter_class=argparse.HelpFormatter)
    next(action for action in fields._actions if action.dest == "task").required = True
    parser = command_parser(__name__, __doc__, parents=[fields])
    add_options(parser, "model", "--revision", "--device", batch_size=128)
    parser.add_argument("--split", default="test", metavar="NAME", help="train, validation or test (%(default)s)")
    parser.add_argument("--max-rows", type=int, metavar="N", help="evaluate the first N rows (default: all)")
    parser.add_argument("--no-baselines", action="store_true", help="without the baselines, which read all of train")
    parser.add_argument("--submission", type=Path, metavar="FILE", help="also write EvalAI's or COCO's results file")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the results to this JSON file")
    retrieval.add_options(parser)
    captions.add_options(parser)
    add_options(parser, "--json", "--debug")
    options = parser.parse_args([word.replace("_", "-") if word.startswith("--") else word for word in words])
    options.device = options.device or default_device()

    # What an evaluation gives follows from the head of its task; a custom dataset has labels.
    writes = HEADS[TASKS[options.task].head].writes if options.task in TASKS else "answers"
    evaluate, unfit = {
        "answers": (evaluate_answers, retrieval.OPTIONS + captions.OPTIONS),
        "ranking": (retrieval.evaluate_ranking, (*captions.OPTIONS, "submission")),
        "captions": (captions.evaluate_captions, retrieval.OPTIONS),
    }[str(writes)]
    refuse_options(options, unfit, f"is given, but task {options.task!r} is evaluated by its {writes}")
    with redirect_stdout(sys.stderr):
        report, shown = evaluate(options, *load_rows(options))

    result = {"model": options.model, "task": options.task, "split": options.split}
    if report is not None:
        result |= ({} if options.rerank is None else {"rerank": options.rerank}) | report.to_dict()
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")
        shown = f"{options.model} on {options.task}, {options.split}{shown}"
    print(json.dumps(result) if options.json else shown)


def load_rows(options: argparse.Namespace) -> tuple[Task, Any, Any]:
    """Read the data; its task, its splits, and the rows that are evaluated.

    Raises:
        ValueError: the data cannot be read, or has no such split or no rows in it.
    """
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(ReadingArguments)}
    label_names, head = None, None
    if options.task == "custom":  # what is learned with which labels only the checkpoint knows
        config = load_config(options.model, options.revision)
        label_names, spec = [config.id2label[index] for index in range(config.num_labels)], head_of(config)
        head = None if spec is None else spec.name

    task, data = load_data(DataArguments(**fields, head=head), label_names)
    if options.split not in data:
        raise ValueError(f"task {options.task!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    if not len(rows):
        raise ValueError(f"split {options.split!r} has no rows to evaluate (--max-rows: {options.max_rows}).")
    return task, data, rows


def evaluate_answers(options: argparse.Namespace, task: Task, data: Any, rows: Any) -> tuple[Any, str]:
    """Answer the rows, and hold the answers against their labels; no report where they have none."""
    # What cannot be answered or written is said before minutes of answering.
    if options.submission and "question_id" not in rows.column_names:
        raise ValueError(f"--submission needs a column question_id, but split {options.split!r} has none.")
    has_labels = task.label_column in rows.column_names and rows[0][task.label_column] is not None
    if not has_labels and not options.submission:
        raise ValueError(f"split {options.split!r} has no labels to hold answers against; give --submission FILE.")

    model, processor = load_model(options.model, options.revision, HEADS[task.head].classes)
    label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    regions = captions.region_options(options, model.config)
    longest = min(captions.text_tokens(model.config, regions), processor.tokenizer.model_max_length)
    collator = DistillationCollator(processor, task, label_names, max_text_length=longest, image_cache_mb=0, **regions)
    answers = predict_answers(model.to(options.device), rows, collator, options.batch_size)

    if options.submission:
        write_submission(options.submission, list(rows["question_id"]), answers)
    if not has_labels:
        return None, f"no labels in split {options.split}; answers in {options.submission}"
    report = report_answers(answers, rows, task, None if options.no_baselines else data.get("train"))
    return report, "\n" + table(report)


def table(report: EvaluationReport) -> str:
    """Lay a report out for reading, shares in per cent."""
    lines = [] if report.vqa_score is None else [(f"VQA score, {report.rows} rows", report.vqa_score)]
    lines += [(f"  {group}", share) for group, share in report.vqa_score_by_group.items()]
    lines += [(f"accuracy, {report.rows} rows", report.accuracy)]
    lines += [(f"  {group}", share) for group, share in report.accuracy_by_group.items()]
    optional = {
        "consistency": report.consistency,
        f"text only ({report.text_only_method})": report.text_only,
        "most frequent answer": report.majority,
    }
    lines += [(name, share) for name, share in optional.items() if share is not None]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {100 * share:5.1f} %" for name, share in lines)
