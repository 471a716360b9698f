"""Write README.md, the model card, into the folder of a checkpoint, with the evaluations that are given.

The card says what run.json beside the weights says, which every trainer writes, and no number without a source.
Evaluations are added to run.json, so `dual-distill push` finds them too. What stands outside the card's two markers is
yours and stays.

Examples:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --output student.json
  dual-distill evaluate runs/teacher --task easy_vqa --data path/to/easy_vqa --output teacher.json
  dual-distill card runs/student --evaluation student.json --teacher-evaluation teacher.json --repo me/my-student
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from dual_distill.hub_cards import add_evaluation, read_json, read_run, write_card, write_run

from .options import add_options, command_parser, show


def run(words: Sequence[str]) -> None:
    """Add the evaluations, write the card, and print where."""
    parser = command_parser(__name__, __doc__)
    add_options(parser, "folder")

    parser.add_argument("--evaluation", type=Path, help="JSON file that `dual-distill evaluate --output` wrote for it")
    parser.add_argument("--teacher-evaluation", type=Path, help="the same for its teacher, on the same rows")
    parser.add_argument("--repo", metavar="REPO", help="owner/name on the Hub, for the quick start; else the folder")

    add_options(parser, "--with-code", "--license", "--json", "--debug")
    show(parser.parse_args(words), card, lambda result: f"written: {result['card']}")


def card(options: argparse.Namespace) -> dict[str, str]:
    """Add the evaluations to run.json and write the card."""
    if options.teacher_evaluation and not options.evaluation:
        raise ValueError("--teacher-evaluation was given without --evaluation, beside which it stands; give both.")
    if options.evaluation:
        add(options.folder, options.evaluation, options.teacher_evaluation)
    file = write_card(
        options.folder, repo_id=options.repo, with_code=options.with_code, metadata={"license": options.license}
    )
    return {"card": str(file)}


def add(folder: Path, evaluation: Path, teacher: Path | None) -> None:
    """Add an evaluation to the folder's run.json; the source is the command that gave it, without paths."""
    for file in (evaluation, teacher):
        if file is not None and not file.is_file():
            raise ValueError(f"there is no file {str(file)!r}; `dual-distill evaluate --output` writes it.")
    record = read_run(folder)
    if record is None:
        unknown = f"{str(folder)!r} has no run.json, so it is not known what was trained on what"
        raise ValueError(f"{unknown}; train again, or write it with dual_distill.hub_cards.write_run.")

    found = read_json(evaluation)
    of_split = ["--task", str(found.get("task")), "--split", str(found.get("split"))]
    source = shlex.join(["dual-distill", "evaluate", *of_split])
    write_run(folder, add_evaluation(record, found, source, read_json(teacher) if teacher else None))
