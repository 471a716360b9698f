"""Write README.md, the model card, into the folder of a checkpoint, with the evaluations that are given.

The card says what run.json beside the weights says, which every trainer writes, and no number without a source.
Evaluations are added to run.json, so `dual-distill push` finds them too. What stands outside the card's two markers is
yours and stays.

Examples:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --output-dir runs/student
  dual-distill evaluate runs/teacher --task easy_vqa --data path/to/easy_vqa --output-dir runs/teacher
  dual-distill card runs/student --evaluation runs/student --teacher-evaluation runs/teacher --repo me/my-student
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from dual_distill.hub_cards import add_evaluation, read_run, write_card, write_run
from dual_distill.sealed import read_json

from .options import add_options, option

EVALUATION = "evaluation.json"
"""File of `dual-distill evaluate --output-dir`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, the evaluations, and what the card is told."""
    add_options(parser, "folder")
    option(parser, "--evaluation", "PATH", "what `dual-distill evaluate --output-dir` wrote for it: file or folder")
    option(parser, "--teacher-evaluation", "PATH", "the same for its teacher, on the same rows")
    option(parser, "--repo", "REPO", "owner/name on the Hub, for the quick start; else the folder")
    add_options(parser, "--with-code", "--license")


def run(options: argparse.Namespace) -> dict[str, str]:
    """Add the evaluations to run.json and write the card."""
    if options.teacher_evaluation and not options.evaluation:
        raise ValueError("--teacher-evaluation was given without --evaluation, beside which it stands; give both.")
    if options.evaluation:
        _add_evaluations(options.folder, options.evaluation, options.teacher_evaluation)

    metadata = {"license": options.license}
    file = write_card(options.folder, repo_id=options.repo, with_code=options.with_code, metadata=metadata)
    return {"card": str(file)}


def _add_evaluations(folder: Path, evaluation: Path, teacher: Path | None) -> None:
    """Add an evaluation to the folder's run.json; the source is the command that gave it, without paths."""
    record = read_run(folder)
    if record is None:
        unknown = f"{str(folder)!r} has no run.json, so it is not known what was trained on what"
        raise ValueError(f"{unknown}; train again, or write it with dual_distill.hub_cards.write_run.")

    # The source is said as a command, without the paths of this machine.
    found, of_teacher = _read(evaluation), _read(teacher) if teacher else None
    of_split = ["--task", str(found.get("task")), "--split", str(found.get("split"))]
    source = shlex.join(["dual-distill", "evaluate", *of_split])
    write_run(folder, add_evaluation(record, found, source, of_teacher))


def _read(path: Path) -> dict[str, Any]:
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}; `dual-distill evaluate --output-dir` writes it.")
    return read_json(file)


def table(result: dict[str, str]) -> str:
    """Say where the card is."""
    return f"written: {result['card']}"
