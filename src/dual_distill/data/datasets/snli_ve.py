"""SNLI-VE from its official files: does a Flickr30k photograph entail a sentence? (Xie et al., arXiv 1901.06706).

About one pair in a hundred has no majority among its annotators and carries the label "-". It is no example of any
class and is left out, and counted, as every published number leaves it out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Features, Image, Value

from dual_distill.data.reading import ImageFolder, OfficialSplits, ReadingReport
from dual_distill.data.records import InvalidRecordError
from dual_distill.data.tasks import TASKS

LAYOUT = (
    "snli_ve_train.jsonl, snli_ve_dev.jsonl and (if wanted) snli_ve_test.jsonl, and flickr30k-images/ with an image "
    "ID.jpg for each Flickr30K_ID."
)
"""What the folder of SNLI-VE holds."""

_NAMES = {"train": "snli_ve_train.jsonl", "validation": "snli_ve_dev.jsonl", "test": "snli_ve_test.jsonl"}
_NO_MAJORITY = "-"
_TEXTS = ("sentence", "label", "pair_id", "image_id")
_FEATURES = Features({"image": Image(decode=False), **dict.fromkeys(_TEXTS, Value("string"))})


def _make_row(record: Any, images: ImageFolder, pair_ids: set[str], report: ReadingReport) -> dict[str, Any] | None:
    label, classes = record.value("gold_label", str), TASKS["snli_ve"].label_names or ()
    if label == _NO_MAJORITY:
        report.left_out["gold_label '-' (no majority among the annotators)"] += 1
        return None
    if label not in classes:
        message = f"gold_label is {label!r}, but expected is {', '.join(classes)} or '-'"
        raise InvalidRecordError("unknown label", message)

    image_id = str(record.value("Flickr30K_ID", str)).removesuffix(".jpg")
    image, text = images.find(f"{image_id}.jpg"), record.text("sentence2")

    pair_id = record.value("pairID", str) if "pairID" in record else None
    if pair_id in pair_ids:
        report.notes["pairID that occurred before"] += 1
    elif pair_id is not None:
        pair_ids.add(pair_id)
    return {"image": image, "sentence": text, "label": label, "pair_id": pair_id, "image_id": image_id}


def _row_maker(images: ImageFolder, report: ReadingReport) -> Callable[[Any], dict[str, Any] | None]:
    return partial(_make_row, images=images, pair_ids=set(), report=report)


load_snli_ve = OfficialSplits("snli_ve", _FEATURES, _NAMES, ("flickr30k-images",), LAYOUT, _row_maker).load
"""Read SNLI-VE as `OfficialSplits.load` says: columns image, undecoded, sentence (the hypothesis, sentence2), label
(contradiction, entailment or neutral), pair_id, image_id. The report counts what was left out for its gold_label "-",
and how many a pairID that was there before has (they are taken).

References:
    Xie et al., 2019, arXiv 1901.06706; github.com/necla-ml/SNLI-VE
"""
