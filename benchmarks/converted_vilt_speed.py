"""ViLT of transformers against its conversion: milliseconds a batch, in turn, and the largest difference.

    python benchmarks/converted_vilt_speed.py [--repeats 15] [--height 384 --width 512 --batch-size 4 --tokens 12]

Random weights in ViLT-B/32's shape, float32: what is computed does not depend on their values. transformers' ViLT has
eager attention only; the conversion runs under sdpa, and once more under eager, which tells attention and the rest
apart. `--tiny` tries the script out and writes nothing.
"""

import argparse
import time
from statistics import median

import torch
from _record import provenance, write
from transformers import ViltConfig, ViltForQuestionAnswering

from dual_distill.teachers import convert_vilt, largest_difference, random_batch

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=12, help="text tokens, all real")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds; each runs every model once")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script out")
    options = parser.parse_args()
    source = provenance()
    source["seed"] = options.seed
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = ViltConfig(num_labels=3129, **(TINY if options.tiny else {}))
    vilt = ViltForQuestionAnswering(config).eval().to(device)
    ours = {kind: convert_vilt(vilt, kind) for kind in ("sdpa", "eager")}

    grid = (options.height // config.patch_size, options.width // config.patch_size)
    mixed = random_batch(ours["sdpa"].config, options.batch_size, options.tokens, grid, options.seed)
    mixed = {name: tensor.to(device) for name, tensor in mixed.items()}
    difference = largest_difference(vilt, ours["sdpa"], mixed)

    # Timed on images of one size and texts of one length, so that neither side gains by padding.
    full = {name: torch.ones_like(tensor) if name.endswith("mask") else tensor for name, tensor in mixed.items()}
    flat = {**full, **{name: full[name][:, 0] for name in ("pixel_values", "pixel_mask")}}
    calls = {
        "transformers_eager": lambda: vilt(**flat),
        "converted_sdpa": lambda: ours["sdpa"](**full),
        "converted_eager": lambda: ours["eager"](**full),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for round_number in range(options.warmup + options.repeats):
            for name, call in calls.items():
                synchronize(device)
                start = time.perf_counter()
                call()
                synchronize(device)
                if round_number >= options.warmup:
                    seconds[name].append(time.perf_counter() - start)
    latency = {name: round(1000 * median(times), 3) for name, times in seconds.items()}
    results = {
        "image_px": [options.height, options.width],
        "batch_size": options.batch_size,
        "text_tokens": options.tokens,
        "repeats": options.repeats,
        "parameters": vilt.num_parameters(),
        "latency_ms": latency,
        "speed_ratio_sdpa": round(latency["transformers_eager"] / latency["converted_sdpa"], 3),
        "speed_ratio_eager": round(latency["transformers_eager"] / latency["converted_eager"], 3),
        "largest_logit_difference": difference["largest_difference"],
        "largest_logit": difference["largest_value"],
    }
    for name, value in latency.items():
        print(f"{name:<20} {value:10.2f} ms a batch of {options.batch_size}")
    print(
        f"transformers / converted, sdpa: {results['speed_ratio_sdpa']:.2f}, eager: {results['speed_ratio_eager']:.2f}"
    )
    print(
        f"largest logit difference {difference['largest_difference']:.2e} (largest logit "
        f"{difference['largest_value']:.3g})"
    )
    if not options.tiny:
        write("converted_vilt_speed", results, source)


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
