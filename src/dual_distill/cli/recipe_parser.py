"""Train a teacher, a hard-label baseline, or a student that is distilled from a teacher, from a recipe.

A recipe is a mapping of fields. Models that belong together are one file: `base` holds the fields of all, and `roles`
those in which each differs; --role names one. Fields are given on the command line as in the recipe, --field value, and
override it. A run that was interrupted continues from the last checkpoint in its output_dir, one that is finished is
not trained again, and one of other settings is refused unless --resume or --overwrite is given. It runs on the GPU if
there is one, and where a recipe's bf16 cannot be had, in float32. --debug shows the traceback of an error.

Examples:
  dual-distill train recipes/easy_vqa.yaml --role teacher --data path/to/easy_vqa
  dual-distill train recipes/easy_vqa.yaml --role distilled --data path/to/easy_vqa
  dual-distill train recipes/vqa_v2.yaml --role distilled --data path/to/vqa_v2 --dry-run
  dual-distill train recipes/custom.yaml --role teacher --data shop.csv --image_column photo --label_column answer

A recipe of your own (student.yaml, roles are not needed):
  architecture: dual_encoder
  init_from: runs/teacher
  teacher: runs/teacher
  task: easy_vqa
  data: path/to/easy_vqa
  max_steps: 1500
  output_dir: runs/student
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from dual_distill.hub_cards import read_yaml
from dual_distill.runs import DataArguments, ModelArguments
from dual_distill.trainer import DistillationTrainingArguments

from .options import find_name

DATACLASSES = (ModelArguments, DataArguments, DistillationTrainingArguments)
FLAGS = {
    "--dry-run": "Check paths, columns, first images, labels and how teacher and student fit; count steps and memory. "
    "Reads no weights, trains nothing, writes nothing, needs no GPU.",
    "--resume": "Go on with the run in output_dir though its settings were others.",
    "--overwrite": "Begin anew where a run lies in output_dir: its checkpoints are removed.",
    "--json": "Print the results as one JSON line on stdout, everything else on stderr.",
    "--help-all": "Show every field of transformers' TrainingArguments too.",
}
# Of transformers' fields those that recipes set.
_USUAL = {
    *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("per_device_eval_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2"),
    *("bf16", "use_cpu", "activation_checkpointing", "dataloader_num_workers", "dataloader_persistent_workers", "seed"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
    *("metric_for_best_model", "logging_steps", "report_to", "disable_tqdm"),
}
_PATHS = {
    *("data", "output_dir", "regions", "teacher_regions", "teacher_cache_dir", "tokenizer_texts"),
    "resume_from_checkpoint",
}
_MOST_CHOICES = 4


def make_flag_parser() -> argparse.ArgumentParser:
    """Build the parser of what is no field."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("flags")
    group.add_argument("--role", help="Which model of a recipe that describes several.")
    for flag, text in FLAGS.items():
        group.add_argument(flag, *{flag.replace("-", "_").replace("__", "--")} - {flag}, action="store_true", help=text)
    return parser


