"""What prepacked linear layers gain: single layers of several widths, and a whole fusion encoder, against torch's own.

    python benchmarks/prepacking.py

Random weights, float32. Both sides of a case run in turn in one process. Products of fewer than a million multiply-adds
are forced through oneDNN here, to show where it stops to pay. First, what `prepack_linear_layers` decides here.
"""

import time

import torch
from _record import provenance, write
from torch import nn

from dual_distill.inference import PairShape, alternate, prepack_linear_layers, prepacking, random_pairs
from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForQuestionAnswering

WIDTHS, ROWS, BATCHES = (96, 192, 384, 768), (1, 16, 160, 640), (1, 16)


@torch.inference_mode()
def main() -> None:
    """Measure, print and record."""
    source = provenance() | {"seed": 0}
    torch.manual_seed(0)
    start = time.perf_counter()
    decision = {"gain": round(prepacking._gain(), 3), "is_kept": prepacking._gain() >= prepacking._LEAST_GAIN}
    decision["timed_ms"] = round(1e3 * (time.perf_counter() - start), 1)
    print(decision, flush=True)
    prepacking._LEAST_GAIN = 0
    config = FusionEncoderConfig(num_labels=3129)
    models = {name: FusionEncoderForQuestionAnswering(config).eval() for name in ("torch", "prepacked")}
    prepack_linear_layers(models["prepacked"])
    encoders = []
    for size in BATCHES:
        batch = random_pairs(config, PairShape(size, 40, 12, (384, 512)))
        timings = alternate(
            {name: lambda one=one, batch=batch: one(**batch) for name, one in models.items()}, warmup=1, repeats=5
        )
        encoders.append({"batch_size": size, **compared(timings)})
        print(encoders[-1], flush=True)
    prepacking._LEAST_MULTIPLY_ADDS = 0
    layers = []
    for width in WIDTHS:
        sides = {"torch": nn.Linear(width, width), "prepacked": nn.Linear(width, width)}
        prepack_linear_layers(sides["prepacked"])
        for count in ROWS:
            rows = torch.randn(count, width)
            calls = {name: lambda side=side, rows=rows: side(rows) for name, side in sides.items()}
            timings = alternate(calls, warmup=2, repeats=9, min_round_ms=10)
            layers.append({"width": width, "rows": count, "multiply_adds": width * width * count, **compared(timings)})
            print(layers[-1], flush=True)
    write("prepacking", {"decision": decision, "fusion_encoder_384x512_40_tokens": encoders, "layers": layers}, source)


def compared(timings: dict) -> dict[str, float]:
    """Milliseconds of both sides and their ratio."""
    ms = {f"{name}_ms": round(timing.median_ms, 5) for name, timing in timings.items()}
    return {**ms, "times_faster": round(ms["torch_ms"] / ms["prepacked_ms"], 3)}


if __name__ == "__main__":
    main()
