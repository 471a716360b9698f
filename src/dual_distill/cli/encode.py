"""`dual-distill encode MODEL --images ... --out STORE`: images (or texts) go through their tower once, and are kept."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from dual_distill.inference import (
    EncodingReport,
    encode_images,
    encode_texts,
    load_encoder,
    open_images,
    prepack_linear_layers,
    read_texts,
)

_MOST_LISTED = 20
_EPILOG = """\
--images takes
  a folder             all image files below it; ids are their paths, such as 2024/cat.jpg
  a Parquet file       ids are the values of --id-column, or the numbers of the rows
  a data set           a folder that Dataset.save_to_disk wrote, or owner/name on the Hub; ids likewise

A killed run continues with the same command, and the store comes out the same, bit for bit. Images that were added are
encoded alone. Images that cannot be read are listed and do not end the run (--strict: they do); when they were mended,
the same command encodes them. Several processes or machines with one shared folder:
  accelerate launch --multi_gpu --num_processes 4 -m dual_distill encode ...      (CPUs: torchrun --nproc-per-node 2 -m
  ...)

examples:
  dual-distill encode runs/student --images photos --out photos.store
  dual-distill encode runs/student --images shop.parquet --id-column sku --out shop.store --dtype float16
  dual-distill encode runs/student --texts questions.txt --out questions.store

Of a model with a retrieval head the store keeps vectors of length 1 in one space, which `ask` searches by their
cosines."""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill encode",
        description="Encode images or texts with a dual encoder into a feature store, which `dual-distill ask` answers from.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub repository of a dual encoder")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--images", metavar="DIR|PARQUET|DATASET", help="what to encode; see below")
    inputs.add_argument("--texts", metavar="FILE", help="texts to encode instead, one a line, UTF-8")
    parser.add_argument(
        "--out", required=True, metavar="STORE", help="folder of the store; made, continued or added to"
    )
    parser.add_argument("--revision", help="revision of a Hub repository")
    parser.add_argument(
        "--image-column", default="image", help="column of Parquet and data sets (default: %(default)s)"
    )
    parser.add_argument("--id-column", help="column of ids, each once (default: the number of the row)")
    parser.add_argument("--split", help="split of a data set that has several")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of the stored vectors (default: float32)")
    parser.add_argument(
        "--projected",
        action="store_true",
        default=None,
        help="store their half of the interaction too: three times the size, and one product less a pair",
    )
    parser.add_argument("--batch-size", type=int, help="rows a forward pass (default: 32)")
    parser.add_argument(
        "--shard-size", type=int, help="rows a file; a killed run loses one file's at most (default: 1024)"
    )
    parser.add_argument(
        "--num-workers",
        "--threads",
        type=int,
        help="processes that read and decode images (default: one a core, 16 at most)",
    )
    parser.add_argument("--strict", action="store_true", help="end at the first image that cannot be read")
    parser.add_argument(
        "--verify", action="store_true", help="compare the content of images that the store holds already"
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Encode and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        report = encode(options)
    print(json.dumps(report.to_dict(), ensure_ascii=False) if options.json else summary(report))


def encode(options: argparse.Namespace) -> EncodingReport:
    """Look at the inputs first, then load the model and encode."""
    if options.texts is not None:
        given = [
            f"--{name.replace('_', '-')}"
            for name in ("id_column", "split", "strict", "verify")
            if getattr(options, name)
        ]
        if given:
            raise ValueError(f"{', '.join(given)} is about images, but --texts is given; leave it out.")
        texts = read_texts(options.texts)
    else:
        images = open_images(options.images, options.image_column, options.id_column, options.split)
    model, processor, revision = load_encoder(options.model, options.revision)
    model.to(options.device or default_device())
    prepack_linear_layers(model)
    settings = {
        "dtype": options.dtype,
        "projected": options.projected,
        "batch_size": options.batch_size,
        "shard_size": options.shard_size,
        "model_name": options.model,
        "revision": revision,
        "show_progress": True,
    }
    if options.texts is not None:
        return encode_texts(model, processor, texts, options.out, **settings)
    return encode_images(
        model,
        processor,
        images,
        options.out,
        strict=options.strict,
        verify=options.verify,
        num_workers=options.num_workers,
        **settings,
    )


def default_device() -> str:
    """Return the GPU of this process where there are several, the one that there is, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def summary(report: EncodingReport) -> str:
    """Lay a report out for reading."""
    speed = f", {report.encoded / report.seconds:,.1f} {report.kind}s/s" if report.encoded else ""
    lines = [f"{report.store}: {report.rows:,} {report.kind}s, {report.encoded:,} of them encoded now{speed}"]
    if report.missing_shards:
        lines.append(f"{report.missing_shards} shards are not there yet: other processes make them, or were stopped")
    if report.unreadable:
        lines.append(f"{len(report.unreadable):,} cannot be read and are left out:")
        lines += [f"  {problem}" for problem in list(report.unreadable.values())[:_MOST_LISTED]]
    if len(report.unreadable) > _MOST_LISTED:
        files = Path(report.store) / "*.unreadable.jsonl"
        lines.append(f"  ... and {len(report.unreadable) - _MOST_LISTED:,} more, in {files}")
    return "\n".join(lines)


__all__ = ["default_device", "encode", "make_parser", "run", "summary"]
