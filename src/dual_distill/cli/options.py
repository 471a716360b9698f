"""What the subcommands share: a parser made of a docstring, options written once, and the printing of a result."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

_SAVED = "checkpoint folder or Hub repository (also owner/name@revision), ours or a ViLT"
# Arguments of `add_argument` by name.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "model": {"metavar": "MODEL", "help": _SAVED},
    "folder": {"metavar": "FOLDER", "type": Path, "help": "checkpoint folder, as `dual-distill train` writes it"},
    "out": {"metavar": "OUT", "type": Path, "help": "folder to write; must be new or empty"},
    "questions": {"metavar": "question", "nargs": "*", "help": "question or sentence about an image"},
    "--revision": {"metavar": "NAME", "help": "branch, tag, commit or refs/pr/N of a Hub repository"},
    "--top-k": {"type": int, "metavar": "N", "help": "answers a question (default: %(default)s)"},
    "--batch-size": {"type": int, "metavar": "N", "help": "rows a forward pass (default: %(default)s)"},
    "--device": {"help": "cpu, cuda, cuda:1 ... (default: cuda where there is one, else cpu)"},
    "--with-code": {"action": "store_true", "help": "with the model's code, for those without this package"},
    "--license": {"metavar": "NAME", "help": "licence of the weights as the Hub calls it, such as apache-2.0"},
    "--json": {"action": "store_true", "help": "print one JSON line on stdout, everything else on stderr"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},  # read by `main`
}


def command_parser(module: str, docstring: str | None, **options: Any) -> argparse.ArgumentParser:
    r"""Build the parser of a subcommand; the first paragraph of its docstring opens the help, the rest closes it.

    Example:
        >>> command_parser("dual_distill.cli.ask", "Ask a store.\n\nIt was encoded before.").epilog
        'It was encoded before.'
    """
    summary, _, details = (docstring or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"dual-distill {module.rpartition('.')[2]}",
        description=summary,
        epilog=details.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def add_options(parser: Any, *names: str, **defaults: Any) -> None:
    """Add shared options; a keyword sets the default of one, as `batch_size=16` does for --batch-size."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])
    for destination, default in defaults.items():
        name = f"--{destination.replace('_', '-')}"
        parser.add_argument(name, default=default, **OPTIONS[name])


def refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse those of the options that are given; they mean nothing here, and the message ends with `why`.

    Example:
        >>> refuse_options(argparse.Namespace(top_k=0, json=False), ["top_k", "json"], "is about answers")
        Traceback (most recent call last):
        ValueError: --top-k is about answers; leave it out.
    """
    given = [name for name in names if not any(getattr(options, name) is unset for unset in (None, False))]
    if given:
        spelled = ["MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in given]
        raise ValueError(f"{', '.join(spelled)} {why}; leave it out.")


def default_device() -> str:
    """Return the GPU of this process where there are several, the one that there is, or the CPU."""
    import torch  # here, so that a parser can be built without it

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def show(
    options: argparse.Namespace, compute: Callable[[argparse.Namespace], Any], lay_out: Callable[[Any], str]
) -> None:
    """Compute with stdout sent to stderr, then print the result, a dict or a report: as one JSON line, or laid out."""
    with redirect_stdout(sys.stderr):
        result = compute(options)
    if options.json:
        print(json.dumps(result if isinstance(result, dict) else asdict(result), ensure_ascii=False))
    else:
        print(lay_out(result))


def aligned(lines: Mapping[str, Any]) -> str:
    """Lay names and values out in two columns.

    Example:
        >>> print(aligned({"written": "out", "labels": 3}))
        written  out
        labels   3
    """
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def answer_blocks(answered: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Lay answers out: a block for each question, a line for each answer with its probability.

    Example:
        >>> print(answer_blocks([("is it red?", [{"answer": "yes", "score": 0.75}])]))
        is it red?
          yes   75.0 %
    """
    width = max((len(answer["answer"]) for _, answers in answered for answer in answers), default=0)
    return "\n\n".join(
        "\n".join([title, *(f"  {row['answer']:<{width}}  {100 * row['score']:5.1f} %" for row in answers)])
        for title, answers in answered
    )
