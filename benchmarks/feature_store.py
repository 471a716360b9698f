"""The feature store: `encode` against the bare tower on tensors, opening a store, and one question over all of it.

    python benchmarks/feature_store.py [--images 64 --batch-size 16 --rows 1000000 --width 768 --labels 2 --repeats 2]

Encoding: the image tower in ViLT-B/32's shape with random weights, float32, JPEG files of 640 x 480 pixels that become
384 x
512. One side reads, hashes, decodes, resizes, encodes and writes; the other runs the same tower over the same pixels,
prepared beforehand, in the same batches. They take turns. Linear layers are prepacked on all sides, as in the command.
Loading the model and the digest of its weights come once a command, before the first image, and are not in it. A GPU
needs some thousand --images for a steady state.

Asking: a store of synthetic vectors, opened, and ranked by one answer; beside it the same product on a plain float32
tensor in memory, in pieces of the same size, with the same softmax and a sort. They take turns. The store was just
written, so its pages are in the system's cache where that has room. `--tiny` tries the script out and writes nothing.

What it costs: the shallow interaction and the head of width 768 are 3.5 million multiply-adds an image, so a question
to a million images is 7 TFLOP, some 85 s of one processor core on either side, and an image of the tower is 33 GFLOP.
Hence few repeats, and a warm-up over a tenth of the rows; at these durations neither changes a median by a percent.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _record import provenance, write
from PIL import Image
from transformers import PreTrainedModel, ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.inference import (
    DTYPES,
    FeatureManifest,
    FeatureStore,
    FeatureStoreVQA,
    FeatureTable,
    alternate,
    encode_images,
    model_identity,
    prepack_linear_layers,
    processor_settings,
)
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering

QUESTION = "is there a red circle?"
PIECE = 1024


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="JPEG files that are encoded")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--encode-repeats", type=int, default=2, help="timed rounds of encoding, after one that does not count"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="stored images that are asked")
    parser.add_argument("--width", type=int, default=768, help="of their vectors")
    parser.add_argument("--labels", type=int, default=2, help="answers of the head")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the stored vectors")
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds of asking")
    parser.add_argument(
        "--folder", type=Path, help="where images and stores are written and removed again (default: /tmp)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="models of no use, to try the script out")
    options = parser.parse_args()
    if options.tiny:
        options.images, options.batch_size, options.rows, options.width, options.repeats = 12, 4, 5000, 32, 2
    source = provenance()
    source["seed"] = options.seed
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = {"encoding": encoding(options, Path(folder)), "asking": asking(options, Path(folder) / "asked")}
    print(*(f"{part} {name}: {value}" for part, values in results.items() for name, value in values.items()), sep="\n")
    if not options.tiny:
        write("feature_store", results, source)


def make_model(
    width: int, layers: int, labels: int, image_size: list[int]
) -> tuple[PreTrainedModel, DualDistillProcessor]:
    """Return a dual encoder with random weights, and a processor that brings the shorter side to the image size."""
    tokenizer = train_tokenizer([QUESTION])
    tower = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": 4 * width,
    }
    config = DualEncoderConfig(
        text_config={**tower, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": image_size, "patch_size": 32},
        num_labels=labels,
    )
    model = DualEncoderForQuestionAnswering(config).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    prepack_linear_layers(model)
    return model, DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": min(image_size)}), tokenizer)


def encoding(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Images a second through `encode_images` and through the bare tower."""
    width, layers, image_size = (64, 1, [96, 128]) if options.tiny else (768, 12, [384, 512])
    model, processor = make_model(width, layers, options.labels, image_size)
    generator = np.random.default_rng(options.seed)
    (folder / "images").mkdir()
    for number in range(options.images):
        small = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "images" / f"{number:06}.jpg", quality=90)
    files = sorted((folder / "images").iterdir())
    # Views of one buffer would be kinder to the cache than decoded images are: each image has its own.
    pixels = [processor.prepare_image(Image.open(file)) for file in files]

    @torch.inference_mode()
    def bare() -> float:
        start = time.perf_counter()
        outputs = [
            model.get_image_features(
                torch.stack(pixels[first : first + options.batch_size]).to(model.device)
            ).pooler_output
            for first in range(0, len(pixels), options.batch_size)
        ]
        torch.cat(outputs).cpu()
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {"encode": [], "bare tower": []}
    for number in range(1 + options.encode_repeats):
        store = folder / f"store-{number}"
        report = encode_images(
            model, processor, folder / "images", store, batch_size=options.batch_size, dtype="float16"
        )
        bare_seconds = bare()
        if number:
            seconds["encode"].append(report.seconds)
            seconds["bare tower"].append(bare_seconds)
    images_s = {name: options.images / median(values) for name, values in seconds.items()}
    return {
        "images": options.images,
        "image_px": image_size,
        "batch_size": options.batch_size,
        "encode_images_s": round(images_s["encode"], 2),
        "bare_tower_images_s": round(images_s["bare tower"], 2),
        "encode_over_bare_tower": round(images_s["encode"] / images_s["bare tower"], 3),
        "encode_s": [round(value, 3) for value in seconds["encode"]],
        "bare_tower_s": [round(value, 3) for value in seconds["bare tower"]],
    }


