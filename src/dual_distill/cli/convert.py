"""`dual-distill convert SOURCE OUT`: a ViLT of transformers becomes one of ours, a BERT the start of one over regions.

Parity with the original is checked on a random batch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from dual_distill.modeling import FusionEncoderForMaskedLM, FusionEncoderModel
from dual_distill.regions import RegionStore
from dual_distill.runs import HEADS
from dual_distill.teachers import MAX_POSITIONS, VILT_CLASSES, ConversionReport, convert_folder, start_folder

_CLASSES = {"bare": FusionEncoderModel, "masked_lm": FusionEncoderForMaskedLM} | {
    name: spec.classes[0] for name, spec in HEADS.items()
}
_EPILOG = f"""\
SOURCE is a folder or a Hub repository that was saved as one of
  {", ".join(VILT_CLASSES)}.
It needs safetensors weights; pickles (pytorch_model.bin) are never read. Where a repository has a pull request that
adds them, name it with --revision refs/pr/N.

OUT gets model, processor, and the answers or classes in their order. It loads with
AutoModelForVisualQuestionAnswering.from_pretrained (AutoModelForSequenceClassification, AutoModelForMaskedLM,
AutoModel), as the teacher of `dual-distill train`, and in `dual-distill evaluate`.

What is written is loaded again and compared with the original on a random batch of unequal texts and images; OUT
appears only when the two agree. Converting first is not needed for training, which takes a ViLT's name for a teacher
too.

With --regions, SOURCE is a BERT-like checkpoint (MiniLM's too): OUT is then the start of a fusion encoder over regions,
to be trained with `dual-distill train --init_from OUT`. Words, layers and pooler are the BERT's, held against it on
random words without regions; the map of regions is newly initialized. --head captioning takes its masked-word head over as
well, where it has one; for questions set new_head in training, whatever OUT has.

examples:
  dual-distill convert dandelin/vilt-b32-finetuned-vqa runs/vilt-vqa
  dual-distill convert dandelin/vilt-b32-finetuned-vqa runs/vilt-vqa --revision refs/pr/N
  dual-distill convert path/to/my-vilt runs/body --head bare --json
  dual-distill convert google-bert/bert-base-uncased runs/starts/bert --regions regions/teacher --head captioning"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill convert",
        description="Convert a ViLT checkpoint of transformers to a fusion encoder with the same outputs, or start one over\n"
        "regions from a BERT.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="checkpoint folder or Hub repository of a ViLT, or with --regions of a BERT"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--revision", help="branch, tag, commit or refs/pr/N of a Hub repository")
    parser.add_argument(
        "--head",
        choices=list(_CLASSES),
        help="head of the checkpoint, for one whose config does not say; bare leaves the head out (default: as it was saved; "
        "with --regions bare)",
    )
    parser.add_argument(
        "--regions",
        metavar="STORE",
        help="start a model that reads the features of this store (`dual-distill regions`)",
    )
    parser.add_argument(
        "--max-positions",
        type=int,
        metavar="N",
        help=f"with --regions: most places for words, tags among them (default: {MAX_POSITIONS}, 40 and 30, as in the recipes)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Convert and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = start(options) if options.regions is not None else convert(options)
    print(json.dumps(report.to_dict()) if options.json else summary(report))


def convert(options: argparse.Namespace) -> ConversionReport:
    """Convert a ViLT."""
    if options.max_positions is not None:
        raise ValueError("--max-positions is about a start over regions, but --regions is not given; leave it out.")
    return convert_folder(options.source, options.out, options.revision, _CLASSES.get(options.head))


def start(options: argparse.Namespace) -> ConversionReport:
    """Start a model over regions from a BERT."""
    most = MAX_POSITIONS if options.max_positions is None else options.max_positions
    feature_size = RegionStore(options.regions).feature_size
    return start_folder(
        options.source, options.out, feature_size, _CLASSES[options.head or "bare"], options.revision, most
    )


def summary(report: ConversionReport) -> str:
    """Lay a report out for reading."""
    lines = {
        "written": report.out,
        "loads as": report.architecture,
        "parameters": f"{report.parameters / 1e6:.1f} M",
        "labels": str(report.labels or "none"),
        f"largest difference of {report.output}": f"{report.largest_difference:.2e} (largest value {report.largest_value:.3g})",
    }
    if report.new:
        lines["newly initialized, to be trained"] = ", ".join(report.new)
    if report.left_out:
        lines["left out"] = ", ".join(report.left_out)
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


__all__ = ["convert", "make_parser", "run", "start", "summary"]
