"""DistillVLM's noise-contrastive loss with a queue: a training step with and without it, by the queue's length.

    python benchmarks/nce_queue.py [--queues 1024 4096 16384 65536] [--batch-size 64]

Teacher and student are fusion encoders in the widths of `recipes/scenes_regions.yaml` (96 and 48), random weights,
float32; the queue is full. A step is teacher forward, student forward and backward. `floor` compares hidden states by
MSE, so that both ways ask for the same states; beside the steps stand the loss alone, forward and backward, and the two
matrix products that it cannot do without, of anchors with negatives and of probabilities with negatives. Milliseconds
are of the processor, not of the wall. Peak memory is of tensors, counted by torch's profiler. `--tiny` tries the script
out and writes nothing.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _record import keep_freed_memory, provenance, write
from _training_steps import peak_memory

from dual_distill.inference import PairShape, alternate, random_pairs
from dual_distill.modeling import FusionEncoderConfig, FusionEncoderForQuestionAnswering
from dual_distill.objectives import DistillVLMObjective, noise_contrastive_loss

TEXT_TOKENS, IMAGE_SIZE = 14, (96, 128)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="their lengths")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=11, help="timed rounds; each runs every way once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a batch of no use, to try the script out")
    options = parser.parse_args()
    if options.tiny:
        options.queues, options.batch_size, options.repeats = [64], 4, 2
    keep_freed_memory()
    source = provenance() | {"seed": options.seed}
    torch.manual_seed(options.seed)

    teacher, student = make_model(96, 4).eval().requires_grad_(False), make_model(48, 3)
    shape = PairShape(options.batch_size, TEXT_TOKENS, TEXT_TOKENS, IMAGE_SIZE)
    batch = random_pairs(teacher.config, shape, options.seed)
    weights = sum(weight.nbytes for model in (teacher, student) for weight in model.parameters())

    rows = []
    for size in options.queues:
        objectives = {
            way: DistillVLMObjective(48, 96, 0.0, 1.0, 0.0, hidden_loss=loss, queue_size=size).eval()
            for way, loss in (("floor", "mse"), ("nce", "nce"))
        }
        queue = torch.nn.functional.normalize(torch.randn(size, 96), dim=-1)
        objectives["nce"].queues[0].collect(queue)
        objectives["nce"].finish_step()
        ways = {way: step(teacher, student, objective, batch) for way, objective in objectives.items()}
        ways |= loss_alone(student.config.hidden_size * 2, batch, queue)

        timings = alternate(ways, repeats=options.repeats, clock=time.process_time)
        peaks = {way: weights + peak_memory(ways[way]) for way in objectives}
        row: dict[str, Any] = {"queue": size, **{way: vars(timing) for way, timing in timings.items()}}
        row["step_over_floor"] = round(timings["nce"].median_ms / timings["floor"].median_ms, 3)
        row["loss_over_two_products"] = round(timings["loss"].median_ms / timings["two_products"].median_ms, 3)
        row |= {"peak_mb": {way: round(peak / 1e6, 1) for way, peak in peaks.items()}}
        row["peak_over_floor"] = round(peaks["nce"] / (peaks["floor"] + queue.nbytes), 3)
        print(row, flush=True)
        rows.append(row)
    tokens = options.batch_size * (TEXT_TOKENS + 1 + IMAGE_SIZE[0] * IMAGE_SIZE[1] // 32**2)
    if not options.tiny:
        write("nce_queue", {"batch_size": options.batch_size, "tokens": tokens, "rows": rows}, source)


def make_model(width: int, layers: int) -> FusionEncoderForQuestionAnswering:
    """A fusion encoder of four heads with random weights."""
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
    fields = {"intermediate_size": 4 * width, "vocab_size": 200, "num_labels": 20, "image_size": list(IMAGE_SIZE)}
    return FusionEncoderForQuestionAnswering(FusionEncoderConfig(**shape, **fields))


def step(teacher: Any, student: Any, objective: DistillVLMObjective, batch: dict[str, Any]) -> Callable[[], None]:
    """Teacher forward, student forward and backward."""

    def run() -> None:
        student.zero_grad(set_to_none=True)
        objective.zero_grad(set_to_none=True)
        with torch.no_grad():
            shown = teacher(**batch, output_hidden_states=True)
        objective(student(**batch, output_hidden_states=True), shown, batch)["loss"].backward()

    return run


def loss_alone(width: int, batch: dict[str, Any], queue: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The loss of as many tokens with its gradient, and two matrix products of its shapes."""
    rows, tokens = len(batch["input_ids"]), TEXT_TOKENS + 1 + IMAGE_SIZE[0] * IMAGE_SIZE[1] // 32**2
    anchors, positives = torch.randn(rows, tokens, width, requires_grad=True), torch.randn(rows, tokens, width)
    mask, flat = torch.ones(rows, tokens).bool(), anchors.detach().flatten(0, 1)

    def loss() -> None:
        anchors.grad = None
        noise_contrastive_loss(anchors, positives, queue, mask).backward()

    return {"loss": loss, "two_products": partial(two_products, flat, queue)}


def two_products(anchors: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Anchors with negatives, and what stands for probabilities with negatives, in blocks of 512 anchors."""
    return torch.cat([(some @ negatives.T) @ negatives for some in anchors.split(512)])


if __name__ == "__main__":
    main()
