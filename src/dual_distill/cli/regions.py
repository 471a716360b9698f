"""`dual-distill regions MODEL --images ... --out STORE`: boxes, tags and features of images by an object detector, kept."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dual_distill.hub_cards import split_revision
from dual_distill.inference import open_images
from dual_distill.regions import (
    BATCH_SIZE,
    MAX_REGIONS,
    MIN_REGIONS,
    SHARD_SIZE,
    THRESHOLD,
    RegionReport,
    RegionStore,
    extract_regions,
    load_detector,
    read_region_tsv,
    report_store,
)
from dual_distill.teachers import fetch

from .encode import default_device

_MOST_LISTED = 20
_EPILOG = """\
MODEL is any object detector of transformers (DETR, Conditional and Deformable DETR, RT-DETR, D-FINE, YOLOS ...), as a
folder or a Hub repository with safetensors weights.

--images takes
  a folder             all image files below it; ids are their paths, such as 2024/cat.jpg
  a Parquet file       ids are the values of --id-column, or the numbers of the rows
  a data set           a folder that Dataset.save_to_disk wrote, or owner/name on the Hub; ids likewise

--boxes STORE takes boxes and tags of another store, and describes them with MODEL's backbone: the inputs of a teacher
that is to be distilled into a student whose detector made that store (teacher adaptation).

--tsv FILE reads published features instead: bottom-up attention's six columns, VinVL's predictions.tsv, or Oscar's
features with --labels and --sizes. Training finds the regions of a picture by its content, which such a file does not
hold: give --images, whose ids are those of the file, too.

A killed run continues with the same command, and the store comes out the same, bit for bit. Images that cannot be read
are listed and do not end the run (--strict: they do); when they were mended, the same command describes them.

