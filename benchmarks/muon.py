"""What a step of Muon costs: torch's own, matrix after matrix in bfloat16, and ours, all of a shape at once.

    python benchmarks/muon.py [--width 96] [--layers 8] [--rounds 15]

The matrices are those of a stack of transformer layers: four of width x width, and two that go to twice the width and
back, as in the quickstart. Both optimizers step the same gradients in turn, in one process of one thread; milliseconds
of its processor are medians. Beside them stands how far apart the weights of both are in the end, of what they moved.
`--tiny` tries the script out and records nothing.
"""

import argparse
import statistics
import time

import torch
from _record import provenance, write

from dual_distill.trainer.optimizer import Muon


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=8, help="of all towers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.width, options.layers, options.rounds = 8, 1, 2
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = provenance() | {"seed": 0}

    width = options.width
    shapes = [*[(width, width)] * 4, (2 * width, width), (width, 2 * width)] * options.layers
    start = [torch.randn(*shape) / width**0.5 for shape in shapes]
    gradients = [torch.randn(*shape) for shape in shapes]

    # Both take the same steps.
    weights = {name: [torch.nn.Parameter(one.clone()) for one in start] for name in ("torch", "ours")}
    optimizers = {
        "torch": torch.optim.Muon(weights["torch"], lr=0.005, adjust_lr_fn="match_rms_adamw"),
        "ours": Muon(weights["ours"], lr=0.005),
    }
    times: dict[str, list[float]] = {name: [] for name in weights}
    for _ in range(options.rounds):
        for name, optimizer in optimizers.items():
            for weight, gradient in zip(weights[name], gradients, strict=True):
                weight.grad = gradient.clone()
            began = time.process_time()
            optimizer.step()
            times[name].append(1000 * (time.process_time() - began))

    found = {f"{name}_ms": round(statistics.median(each), 2) for name, each in times.items()}
    moved = [
        ((one - other).norm() / (one - before).norm()).item()
        for one, other, before in zip(weights["torch"], weights["ours"], start, strict=True)
    ]
    result = {"width": width, "layers": options.layers, "matrices": len(shapes), **found}
    result |= {"ours_over_torch": round(found["ours_ms"] / found["torch_ms"], 3)}
    result |= {"largest_relative_difference_of_moves": round(max(moved), 4)}
    print(result)
    if not options.tiny:
        write("muon" if width == 96 else f"muon_{width}", result, source)


if __name__ == "__main__":
    main()
