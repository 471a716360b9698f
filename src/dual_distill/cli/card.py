"""`dual-distill card FOLDER`: write the model card of a checkpoint, with the evaluations that are given."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dual_distill.hub_cards import add_evaluation, read_json, read_run, write_card, write_run

_EPILOG = """\
The card says what run.json beside the weights says, which every trainer writes, and no number without a source. Evaluations are added to run.json, so `dual-distill push` finds them too. What stands outside the card's two
markers is yours and stays.

example:
  dual-distill evaluate runs/student --task easy_vqa --data path/to/easy_vqa --output student.json
  dual-distill evaluate runs/teacher --task easy_vqa --data path/to/easy_vqa --output teacher.json
  dual-distill card runs/student --evaluation student.json --teacher-evaluation teacher.json --repo me/my-student"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill card",
        description="Write README.md, the model card, into the folder of a checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="folder of a checkpoint, as `dual-distill train` wrote it"
    )
    parser.add_argument("--evaluation", type=Path, help="JSON file that `dual-distill evaluate --output` wrote for it")
    parser.add_argument("--teacher-evaluation", type=Path, help="the same for its teacher, on the same rows")
    parser.add_argument(
        "--repo", metavar="REPO", help="owner/name on the Hub for the quick start (default: this folder)"
    )
    parser.add_argument("--with-code", action="store_true", help="the quick start is for those without this package")
    parser.add_argument(
        "--license", metavar="NAME", help="licence of the weights as the Hub calls it, such as apache-2.0"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Add the evaluations, write the card, and print where."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        if options.teacher_evaluation and not options.evaluation:
            raise ValueError(
                "--teacher-evaluation was given without --evaluation; a teacher's numbers stand beside the model's."
            )
        if options.evaluation:
            add(options.folder, options.evaluation, options.teacher_evaluation)
        file = write_card(
            options.folder, repo_id=options.repo, with_code=options.with_code, license_name=options.license
        )
    print(json.dumps({"card": str(file)}) if options.json else f"written: {file}")


def add(folder: Path, evaluation: Path, teacher: Path | None) -> None:
    """Add an evaluation to the folder's run.json; the source is the command that gave it, without paths."""
    for file in (evaluation, *([teacher] if teacher else [])):
        if not file.is_file():
            raise ValueError(
                f"there is no file {str(file)!r}; give the one that `dual-distill evaluate --output` wrote."
            )
    record = read_run(folder)
    if record is None:
        raise ValueError(
            f"{str(folder)!r} has no run.json, so it is not known what was trained on what; train again, or write the "
            "record with dual_distill.hub_cards.write_run."
        )
    found = read_json(evaluation)
    source = shlex.join(
        ["dual-distill", "evaluate", "--task", str(found.get("task")), "--split", str(found.get("split"))]
    )
    write_run(folder, add_evaluation(record, found, source, read_json(teacher) if teacher else None))


__all__ = ["add", "make_parser", "run"]