examples:
  dual-distill regions hustvl/yolos-tiny --images photos --out regions/student
  dual-distill regions facebook/detr-resnet-50@no_timm --images photos --boxes regions/student --out regions/teacher
  dual-distill regions --tsv trainval_36.tsv --images coco.parquet --id-column image_id --made-by "bottom-up" --out
  butd"""
_OF_DETECTION = (
    "model",
    "boxes",
    "revision",
    "threshold",
    "min_regions",
    "max_regions",
    "batch_size",
    "device",
    "num_workers",
)
_OF_TSV = ("labels", "sizes", "made_by", "feature_size")


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill regions",
        description="Find the regions of images with an object detector, and store boxes, tags and backbone features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="folder or Hub repository of an object detector; none with --tsv")
    parser.add_argument("--images", metavar="DIR|PARQUET|DATASET", help="what to look at; see below")
    parser.add_argument(
        "--tsv", metavar="FILE", help="published region features to read instead; --images then says of which"
    )
    parser.add_argument(
        "--out", required=True, metavar="STORE", help="folder of the store; made, continued or added to"
    )
    parser.add_argument("--boxes", metavar="STORE", help="take the boxes and tags of this store")
    parser.add_argument("--revision", help="revision of a Hub repository")
    parser.add_argument("--threshold", type=float, help=f"lowest score of a region (default: {THRESHOLD})")
    parser.add_argument(
        "--min-regions", type=int, help=f"of the likeliest, whatever their scores (default: {MIN_REGIONS})"
    )
    parser.add_argument("--max-regions", type=int, help=f"of the likeliest (default: {MAX_REGIONS})")
    parser.add_argument(
        "--image-column", default="image", help="column of Parquet and data sets (default: %(default)s)"
    )
    parser.add_argument("--id-column", help="column of ids, each once (default: the number of the row)")
    parser.add_argument("--split", help="split of a data set that has several")
    parser.add_argument("--labels", metavar="FILE", help="TSV of boxes and classes, for features without")
    parser.add_argument("--sizes", metavar="FILE", help="TSV of the sizes of images, for features without")
    parser.add_argument("--made-by", help="which detector made the features of --tsv, in words")
    parser.add_argument("--feature-size", type=int, help="width of --tsv's features (default: that of the first line)")
    parser.add_argument(
        "--cut-box-numbers",
        action="store_true",
        help="leave out the last six numbers of each vector of --tsv (2054 = 2048 + 6)",
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored features")
    parser.add_argument("--batch-size", type=int, help=f"images a forward pass (default: {BATCH_SIZE})")
    parser.add_argument(
        "--shard-size",
        type=int,
        default=SHARD_SIZE,
        help="images a file; a killed run loses one file's (default: %(default)s)",
    )
    parser.add_argument(
        "--num-workers",
        "--threads",
        type=int,
        help="processes that read and decode images (default: one a core, 16 at most)",
    )
    parser.add_argument("--strict", action="store_true", help="end at the first image that cannot be read")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Make the store and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = from_tsv(options) if options.tsv is not None else from_images(options)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if options.json else summary(report))


def from_images(options: argparse.Namespace) -> RegionReport:
    """Look at the inputs first, then load the detector and look at the images."""
    _refuse(options, _OF_TSV, "published features, but --tsv is not given")
    if options.model is None or options.images is None:
        raise ValueError(
            "A detector and --images are needed, or --tsv with published features; give the one or the other."
        )
    images = open_images(options.images, options.image_column, options.id_column, options.split)
    boxes = None if options.boxes is None else RegionStore(options.boxes)
    if boxes is not None:
        _refuse(options, ("threshold", "min_regions", "max_regions"), "finding boxes, but --boxes has them")
    name, revision = split_revision(options.model, options.revision)
    folder = fetch(name, revision)
    # The Hub's cache keeps each commit in snapshots/COMMIT.
    commit = folder.name if folder.parent.name == "snapshots" else None
    detector = load_detector(folder, name, commit)
    detector.model.to(options.device or default_device())
    given: dict[str, Any] = {
        key: getattr(options, key)
        for key in ("threshold", "min_regions", "max_regions", "batch_size")
        if getattr(options, key) is not None
    }
    return extract_regions(
        detector,
        images,
        options.out,
        boxes=boxes,
        shard_size=options.shard_size,
        dtype=options.dtype,
        strict=options.strict,
        num_workers=options.num_workers,
        show_progress=True,
        **given,
    )


def from_tsv(options: argparse.Namespace) -> RegionReport:
    """Read published features."""
    _refuse(options, _OF_DETECTION, "finding regions, but --tsv holds what was found")
    images = None
    if options.images is not None:
        images = open_images(options.images, options.image_column, options.id_column, options.split)
    read_region_tsv(
        options.tsv,
        options.out,
        made_by=options.made_by or f"published features {Path(options.tsv).name}",
        labels=options.labels,
        sizes=options.sizes,
        images=images,
        feature_size=options.feature_size,
        cut_box_numbers=options.cut_box_numbers,
        dtype=options.dtype,
        shard_size=options.shard_size,
    )
    return report_store(options.out)


def summary(report: RegionReport) -> str:
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
    if report.unreadable:
        lines.append(f"{len(report.unreadable):,} cannot be read and are left out:")
        lines += [f"  {problem}" for problem in list(report.unreadable.values())[:_MOST_LISTED]]
    if len(report.unreadable) > _MOST_LISTED:
        files = Path(report.store) / "*.unreadable.jsonl"
        lines.append(f"  ... and {len(report.unreadable) - _MOST_LISTED:,} more, in {files}")
    return "\n".join(lines)


def _refuse(options: argparse.Namespace, names: Sequence[str], about: str) -> None:
    """Refuse options that mean nothing here."""
    given = [name for name in names if getattr(options, name) is not None]
    if words := ["MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in given]:
        raise ValueError(f"{', '.join(words)} is about {about}; leave it out.")


__all__ = ["from_images", "from_tsv", "make_parser", "run", "summary"]
