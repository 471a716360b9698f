"""`dual-distill benchmark MODEL`: milliseconds a pair, nothing stored, images stored, both stored, beside the arithmetic."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from dual_distill.inference import PairShape, measure_answering, prepack_linear_layers
from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from dual_distill.teachers import load_model

_TWINS: dict[type[PreTrainedModel], Any] = {
    FusionEncoderModel: DualEncoderModel,
    FusionEncoderForQuestionAnswering: DualEncoderForQuestionAnswering,
    FusionEncoderForImagesAndTextClassification: DualEncoderForImagesAndTextClassification,
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_EPILOG = """\
A dual encoder is timed four times: nothing stored, images stored, texts and images stored, and both stored by
`encode --projected`. --against puts another model first (its fusion encoder), and the ratios say how many times faster
than that. A fusion encoder without --against is held against the dual encoder of the same shape that could be distilled
from it; what is computed does not depend on weights.

All run in turn in one process; only ratios are worth comparing between machines. "by arithmetic" is what the
multiply-adds alone would give.

example:
  dual-distill benchmark runs/student --against runs/teacher --batch-sizes 1 16 64 --text-tokens 40 --real-tokens 12"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill benchmark",
        description="Time how fast a checkpoint answers, with nothing stored and with encoded images and texts at hand.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder or Hub repository (also owner/name@revision), ours or a ViLT"
    )
    parser.add_argument(
        "--against", metavar="MODEL", help="checkpoint that the ratios compare with, usually the teacher"
    )
    parser.add_argument("--revision", help="revision of a Hub repository (of MODEL)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="pairs a batch (default: 1 16)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels (default: the model's position table)",
    )
    parser.add_argument("--text-tokens", type=int, help="tokens a text, padding included (default: the model's most)")
    parser.add_argument("--real-tokens", type=int, help="tokens that are no padding (default: all)")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument(
        "--no-prepacking",
        action="store_true",
        help="time torch's own linear layers; without this, a float32 model on the processor keeps its weights as oneDNN reads "
        "them fastest, as encode, ask and predict do",
    )
    parser.add_argument("--threads", type=int, help="of the processor (default: torch's choice)")
    parser.add_argument("--warmup", type=int, default=3, help="rounds that do not count (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that do (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Measure and print."""
    options = make_parser().parse_args(words)
    with redirect_stdout(sys.stderr):
        result = benchmark(options)
    result["command"] = " ".join(["dual-distill", "benchmark", *words])
    print(json.dumps(result) if options.json else table(result))


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Load what is asked for and time it at every batch size."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype = _DTYPES[options.dtype]
    model = load_model(options.model, revision=options.revision, dtype=dtype).model
    models = {options.model: model}
    if options.against is not None:
        models = {options.against: load_model(options.against, dtype=dtype).model} | models
    elif type(model) in _TWINS:
        models["dual encoder of its shape"] = _TWINS[type(model)].from_fusion_encoder(model).eval()
    models = {name: each.to(options.device) for name, each in models.items()}
    prepacked = 0 if options.no_prepacking else sum([prepack_linear_layers(each) for each in models.values()])
    config = model.config
    text, image = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    size = options.image_size or [side * image.patch_size for side in image.patch_grid]
    text_tokens = options.text_tokens or text.max_position_embeddings
    rows: list[dict[str, Any]] = []
    for batch_size in options.batch_sizes:
        shape = PairShape(batch_size, text_tokens, options.real_tokens or text_tokens, (size[0], size[1]))
        rows += measure_answering(models, shape, options.warmup, options.repeats)
    return {
        "model": options.model,
        "against": next(iter(models)) if len(models) > 1 else None,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "prepacked_layers": prepacked,
        "image_size": list(size),
        "dual_encoders": [name for name, each in models.items() if isinstance(each.config, DualEncoderConfig)],
        "versions": {name: version(name) for name in ("dual-distill", "torch", "transformers")},
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Lay a result out for reading."""
    lines = [
        f"{result['device']}, {result['threads']} threads, {result['dtype']}, {result['image_size'][0]} x "
        f"{result['image_size'][1]} px, linear layers {'prepacked' if result['prepacked_layers'] else 'of torch'}",
        f"{'batch':>5} {'tokens':>7} {'way':<15} {'ms a pair':>10} {'quartiles':>19} {'GMAC':>8} {'faster':>8} "
        f"{'by arithmetic':>13}  model",
    ]
    for row in result["rows"]:
        tokens = f"{row['real_tokens']}/{row['text_tokens']}"
        quartiles = " - ".join(f"{value:.4g}" for value in row["latency_quartiles_ms"])
        lines.append(
            f"{row['batch_size']:>5} {tokens:>7} {row['way']:<15} {row['latency_ms']:>10.4g} {quartiles:>19} "
            f"{row['multiply_adds'] / 1e9:>8.3f} {row['times_faster']:>8.4g} "
            f"{row['times_fewer_multiply_adds']:>13.4g}  "
            f"{row['model']}"
        )
    return "\n".join(lines)


__all__ = ["benchmark", "make_parser", "run", "table"]
