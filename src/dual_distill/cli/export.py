"""Export a dual encoder as ONNX graphs: text tower, image tower, and the head that answers.

The folder gets text_tower.onnx, image_tower.onnx and head.onnx (any batch, text length and image size), the processor,
and export.json: the answers in the order of the logits, and whether probabilities are their softmax or sigmoid. Of a
model with interaction layers it gets image_tower.onnx, which gives an image's tokens, and question.onnx, which reads
them.

Encode each image once with the image tower and keep what it gives; a question costs the other graphs.
examples/answer_from_onnx.py answers from such a folder without torch.

Examples:
  dual-distill export runs/student --output-dir runs/student-onnx
  python examples/answer_from_onnx.py runs/student-onnx --image photo.jpg "what is it?"

It needs onnx, onnxscript and onnxruntime: pip install 'dual-distill[onnx]'.
"""

import argparse
import sys

from dual_distill.inference import ExportReport, export_onnx
from dual_distill.teachers import load_model

from .options import add_options, aligned, option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the folder."""
    add_options(parser, "model", "--revision")
    option(parser, "--output-dir", "PATH", "folder to write; must be new or empty", required=True)
    rounded = "of the weights (default: %(default)s); int8 and float16 are smaller and round"
    parser.add_argument("--precision", choices=["float32", "float16", "int8"], default="float32", help=rounded)
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="default: %(default)s")


def run(options: argparse.Namespace) -> ExportReport:
    """Load and export."""
    model, processor = load_model(options.model, options.revision)
    print("making the graphs and holding them against torch, which takes a minute or two", file=sys.stderr)
    return export_onnx(model, processor, options.output_dir, options.precision)


def table(report: ExportReport) -> str:
    """Lay a report out for reading."""
    sizes = {name: f"{size / 1e6:.1f} MB" for name, size in report.files.items()}
    difference = f"{report.largest_difference:.2e} (largest value {report.largest_value:.3g})"
    lines = {"written": report.out, "architecture": report.architecture, **sizes}
    return aligned({**lines, "largest difference to torch": difference})
