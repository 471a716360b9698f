"""A recipe and the fields that override it, and a `train --help` that fits on a few screens.

The three dataclasses have 170 fields, of which transformers brings most. Help shows ours and those of transformers'
that recipes use; `--help-all` shows every one.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from dual_distill.runs import DataArguments, ModelArguments
from dual_distill.trainer import DistillationTrainingArguments

DATACLASSES = (ModelArguments, DataArguments, DistillationTrainingArguments)
FLAGS = {
    "--dry-run": "Check paths, columns, first pictures, labels and the pairing of teacher and student; count steps and memory. "
    "Reads no weights, trains nothing, writes nothing, needs no GPU.",
    "--json": "Print the results as one JSON line on stdout, everything else on stderr.",
    "--debug": "Show the traceback of an error.",
    "--help-all": "Show every field of transformers' TrainingArguments too.",
}
# Of transformers' fields those that recipes set.
_USUAL = (
    *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("per_device_eval_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2"),
    *("bf16", "use_cpu", "activation_checkpointing", "dataloader_num_workers", "dataloader_persistent_workers", "seed"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
    *("metric_for_best_model", "logging_steps", "report_to", "disable_tqdm"),
)
_MOST_CHOICES = 4
_EPILOG = """\
example recipe (teacher.yaml), a model from nothing:
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

VQA v2 with a ViLT from the Hub as teacher, looked at first:
  dual-distill train recipes/vqa_v2_distilled.yaml --data path/to/vqa_v2 --dry-run

a custom dataset, with a ViLT from the Hub as the start of a teacher:
  dual-distill train recipes/custom_teacher.yaml --data shop.csv --image_column photo --text_column question --label_column
  answer

Fields are given as in the recipe, --field value; they override it. A run that was interrupted continues from the last
checkpoint in its output_dir. Recipes set bf16 for a GPU; on a CPU give --bf16 false --use_cpu true."""


def parse_recipe(words: Sequence[str]) -> tuple[ModelArguments, DataArguments, DistillationTrainingArguments]:
    """Read the recipe (first word, optional) and the fields that override it; `FLAGS` have been taken out of the words.

    Raises:
        ValueError: no such file, no mapping, or a name that is no field; the nearest field is named.
    """
    words = list(words)
    parser = _Parser(
        DATACLASSES,
        prog="dual-distill train",
        usage="dual-distill train [RECIPE.yaml] [--field value ...] [--dry-run] [--json] [--debug]",
        description="Train a teacher, a plain model, or a student that is distilled from a teacher.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    recipe = read_recipe(Path(words.pop(0))) if words and not words[0].startswith("-") else {}
    check_names(recipe)
    parser.set_defaults(**recipe)
    *arguments, rest = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        check_names({word.removeprefix("--").split("=")[0]: None for word in rest if word.startswith("--")})
        raise ValueError(f"{' '.join(rest)!r} was not understood; write fields as --field value.")
    return tuple(arguments)


def show_all_fields() -> None:
    """Print the help of every field."""
    parser = _Parser(
        DATACLASSES, usage="dual-distill train [RECIPE.yaml] [--field value ...]", formatter_class=_HelpFormatter
    )
    parser.shows_all = True
    parser.print_help()


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of fields; refuse anything else, naming the file."""
    if not path.is_file():
        raise ValueError(f"there is no recipe {str(path)!r}; give the path of a YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{path} holds {type(recipe).__name__}; a recipe is a mapping of fields, `name: value` a line."
        )
    return recipe


def check_names(fields: Iterable[str]) -> None:
    """Refuse the first name that is no field, with the nearest that is."""
    known = [field.name for kind in DATACLASSES for field in dataclasses.fields(kind)]
    for name in fields:
        # Both spellings are fields on the command line; a recipe has underscores alone.
        if name in known:
            continue
        nearest = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1, cutoff=0.0)
        raise ValueError(
            f"there is no field {name!r}; did you mean {nearest[0]!r}? `dual-distill train --help-all` lists all."
        )


class _Parser(HfArgumentParser):
    """Lays its help out by what the fields are about."""

    shows_all = False

    def format_help(self) -> str:
        """Return the help, transformers' own fields last, and only the usual ones unless `shows_all`."""
        actions = {
            action.dest: action for action in reversed(self._actions)
        }  # --no_x comes after --x, of the same dest
        inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
        names = {kind: [field.name for field in dataclasses.fields(kind)] for kind in DATACLASSES}
        sections = {
            "model": names[ModelArguments],
            "data": names[DataArguments],
            "distillation": [name for name in names[DistillationTrainingArguments] if name not in inherited],
            "training (fields of transformers; --help-all shows the rest)": (
                [name for name in names[DistillationTrainingArguments] if name in inherited]
                if self.shows_all
                else _USUAL
            ),
        }
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        flags = [argparse.Action([flag], flag, nargs=0, help=text) for flag, text in FLAGS.items()]
        for title, of_section in {
            "flags": flags,
            **{t: [actions[n] for n in ns] for t, ns in sections.items()},
        }.items():
            formatter.start_section(title)
            formatter.add_arguments(of_section)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _HelpFormatter(argparse.HelpFormatter):
    """One spelling a field, its default where it says something, and the lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_nothing = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return text if says_nothing or "efault" in text else f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0 or not action.option_strings:
            return action.option_strings[0]
        if action.const is True:
            return f"{action.option_strings[0]} [true|false]"
        if action.choices is not None and len(list(action.choices)) <= _MOST_CHOICES:
            word = "{" + ",".join(map(str, action.choices)) + "}"
        else:
            word = {int: "N", float: "X"}.get(action.type, "WORD") if isinstance(action.type, type) else "WORD"
        return f"{action.option_strings[0]} {word}" + (" ..." if action.nargs == "+" else "")


__all__ = ["DATACLASSES", "FLAGS", "check_names", "parse_recipe", "read_recipe", "show_all_fields"]
