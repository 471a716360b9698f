"""`dual-distill serve` under load on loopback, beside the bare model in this process.

    python benchmarks/serving.py [--requests 256 --clients 32 --rounds 5]

A student of width 384 with 6 layers a tower and random weights, images of 224 x 224 in patches of 32, float32. Two
kinds of request: a question to a stored image, and a question with a JPEG of 320 x 240 pixels. The server has a process
of its own; its clients are threads of this one, a connection each, and share the cores with it, which is in the
figures. The bare model answers the same questions in batches of 32: `FeatureStoreVQA.answer_pairs`, and the pipeline on
the same bytes. They take turns. `--tiny` tries the script out and writes nothing.
"""

import argparse
import base64
import http.client
import io
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from threading import local
from typing import Any

import numpy as np
import torch
from _record import provenance, write
from PIL import Image
from transformers import ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.inference import (
    DualVisualQuestionAnsweringPipeline,
    FeatureStore,
    FeatureStoreVQA,
    encode_images,
    prepack_linear_layers,
)
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering

QUESTIONS = ["is there a red circle?", "how many blue squares are there?", "what is left of the green triangle?"]
BATCH = 32


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--requests", 256), ("--clients", 32), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.requests, options.clients, options.rounds = 8, 4, 2
    source = provenance()

    with tempfile.TemporaryDirectory() as root:
        model, processor, jpegs = build(Path(root), options.tiny)
        ids = sorted(jpegs)
        store = FeatureStore(Path(root, "store"))
        prepack_linear_layers(model)
        stored = FeatureStoreVQA(model, processor, store)
        answering = DualVisualQuestionAnsweringPipeline(model, processor, device=model.device)
        asked = [(ids[i % len(ids)], QUESTIONS[i % len(QUESTIONS)]) for i in range(options.requests)]
        kinds: dict[str, tuple[Any, list[dict[str, Any]]]] = {
            "stored image": (
                lambda: [stored.answer_pairs(asked[i : i + BATCH]) for i in range(0, len(asked), BATCH)],
                [{"question": question, "image_id": image} for image, question in asked],
            ),
            "image in the request": (
                lambda: answering([{"image": jpegs[i], "question": q} for i, q in asked], batch_size=BATCH),
                [{"question": q, "image": base64.b64encode(jpegs[i]).decode()} for i, q in asked],
            ),
        }
        words = ["serve", f"{root}/model", "--store", f"{root}/store", "--port", "0", "--max-batch", str(BATCH)]
        command = [sys.executable, "-m", "dual_distill", *words, "--json"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        line = next(line for line in server.stderr if line.startswith("serving "))
        port = int(line.split(" (")[0].rsplit(":", 1)[1])

        results = {kind: compare(bare, bodies, port, options) for kind, (bare, bodies) in kinds.items()}
        server.terminate()
        served = json.loads(server.communicate()[0])
    expected = len(kinds) * options.requests * (options.rounds + 1)
    assert served["requests"] == expected, served
    results["requests, all answered"] = expected
    print(json.dumps(results, indent=2))
    if not options.tiny:
        write("serving", {**vars(options), **results}, source)


def build(root: Path, tiny: bool) -> tuple[DualEncoderForQuestionAnswering, DualDistillProcessor, dict[str, bytes]]:
    """Save a model, and a store of 64 images."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(QUESTIONS)
    side = 64 if tiny else 224
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    config = DualEncoderConfig(
        text_config={**shape, "vocab_size": len(tokenizer)},
        vision_config={**shape, "image_size": side, "patch_size": 32},
        num_labels=1000,
    )
    model = DualEncoderForQuestionAnswering(config).eval()
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": side}, size_divisor=32), tokenizer)
    draw, jpegs = np.random.default_rng(0), {}
    for number in range(8 if tiny else 64):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (15, 20, 3), np.uint8)).resize((320, 240)).save(buffer, "JPEG")
        jpegs[f"{number}.jpg"] = buffer.getvalue()
    for one in (model, processor):
        one.save_pretrained(root / "model")
    encode_images(model, processor, jpegs, root / "store", num_workers=0)
    return model, processor, jpegs


def compare(bare: Any, bodies: list[dict[str, Any]], port: int, options: argparse.Namespace) -> dict[str, Any]:
    """Requests a second of both, taking turns, and how long a request takes."""
    contents, own = [json.dumps(body) for body in bodies], local()

    def ask(content: str) -> float:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        start = time.perf_counter()
        own.connection.request("POST", "/answer", content, {"Content-Type": "application/json"})
        answer = own.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        return time.perf_counter() - start

    rates: dict[str, list[float]] = {"bare": [], "served": []}
    latencies: list[float] = []
    with ThreadPoolExecutor(options.clients) as clients:
        for round_number in range(options.rounds + 1):
            start = time.perf_counter()
            bare()
            between = time.perf_counter()
            took = list(clients.map(ask, contents))
            end = time.perf_counter()
            if round_number:  # the first warms up
                rates["bare"].append(len(contents) / (between - start))
                rates["served"].append(len(contents) / (end - between))
                latencies += took

    ratios = [served / alone for served, alone in zip(rates["served"], rates["bare"], strict=True)]
    cuts = quantiles(latencies, n=20)
    return {
        **{f"{name}_per_second": round(median(each), 1) for name, each in rates.items()},
        "served_by_bare": [round(value, 3) for value in quantiles(ratios, n=4)],
        "latency_ms": {"median": round(1000 * median(latencies), 1), "95 %": round(1000 * cuts[-1], 1)},
    }


if __name__ == "__main__":
    main()
