r"""Convert a ViLT checkpoint to a fusion encoder with the same outputs, or start one over regions from a BERT.

SOURCE is a folder or a Hub repository that was saved as a class of transformers: ViltModel, ViltForQuestionAnswering,
ViltForImagesAndTextClassification, ViltForImageAndTextRetrieval or ViltForMaskedLM. It needs safetensors weights;
pickles (pytorch_model.bin) are never read. Where a repository has a pull request that adds them, name it with
--revision refs/pr/N.

The output folder gets model, processor, and the answers or classes in their order. It loads with
AutoModelForVisualQuestionAnswering.from_pretrained (AutoModelForSequenceClassification, AutoModelForMaskedLM,
AutoModel), as the teacher of `dual-distill train`, and in `dual-distill evaluate`.

What is written is loaded again and compared with the original on a random batch of unequal texts and images; the
folder appears only when the two agree. Converting first is not needed for training, which takes a ViLT's name for a
teacher too.

With --regions, SOURCE is a BERT-like checkpoint (MiniLM's too), and the output the start of a fusion encoder over
regions, to be trained with `dual-distill train --init_from PATH`. Words, layers and pooler are the BERT's, compared
with it on random tokens without regions; the map of regions is newly initialized. --head captioning takes its
masked-word head over as well, where it has one; for questions set new_head in training, whatever it has.

Examples:
  dual-distill convert dandelin/vilt-b32-finetuned-vqa --output-dir runs/vilt-vqa
  dual-distill convert dandelin/vilt-b32-finetuned-vqa --output-dir runs/vilt-vqa --revision refs/pr/N
  dual-distill convert path/to/my-vilt --output-dir runs/body --head bare --json
  dual-distill convert google-bert/bert-base-uncased --output-dir runs/starts/bert --regions regions/teacher \
      --head captioning
"""

import argparse

from transformers import PreTrainedModel

from dual_distill.modeling import FusionEncoderForMaskedLM, FusionEncoderModel
from dual_distill.regions import RegionStore
from dual_distill.runs import HEADS
from dual_distill.teachers import MAX_POSITIONS, ConversionReport, convert_folder, start_folder

from .options import add_options, aligned, option, refuse_options

_CLASSES: dict[str, type[PreTrainedModel]] = {
    "bare": FusionEncoderModel,
    "masked_lm": FusionEncoderForMaskedLM,
    **{name: spec.fusion_class for name, spec in HEADS.items()},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is converted, and into what."""
    option(parser, "source", "SOURCE", "folder or Hub repository of a ViLT, with --regions of a BERT")
    add_options(parser, "--revision")
    option(parser, "--output-dir", "PATH", "folder to write; must be new or empty", required=True)
    head = "for a checkpoint whose config does not say; bare: none (default: as it was saved; with --regions bare)"
    parser.add_argument("--head", choices=list(_CLASSES), help=head)
    option(parser, "--regions", "PATH", "start a model that reads the features of this region store")
    positions = f"with --regions: most text positions (default: {MAX_POSITIONS}: 40 for words, 30 for tags)"
    option(parser, "--max-positions", "N", positions)


def run(options: argparse.Namespace) -> ConversionReport:
    """Convert a ViLT, or start a model over regions from a BERT."""
    if options.regions is None:
        refuse_options(options, ["max_positions"], "is about a start over regions, but --regions is not given")
        return convert_folder(options.source, options.output_dir, options.revision, _CLASSES.get(options.head))

    width = RegionStore(options.regions).feature_size
    positions = MAX_POSITIONS if options.max_positions is None else options.max_positions
    head = _CLASSES[options.head or "bare"]
    return start_folder(options.source, options.output_dir, width, head, options.revision, positions)


def table(report: ConversionReport) -> str:
    """Lay a report out for reading."""
    difference = f"{report.largest_difference:.2e} (largest value {report.largest_value:.3g})"
    lines = {
        "written": report.out,
        "loads as": report.architecture,
        "parameters": f"{report.parameters / 1e6:.1f} M",
        "labels": report.labels or "none",
        f"largest difference of {report.output}": difference,
        "newly initialized, to be trained": ", ".join(report.new),
        "left out": ", ".join(report.left_out),
    }
    return aligned({name: value for name, value in lines.items() if value})
