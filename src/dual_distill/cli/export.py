"""`dual-distill export MODEL OUT`: a dual encoder as three ONNX graphs, held against torch."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dual_distill.inference import ExportReport, export_onnx
from dual_distill.teachers import load_model

_EPILOG = """\
OUT gets text_tower.onnx, image_tower.onnx and head.onnx (any batch, text length and image size), the processor, and
export.json: the answers in the order of the logits, and whether probabilities are their softmax or sigmoid.

Encode each image once with the image tower and keep the vectors; a question costs the text tower and the head.
examples/answer_from_onnx.py answers from such a folder without torch.

example:
  dual-distill export runs/student runs/student-onnx
  python examples/answer_from_onnx.py runs/student-onnx --image photo.jpg "what is it?"

It needs onnx, onnxscript and onnxruntime: pip install 'dual-distill[onnx]'."""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill export",
        description="Export a dual encoder as three ONNX graphs: text tower, image tower, and the head that answers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or Hub repository of a dual encoder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="default: %(default)s")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Export and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        model, processor = load_model(options.model, revision=options.revision)
        report = export_onnx(model, processor, options.out)
    print(json.dumps(report.to_dict()) if options.json else summary(report))


def summary(report: ExportReport) -> str:
    """Lay a report out for reading."""
    lines = {
        "written": report.out,
        "architecture": report.architecture,
        **{name: f"{size / 1e6:.1f} MB" for name, size in report.files.items()},
        "largest difference to torch": f"{report.largest_difference:.2e} (largest value {report.largest_value:.3g})",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


__all__ = ["make_parser", "run", "summary"]
