"""`dual-distill VERB`: one module a verb; parsing and wiring only.

Bad input ends in one sentence on stderr and exit code 2; `--debug` shows the traceback instead.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from huggingface_hub.errors import StrictDataclassError

VERBS = {
    "quickstart": "train a teacher and two students on generated pictures, and show what distillation does",
    "train": "train a teacher, a plain model or a distilled student from a recipe",
    "evaluate": "evaluate a checkpoint on a task, with text-only and majority baselines beside it",
    "predict": "ask a checkpoint about images: the most probable answers, with probabilities, or a caption",
    "regions": "find the regions of images with an object detector, or read published ones, into a region store",
    "encode": "encode images or texts once, into a feature store",
    "ask": "ask a feature store: rank all its images, or answer about some",
    "export": "write the two towers and the head as ONNX graphs",
    "benchmark": "milliseconds of every way to answer with a checkpoint, alternating, in one process",
    "convert": "convert a ViLT checkpoint of transformers, checking that outputs are equal, or start from a BERT",
    "card": "write the model card of a checkpoint, with the evaluations that are given",
    "push": "push a checkpoint with its card to the Hub in one commit",
}
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs; modules of verbs that are not called are not imported."""
    parser = argparse.ArgumentParser(
        prog="dual-distill",
        description="Distil a fusion encoder (accurate, slow) into a dual encoder (images are encoded once, asked many times).",
        epilog="`dual-distill VERB --help` explains a verb.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: words after the program's name; None: those of the process.

    Returns:
        The exit code: 0, 2 for bad input, 130 when interrupted from the keyboard.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    # The verb's own parser reads what follows it, `--help` too.
    verb = make_parser().parse_known_args(words[:1] or ["--help"])[0].verb
    try:
        import_module(f"{__name__}.{verb}").run(words[1:])
        _leave_process_group()
    except KeyboardInterrupt:
        if debug:
            raise
        print("dual-distill: interrupted; the same command continues where it can.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"dual-distill {verb}: {_sentence(error)} (--debug shows the traceback)", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _leave_process_group() -> None:
    """Under `accelerate launch`: a process that just ends may break the connection of one that is still at work."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _sentence(error: Exception) -> str:
    """Return an error as one line; an unforeseen kind says what it is."""
    if isinstance(error, StrictDataclassError) and isinstance(error.__cause__, ValueError):
        error = error.__cause__  # a configuration's own sentence, wrapped by its validator
    text = str(error)
    if (
        text.startswith("Caught ") and "Original Traceback" in text
    ):  # a data loading process; torch puts its traceback here
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split())
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}"


__all__ = ["EXIT_BAD_INPUT", "EXIT_INTERRUPTED", "VERBS", "main", "make_parser"]
