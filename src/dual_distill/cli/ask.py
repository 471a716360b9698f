"""`dual-distill ask MODEL STORE "question"`: questions to images that were encoded beforehand, or a search among them."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dual_distill.inference import (
    NORMALISED,
    FeatureStore,
    FeatureStoreSearcher,
    FeatureStoreVQA,
    SearchResult,
    load_encoder,
    prepack_linear_layers,
)

from .encode import default_device

_EPILOG = """\
Without --image, each question is asked of all stored images, which are ranked: by the probability of --answer, or each
by that of its most probable answer. With --image, the questions are asked of those images alone. --pairs FILE asks any
questions of any
images: JSON lines {"image": ID, "question": TEXT}.

A store of a model with a retrieval head is searched instead, by the cosine of text and image: a store of images by
texts, a store of texts by --image, a file or URL. --image ID with --text-store searches those texts by an image of the
store.

examples:
  dual-distill ask runs/student photos.store "is there a dog?" --answer yes --threshold 0.5 --top-k 20
  dual-distill ask runs/student photos.store "what is it?" "how many are there?" --image 2024/cat.jpg
  dual-distill ask runs/student photos.store --pairs pairs.jsonl --text-store questions.store --json
  dual-distill ask runs/retrieval photos.store "a dog on a beach" --top-k 20
  dual-distill ask runs/retrieval captions.store --image beach.jpg --index faiss"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill ask",
        description="Ask a feature store of `dual-distill encode`: no image is read again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub repository of the dual encoder that made the store")
    parser.add_argument("store", help="folder of the store")
    parser.add_argument("questions", nargs="*", metavar="question", help="question or statement")
    parser.add_argument(
        "--image", action="append", dest="images", metavar="ID", help="ask this image alone; may be repeated"
    )
    parser.add_argument("--pairs", metavar="FILE", help="JSON lines of image and question, in place of questions")
    parser.add_argument("--answer", help="rank images by the probability of this answer")
    parser.add_argument("--threshold", type=float, help="least probability, or least cosine of a search (default: all)")
    parser.add_argument("--top-k", type=int, help="images a question (default: 10), or answers an image (default: 5)")
    parser.add_argument(
        "--text-store", metavar="STORE", help="store of texts; questions that it holds are not encoded again"
    )
    parser.add_argument(
        "--index",
        metavar="faiss[:SPEC]",
        help="search with an index of faiss, such as faiss:HNSW32 (default: none, exact)",
    )
    parser.add_argument("--revision", help="revision of a Hub repository")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON line on stdout, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Ask and print."""
    options = make_parser().parse_intermixed_args(words)
    with redirect_stdout(sys.stderr):
        result = ask(options)
    if options.json:
        print(json.dumps({"model": options.model, "store": options.store, **result}, ensure_ascii=False))
    else:
        lay_out = searches_table if "index" in result else rankings_table
        print(lay_out(result) if "rankings" in result else answers_table(result["answers"]))


def ask(options: argparse.Namespace) -> dict[str, Any]:
    """Open the store, load the model, and ask in one of the three ways."""
    if options.questions and options.pairs is not None:
        raise ValueError("Give questions or --pairs FILE, one of the two.")
    stored = FeatureStore(options.store)
    texts = FeatureStore(options.text_store) if options.text_store is not None else None
    if stored.manifest.vectors == NORMALISED:
        return search(options, stored, texts)
    if not options.questions and options.pairs is None:
        raise ValueError("Give questions or --pairs FILE, one of the two.")
    if options.index is not None:
        raise ValueError(
            "--index searches vectors of a retrieval head, but this store is asked questions; leave it out."
        )
    ranks = options.images is None and options.pairs is None
    if not ranks and options.answer is not None:
        raise ValueError("--answer ranks all images, but --image or --pairs names some; leave one out.")
    if options.pairs is not None and options.images is not None:
        raise ValueError("--pairs names its images itself; leave --image out.")
    pairs = [(image, question) for image in options.images or () for question in options.questions]
    if options.pairs is not None:
        pairs = read_image_texts(options.pairs)
    model, processor, revision = load_encoder(options.model, options.revision)
    model.to(options.device or default_device())
    prepack_linear_layers(model)
    asker = FeatureStoreVQA(model, processor, stored, texts, model_name=options.model, revision=revision)
    threshold = 0.0 if options.threshold is None else options.threshold
    if ranks:
        top_k = 10 if options.top_k is None else options.top_k
        rankings = []
        for question in options.questions:
            ranking = asker.rank(question, options.answer, top_k, threshold)
            best = [ranked._asdict() for ranked in ranking.best]
            rankings.append({"question": question, "matches": ranking.matches, "images": best})
        return {"stored_images": len(stored), "rankings": rankings}
    answers = asker.answer_pairs(pairs, top_k=5 if options.top_k is None else options.top_k)
    return {
        "answers": [
            {
                "image": image,
                "question": question,
                "answers": [answer for answer in best if float(answer["score"]) >= threshold],
            }
            for (image, question), best in zip(pairs, answers, strict=True)
        ]
    }


def search(options: argparse.Namespace, stored: FeatureStore, texts: FeatureStore | None) -> dict[str, Any]:
    """Search images for texts, or texts for images."""
    for name in ("pairs", "answer"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} is about answers, but the store {options.store!r} is one to search; leave it out."
            )
    if bool(options.questions) == bool(options.images):
        raise ValueError("Give texts to search images by, or --image to search texts by, one of the two.")
    found_in, queries = stored, texts
    if options.images and stored.manifest.kind == "image":
        if texts is None:
            raise ValueError(
                "--image searches texts; give --text-store STORE, or a store of texts in place of that of images."
            )
        found_in, queries = texts, stored
    model, processor, revision = load_encoder(options.model, options.revision)
    model.to(options.device or default_device())
    prepack_linear_layers(model)
    searcher = FeatureStoreSearcher(
        model, processor, found_in, queries, index=options.index, model_name=options.model, revision=revision
    )
    top_k = 10 if options.top_k is None else options.top_k
    threshold = -1.0 if options.threshold is None else options.threshold
    if options.questions:
        results, query, kind = searcher.by_texts(options.questions, top_k, threshold), "question", "image"
    else:
        results, query, kind = searcher.by_images(options.images, top_k, threshold), "image", "text"

    def listed(given: str, result: SearchResult) -> dict[str, Any]:
        rows = [{kind: found.id, "score": found.score} for found in result.best]
        return {query: given, "matches": result.matches, f"{kind}s": rows}

    rankings = [
        listed(given, result) for given, result in zip(options.questions or options.images, results, strict=True)
    ]
    return {f"stored_{kind}s": len(found_in), "index": options.index, "rankings": rankings}


def read_image_texts(file: str) -> list[tuple[str, str]]:
    """Return the pairs of image and question in a file of JSON lines.

    Raises:
        ValueError: the file cannot be read, is empty, or a line is no such pair.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The pairs {file!r} cannot be read ({error}); give a UTF-8 file of JSON lines.") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            pairs.append((str(entry["image"]), entry["question"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file}, line {number}: it is no pair {{"image": ID, "question": TEXT}} ({type(error).__name__}: {error}).'
            ) from error
    if not pairs:
        raise ValueError(f"The file {file!r} holds no pairs; give JSON lines of image and question.")
    return pairs


