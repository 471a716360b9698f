"""Milliseconds a row: fusion encoder and dual encoders; nothing stored, image stored, both stored.

    python benchmarks/inference_speed.py [--batch-sizes 1 16 64] [--height 384 --width 512]

Random weights in ViLT-B/32's shape with 3,129 answers, float32: what is computed does not depend on their values. Texts
of 40 tokens of which 12 are real, and of 12 tokens. The dual encoders: the paper's interaction of pooled vectors, the
same with towers of half the depth, and one interaction layer over an image's tokens, which are stored as they are or as
the layer's keys and values, an image a text or one image for all texts of the batch. All ways of one shape run in turn
in one process; "times faster" is the ratio of medians to the fusion encoder, beside it the ratio of multiply-adds.
Linear layers of all models are prepacked, as `encode`, `ask` and `predict` do it; `--no-prepacking` times torch's own
instead. `--tiny` tries the script out and writes nothing.
"""

import argparse
from typing import Any

import torch
from _record import provenance, write

from dual_distill.inference import PairShape, measure_answering, prepack_linear_layers
from dual_distill.modeling import (
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}
TEXTS = ((40, 12), (12, 12))


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; each runs every way once")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-prepacking", action="store_true", help="time torch's own linear layers")
    parser.add_argument("--tiny", action="store_true", help="models of no use, to try the script out")
    options = parser.parse_args()
    source = provenance() | {"seed": options.seed}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    fusion = FusionEncoderForQuestionAnswering(
        FusionEncoderConfig(num_labels=3129, **(TINY if options.tiny else {}))
    ).eval()
    # Towers of every second layer, the last among them.
    depth = fusion.config.num_hidden_layers
    layers = range((depth - 1) % 2, depth, 2)
    half = DualEncoderForQuestionAnswering.from_fusion_encoder(fusion, text_layers=layers, vision_layers=layers)
    models = {
        "fusion_encoder": fusion.to(device),
        "dual_encoder": DualEncoderForQuestionAnswering.from_fusion_encoder(fusion).eval().to(device),
        "half_depth": half.eval().to(device),
        "interaction_layer": DualEncoderForQuestionAnswering.from_fusion_encoder(
            fusion, interaction_layers=1, interaction_from=[-1]
        )
        .eval()
        .to(device),
    }
    prepacked = 0 if options.no_prepacking else sum([prepack_linear_layers(model) for model in models.values()])
    rows: list[dict[str, Any]] = []
    for batch_size in options.batch_sizes:
        for text_tokens, real_tokens in TEXTS:
            shape = PairShape(batch_size, text_tokens, real_tokens, (options.height, options.width))
            rows += measure_answering(models, shape, options.warmup, options.repeats, options.seed)
    print(
        f"{'batch':>5} {'tokens':>7}  {'model':<15} {'way':<15} {'ms a pair':>10} {'faster':>9} {'by arithmetic':>13}"
    )
    for row in rows:
        tokens = f"{row['real_tokens']}/{row['text_tokens']}"
        print(
            f"{row['batch_size']:>5} {tokens:>7}  {row['model']:<15} {row['way']:<15} {row['latency_ms']:>10.4g} "
            f"{row['times_faster']:>9.4g} {row['times_fewer_multiply_adds']:>13.4g}"
        )
    results = {
        "image_px": [options.height, options.width],
        "dtype": "float32",
        "prepacked_layers": prepacked,
        "parameters": {name: model.num_parameters() for name, model in models.items()},
        "rows": rows,
    }
    if not options.tiny:
        name = "inference_speed" if device == "cpu" else "inference_speed_gpu"
        write(name + ("" if prepacked or device != "cpu" else "_torch_layers"), results, source)


if __name__ == "__main__":
    main()
