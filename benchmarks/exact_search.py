"""Exact search over a store of vectors, beside faiss's own flat, half-precision and 8-bit indexes in memory.

    python benchmarks/exact_search.py [--rows 10000 100000] [--width 768]

Synthetic vectors of length 1: centres of 200 clusters with noise, as embeddings of photographs come in groups; a query
is a stored vector with noise. Of each number of rows a store of float16 and one of int8 is written; `ours` searches it
by vectors that are there already (`by_vectors`: the comparison, ids and scores of the ten nearest), in the mapped
shards, and without faiss by torch. They take turns. Recall is the share of the ten nearest in float32 that are among
the ten nearest of a store. Milliseconds are of the processor, not of the wall: other work on the machine is not in
them. Opening and the first search, in which the digests of all shards are compared, are timed once. Ten million rows
are planned by the growth from the last two numbers. `--tiny` tries the script out.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import torch
from _record import provenance, write
from transformers import ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.inference import (
    NORMALISED,
    FeatureManifest,
    FeatureStore,
    FeatureStoreSearcher,
    FeatureTable,
    alternate,
    model_identity,
    processor_settings,
)
from dual_distill.inference.feature_store import stored_columns
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForImageTextRetrieval

SHARD_SIZE, CLUSTERS, QUERIES, TOP_K = 1024, 200, 100, 10
PEERS = {"faiss flat": "Flat", "faiss fp16": "SQfp16", "faiss 8 bit": "SQ8"}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=101, help="single calls, so that most are not interrupted")
    parser.add_argument("--folder", type=Path, help="where stores are written and removed again (default: /tmp)")
    parser.add_argument("--name", default="exact_search", help="of the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="few rows, to try the script out")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.width, options.repeats = [300, 3000], 32, 3
    source = provenance() | {"seed": options.seed}
    source["versions"]["faiss-cpu"] = faiss.__version__
    if options.folder is not None:
        source["command"] = source["command"].replace(str(options.folder), "FOLDER")
    faiss.omp_set_num_threads(torch.get_num_threads())

    rows = [measured(options, number) for number in options.rows]
    results: dict[str, Any] = {"width": options.width, "top_k": TOP_K, "rows": rows}
    if len(rows) > 1:
        results["planned"] = planned(*rows[-2:])
        print(results["planned"])
    if not options.tiny:
        write(options.name, results, source)


@torch.inference_mode()
def measured(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Milliseconds a query, of all ways, over one number of rows."""
    torch.manual_seed(options.seed)
    centres = torch.randn(CLUSTERS, options.width)
    vectors = torch.empty(number, options.width)
    for start in range(0, number, SHARD_SIZE):
        rows = vectors[start : start + SHARD_SIZE]
        drawn = centres[torch.randint(CLUSTERS, (len(rows),))]
        rows.copy_(torch.nn.functional.normalize(drawn + torch.randn_like(drawn), dim=-1))
    picked = vectors[torch.randint(number, (QUERIES,))]
    queries = torch.nn.functional.normalize(picked + 0.5 * torch.randn_like(picked) * picked.std(), dim=-1)

    tokenizer = train_tokenizer(["a red circle"])
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = DualEncoderConfig(
        text_config={"vocab_size": len(tokenizer), **tower},
        vision_config={"image_size": 32, "patch_size": 16, **tower},
        projection_dim=options.width,
    )
    model, processor = (
        DualEncoderForImageTextRetrieval(config).eval(),
        DualDistillProcessor(ViltImageProcessorPil(), tokenizer),
    )
    found: dict[str, Any] = {"rows": number}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        searchers = {}
        for dtype in ("float16", "int8"):
            path = Path(folder, dtype)
            write_store(path, model, processor, vectors, dtype)
            start = time.process_time()
            searchers[dtype] = FeatureStoreSearcher(model, processor, FeatureStore(path), index="faiss")
            opened = time.process_time()
            searchers[dtype].by_vectors(queries[:1])
            seconds = (opened - start, time.process_time() - opened)
            size = sum(file.stat().st_size for file in path.iterdir())
            found[f"store {dtype}"] = {
                "mb": round(size / 1e6, 1),
                "files": len(list(path.iterdir())),
                "open_ms": round(1000 * seconds[0], 1),
                "first_search_ms": round(1000 * seconds[1], 1),
            }
        with mock.patch.dict(sys.modules, {"faiss": None}):
            by_torch = FeatureStoreSearcher(model, processor, searchers["float16"].store)

        # One peer after the other: all of them would be twice the vectors.
        each = {f"ours {dtype}": searcher for dtype, searcher in searchers.items()}
        for name, spec in PEERS.items():
            peer = faiss.index_factory(options.width, spec, faiss.METRIC_INNER_PRODUCT)
            peer.train(vectors[: 100 * SHARD_SIZE].numpy())
            peer.add(vectors.numpy())
            ways = {name: lambda peer=peer: peer.search(queries[:1].numpy(), TOP_K)}
            ways |= {own: lambda searcher=searcher: searcher.by_vectors(queries[:1]) for own, searcher in each.items()}
            timings = alternate(ways, repeats=options.repeats, clock=time.process_time)
            for way, timing in timings.items():
                found[way if way == name else f"{way} beside {name}"] = vars(timing)
                if way != name:
                    found[f"{way} over {name}"] = round(timing.median_ms / timings[name].median_ms, 3)
            found[f"recall {name}"] = recall(peer.search(queries.numpy(), TOP_K)[1].tolist(), queries, vectors)
        once = {"without faiss float16": lambda: by_torch.by_vectors(queries[:1])}
        found["without faiss float16"] = vars(
            alternate(once, repeats=3, warmup=1, clock=time.process_time)["without faiss float16"]
        )
        for dtype, searcher in searchers.items():
            ids = [[int(hit.id) for hit in result.best] for result in searcher.by_vectors(queries, TOP_K)]
            found[f"recall ours {dtype}"] = recall(ids, queries, vectors)
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", flush=True)
    return found


