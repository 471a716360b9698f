"""`dual-distill evaluate MODEL --task ... --data ...`: how well a checkpoint does, and how well one can do without it."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from dual_distill.cli import evaluate_captions as captions
from dual_distill.data import DistillationCollator
from dual_distill.evaluation import CaptionReport, write_submission
from dual_distill.inference import RetrievalReport
from dual_distill.runs import HEADS, DataArguments, head_of, load_data
from dual_distill.teachers import load_config, load_model
from dual_distill.trainer import EvaluationReport, predict_answers, report_answers

from .evaluate_retrieval import add_options, evaluate_pairs, retrieval_table, retrieval_task

_EPILOG = """\
examples:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --json
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split validation
  dual-distill evaluate path/to/vilt-nlvr2 --task nlvr2 --data path/to/nlvr2 --no-baselines
  dual-distill evaluate runs/custom/distilled --task custom --data shop.csv --image-column photo --split validation
  dual-distill evaluate runs/retrieval/dual --task coco_retrieval --data path/to/coco --rerank runs/retrieval/fusion
  --rerank-top 16

models over regions, and captions in beams:
  dual-distill evaluate runs/vqa_v2_regions/distilled --task vqa --data vqa_v2 --split validation --regions
  regions/light dual-distill evaluate runs/coco_captions/distilled --task coco_captioning --data coco --regions regions/light
  --num-beams 5

the answers to VQA v2's test questions, for EvalAI:
  dual-distill evaluate runs/vqa_v2/distilled --task vqa --data path/to/vqa_v2 --split test --submission answers.json \\
      --data-options '{"test_questions": "path/to/vqa_v2/v2_OpenEnded_mscoco_test2015_questions.json"}'"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill evaluate",
        description="Evaluate a checkpoint by what its task is judged by: accuracy, overall and by group, the official VQA\n"
        "score, NLVR2's consistency; beside it what the words alone, without the picture, give. Images and captions:\n"
        "recall@1, @5, @10 and median rank both ways, alone and re-ranked by a fusion encoder, and the seconds of "
        "each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="checkpoint folder or Hub repository (also owner/name@revision), ours or a ViLT")
    parser.add_argument(
        "--task",
        required=True,
        help="scenes, easy_vqa, nlvr, vqa, nlvr2, snli_ve, coco_retrieval, coco_captioning ...; or custom",
    )
    parser.add_argument(
        "--data", help="folder with the task's files; custom: a file, folder or Hub data set; scenes needs none"
    )
    parser.add_argument("--data-options", metavar="JSON", help="options of the task's reader, as in the recipe")
    parser.add_argument(
        "--skip-bad", action="store_true", help="pass over rows with a missing image or a malformed line, and list them"
    )
    custom = parser.add_argument_group("a custom dataset (--task custom)")
    custom.add_argument(
        "--image-column",
        nargs="+",
        default=["image"],
        metavar="NAME",
        help="column of the image, or several (default: image)",
    )
    for option, default, what in (
        ("--text-column", "question", "question or sentence"),
        ("--label-column", "answer", "answer or class"),
    ):
        custom.add_argument(
            option, default=default, metavar="NAME", help=f"column of the {what} (default: %(default)s)"
        )
    custom.add_argument("--answers-column", metavar="NAME", help="column of lists, what several people answered")
    parser.add_argument(
        "--split", default="test", metavar="NAME", help="train, validation or test (default: %(default)s)"
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="rows a batch (default: %(default)s)")
    parser.add_argument("--max-rows", type=int, metavar="N", help="evaluate the first N rows (default: all)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 ... (default: %(default)s)",
    )
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="leave out the text-only and majority baselines, which read all of train",
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="also write the answers as EvalAI takes them (rows with question_id), captions as COCO's results",
    )
    add_options(parser)
    captions.add_options(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the results to this JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Evaluate and print."""
    # A field of a recipe, --image_column, is an option here, --image-column: both spellings are understood.
    options = make_parser().parse_args([word.replace("_", "-") if word.startswith("--") else word for word in words])
    report: EvaluationReport | RetrievalReport | CaptionReport | None
    with redirect_stdout(sys.stderr):
        if (pairs_task := retrieval_task(options)) is not None:
            report = evaluate_pairs(options, pairs_task)
        elif (captioning_task := captions.captioning_task(options)) is not None:
            report = captions.evaluate_captions(options, captioning_task)
        else:
            report = evaluate(options)
    result = {"model": options.model, "task": options.task, "split": options.split}
    if report is None:
        print(
            json.dumps(result)
            if options.json
            else f"no labels in split {options.split}; answers in {options.submission}"
        )
        return
    if options.rerank is not None:
        result["rerank"] = options.rerank
    result |= report.to_dict()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    title = f"{options.model} on {options.task}, {options.split}"
    if options.json:
        print(json.dumps(result))
    elif isinstance(report, RetrievalReport):
        print(retrieval_table(report, title))
    else:
        print(captions.caption_table(report, title) if isinstance(report, CaptionReport) else table(report, title))


def evaluate(options: argparse.Namespace) -> EvaluationReport | None:
    """Load, answer, and hold the answers against the split; None where its rows have no labels."""
    config = load_config(options.model, options.revision)
    label_names = [config.id2label[index] for index in range(config.num_labels)]
    head: Any = spec.name if (spec := head_of(config)) and options.task == "custom" else None
    arguments = DataArguments(
        task=options.task,
        data=options.data,
        data_options=options.data_options,
        skip_bad=options.skip_bad,
        head=head,
        image_column=options.image_column,
        text_column=options.text_column,
        label_column=options.label_column,
        answers_column=options.answers_column,
    )
    task, data = load_data(arguments, label_names)
    if options.split not in data:
        raise ValueError(f"task {options.task!r} has no split {options.split!r}; it has {', '.join(data)}.")
    rows = data[options.split]
    if options.max_rows is not None:
        rows = rows.select(range(min(options.max_rows, len(rows))))
    # What cannot be answered or written is said before minutes of answering.
    if not len(rows):
        raise ValueError(
            f"split {options.split!r} has no rows to evaluate (--max-rows: {options.max_rows}); give more."
        )
    if options.submission and "question_id" not in rows.column_names:
        raise ValueError(f"--submission needs a column question_id, but split {options.split!r} has none.")
    has_labels = task.label_column in rows.column_names and rows[0][task.label_column] is not None
    if not has_labels and not options.submission:
        raise ValueError(f"split {options.split!r} has no labels to hold answers against; give --submission FILE.")
    model, processor = load_model(options.model, options.revision, HEADS[task.head].classes)
    of_regions = captions.region_options(options, config)
    longest_text = min(captions.text_tokens(config, of_regions), processor.tokenizer.model_max_length)
    collator = DistillationCollator(
        processor, task, label_names, max_text_length=longest_text, image_cache_mb=0, **of_regions
    )
    answers = predict_answers(model.to(options.device), rows, collator, options.batch_size)
    if options.submission:
        write_submission(options.submission, list(rows["question_id"]), answers)
    return (
        report_answers(answers, rows, task, None if options.no_baselines else data.get("train")) if has_labels else None
    )


def table(report: EvaluationReport, title: str) -> str:
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
    return "\n".join([title, *(f"{name:<{width}}  {100 * share:5.1f} %" for name, share in lines)])
