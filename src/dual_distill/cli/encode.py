"""Encode images or texts with a dual encoder into a feature store, which `dual-distill ask` answers from.

--images takes
  a folder             all image files below it; ids are their paths, such as 2024/cat.jpg
  a Parquet file       ids are the values of --id-column, or the numbers of the rows
  a dataset            a folder that Dataset.save_to_disk wrote, or owner/name on the Hub; ids likewise

A killed run continues with the same command, and the store comes out the same (docs/feature_store.md says when bit for
bit). Images that were added are encoded alone. Images that cannot be read are listed and do not end the run (--strict:
they do); once they can be, the same command encodes them. Several processes or machines with one shared folder:
  accelerate launch --multi_gpu --num_processes 4 -m dual_distill encode ...
  torchrun --nproc-per-node 2 -m dual_distill encode ...                      (CPUs)

Of a model with a retrieval head the store keeps vectors of length 1 in one space, which `ask` searches by their
cosines. Of a model with interaction layers it keeps all tokens of an image, a quarter of the size by --dtype int8, or
(--keys-values) what the layers make of them.

Examples:
  dual-distill encode runs/student --images photos --output-dir photos.store
  dual-distill encode runs/student --images shop.parquet --id-column sku --output-dir shop.store --dtype float16
  dual-distill encode runs/student --texts questions.txt --output-dir questions.store
"""

import argparse
from collections.abc import Mapping
from typing import Any

from dual_distill import inference
from dual_distill.teachers import load_model

from .options import add_options, option, refuse_options

_MOST_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, what is encoded, and how it is stored."""
    add_options(parser, "model")
    inputs = parser.add_mutually_exclusive_group(required=True)
    option(inputs, "--images", "PATH_OR_DATASET", "what to encode; see below")
    option(inputs, "--texts", "PATH", "texts to encode instead, one a line, UTF-8")
    add_store_options(parser)

    dtype = "of what is stored (default: float32; int8: of tokens, and of vectors to search by)"
    parser.add_argument("--dtype", choices=list(inference.DTYPES), help=dtype)
    projected = "store their half of the interaction too: three times the size, and one product less a pair"
    parser.add_argument("--projected", action="store_true", default=None, help=projected)
    states = "of interaction layers, store their keys and values, not tokens: faster to ask, twice the size a layer"
    parser.add_argument("--keys-values", action="store_true", default=None, help=states)
    tokens = "of a model that searches, store images' tokens too, by which its interaction layers re-rank"
    parser.add_argument("--tokens", action="store_true", default=None, help=tokens)
    option(parser, "--batch-size", "N", "rows a forward pass (default: 32)")
    option(parser, "--shard-size", "N", "rows a file, all that a kill costs (default: 1024; 128 for tokens)")
    parser.add_argument("--verify", action="store_true", help="compare the content of images that are stored already")
    add_options(parser, "--revision", "--device")


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add what commands share that read images and fill a store."""
    option(parser, "--output-dir", "PATH", "folder of the store, made or continued", required=True)
    option(parser, "--image-column", "NAME", "of Parquet and data sets (default: image)")
    option(parser, "--id-column", "NAME", "column of ids, each once (default: the number of the row)")
    option(parser, "--split", "NAME", "split of a dataset that has several")
    workers = "processes that read and decode images (default: one a core, 16 at most; 0: none beside this one)"
    parser.add_argument("--num-workers", "--threads", type=int, metavar="N", help=workers)
    parser.add_argument("--strict", action="store_true", help="end at the first image that cannot be read")


def run(options: argparse.Namespace) -> inference.EncodingReport:
    """Look at the inputs first, then load the model and encode."""
    if options.texts is not None:
        of_images = ["image_column", "id_column", "split", "num_workers", "strict", "verify"]
        of_images += ["projected", "keys_values", "tokens"]
        refuse_options(options, of_images, "is about images, but --texts is given")
        texts = inference.read_texts(options.texts)
    else:
        images = inference.open_images(options.images, options.image_column, options.id_column, options.split)

    # Only now: a wrong folder of images is said before a model is fetched.
    model, processor = load_model(options.model, options.revision)
    model.to(options.device)
    inference.prepack_linear_layers(model)

    names = ["dtype", "projected", "keys_values", "tokens", "batch_size", "shard_size"]
    names += [] if options.texts is not None else ["strict", "verify", "num_workers"]
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    settings["show_progress"] = True
    if options.texts is not None:
        return inference.encode_texts(model, processor, texts, options.output_dir, **settings)
    return inference.encode_images(model, processor, images, options.output_dir, **settings)


def table(report: inference.EncodingReport) -> str:
    """Lay a report out for reading."""
    speed = f", {report.encoded / report.seconds:,.1f} {report.kind}s/s" if report.encoded else ""
    size = f"{report.bytes_per_row:,} bytes each"
    lines = [f"{report.store}: {report.rows:,} {report.kind}s, {size}, {report.encoded:,} of them encoded now{speed}"]
    if report.missing_shards:
        lines.append(f"{report.missing_shards} shards are not there yet: other processes make them, or were stopped")
    return "\n".join(lines + unreadable_lines(report.unreadable))


def unreadable_lines(unreadable: Mapping[str, str]) -> list[str]:
    """Say what could not be read, the first of it by its problem."""
    lines = [f"{len(unreadable):,} cannot be read and are left out:"] if unreadable else []
    lines += [f"  {problem}" for problem in list(unreadable.values())[:_MOST_LISTED]]
    if len(unreadable) > _MOST_LISTED:
        lines.append(f"  ... and {len(unreadable) - _MOST_LISTED:,} more, which --json lists")
    return lines
