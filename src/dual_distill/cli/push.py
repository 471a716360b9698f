"""Push a checkpoint, its processor, card and attention image to the Hugging Face Hub in one commit, or not at all.

A pickle in the folder, a damaged file, or a token, a path of this machine or the name of its user in any text ends the
push before it begins.

README.md, the card, is written from run.json each time; what stands outside its two markers is yours and stays. The
Hub token is that of `hf auth login`, or HF_TOKEN.

Examples:
  dual-distill push runs/student me/my-student --dry-run
  dual-distill push runs/student me/my-student --private --license apache-2.0
  dual-distill push runs/student me/my-student --space my-space
  dual-distill push runs/student me/my-student --with-code --create-pr --message "Second seed"
"""

import argparse
import sys
import textwrap

from dual_distill.hub_cards import PUBLISHED, PushReport, push_folder, read_run

from .options import add_options, option, refuse_options

_SENT = textwrap.fill(f"Sent beside the card are, where they are there: {', '.join(PUBLISHED)}.", 118)
__doc__ = f"{__doc__}\n{_SENT} Everything else stays here.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder and its repository."""
    add_options(parser, "folder")
    option(parser, "repo_id", "REPO", "owner/name on the Hub; created when it is not there")
    parser.add_argument("--private", action="store_true", help="create it private, and refuse one that is public")
    option(parser, "--revision", "NAME", "branch to push to, made when it is not there (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    option(parser, "--message", "TEXT", "of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    option(parser, "--space", "PATH", "write the folder of a Space that shows it too; sent with `hf upload`")
    add_options(parser, "--with-code", "--license")


def run(options: argparse.Namespace) -> PushReport:
    """Push as the options say."""
    if options.space is not None:
        refuse_options(options, ["create_pr"], "is given, but --space shows what a branch holds")
    given = {name: getattr(options, name) for name in ("revision", "create_pr", "message", "dry_run", "with_code")}
    # None, not False: a public one that is there stays public.
    private, metadata = options.private or None, {"license": options.license}
    report = push_folder(options.folder, options.repo_id, private=private, metadata=metadata, **given)
    if options.space is not None:
        # Here, since a push needs neither models nor torch.
        from dual_distill.demo import write_space

        record = read_run(options.folder)
        taught_by = record.teacher if record is not None else None
        teacher = f"{taught_by.name}@{taught_by.revision}" if taught_by is not None and taught_by.on_hub else None
        pushed = f"{report.repo_id}@{report.revision}" if report.revision else report.repo_id
        write_space(options.space, pushed, teacher)
        upload = f"hf upload {report.repo_id}-space {options.space} --repo-type space"
        print(f"the Space's folder is {options.space}; {upload} sends it", file=sys.stderr)
    return report


def table(report: PushReport) -> str:
    """Lay a report out for reading."""
    width = max(map(len, report.files))
    sizes = {**report.files, "in all": sum(report.files.values())}
    lines = [f"{name:<{width}}  {size:>14,} bytes" for name, size in sizes.items()]

    # What does not go, and what goes from there.
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
