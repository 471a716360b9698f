"""`dual-distill COMMAND`: one module a subcommand, with its arguments, one call and its report.

Bad input ends in one sentence on stderr and exit code 2; `--debug` shows the traceback instead. Modules of commands
that are not called are not imported, so help and a typo cost no import of torch.
"""

import argparse
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "train a teacher and three students on generated images, and show what distillation does",
    "train": "train a teacher, a plain model or a distilled student from a recipe",
    "teach": "write what a teacher says of a task's rows into a store that students learn from without it",
    "evaluate": "evaluate a checkpoint on a task, with question-only and majority baselines beside it",
    "predict": "ask a checkpoint about images: the most probable answers, with probabilities, or a caption",
    "attention": "draw where each word of a text looks in an image: any model, or a teacher beside its student",
    "demo": "show a checkpoint in the browser: answers, where each word looks, milliseconds, search",
    "regions": "find the regions of images with an object detector, or read published ones, into a region store",
    "encode": "encode images or texts once, into a feature store",
    "ask": "ask a feature store: rank all its images, or answer about some",
    "serve": "answer, search and encode over HTTP, with a model and its store in memory",
    "export": "write the two towers and the head as ONNX graphs",
    "benchmark": "milliseconds of every way to answer with a checkpoint, alternating, in one process",
    "convert": "convert a ViLT checkpoint of transformers to one with equal outputs, or start from a BERT",
    "card": "write the model card of a checkpoint, with the evaluations that are given",
    "push": "push a checkpoint with its card to the Hub in one commit",
}
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; None: those of the process.

    Returns:
        The exit code: 0, 2 for bad input, 130 when interrupted from the keyboard.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        # Here, since the import takes longer than help does.
        from importlib.metadata import version

        print(f"dual-distill {version('dual-distill')}")
        return 0
    # The command's own parser reads what follows it, `--help` too.
    command = _parser().parse_known_args(words[:1] or ["--help"])[0].command

    try:
        # Here, since a parser of commands needs none of it.
        from .options import run_command

        run_command(command, words[1:])
        _leave_process_group()
    except KeyboardInterrupt:
        if debug:
            raise
        print("dual-distill: interrupted; the same command continues where it can.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"dual-distill {command}: {_sentence(error)} (--debug shows the traceback)", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dual-distill",
        description="Distil a fusion encoder (accurate, slow) into a dual encoder (images are encoded once).",
        epilog="`dual-distill COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version of the package")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, summary in COMMANDS.items():
        commands.add_parser(command, help=summary, add_help=False)
    return parser


def _leave_process_group() -> None:
    """Under `accelerate launch`: a process that just ends may break the connection of one that is still at work."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _sentence(error: Exception) -> str:
    """Return an error as one line; an unforeseen kind says what it is."""
    # Here, not above: help needs no client of the Hub.
    from huggingface_hub.errors import StrictDataclassError

    from .options import without_credentials

    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__  # a configuration's own sentence, wrapped by its validator
    text = str(error)
    # An error of a data loading process carries its traceback, and its own sentence last.
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = without_credentials(" ".join(text.split()))
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
