"""Write down what a teacher says of a task's rows: students learn from that, with no teacher in memory.

The store holds the attention of the chosen layers over the teacher's own tokens, in float16, and how probable it finds
each answer: its own if it is a classifier, those of the task if it writes. Any student reads it, whatever its tokenizer
and its grid of patches. A killed run continues with the same command; several processes share the rows:
  torchrun --nproc-per-node 2 -m dual_distill teach ...

Examples:
  dual-distill teach HuggingFaceTB/SmolVLM-256M-Instruct --task custom --data shop.csv --output-dir shop.views
  dual-distill teach path/to/vilt-vqa --task vqa --data path/to/vqa_v2 --layers -1 -2 --output-dir vqa.views
  dual-distill train distilled.yaml --teacher shop.views
"""

import argparse
import time
from dataclasses import fields
from typing import Any

from dual_distill.inference import process_share
from dual_distill.runs import DataArguments, ReadingArguments, list_labels, load_data
from dual_distill.teachers import ForeignTeacher, load_teacher
from dual_distill.trainer import StoredTeacher, view_settings, write_views

from .evaluate import add_reading
from .options import add_options, aligned, option, refuse_options

_NUMBERED = "LABEL_0"  # how transformers calls the first label of a model that has none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the teacher, its task as a recipe says it, and what is written."""
    add_reading(parser)
    option(parser, "teacher", "TEACHER", "checkpoint folder or Hub repository of any family of teachers")
    option(parser, "--output-dir", "PATH", "folder of the store, made or continued", required=True)
    split = {"nargs": "+", "default": ["train", "validation"]}
    option(parser, "--splits", "NAME", "splits whose rows are written (default: train validation)", **split)
    option(
        parser, "--layers", "N", "layers whose attention is written (default: -1, the last)", nargs="*", default=[-1]
    )
    option(parser, "--relation-heads", "N", "write it over so many relation heads (default: the teacher's own heads)")
    option(parser, "--top-k", "N", "largest scores that are written of each word and patch (default: all)")
    parser.add_argument("--no-answers", action="store_true", help="write attention alone")
    option(parser, "--min-answer-count", "N", "fewest rows that make an answer of the data one that is asked about")
    option(parser, "--num-workers", "N", "processes that read and decode images (default: 0, none)", default=0)
    add_options(parser, "--batch-size", "--revision", "--device")
    parser.set_defaults(batch_size=8)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Read the data, load the teacher, and write what is missing."""
    if options.no_answers:
        refuse_options(options, ["min_answer_count"], "is given, but with --no-answers none is asked about")
    reading = {field.name: getattr(options, field.name) for field in fields(ReadingArguments)}
    fewest = options.min_answer_count
    task, data = load_data(DataArguments(**reading, min_answer_count=fewest))
    if unknown := [split for split in options.splits if split not in data]:
        raise ValueError(f"task {task.name!r} has no split {unknown[0]!r}; it has {', '.join(data)}.")

    model, processor = load_teacher(options.teacher, options.revision)
    teacher = ForeignTeacher(model.to(options.device), processor, options.teacher)
    labelled = None if model.config.id2label.get(0, _NUMBERED) == _NUMBERED else model.config
    answers = None if options.no_answers else list_labels(task, data["train"], fewest, labelled)
    settings = view_settings(teacher, options.layers, answers, options.relation_heads, options.top_k)
    store = StoredTeacher(options.output_dir, teacher, settings)

    began, how = time.perf_counter(), (options.batch_size, options.num_workers, process_share())
    written = sum(write_views(store, data[split], task, *how) for split in options.splits)
    seconds = time.perf_counter() - began
    return {"store": str(options.output_dir), "rows": len(store.store), "written": written, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """Lay a result out for reading."""
    return aligned({name: f"{value:.1f}" if isinstance(value, float) else value for name, value in result.items()})
