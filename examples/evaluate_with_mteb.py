"""A retrieval student on MTEB's and MIEB's tasks, and on one's own images and texts as such a task.

    pip install mteb "dual-distill[sentence-transformers]"
    python examples/evaluate_with_mteb.py runs/retrieval --data rows.parquet       # columns image and text
    python examples/evaluate_with_mteb.py runs/retrieval --task Flickr30kT2IRetrieval  # fetched from the Hub

mteb takes the student as sentence-transformers loads it; that it reads images too has to be said of a local model.
"""

# ruff: noqa: T201 - printing is what a script does
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

import dual_distill


def retrieval_task(images: Sequence[Any], texts: Sequence[str], name: str, images_ask: bool = False) -> Any:
    """Return a task in which text i belongs to image i: images are found by texts, or the reverse."""
    kinds = {"text": list(texts), "image": list(images)}
    asked, found = ("image", "text") if images_ask else ("text", "image")
    about: dict[str, Any] = {
        "name": name,
        "type": "Any2AnyRetrieval",
        "category": "i2t" if images_ask else "t2i",
        "modalities": ["image", "text"],
        "description": "Local images and texts, of which the i-th belong together.",
        "reference": None,
        "dataset": {"path": "local", "revision": "1"},
        "eval_splits": ["test"],
        "eval_langs": ["eng-Latn"],
        "main_score": "ndcg_at_10",
    }

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(**about)

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            numbers = range(len(texts))
            rows = {
                "queries": Dataset.from_dict({"id": [f"q{n}" for n in numbers], asked: kinds[asked]}),
                "corpus": Dataset.from_dict({"id": [f"d{n}" for n in numbers], found: kinds[found]}),
                "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in numbers},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": rows}}, True

    return LocalRetrieval()


def scores(model: str, tasks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Return the scores of a checkpoint by task, nothing read from or written to mteb's cache."""
    encoder = SentenceTransformerEncoderWrapper(SentenceTransformer(model))
    told = {"modalities": ["text", "image"], "name": f"local/{Path(model).name}"}
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update=told)
    results = mteb.evaluate(encoder, list(tasks), cache=None, show_progress_bar=False, co2_tracker=False)
    return {one.task_name: one.scores["test"][0] for one in results.task_results}


def main() -> None:
    """Evaluate, and print the main scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", help="Parquet file with the columns image and text")
    parser.add_argument("--task", action="append", default=[], help="name of a task of mteb; may be repeated")
    options = parser.parse_args()
    print(f"dual_distill {dual_distill.__version__}, mteb {mteb.__version__}")

    tasks = [*mteb.get_tasks(tasks=options.task)] if options.task else []
    if options.data:
        rows = Dataset.from_parquet(options.data)
        tasks += [retrieval_task(rows["image"], rows["text"], f"Local{way}", way == "I2T") for way in ("T2I", "I2T")]
    for name, found in scores(options.model, tasks).items():
        print(name, {score: round(found[score], 4) for score in ("main_score", "recall_at_1", "recall_at_10")})


if __name__ == "__main__":
    main()
