"""Time how fast a checkpoint answers, with nothing stored and with encoded images and texts at hand.

A dual encoder is timed four times: nothing stored, images stored, texts and images stored, and both stored by
`encode --projected`; one with interaction layers three times: nothing, an image's tokens (as `encode` stores them), and
the layers' keys and values of these stored. --against puts another model first (its fusion encoder), and the ratios say
how many times faster than that. A fusion encoder without --against is compared with the dual encoder of the same shape
that could be distilled from it; what is computed does not depend on weights.

All run in turn in one process; only ratios are worth comparing between machines. "by arithmetic" is what the
multiply-adds alone would give.

Example:
  dual-distill benchmark runs/student --against runs/teacher --batch-sizes 1 16 64 --text-tokens 40 --real-tokens 12
"""

import argparse
import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from dual_distill.inference import PairShape, measure_answering, prepack_linear_layers
from dual_distill.modeling import DualEncoderConfig, DualEncoderModel, FusionEncoderModel
from dual_distill.runs import HEADS
from dual_distill.teachers import load_model

from .options import add_options, option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is timed, in which shapes, and how often."""
    add_options(parser, "model")
    option(parser, "--against", "MODEL", "checkpoint that the ratios compare with, often the teacher")
    option(parser, "--batch-sizes", "N", "pairs a batch (default: 1 16)", nargs="+", default=[1, 16])
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the model's own")
    option(parser, "--text-tokens", "N", "tokens a text, padding included (default: the model's most)")
    option(parser, "--real-tokens", "N", "tokens that are not padding (default: all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    prepacking = "time torch's own linear layers; else float32 weights on the CPU are kept as oneDNN reads them fastest"
    parser.add_argument("--no-prepacking", action="store_true", help=prepacking)
    option(parser, "--threads", "N", "of the CPU (default: torch's choice)")
    option(parser, "--warmup", "N", "rounds that do not count (default: %(default)s)", default=3)
    option(parser, "--repeats", "N", "rounds that do (default: %(default)s)", default=15)
    add_options(parser, "--revision", "--device")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load what is asked for and time it at every batch size."""
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads is {options.threads}; give 1 or more.")
        torch.set_num_threads(options.threads)

    # Whom the ratios compare with: what is named, else the dual encoder that could be distilled from a fusion encoder.
    dtype = getattr(torch, options.dtype)
    model = load_model(options.model, options.revision, dtype=dtype).model
    models = {options.model: model}
    duals: dict[Any, Any] = {spec.fusion_class: spec.dual_class for spec in HEADS.values() if spec.has_labels}
    # Speed depends on shapes, not on weights.
    dual_class = {**duals, FusionEncoderModel: DualEncoderModel}.get(type(model))
    if options.against is not None:
        models = {options.against: load_model(options.against, dtype=dtype).model} | models
    elif dual_class is not None:
        models["dual encoder of its shape"] = dual_class.from_fusion_encoder(model).eval()

    # Weights are laid out once, before any clock runs.
    models = {name: each.to(options.device) for name, each in models.items()}
    prepacked = 0 if options.no_prepacking else sum([prepack_linear_layers(each) for each in models.values()])

    config = model.config
    height, width = options.image_size or [side * config.patch_size for side in config.patch_grid]
    text_tokens = config.max_position_embeddings if options.text_tokens is None else options.text_tokens
    real_tokens = text_tokens if options.real_tokens is None else options.real_tokens

    rows: list[dict[str, Any]] = []
    for batch_size in options.batch_sizes:
        shape = PairShape(batch_size, text_tokens, real_tokens, (height, width))
        rows += measure_answering(models, shape, options.warmup, options.repeats)

    is_cuda = options.device.startswith("cuda")
    # A table of milliseconds says nothing without the machine that they were measured on.
    return {
        "model": options.model,
        "against": next(iter(models)) if len(models) > 1 else None,
        "device": torch.cuda.get_device_name(options.device) if is_cuda else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "prepacked_layers": prepacked,
        "image_size": [height, width],
        "dual_encoders": [name for name, each in models.items() if isinstance(each.config, DualEncoderConfig)],
        "versions": {name: version(name) for name in ("dual-distill", "torch", "transformers")},
        "rows": rows,
        "command": options.command,
    }


def table(result: dict[str, Any]) -> str:
    """Lay a result out for reading."""
    size = " x ".join(map(str, result["image_size"]))
    layers = "prepacked" if result["prepacked_layers"] else "of torch"
    lines = [
        f"{result['device']}, {result['threads']} threads, {result['dtype']}, {size} px, linear layers {layers}",
        f"{'batch':>5} {'tokens':>7} {'way':<18} {'ms a pair':>10} {'quartiles':>19} {'GMAC':>8} {'faster':>8} "
        f"{'by arithmetic':>13}  model",
    ]
    for row in result["rows"]:
        tokens = f"{row['real_tokens']}/{row['text_tokens']}"
        quartiles = " - ".join(f"{value:.4g}" for value in row["latency_quartiles_ms"])
        measured = f"{row['latency_ms']:>10.4g} {quartiles:>19} {row['multiply_adds'] / 1e9:>8.3f}"
        ratios = f"{row['times_faster']:>8.4g} {row['times_fewer_multiply_adds']:>13.4g}"
        lines.append(f"{row['batch_size']:>5} {tokens:>7} {row['way']:<18} {measured} {ratios}  {row['model']}")
    return "\n".join(lines)
