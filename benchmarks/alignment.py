"""What alignment costs: a distilled step whose teacher has other tokens, over one whose teacher has the student's.

    python benchmarks/alignment.py [--repeats 5]
    python benchmarks/alignment.py teach

A student (two towers) and a fusion encoder of 6 layers, width 384, 6 heads; the attention of the last layer, both
directions. Both teachers have as many tokens as the student; the aligned one's word pieces begin elsewhere, and its
grid is turned (as many patches, none in the same place), so that every product is there. `teach` compares rows a second
of `write_views` with those of the bare teacher on the same batches. Steps alternate; seconds are those of the
processor, which other programs do not change, and the ratio is the median of pairs. `--tiny` records nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _record import keep_freed_memory, provenance, write
from datasets import Dataset
from PIL import Image
from transformers import ViTImageProcessorPil

from dual_distill import DualDistillProcessor, DualEncoderForQuestionAnswering, FusionEncoderConfig
from dual_distill.data import Task, train_tokenizer
from dual_distill.modeling import FusionEncoderForQuestionAnswering, dual_config_from_fusion
from dual_distill.objectives import DiDEObjective
from dual_distill.teachers import DirectionAttention, ForeignTeacher, LayerAttention, TeacherView, Tokens, align_view
from dual_distill.trainer import StoredTeacher, view_settings, write_views

PATCH = 16
# Words, the student's grid, the teacher's, rows a batch. 40 x 193 and 300 x 730 tokens with CLS.
SHAPES = {"40 x 193": (40, (12, 16), (16, 12), 2), "300 x 729": (300, (27, 27), (9, 81), 1)}


def boxes(rows: int, columns: int) -> torch.Tensor:
    """A token of the whole image, and the cells of a grid."""
    cells = [[c / columns, r / rows, (c + 1) / columns, (r + 1) / rows] for r in range(rows) for c in range(columns)]
    return torch.tensor([[0.0, 0.0, 1.0, 1.0], *cells])


def spans(words: int, shift: int) -> torch.Tensor:
    """Word pieces of 4 characters, the first of them shorter by `shift`."""
    ends = torch.arange(1, words + 1) * 4 - shift
    return torch.stack([(ends - 4).clamp(min=0), ends], dim=1)


def models(words: int, grid: tuple[int, int], tiny: bool) -> tuple[Any, Any]:
    """A student and a teacher for images of that grid."""
    width, layers, heads = (24, 2, 2) if tiny else (384, 6, 6)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    size = {"image_size": [side * PATCH for side in grid], "patch_size": PATCH, "max_position_embeddings": words}
    config = FusionEncoderConfig(vocab_size=1000, intermediate_size=4 * width, num_labels=8, **shape, **size)
    teacher = FusionEncoderForQuestionAnswering(config).eval().requires_grad_(False)
    return DualEncoderForQuestionAnswering(dual_config_from_fusion(config)), teacher


def alternate(steps: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Seconds of the processor of each, `repeats` times in turn, after a round that is not counted."""
    seconds: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for step, found in zip(steps, seconds, strict=True):
            began = time.process_time()
            step()
            if repeat:
                found.append(time.process_time() - began)
    return seconds


def compared(name: str, baseline: list[float], other: list[float]) -> dict[str, Any]:
    """Medians and the median ratio."""
    ratio = round(statistics.median(b / a for a, b in zip(baseline, other, strict=True)), 3)
    medians = [round(statistics.median(each), 3) for each in (baseline, other)]
    print(name, medians, ratio, flush=True)
    return {"seconds": medians, "ratio": ratio, "pairs": len(other)}


