"""Memory of a retrieval evaluation beside its vectors and candidates, at 1,000 x 5,000 and at 5,000 x 25,000.

    OMP_NUM_THREADS=1 python benchmarks/retrieval_memory.py

Tiny towers with vectors of 512 numbers read images of 16 px with five captions each; recall both ways, of the whole and
of parts of 1,000 images, with the best 16 of each query ordered anew. Scores of pairs are drawn, not computed: what a
model takes is not measured here. The floor holds vectors and candidates, found in blocks of the same size. Each runs in
a process of its own; megabytes are its peak over what was there before. Beside vectors and candidates memory is flat
where `beside_mb` does not grow with the data.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _record import provenance, write
from datasets import Dataset
from PIL import Image
from transformers import ViltImageProcessorPil

from dual_distill.data import get_task, train_tokenizer
from dual_distill.inference import evaluate_retrieval
from dual_distill.inference.retrieval import _SCORES, ImagesWithCaptions
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForImageTextRetrieval

WIDTH, CAPTIONS, TOP = 512, 5, 16
SIZES = (1_000, 5_000)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "IMAGES"), help="one side in this process")
    options = parser.parse_args()
    if options.measure:
        side, images = options.measure
        print({"ours": ours, "floor": floor}[side](int(images)))
        return

    source, results = provenance(), {}
    for images in SIZES:
        found: dict[str, Any] = {}
        for side in ("ours", "floor"):
            words = [sys.executable, __file__, "--measure", side, str(images)]
            done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
            found[f"{side}_mb"] = round(float(done.stdout.split()[-1]), 1)
        held = images * (1 + CAPTIONS) * (4 * WIDTH + 8 * TOP) / 1e6
        found["ratio"] = round(found["ours_mb"] / found["floor_mb"], 3)
        found |= {"vectors_and_candidates_mb": round(held, 1), "beside_mb": round(found["ours_mb"] - held, 1)}
        results[f"{images} x {images * CAPTIONS}"] = found
        print(f"{images} x {images * CAPTIONS}", found, flush=True)
    write("retrieval_memory", results, source)


def peak_mb() -> float:
    """Most memory that this process has held so far."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3


def ours(images: int) -> float:
    """Evaluate, and return by how much memory grew."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    words = [f"a thing {number} on a table" for number in range(images * CAPTIONS)]
    processor = DualDistillProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), train_tokenizer(words[:1_000])
    )
    config = DualEncoderConfig(
        text_config={"vocab_size": len(processor.tokenizer), **tower},
        vision_config={"image_size": 16, "patch_size": 8, **tower},
        projection_dim=WIDTH,
        interaction_layers=1,
    )
    model = DualEncoderForImageTextRetrieval(config)
    ImagesWithCaptions.pair_scores = lambda self, model, processor, keys, *more: torch.rand(len(keys))  # type: ignore[method-assign,assignment]

    def evaluate(number: int) -> None:
        options = {"rerank_with_layers": True, "rerank_top": TOP, "batch_size": 256}
        evaluate_retrieval(rows.select(range(number)), get_task("coco_retrieval"), model, processor, **options)

    pixels = []
    for number in range(images):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (number % 256, number // 256, 90)).save(buffer, "PNG")
        pixels += [{"bytes": buffer.getvalue(), "path": None}] * CAPTIONS
    columns = {"image": pixels, "caption": words, "image_id": [row // CAPTIONS for row in range(len(words))]}
    rows = Dataset.from_dict(columns)
    del pixels, columns, words
    evaluate(100 * CAPTIONS)  # what is imported and built at the first call
    before = peak_mb()
    evaluate(len(rows))
    return peak_mb() - before


def floor(images: int) -> float:
    """Hold vectors of both sides and the best of each, found in blocks, and return by how much memory grew."""
    torch.rand(8, 8) @ torch.rand(8, 8)
    before = peak_mb()
    vectors = [torch.rand(images, WIDTH), torch.rand(images * CAPTIONS, WIDTH)]
    best = [torch.empty(len(side), TOP, dtype=torch.long) for side in vectors]
    for queries, gallery, found in zip(vectors, reversed(vectors), best, strict=True):
        size = _SCORES // len(gallery)
        memory = torch.empty(size, len(gallery))
        for part, row in zip(queries.split(size), found.split(size), strict=True):
            row.copy_(torch.mm(part, gallery.T, out=memory[: len(part)]).topk(TOP).indices)
    return peak_mb() - before


if __name__ == "__main__":
    main()
