"""How a training step grows with image tokens and with layers, by way: milliseconds and peak memory.

    python benchmarks/attention_growth.py [--grids 8 12 16 24 32] [--layers 3 6 12] [--batch-size 2]

Image tokens are the square of a grid's side (64 to 1,024), at 12 layers; layers vary at the default grid of 12.
ViLT-B/32's width, random weights, float32, dropout 0. Ratios are to the floor, the step without distillation, of the
same shape. `--tiny` tries the script out and writes nothing.
"""

import argparse
from typing import Any

import torch
from _record import keep_freed_memory, provenance, write
from _training_steps import WAYS, TrainingSteps

from dual_distill.inference import PairShape, alternate

TINY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200, "patch_size": 4}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, nargs="+", default=[8, 12, 16, 24, 32], help="patches along a side")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--text-tokens", type=int, default=40, help="all real")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script out")
    options = parser.parse_args()
    keep_freed_memory()
    source = provenance() | {"seed": options.seed}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    deepest = max(options.layers)
    cases = [(grid, deepest) for grid in options.grids]
    cases += [(12, layers) for layers in options.layers if (12, layers) not in cases]
    rows: list[dict[str, Any]] = []
    print(f"{'patches':>7} {'layers':>6}  {'way':<18} {'ms':>10} {'x floor':>8} {'peak MB':>9} {'x floor':>8}")
    for grid, layers in cases:
        fields = {"num_labels": 100, "num_hidden_layers": layers, **(TINY if options.tiny else {})}
        side = grid * fields.get("patch_size", 32)
        shape = PairShape(options.batch_size, options.text_tokens, options.text_tokens, (side, side))
        steps = TrainingSteps(fields, shape, 0.0, device, options.seed)
        timings = alternate({way: steps.step(way) for way in WAYS}, device, options.warmup, options.repeats)
        peaks = {way: steps.peak_bytes(way) for way in WAYS}
        for way in WAYS:
            rows.append(
                {
                    "image_tokens": grid * grid,
                    "layers": layers,
                    "way": way,
                    "median_ms": round(timings[way].median_ms, 2),
                    "time_over_floor": round(timings[way].median_ms / timings["floor"].median_ms, 4),
                    "peak_mb": round(peaks[way] / 1e6, 1),
                    "peak_over_floor": round(peaks[way] / peaks["floor"], 4),
                }
            )
            row = rows[-1]
            print(
                f"{row['image_tokens']:>7} {layers:>6}  {way:<18} {row['median_ms']:>10.1f} "
                f"{row['time_over_floor']:>8.3f} "
                f"{row['peak_mb']:>9.1f} {row['peak_over_floor']:>8.3f}"
            )
    results = {"batch_size": options.batch_size, "text_tokens": options.text_tokens, "dtype": "float32", "steps": rows}
    if not options.tiny:
        write("attention_growth" if device == "cpu" else "attention_growth_gpu", results, source)


if __name__ == "__main__":
    main()