def measure_steps(words: int, grid: tuple[int, int], turned: tuple[int, int], rows: int, options: Any) -> Any:
    """A distilled step with the same tokens and with other ones."""
    torch.manual_seed(0)
    student, teacher = models(words, grid, options.tiny)
    height, width = (side * PATCH for side in grid)
    batch = {
        "input_ids": torch.randint(5, 1000, (rows, words)),
        "attention_mask": torch.ones(rows, words, dtype=torch.long),
        "pixel_values": torch.randn(rows, 1, 3, height, width),
        "pixel_mask": torch.ones(rows, 1, height, width, dtype=torch.long),
    }
    objective = DiDEObjective()
    asked = {"output_query_states": [-1], "output_key_states": [-1]}
    real = torch.ones(rows, words).bool(), torch.ones(rows, 1 + grid[0] * grid[1]).bool()
    text, image = (
        Tokens.of(each.expand(rows, *each.shape), mask)
        for each, mask in zip((spans(words, 0), boxes(*grid)), real, strict=True)
    )

    def step(is_aligned: bool) -> None:
        with torch.no_grad():
            shown = teacher(**batch, **asked)
        if is_aligned:
            queries, keys = shown.query_states[0], shown.key_states[0]
            to_image = DirectionAttention(queries[:, :, :words], keys[:, :, words:])
            layer = LayerAttention(to_image, DirectionAttention(queries[:, :, words:], keys[:, :, :words]))
            others = (each.expand(rows, *each.shape) for each in (spans(words, 1), boxes(*turned)))
            covered = [each for pair in zip(others, real, strict=True) for each in pair]
            shown.cross_modal_scores = align_view(TeacherView(*covered, [layer]), text, image)
            shown.query_states = shown.key_states = None
        seen = student(**batch, **asked, join_states=False)
        objective(seen, shown, batch)["loss"].backward()
        student.zero_grad()

    same, aligned = alternate([lambda: step(False), lambda: step(True)], options.repeats)
    return compared(f"{words} x {1 + grid[0] * grid[1]}", same, aligned)


def measure_teach(options: Any) -> Any:
    """Rows a second of the bare teacher and of `write_views`, images decoded and resized by both."""
    torch.manual_seed(0)
    grid = (2, 2) if options.tiny else (12, 16)
    _, teacher = models(24, grid, options.tiny)
    texts = [f"what stands beside the {word} on the table?" for word in ("lamp", "bed", "chair", "box")]
    tokenizer = train_tokenizer(texts, 200, 24)
    size = {"height": grid[0] * PATCH, "width": grid[1] * PATCH}
    foreign = ForeignTeacher(teacher, DualDistillProcessor(ViTImageProcessorPil(size=size), tokenizer))
    count = 8 if options.tiny else 64
    images = [Image.new("RGB", (320, 243), (index, 2 * index, 99)) for index in range(count)]
    rows = Dataset.from_dict({"image": images, "question": (texts * count)[:count]})
    task = Task("rows", "question_answering", ("image",), "question", None)

    def bare() -> None:
        for start in range(0, count, 8):
            part = rows[start : start + 8]
            with torch.no_grad():
                foreign.view(foreign.inputs(part["image"], part["question"]), [-1])

    def written() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = StoredTeacher(Path(folder, "views"), foreign, view_settings(foreign, [-1], None))
            write_views(store, rows, task, batch_size=8)

    alone, stored = alternate([bare, written], options.repeats)
    tokens = 24 + 1 + grid[0] * grid[1]
    found = compared("teach", alone, stored)
    speeds = [round(count * tokens / seconds) for seconds in found["seconds"]]
    return {**found, "tokens_a_second": dict(zip(("bare teacher", "teach"), speeds, strict=True))}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("steps", "teach"), default="steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.repeats = 1
    else:
        keep_freed_memory()
    source = provenance()

    if options.part == "teach":
        results = measure_teach(options)
    else:
        shapes = {"tiny": (6, (2, 3), (3, 2), 2)} if options.tiny else SHAPES
        results = {name: measure_steps(*shape, options) for name, shape in shapes.items()}
    if not options.tiny:
        write("teach" if options.part == "teach" else "alignment", results, source)


if __name__ == "__main__":
    main()
