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

    python benchmarks/feature_store.py --tokens [--rows 10000]

Stores for a student with one interaction layer, ViLT-B/32's shape, 193 tokens of 768 numbers an image: synthetic tokens
(or keys and values), all shards alike but for their ids. Of each kind: bytes an image, opening, 100 questions to one
image and one question to 1,000 images, the first time (digests are compared then) and again. It writes some 13 GB into
--folder, one store after the other.

What it costs: the shallow interaction and the head of width 768 are 3.5 million multiply-adds an image, so a question
to a million images is 7 TFLOP, some 85 s of one processor core on either side, and an image of the tower is 33 GFLOP.
Hence few repeats, and a warm-up over a tenth of the rows; at these durations neither changes a median by a percent.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _record import provenance
from _runs import record
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
from dual_distill.inference.feature_store import KEYS_VALUES, TOKENS, stored_columns
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
    parser.add_argument("--tokens", action="store_true", help="measure stores of an interaction layer's tokens instead")
    parser.add_argument("--rows", type=int, help="stored images that are asked (default: 1,000,000; tokens: 10,000)")
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
    options.rows = options.rows or (10_000 if options.tokens else 1_000_000)
    if options.tiny:
        options.images, options.batch_size, options.width, options.repeats = 12, 4, 32, 2
        options.rows = 300 if options.tokens else 5000
    source = provenance()
    source["seed"] = options.seed
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.tokens:
            results = asking_tokens(options, Path(folder))
        else:
            results = {"encoding": encoding(options, Path(folder)), "asking": asking(options, Path(folder) / "asked")}
    print(*(f"{part} {name}: {value}" for part, values in results.items() for name, value in values.items()), sep="\n")
    record(options, "feature_store_tokens" if options.tokens else "feature_store", results, source)


def make_model(
    width: int, layers: int, labels: int, image_size: list[int], interaction_layers: int = 0
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
        interaction_layers=interaction_layers,
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


def asking_tokens(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, object]]:
    """Size, opening and asking of stores of tokens, and of keys and values, by kind and dtype."""
    layers, image_size = (1, [96, 128]) if options.tiny else (12, [384, 512])
    model, processor = make_model(options.width, layers, options.labels, image_size, interaction_layers=1)
    tokens = 1 + image_size[0] * image_size[1] // 32**2
    questions = [f"{QUESTION} {number}" for number in range(100)]
    asked = min(1000, options.rows)
    kinds = [(TOKENS, "float32"), (TOKENS, "float16"), (TOKENS, "int8"), (KEYS_VALUES, "int8")]
    results = {}

    for kind, dtype in kinds:
        store = folder / f"{kind}-{dtype}"
        start = time.perf_counter()
        write_tokens(store, model, processor, kind, dtype, options.rows, tokens)
        write_s, size = time.perf_counter() - start, sum(file.stat().st_size for file in store.iterdir())
        opened = alternate({"open": partial(FeatureStore, store)}, repeats=5)["open"]

        asker = FeatureStoreVQA(model, processor, FeatureStore(store))
        ids = asker.images.ids(range(asked))
        ways = {
            "100_questions_to_one_image": partial(asker.answer, ids[-1], questions),
            f"one_question_to_{asked}_images": partial(asker.answer_pairs, [(name, QUESTION) for name in ids]),
        }
        first = {name: seconds_of(ask) for name, ask in ways.items()}
        again = {name: seconds_of(ask) for name, ask in ways.items()}
        results[f"{kind}, {dtype}"] = {
            "images": options.rows,
            "tokens_an_image": tokens,
            "width": options.width,
            "bytes_an_image": round(size / options.rows),
            "store_mb": round(size / 1e6),
            "write_s": round(write_s, 1),
            "open_ms": round(opened.median_ms, 2),
            **{f"{name}_first_s": round(seconds, 3) for name, seconds in first.items()},
            **{f"{name}_again_s": round(seconds, 3) for name, seconds in again.items()},
        }
        print(f"{kind}, {dtype}: {results[f'{kind}, {dtype}']}", flush=True)
        shutil.rmtree(store)
    return results


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write_tokens(
    folder: Path,
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    kind: str,
    dtype: str,
    num_images: int,
    tokens: int,
) -> None:
    """Write random tokens (or keys and values) of images as `encode_images` would have, the same in each shard."""
    table, width, shard_size = FeatureTable(folder), model.config.hidden_size, min(128, num_images)
    identity, settings = model_identity(model), processor_settings("image", model, processor)
    table.begin(asdict(FeatureManifest("image", dtype, width, False, shard_size, 1, identity, settings, kind)))
    each = tokens if kind == TOKENS else 1 + 2 * model.config.interaction_layers * tokens
    columns = stored_columns(kind, torch.randn(shard_size * each, width), dtype)

    for shard in table.plan([f"images/{number:09}.jpg" for number in range(num_images)], shard_size):
        length = len(shard.ids)
        rows = {name: column[: length * each] for name, column in columns.items()}
        table.write_features(shard.number, shard.ids, ["0" * 64] * length, rows, lengths=[each] * length)


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
