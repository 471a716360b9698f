"""A training step with and without distillation: milliseconds and peak memory, in turn, in one process.

    python benchmarks/training_step.py [--batch-size 16 --text-tokens 40 --real-tokens 12 --height 384 --width 512]

Random weights in ViLT-B/32's shape with 3,129 answers, float32: what is computed does not depend on their values.
Ratios are to the floor, the step without distillation. Peak memory is weights, activations and gradients: on the CPU
the bytes that torch allocates, counted by its profiler in a step of its own. `--tiny` takes models of width 32 and
three layers, by which the attention loss weighs most, and writes nothing but under a `--record NAME` of its own.
"""

import time

import torch
from _record import keep_freed_memory, provenance, write
from _training_steps import WAYS, make_parser, steps_of

from dual_distill.inference import alternate, multiply_adds


def main() -> None:
    """Measure, print and record."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds; each runs every step once")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--processor-time", action="store_true", help="of the process, where a machine has other work")
    parser.add_argument("--record", metavar="NAME", help="of the results (default: training_step; --tiny: none)")
    options = parser.parse_args()
    keep_freed_memory()
    source = provenance() | {"seed": options.seed}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps, shape = steps_of(options, device)
    clock = time.process_time if options.processor_time else time.perf_counter
    ways = {way: steps.step(way) for way in WAYS}
    timings = alternate(ways, device, options.warmup, options.repeats, clock=clock)
    peaks = {way: steps.peak_bytes(way) for way in WAYS}
    floor = timings["floor"].median_ms
    teacher = multiply_adds(steps.teacher.config, "fusion_encoder", shape)
    student = multiply_adds(steps.student.config, "dual_encoder", shape)
    results = {
        "image_px": [options.height, options.width],
        "batch_size": options.batch_size,
        "text_tokens": options.text_tokens,
        "real_tokens": options.real_tokens,
        "dropout": options.dropout,
        "dtype": "float32",
        "optimizer": None,
        # A backward pass takes two products for each of the forward pass; the attention loss is not in it.
        "multiply_adds_of_the_floor": options.batch_size * (teacher + 3 * student),
        "steps": {
            way: {
                **{name: round(value, 2) for name, value in vars(timings[way]).items()},
                "time_over_floor": round(timings[way].median_ms / floor, 4),
                "peak_mb": round(peaks[way] / 1e6, 1),
                "peak_over_floor": round(peaks[way] / peaks["floor"], 4),
            }
            for way in WAYS
        },
    }
    for way, row in results["steps"].items():
        print(
            f"{way:<18} {row['median_ms']:>10.1f} ms ({row['low_ms']:.1f} - {row['high_ms']:.1f}) "
            f"{row['time_over_floor']:>7.3f} x floor   {row['peak_mb']:>9.1f} MB {row['peak_over_floor']:>7.3f} x "
            f"floor   "
            f"{WAYS[way]}"
        )
    ours, theirs = (results["steps"][way] for way in ("last_layer", "output_attentions"))
    print(
        f"last layer over output_attentions: time {ours['median_ms'] / theirs['median_ms']:.3f}, "
        f"memory {ours['peak_mb'] / theirs['peak_mb']:.3f}"
    )
    if options.record or not options.tiny:
        write(options.record or ("training_step" if device == "cpu" else "training_step_gpu"), results, source)


if __name__ == "__main__":
    main()
