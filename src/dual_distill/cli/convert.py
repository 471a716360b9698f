"""`dual-distill convert SOURCE OUT`: a ViLT checkpoint of transformers becomes one of ours, proved on a random batch."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dual_distill.conversion import HEADS, VILT_HEADS, ConversionReport, convert_folder
from dual_distill.modeling import FusionEncoderConfig

_EPILOG = f"""\
SOURCE is a folder or a Hub repository that was saved as one of
  {", ".join(VILT_HEADS)}.
It needs safetensors weights; pickles (pytorch_model.bin) are never read. Where a repository has a pull request that
adds them, name it with --revision refs/pr/N.

OUT gets model, processor, and the answers or classes in their order. It loads with
AutoModelForVisualQuestionAnswering.from_pretrained (AutoModelForSequenceClassification, AutoModelForMaskedLM, AutoModel),
as the teacher of `dual-distill train`, and in `dual-distill evaluate`.

What is written is loaded again and compared with the original on a random batch of unequal texts and images; OUT appears
only when the two agree. Converting first is not needed for training, which takes a ViLT's name for a teacher too.

examples:
  dual-distill convert dandelin/vilt-b32-finetuned-vqa runs/vilt-vqa
  dual-distill convert dandelin/vilt-b32-finetuned-vqa runs/vilt-vqa --revision refs/pr/N
  dual-distill convert path/to/my-vilt runs/body --head bare --json"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill convert",
        description="Convert a ViLT checkpoint of transformers to a fusion encoder with the same outputs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder or Hub repository of a ViLT")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--revision", help="branch, tag, commit or refs/pr/N of a Hub repository")
    parser.add_argument(
        "--head",
        choices=list(HEADS[FusionEncoderConfig.model_type]),
        help="head of the checkpoint, for one whose config does not say; bare leaves the head out (default: as it was saved)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Convert and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = convert_folder(options.source, options.out, options.revision, options.head)
    print(json.dumps(report.to_dict()) if options.json else summary(report))


def summary(report: ConversionReport) -> str:
    """Lay a report out for reading."""
    lines = {
        "written": report.out,
        "loads as": report.architecture,
        "parameters": f"{report.parameters / 1e6:.1f} M",
        "labels": str(report.labels or "none"),
        f"largest difference of {report.output}": f"{report.largest_difference:.2e} (largest value {report.largest_value:.3g})",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


__all__ = ["make_parser", "run", "summary"]