def rankings_table(result: dict[str, Any]) -> str:
    """Lay rankings out for reading: a block a question, an image a line."""
    blocks = []
    for ranking in result["rankings"]:
        lines = [f"{ranking['question']}  ({ranking['matches']:,} of {result['stored_images']:,} images)"]
        width = max((len(ranked["image"]) for ranked in ranking["images"]), default=0)
        for ranked in ranking["images"]:
            lines.append(f"  {ranked['image']:<{width}}  {100 * ranked['score']:5.1f} %  {ranked['answer']}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def searches_table(result: dict[str, Any]) -> str:
    """Lay searches out for reading: a block a query, an image or text with its cosine a line."""
    query, kind = ("question", "image") if "stored_images" in result else ("image", "text")
    blocks = []
    for ranking in result["rankings"]:
        matches = "" if ranking["matches"] is None else f"{ranking['matches']:,} of "
        lines = [f"{ranking[query]}  ({matches}{result[f'stored_{kind}s']:,} {kind}s)"]
        lines += [f"  {found['score']:6.3f}  {found[kind]}" for found in ranking[f"{kind}s"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def answers_table(answers: list[dict[str, Any]]) -> str:
    """Lay answers out for reading: a block a pair, an answer a line."""
    blocks = []
    for pair in answers:
        width = max((len(answer["answer"]) for answer in pair["answers"]), default=0)
        lines = [f"{pair['image']}: {pair['question']}"]
        lines += [f"  {answer['answer']:<{width}}  {100 * answer['score']:5.1f} %" for answer in pair["answers"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


__all__ = [
    "answers_table",
    "ask",
    "make_parser",
    "rankings_table",
    "read_image_texts",
    "run",
    "search",
    "searches_table",
]