def asking(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Seconds to open a store and to ask one question of all of it, beside the arithmetic on a plain tensor."""
    model, processor = make_model(options.width, 1, options.labels, [96, 96])
    vectors = torch.randn(options.rows, options.width).tanh()
    start = time.perf_counter()
    write_store(folder, model, processor, vectors, options.dtype)
    write_s = time.perf_counter() - start
    opened = alternate({"open": lambda: FeatureStore(folder)}, repeats=max(5, options.repeats))["open"]
    asker = FeatureStoreVQA(model, processor, FeatureStore(folder))
    answer = model.config.id2label[0]
    inputs = {name: tensor.to(model.device) for name, tensor in processor.encode_text([QUESTION]).items()}

    @torch.inference_mode()
    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        text = model.project_text(model.get_text_features(**inputs).pooler_output)
        scores = []
        for first in range(0, options.rows, PIECE):
            images = model.project_images(vectors[first : first + PIECE].to(model.device)[:, None])
            scores.append(model.logits_of_projections(text, images).softmax(-1)[:, 0].cpu())
        return torch.cat(scores).sort(descending=True)

    before = anonymous_memory_mb()
    pieces = islice(asker.probabilities(QUESTION, PIECE), max(1, options.rows // PIECE // 10))
    most = max(anonymous_memory_mb() for _ in pieces)  # also the warm-up
    ways = {"store": lambda: asker.rank(QUESTION, answer, rows=PIECE), "plain": plain}
    timings = alternate(ways, device=model.device, warmup=0, repeats=options.repeats)
    return {
        "rows": options.rows,
        "width": options.width,
        "labels": options.labels,
        "dtype": options.dtype,
        "store_mb": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6),
        "write_s": round(write_s, 1),
        "open_ms": vars(opened),
        "ask_ms": vars(timings["store"]),
        "plain_tensor_ms": vars(timings["plain"]),
        "ask_over_plain_tensor": round(timings["store"].median_ms / timings["plain"].median_ms, 3),
        "memory_growth_mb": round(most - before, 1),
    }


def write_store(
    folder: Path, model: PreTrainedModel, processor: DualDistillProcessor, vectors: torch.Tensor, dtype: str
) -> None:
    """Write vectors as `encode_images` would have, one shard after the other."""
    table = FeatureTable(folder)
    identity, settings = model_identity(model), processor_settings("image", model, processor)
    table.begin(asdict(FeatureManifest("image", dtype, vectors.shape[1], False, PIECE, 1, identity, settings)))
    for shard in table.plan([f"images/{number:09}.jpg" for number in range(len(vectors))], PIECE):
        first = shard.number * PIECE
        rows = vectors[first : first + len(shard.ids)].to(DTYPES[dtype])
        table.write_features(shard.number, shard.ids, ["0" * 64] * len(shard.ids), {"pooled": rows})


def anonymous_memory_mb() -> float:
    """Memory of this process that is no mapped file, in MB; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")), 0.0)


if __name__ == "__main__":
    main()
