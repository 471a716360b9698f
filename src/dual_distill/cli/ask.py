"""Ask a feature store of `dual-distill encode`: no image is read again.

Without --image, each question is asked of all stored images, which are ranked: by the probability of --answer, or each
by that of its most probable answer. With --image, the questions are asked of those images alone. --pairs PATH asks any
questions of any images: JSON lines {"image": ID, "question": TEXT}.

A store of a model with a retrieval head is searched instead, by the cosine of text and image: a store of images by
texts, a store of texts by --image, a file or URL. --image ID with --text-store searches those texts by an image of the
store. --rerank-top lets the model's interaction layers read the nearest, and orders them by how well they fit.

Examples:
  dual-distill ask runs/student photos.store "is there a dog?" --answer yes --threshold 0.5 --top-k 20
  dual-distill ask runs/student photos.store "what is it?" "how many are there?" --image 2024/cat.jpg
  dual-distill ask runs/student photos.store --pairs pairs.jsonl --text-store questions.store --json
  dual-distill ask runs/retrieval photos.store "a dog on a beach" --top-k 20
  dual-distill ask runs/retrieval captions.store --image beach.jpg --index faiss
"""

import argparse
from pathlib import Path
from typing import Any

from dual_distill import inference
from dual_distill.data import read_json_lines
from dual_distill.inference import FeatureStore, FeatureStoreVQA
from dual_distill.teachers import load_model

from .options import add_options, answer_blocks, option, refuse_options

_RANKED, _ANSWERS = 10, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add model, store and questions, and what is asked of which images."""
    add_options(parser, "model", "store")
    parser.add_argument("questions", metavar="question", nargs="*", help="question or sentence about an image")
    option(parser, "--image", "ID", "ask this image; may be repeated", action="append")
    option(parser, "--pairs", "PATH", "JSON lines of image and question, in place of questions")
    option(parser, "--answer", "TEXT", "rank images by the probability of this answer")
    rerank = "of a search, let interaction layers order the N nearest anew (the store has tokens: `encode --tokens`)"
    option(parser, "--rerank-top", "N", rerank)
    option(parser, "--threshold", "X", "least probability, or least cosine of a search (default: all)")
    option(parser, "--top-k", "N", "images a question (default: 10), or answers an image (default: 5)")
    option(parser, "--text-store", "PATH", "store of texts; those it holds are not encoded again")
    option(parser, "--index", "faiss[:SPEC]", "of a search, such as faiss:HNSW32, kept beside the store; none: exact")
    add_options(parser, "--revision", "--device")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Check the options against the store, load the model, and search, answer or rank."""
    stored = FeatureStore(options.store)
    texts = None if options.text_store is None else FeatureStore(options.text_store)
    is_searched = stored.manifest.vectors == inference.NORMALISED
    _refuse_unfit(options, stored, texts, is_searched)

    # What was left open depends on the store: a search has no requests, and cosines may be negative.
    requests = [(image, question) for image in options.image or () for question in options.questions]
    if options.pairs is not None:
        requests = read_requests(options.pairs)
    if options.top_k is None:
        options.top_k = _ANSWERS if requests else _RANKED
    if options.threshold is None:
        options.threshold = -1.0 if is_searched else 0.0
    if not is_searched and not 0 <= options.threshold <= 1:
        raise ValueError(f"threshold is {options.threshold}, but a probability lies between 0 and 1.")

    model, processor = load_model(options.model, options.revision)
    model.to(options.device)
    inference.prepack_linear_layers(model)

    if is_searched:
        sides = (texts, stored) if options.image and stored.manifest.kind == "image" else (stored, texts)
        result = _search(options, inference.FeatureStoreSearcher(model, processor, *sides, index=options.index))
    elif requests:
        result = _answer(options, FeatureStoreVQA(model, processor, stored, texts), requests)
    else:
        result = _rank(options, FeatureStoreVQA(model, processor, stored, texts))
    return {"model": options.model, "store": options.store, **result}


