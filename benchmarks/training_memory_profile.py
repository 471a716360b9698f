"""What the memory of a training step is made of: weights, gradients, what the student keeps for its backward pass.

    python benchmarks/training_memory_profile.py [--batch-size 16]

The steps of `training_step.py`, at the same shape. What is kept is caught by autograd's own hooks as the forward pass
hands it over, each storage once, weights left out; its kind is read off its shape. Whatever the peak has beyond weights
and kept tensors is of the moment: the teacher's pass, the operation
under way, or gradients that come while kept tensors go. `--tiny` tries the script out.
"""

from collections import Counter

import torch
from _record import keep_freed_memory, provenance, write
from _training_steps import WAYS, TrainingSteps, make_parser, steps_of

KINDS = ("attention probabilities", "MLP inside", "width of the model", "other")


def main() -> None:
    """Measure, print and record."""
    options = make_parser(__doc__).parse_args()
    keep_freed_memory()
    source = provenance() | {"seed": options.seed}
    steps, _ = steps_of(options, "cpu")
    rows = []
    for way in WAYS:
        kept = kept_bytes(steps, way)
        peak, weights = steps.peak_bytes(way), sum(weight.nbytes for weight in steps.weights)
        row = {"step": way, "peak_mb": megabytes(peak), "weights_mb": megabytes(weights)}
        row |= {f"kept_{kind.replace(' ', '_')}_mb": megabytes(kept[kind]) for kind in KINDS}
        row["beyond_weights_and_kept_mb"] = megabytes(peak - weights - sum(kept.values()))
        print(row, flush=True)
        rows.append(row)
    if not options.tiny:
        write("training_memory_profile", {"batch_size": options.batch_size, "steps": rows}, source)


def kept_bytes(steps: TrainingSteps, way: str) -> Counter[str]:
    """Bytes that a forward pass keeps for the backward pass, by kind."""
    weights = {weight.untyped_storage().data_ptr() for weight in steps.weights}
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
