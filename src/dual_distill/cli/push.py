"""`dual-distill push FOLDER REPO`: a checkpoint with its card goes to the Hub in one commit, or not at all."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dual_distill.hub_cards import PUBLISHED, PushReport, push_folder

_EPILOG = f"""\
sent, where the folder has them:
  {", ".join(PUBLISHED[:9])},
  {", ".join(PUBLISHED[9:])}; and README.md, the card.
Everything else stays here. A pickle in the folder, a damaged file, or a token, a path of this machine or the name of
its user in any text ends the push before it begins.

README.md is written from run.json each time; what stands outside its two markers is yours and stays.
The Hub token is that of `hf auth login`, or HF_TOKEN.

examples:
  dual-distill push runs/student me/my-student --dry-run
  dual-distill push runs/student me/my-student --private --license apache-2.0
  dual-distill push runs/student me/my-student --with-code --create-pr --message "Second seed" """


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill push",
        description="Push a checkpoint, its processor, card and picture to the Hugging Face Hub in one commit.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="folder of a checkpoint, as `dual-distill train` wrote it"
    )
    parser.add_argument("repo_id", metavar="REPO", help="owner/name on the Hub; created when it is not there")
    parser.add_argument("--private", action="store_true", help="create it private, and refuse one that is public")
    parser.add_argument("--revision", help="branch to push to, made when it is not there (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--with-code", action="store_true", help="send the model's code too, for those without this package"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="licence of the weights as the Hub calls it, such as apache-2.0"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Push and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = push_folder(
            options.folder,
            options.repo_id,
            private=options.private or None,
            revision=options.revision,
            create_pr=options.create_pr,
            message=options.message,
            dry_run=options.dry_run,
            with_code=options.with_code,
            license_name=options.license,
        )
    print(json.dumps(report.to_dict()) if options.json else summary(report))


def summary(report: PushReport) -> str:
    """Lay a report out for reading."""
    width = max(map(len, report.files))
    lines = [f"{name:<{width}}  {size:>14,} bytes" for name, size in report.files.items()]
    lines.append(f"{'in all':<{width}}  {sum(report.files.values()):>14,} bytes")
    if report.left_out:
        lines.append(f"stays here: {', '.join(report.left_out)}")
    if report.deleted:
        lines.append(f"deleted there, weights of an earlier push: {', '.join(report.deleted)}")
    if report.dry_run:
        lines.append(f"dry run: nothing was sent to {report.repo_id}")
    elif report.changed:
        lines.append(f"pushed in one commit: {report.url}")
    else:
        lines.append(f"{report.repo_id} held all of this already; no commit was made")
    return "\n".join(lines)


__all__ = ["make_parser", "run", "summary"]
