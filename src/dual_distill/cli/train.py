"""`dual-distill train RECIPE.yaml [--field value ...]`: one run, described by the fields of three dataclasses."""

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from dual_distill.trainer import DataArguments, DistillationTrainingArguments, ModelArguments, make_run, plan_run, train

_DATACLASSES = (ModelArguments, DataArguments, DistillationTrainingArguments)
_EXAMPLE = """\
example recipe (teacher.yaml):
  architecture: fusion_encoder
  task: easy_vqa
  data: path/to/easy_vqa
  resize: fixed
  image_height: 64
  image_width: 64
  patch_size: 8
  hidden_size: 96
  num_hidden_layers: 3
  num_attention_heads: 4
  max_steps: 1500
  per_device_train_batch_size: 128
  learning_rate: 0.001
  output_dir: runs/teacher

then a student that learns from it:
  dual-distill train student.yaml --init_from runs/teacher --teacher runs/teacher --output_dir runs/student

A run that was interrupted continues from the last checkpoint in its output_dir.
Fields are given as in the recipe, --field value; they override it. --json prints the results as one JSON line.
--dry-run checks paths, columns, labels and the pairing of teacher and student, counts steps and memory, and trains nothing.

one's own table, with a ViLT from the Hub as the start of a teacher:
  dual-distill train --task own --data shop.csv --image_column photo --text_column question --label_column answer \\
      --architecture fusion_encoder --init_from dandelin/vilt-b32-mlm --fresh_head --output_dir runs/shop_teacher"""


def run(words: Sequence[str]) -> None:
    """Train as the recipe and the command line say."""
    flags = {word.replace("_", "-") for word in words if word.replace("_", "-") in ("--json", "--dry-run")}
    as_json = "--json" in flags
    words = [word for word in words if word.replace("_", "-") not in flags]
    if "--dry-run" in flags and not torch.cuda.is_available():
        words += ["--use_cpu", "true"]  # a recipe for a GPU is planned where there is none
    arguments = parse_recipe(words)
    if "--dry-run" in flags:
        with redirect_stdout(sys.stderr):
            plan = plan_run(*arguments)
        print(json.dumps(plan.to_dict()) if as_json else plan)
        return
    with redirect_stdout(sys.stderr):
        prepared = make_run(*arguments)
        metrics = train(prepared) | prepared.trainer.evaluate()
    results = {
        "output_dir": arguments[2].output_dir,
        "task": arguments[1].task,
        "seed": arguments[2].seed,
        "steps": prepared.trainer.state.global_step,
        **{name: value for name, value in metrics.items() if isinstance(value, int | float)},
    }
    Path(arguments[2].output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        print(json.dumps(results))
        return
    width = max(map(len, results))
    for name, value in results.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def parse_recipe(words: Sequence[str]) -> tuple[ModelArguments, DataArguments, DistillationTrainingArguments]:
    """Read the recipe (first word, optional) and the fields that override it.

    Raises:
        ValueError: no such file, no mapping, or a name that is no field; the nearest field is named.
    """
    parser = HfArgumentParser(
        _DATACLASSES,
        prog="dual-distill train",
        usage="dual-distill train [RECIPE.yaml] [--field value ...] [--dry-run] [--json] [--debug]",
        description="Train a teacher, a plain model, or a student that is distilled from a teacher.",
        epilog=_EXAMPLE,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    words = list(words)
    recipe = read_recipe(Path(words.pop(0))) if words and not words[0].startswith("-") else {}
    check_names(recipe)
    parser.set_defaults(**recipe)
    *arguments, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        check_names({word.removeprefix("--").split("=")[0]: None for word in rest if word.startswith("--")})
        raise ValueError(f"{' '.join(rest)!r} was not understood; write fields as --field value.")
    return tuple(arguments)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of fields; refuse anything else, naming the file."""
    if not path.is_file():
        raise ValueError(f"there is no recipe {str(path)!r}; give the path of a YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds {type(recipe).__name__}; a recipe is a mapping of fields, `name: value` a line.")
    return recipe


def check_names(fields: dict[str, Any]) -> None:
    """Refuse the first name that is no field, with the nearest that is."""
    known = [field.name for kind in _DATACLASSES for field in dataclasses.fields(kind)]
    for name in fields:
        if name in known:
            continue
        nearest = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1, cutoff=0.0)
        raise ValueError(f"there is no field {name!r}; did you mean {nearest[0]!r}? `dual-distill train --help` lists all.")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, and keeps the lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))
