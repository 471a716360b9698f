r"""Find the regions of images with an object detector, and store boxes, tags and backbone features.

MODEL is any object detector of transformers (DETR, Conditional and Deformable DETR, RT-DETR, D-FINE, YOLOS ...), as a
folder or a Hub repository with safetensors weights.

--images takes
  a folder             all image files below it; ids are their paths, such as 2024/cat.jpg
  a Parquet file       ids are the values of --id-column, or the numbers of the rows
  a dataset            a folder that Dataset.save_to_disk wrote, or owner/name on the Hub; ids likewise

--boxes PATH takes boxes and tags of another store, and describes them with MODEL's backbone: the inputs of a teacher
that is to be distilled into a student whose detector made that store (teacher adaptation).

--tsv PATH reads published features instead: bottom-up attention's six columns, VinVL's predictions.tsv, or Oscar's
features with --labels and --sizes. Training finds the regions of an image by its content, which such a file does not
hold: give --images, whose ids are those of the file, too.

A killed run continues with the same command, and the store comes out the same, bit for bit. Images that cannot be read
are listed and do not end the run (--strict: they do); once they can be, the same command describes them.

Examples:
  dual-distill regions hustvl/yolos-tiny --images photos --output-dir regions/student
  dual-distill regions facebook/detr-resnet-50@no_timm --images photos --boxes regions/student \
      --output-dir regions/teacher
  dual-distill regions --tsv trainval_36.tsv --images coco.parquet --id-column image_id --made-by "bottom-up" \
      --output-dir regions/butd
"""

import argparse
from pathlib import Path
from typing import Any

from dual_distill import regions
from dual_distill.hub_cards import split_revision
from dual_distill.inference import open_images
from dual_distill.teachers import fetch

from .encode import add_store_options, unreadable_lines
from .options import add_options, option, refuse_options

_OF_BOXES = ("threshold", "min_regions", "max_regions")
_OF_DETECTION = ("model", "boxes", "revision", *_OF_BOXES, "batch_size", "num_workers", "strict")
_OF_TSV = ("labels", "sizes", "made_by", "cut_box_numbers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the detector and the images, or the files of published features."""
    option(parser, "model", "MODEL", "an object detector; none with --tsv", nargs="?")
    option(parser, "--images", "PATH_OR_DATASET", "what to look at; see below")
    option(parser, "--tsv", "PATH", "published region features; --images then says of which images")
    option(parser, "--boxes", "PATH", "take the boxes and tags of this store")
    add_store_options(parser)

    # Without defaults, so that what means nothing beside --tsv or --boxes can be refused.
    option(parser, "--threshold", "X", f"lowest score of a region (default: {regions.THRESHOLD})")
    option(parser, "--min-regions", "N", f"of the likeliest, whatever their scores (default: {regions.MIN_REGIONS})")
    option(parser, "--max-regions", "N", f"of the likeliest (default: {regions.MAX_REGIONS})")
    option(parser, "--batch-size", "N", f"images a forward pass (default: {regions.BATCH_SIZE})")
    option(parser, "--shard-size", "N", f"images a file, all that a kill costs (default: {regions.SHARD_SIZE})")
    option(parser, "--labels", "PATH", "TSV of boxes and classes, for features without")
    option(parser, "--sizes", "PATH", "TSV of the sizes of images, for features without")
    option(parser, "--made-by", "TEXT", "which detector made the features of --tsv, in words")
    cut = "leave out the last six numbers of each vector of --tsv (2054 = 2048 + 6)"
    parser.add_argument("--cut-box-numbers", action="store_true", help=cut)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored features")
    add_options(parser, "--revision", "--device")


def run(options: argparse.Namespace) -> regions.RegionReport:
    """Read published features, or look at the inputs first, then load the detector and look at the images."""
    if options.tsv is not None:
        return _from_tsv(options)
    refuse_options(options, _OF_TSV, "is about published features, but --tsv is not given")
    if options.model is None or options.images is None:
        raise ValueError("A detector and --images are needed, or --tsv with published features.")

    images = open_images(options.images, options.image_column, options.id_column, options.split)
    boxes = None if options.boxes is None else regions.RegionStore(options.boxes)
    if boxes is not None:
        refuse_options(options, _OF_BOXES, "is about finding boxes, but --boxes has them")

    name, revision = split_revision(options.model, options.revision)
    folder = fetch(name, revision)
    # The Hub's cache keeps each commit in snapshots/COMMIT.
    commit = folder.name if folder.parent.name == "snapshots" else None
    detector = regions.load_detector(folder, name, commit)
    detector.model.to(options.device)
    given = _given(options, "shard_size", "dtype", "strict", "num_workers", *_OF_BOXES, "batch_size")
    return regions.extract_regions(detector, images, options.output_dir, boxes=boxes, show_progress=True, **given)


def _from_tsv(options: argparse.Namespace) -> regions.RegionReport:
    refuse_options(options, _OF_DETECTION, "is about finding regions, but --tsv holds what was found")
    images = None
    if options.images is None:
        refuse_options(options, ["image_column", "id_column", "split"], "is about images, but --images is not given")
    else:
        images = open_images(options.images, options.image_column, options.id_column, options.split)

    made_by = options.made_by or f"published features {Path(options.tsv).name}"
    given = _given(options, "labels", "sizes", "cut_box_numbers", "dtype", "shard_size")
    regions.read_region_tsv(options.tsv, options.output_dir, made_by=made_by, images=images, **given)
    return regions.report_store(options.output_dir)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def table(report: regions.RegionReport) -> str:
    """Lay a report out for reading."""
    speed = f", {report.added / report.seconds:,.1f} images/s" if report.added and report.seconds else ""
    lines = [
        f"{report.store}: {report.images:,} images, {report.regions:,} regions, {report.added:,} images added "
        f"now{speed}",
        f"boxes     {report.boxes_id}",
        f"features  {report.features_id}, {report.feature_size} wide",
    ]
    if report.whole_images:
        lines.append(f"nothing was found in {report.whole_images:,} images, whose region is the whole image")
    return "\n".join(lines + unreadable_lines(report.unreadable))
