"""What the memory of a training step is made of: weights, gradients, and what the student keeps for its backward pass, by kind.

    python benchmarks/training_memory_profile.py [--batch-size 16]

The steps of `training_step.py`, at the same shape. What is kept is caught by autograd's own hooks as the forward pass hands it
over, each storage once, weights left out; its kind is read off its shape. Whatever the peak has beyond weights and kept tensors
is of the moment: the teacher's pass, the operation under way, or gradients that come while kept tensors go. `--tiny` tries the
script out.
"""

import argparse
from collections import Counter

import torch
from _record import keep_freed_memory, provenance, write
from _training_steps import WAYS, TrainingSteps
from training_step import TINY

from dual_distill.inference import PairShape

KINDS = ("attention probabilities", "MLP inside", "width of the model", "other")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--text-tokens", type=int, default=40, help="padding included")
    parser.add_argument("--real-tokens", type=int, default=12)
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script out")
    options = parser.parse_args()
    keep_freed_memory()
    source = provenance() | {"seed": options.seed}
    shape = PairShape(options.batch_size, options.text_tokens, options.real_tokens, (options.height, options.width))
    steps = TrainingSteps({"num_labels": 3129, **(TINY if options.tiny else {})}, shape, options.dropout, "cpu", options.seed)
    rows = []
    for way in WAYS:
        kept = kept_bytes(steps, way)
        peak, weights = steps.peak_bytes(way), sum(weight.nbytes for weight in weights_of(steps))
        row = {"step": way, "peak_mb": megabytes(peak), "weights_mb": megabytes(weights)}
        row |= {f"kept_{kind.replace(' ', '_')}_mb": megabytes(kept[kind]) for kind in KINDS}
        row["beyond_weights_and_kept_mb"] = megabytes(peak - weights - sum(kept.values()))
        print(row, flush=True)
        rows.append(row)
    if not options.tiny:
        write("training_memory_profile", {"batch_size": options.batch_size, "steps": rows}, source)


def kept_bytes(steps: TrainingSteps, way: str) -> Counter[str]:
    """Bytes that a forward pass keeps for the backward pass, by kind."""
    weights = {weight.untyped_storage().data_ptr() for weight in weights_of(steps)}
    inputs = {tensor.untyped_storage().data_ptr() for tensor in (*steps.batch.values(), steps.labels)}
    kept: dict[int, tuple[str, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | inputs:
            kept.setdefault(storage.data_ptr(), (kind_of(tensor, steps), storage.nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        steps.step(way)()
    totals: Counter[str] = Counter()
    for kind, size in kept.values():
        totals[kind] += size
    return totals


def weights_of(steps: TrainingSteps) -> tuple[torch.Tensor, ...]:
    """Both models'."""
    return (*steps.student.parameters(), *steps.teacher.parameters())


def megabytes(size: int) -> float:
    """Millions of bytes."""
    return round(size / 1e6, 1)


def kind_of(tensor: torch.Tensor, steps: TrainingSteps) -> str:
    """What a kept tensor is, by its shape."""
    config = steps.teacher.config
    heads, head_width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if tensor.dim() == 4 and tensor.shape[1] == heads and tensor.shape[-1] != head_width:
        return "attention probabilities"
    if tensor.shape[-1:] == (config.intermediate_size,):
        return "MLP inside"
    if tensor.shape[-1:] in ((config.hidden_size,), (head_width,)):
        return "width of the model"
    return "other"


if __name__ == "__main__":
    main()