def _refuse_unfit(
    options: argparse.Namespace, stored: FeatureStore, texts: FeatureStore | None, is_searched: bool
) -> None:
    """Refuse options that do not go together, or not with the store."""
    if is_searched:
        why = f"is about answers, but the store {options.store!r} is one to search"
        refuse_options(options, ("pairs", "answer"), why)
        if bool(options.questions) == bool(options.image):
            raise ValueError("Give texts to search images by, or --image to search texts by, one of the two.")
        if options.image and stored.manifest.kind == "image" and texts is None:
            raise ValueError("--image searches texts; give --text-store PATH, or a store of texts in place of STORE.")
        return

    if bool(options.questions) == (options.pairs is not None):
        raise ValueError("Give questions or --pairs PATH, one of the two.")
    refuse_options(options, ["index", "rerank_top"], "is about a search, but this store is asked questions")
    if options.pairs is not None:
        refuse_options(options, ["image"], "is given, but --pairs names its images itself")
    if options.pairs is not None or options.image is not None:
        refuse_options(options, ["answer"], "ranks all images, but --image or --pairs names some")


def _rank(options: argparse.Namespace, vqa: FeatureStoreVQA) -> dict[str, Any]:
    """Rank all images for each question."""
    rankings = []
    ranked_by = vqa.rankings(options.questions, options.answer, options.top_k, options.threshold)
    for question, ranking in zip(options.questions, ranked_by, strict=True):
        best = [ranked._asdict() for ranked in ranking.best]
        rankings.append({"question": question, "matches": ranking.matches, "images": best})
    return {"stored_images": len(vqa.images), "rankings": rankings}


def _answer(options: argparse.Namespace, vqa: FeatureStoreVQA, requests: list[tuple[str, str]]) -> dict[str, Any]:
    """Answer questions about some of the images."""
    rows = []
    for (image, question), best in zip(requests, vqa.answer_pairs(requests, options.top_k), strict=True):
        kept = [found for found in best if float(found["score"]) >= options.threshold]
        rows.append({"image": image, "question": question, "answers": kept})
    return {"answers": rows}


def _search(options: argparse.Namespace, searcher: inference.FeatureStoreSearcher) -> dict[str, Any]:
    """Search images for texts, or texts for images."""
    # Results are called after what was asked and what was found.
    find: Any = searcher.by_images if options.image else searcher.by_texts
    query, kind = ("image", "text") if options.image else ("question", "image")
    queries = options.image or options.questions

    rankings = []
    for given, result in zip(queries, find(queries, options.top_k, options.threshold, options.rerank_top), strict=True):
        hits = [
            {kind: hit.id, "score": hit.score} | ({} if hit.match is None else {"match": hit.match})
            for hit in result.best
        ]
        rankings.append({query: given, "matches": result.matches, f"{kind}s": hits})
    return {f"stored_{kind}s": len(searcher.store), "index": options.index, "rankings": rankings}


def read_requests(file: Path) -> list[tuple[str, str]]:
    """Return image and question of each request in a file of JSON lines."""
    requests = []
    for place, record in read_json_lines(file):
        if not isinstance(record, dict) or not {"image", "question"} <= record.keys():
            problem = "image or question is missing" if isinstance(record, dict) else record
            raise ValueError(f'{place}: {problem}; write {{"image": ID, "question": TEXT}}.')
        requests.append((str(record["image"]), record["question"]))
    if not requests:
        raise ValueError(f"The file {str(file)!r} holds no pairs; give JSON lines of image and question.")
    return requests


def table(result: dict[str, Any]) -> str:
    """Lay answers, rankings or hits out for reading: a block a question, a line an answer, image or text."""
    if "answers" in result:
        return answer_blocks([(f"{row['image']}: {row['question']}", row["answers"]) for row in result["answers"]])

    # A search gives texts where it was asked by images.
    kind = "image" if "stored_images" in result else "text"
    blocks = []
    for ranking in result["rankings"]:
        # An index does not count its matches.
        hits = ranking[f"{kind}s"]
        matches = "" if ranking["matches"] is None else f"{ranking['matches']:,} of "
        lines = [f"{ranking.get('question') or ranking['image']}  ({matches}{result[f'stored_{kind}s']:,} {kind}s)"]

        width = max((len(hit[kind]) for hit in hits), default=0)
        for hit in hits:
            answered = f"  {hit[kind]:<{width}}  {100 * hit['score']:5.1f} %  {hit.get('answer')}"
            fits = f"  {100 * hit['match']:5.1f} %" if "match" in hit else ""
            lines.append(answered if "answer" in hit else f"  {hit['score']:6.3f}{fits}  {hit[kind]}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