def make_parser(shows_all: bool = False) -> HfArgumentParser:
    """Build the parser of all fields; its help shows the usual ones."""
    summary, _, details = str(__doc__).partition("\n\n")
    parser = HfArgumentParser(
        DATACLASSES,
        parents=[make_flag_parser()],
        prog="dual-distill train",
        usage="dual-distill train RECIPE.yaml [--role NAME] [--field value ...] [--dry-run] [--json] [--debug]",
        description=summary,
        epilog=details,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    hidden = set() if shows_all else {field.name for field in dataclasses.fields(TrainingArguments)} - _USUAL
    for action in parser._actions:
        if action.dest in hidden or action.option_strings[0].startswith("--no_"):  # the negation of a field
            action.help = argparse.SUPPRESS
    return parser


def parse_recipe(
    words: Sequence[str], role: str | None = None
) -> tuple[ModelArguments, DataArguments, DistillationTrainingArguments]:
    """Read the recipe (first word, optional) and the fields that override it.

    Raises:
        ValueError: no such file or role, no mapping, or a name that is no field; the nearest field is named.
    """
    words, recipe = list(words), {}
    if words and not words[0].startswith("-"):
        recipe = read_recipe(Path(words.pop(0)), role)
    elif role is not None:
        raise ValueError(f"--role is {role!r}, but there is no recipe; give its file as the first word.")
    check_names(recipe)

    parser = make_parser()
    parser.set_defaults(**recipe)
    # The recipe's values are defaults, so what is given overrides them and texts are read as types.
    given, rest = parser.parse_known_args(words)
    if rest:
        check_names(word.removeprefix("--").split("=")[0] for word in rest if word.startswith("--"))
        raise ValueError(f"{' '.join(rest)!r} was not understood; write fields as --field value.")
    _fall_back(given)
    # As many as this process may use, by which torch warns.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = "dataloader_num_workers"
    if cores < getattr(given, workers) == recipe.get(workers):
        setattr(given, workers, cores)
        print(f"there are fewer cores here than {workers}; the run takes --{workers} {cores}", file=sys.stderr)
    return parser.parse_dict(vars(given), allow_extra_keys=True)


def _fall_back(given: argparse.Namespace) -> None:
    """Take back a precision that there is no device for; on a CPU that is asked for, torch has one."""
    there = {"bf16": is_torch_bf16_gpu_available(), "fp16": torch.accelerator.is_available()}
    for precision, is_there in there.items():
        if getattr(given, precision) and not is_there and not given.use_cpu:
            setattr(given, precision, False)
            print(f"there is no GPU with {precision} here; the run takes --{precision} false", file=sys.stderr)


def read_recipe(path: Path, role: str | None = None) -> dict[str, Any]:
    """Read a YAML mapping of fields, or of `base` and one of `roles`; refuse anything else, naming the file."""
    if not path.is_file():
        raise ValueError(f"there is no recipe {str(path)!r}; give the path of a YAML file.")
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds {type(recipe).__name__}; a recipe is a mapping of fields, `name: value`.")

    # Models that belong together share their base.
    roles = recipe.get("roles", {})
    if not roles and role is None:
        return recipe
    if role not in roles:
        given = "no --role is given" if role is None else f"--role is {role!r}"
        raise ValueError(f"{given}, but the roles of {path} are: {', '.join(roles) or 'none'}; give one of them.")
    return {**recipe.get("base", {}), **roles[role]}


def check_names(names: Iterable[str]) -> None:
    """Refuse the first name that is no field, with the one that was most likely meant."""
    known = [field.name for kind in DATACLASSES for field in dataclasses.fields(kind)]
    of_model = [field.name for field in dataclasses.fields(ModelArguments)]
    for name in names:
        if name not in known:
            # A field that changes the model is named for what is nearly equal only.
            meant = find_name(str(name), known, sensitive=of_model)
            hint = f"; did you mean {meant!r}?" if meant else "."
            raise ValueError(f"there is no field {name!r}{hint} `dual-distill train --help-all` lists all.")


def list_recipes() -> str:
    """Return the recipes of this folder, else of the repository that the package lies in, a line each."""
    folders = (Path("recipes"), Path(__file__).parents[3] / "recipes")
    files = next((found for folder in folders if (found := sorted(folder.glob("*.yaml")))), [])
    # A recipe opens with its data: up to the first colon, point or question mark.
    opening = [file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files]
    titles = [re.split(r"[:.?](?: |$)", line)[0] for line in opening]
    lines = [f"  {file!s:<40} {title}" for file, title in zip(files, titles, strict=True)]
    return "\n".join(lines or ["  none here; they lie in the folder recipes/ of the repository"])


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling a field, and its default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_nothing = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return text if says_nothing or "efault" in text else f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0 or not action.option_strings:
            return action.option_strings[0]
        if action.const is True:
            return f"{action.option_strings[0]} [true|false]"
        word = {int: "N", float: "X"}.get(action.type, "WORD") if isinstance(action.type, type) else "WORD"
        word = "PATH" if action.dest in _PATHS else word
        if action.choices is not None and len(list(action.choices)) <= _MOST_CHOICES:
            word = "{" + ",".join(map(str, action.choices)) + "}"
        return f"{action.option_strings[0]} {word}" + (" ..." if action.nargs == "+" else "")