def write_store(path: Path, model: Any, processor: Any, vectors: torch.Tensor, dtype: str) -> None:
    """A store of texts, whose settings need no image processor; ids are the numbers of the rows."""
    shutil.rmtree(path, ignore_errors=True)
    table = FeatureTable(path)
    made_with = (model_identity(model), processor_settings("text", model, processor))
    table.begin(
        asdict(FeatureManifest("text", dtype, vectors.shape[1], False, SHARD_SIZE, 1, *made_with, vectors=NORMALISED))
    )
    for shard in table.plan([str(number) for number in range(len(vectors))], SHARD_SIZE):
        rows = vectors[int(shard.ids[0]) : int(shard.ids[-1]) + 1]
        table.write_features(shard.number, shard.ids, shard.ids, stored_columns(NORMALISED, rows, dtype))


def recall(found: list[list[int]], queries: torch.Tensor, vectors: torch.Tensor) -> float:
    """Share of the nearest in float32 that were found."""
    best = torch.cat([query[None] @ vectors.T for query in queries]).topk(TOP_K).indices.tolist()
    hits = [len(set(ours) & set(exact)) for ours, exact in zip(found, best, strict=True)]
    return round(sum(hits) / TOP_K / len(hits), 4)


def planned(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds and bytes of ten million rows, if they grow as from the smaller to the larger store."""
    ways = [name for name in large if isinstance(large[name], dict) and "median_ms" in large[name]]
    share = (10_000_000 - large["rows"]) / (large["rows"] - small["rows"])
    grown = {
        way: round(large[way]["median_ms"] + share * (large[way]["median_ms"] - small[way]["median_ms"]))
        for way in ways
    }
    sizes = {name: round(large[name]["mb"] * 10_000_000 / large["rows"]) for name in ("store float16", "store int8")}
    return {"rows": 10_000_000, "ms": grown, "mb": sizes}


if __name__ == "__main__":
    main()
