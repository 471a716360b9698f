"""Why a stored row takes what it takes: each operation of `logits_of_projections` at batch 1 and 16, profiled.

    python benchmarks/stored_pair_profile.py

Random weights in ViLT-B/32's width with 3,129 answers, float32; towers of one layer, for they take no part. Two ways in
turn: torch's own linear layers, and prepacked ones. Beside them stand what the machine can do: bytes a second of a sum
over as many numbers as the three maps have weights (rotating over eight such sets, so that the last one's cache does
not count), and multiply-adds a second of 2,048 rows through a prepacked layer of 2,048 squared.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from _record import provenance, write
from torch.profiler import ProfilerActivity, profile

from dual_distill.inference import alternate, prepack_linear_layers
from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering

CALLS, REPEATS, SETS, SIDE = 200, 9, 8, 2048


@torch.inference_mode()
def main() -> None:
    """Measure, print and record."""
    source = provenance() | {"seed": 0}
    torch.manual_seed(0)
    tower = {"num_hidden_layers": 1}
    config = DualEncoderConfig(text_config=tower, vision_config=tower, num_labels=3129)
    models = {"torch's layers": DualEncoderForQuestionAnswering(config).eval()}
    models["prepacked"] = DualEncoderForQuestionAnswering(config).eval()
    prepack_linear_layers(models["prepacked"])
    model = models["prepacked"]
    weights = [
        layer.weight.numel() for layer in (model.dual_encoder.interaction[3], model.classifier[0], model.classifier[3])
    ]
    machine = {"read_gb_s": read_speed(sum(weights)), "multiply_adds_g_s": product_speed()}
    print(machine)
    rows = []
    for batch_size in (1, 16):
        texts, images = torch.randn(batch_size, 1536), torch.randn(batch_size, 1, 1536)

        def calls(model: DualEncoderForQuestionAnswering) -> Callable[[], object]:
            return lambda: model.logits_of_projections(texts, images)  # noqa: B023

        timings = alternate({name: calls(model) for name, model in models.items()}, repeats=REPEATS, min_round_ms=50)
        for name, model in models.items():
            ms = timings[name].median_ms
            row = {
                "batch_size": batch_size,
                "layers": name,
                "ms_a_call": round(ms, 3),
                "weights_read_gb_s": round(sum(weights) * 4 / ms / 1e6, 1),
                "multiply_adds_g_s": round(sum(weights) * batch_size / ms / 1e6, 1),
                "share_by_operation": shares(calls(model)),
            }
            print(row)
            rows.append(row)
    results = {"weights_mb": [round(size * 4 / 1e6, 2) for size in weights], "machine": machine, "rows": rows}
    write("stored_pair_profile", results, source)


def shares(call: Callable[[], object]) -> dict[str, float]:
    """Part of the time that each of the five longest operations takes itself."""
    for _ in range(20):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(CALLS):
            call()
    found = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(found.values())
    return {name: round(value / total, 3) for name, value in sorted(found.items(), key=lambda one: -one[1])[:5]}


def read_speed(numbers: int) -> float:
    """GB/s of adding up that many float32 numbers."""
    sets = [torch.randn(numbers) for _ in range(SETS)]
    return round(numbers * 4 * SETS / seconds(lambda: [one.sum() for one in sets]) / 1e9, 1)


def product_speed() -> float:
    """Billion multiply-adds a second of a large product."""
    layer, rows = torch.nn.Linear(SIDE, SIDE), torch.randn(SIDE, SIDE)
    prepack_linear_layers(layer)
    return round(SIDE**3 / seconds(lambda: layer(rows)) / 1e9, 1)


def seconds(call: Callable[[], object]) -> float:
    """Median of some calls."""
    times = []
    for _ in range(2 + REPEATS):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times[2:])


if __name__ == "__main__":
    main()
