"""SNLI-VE from its official files: does a Flickr30k photograph entail a sentence? (Xie et al., arXiv 1901.06706).

About one pair in a hundred has no majority among its annotators and carries the label "-". It is no example of any
class and is left out, and counted, as every published number leaves it out.
"""

from functools import partial
from typing import Any, Unpack

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import ImageFolder, Reading, ReadingReport, RecordReader, official_splits
from dual_distill.data.records import FilePath, read_json_lines
from dual_distill.data.tasks import TASKS

# What the folder of SNLI-VE holds, with an image ID.jpg for each Flickr30K_ID.
LAYOUT = "snli_ve_train.jsonl, snli_ve_dev.jsonl and, if wanted, snli_ve_test.jsonl, and flickr30k-images/."

_NAMES = {"train": "snli_ve_train.jsonl", "validation": "snli_ve_dev.jsonl", "test": "snli_ve_test.jsonl"}
_NO_MAJORITY = "-"
_TEXTS = dict.fromkeys(("sentence", "label", "pair_id", "image_id"), Value("string"))
_FEATURES = Features({"image": Image(decode=False), **_TEXTS})


def load_snli_ve(
    path: FilePath | None = None, images: FilePath | None = None, **reading: Unpack[Reading]
) -> DatasetDict:
    """SNLI-VE as train, validation (its dev) and, if its file is there, test.

    Args:
        path: folder with the files of `LAYOUT`.
        images: folder of the images; None: flickr30k-images/ in `path`.
        **reading: `skip_bad` and `report`, see `Reading`. The report also says what was left out for its
            gold_label "-", and how many have a pairID that was there before (they are taken).

    Returns:
        Columns image (undecoded), sentence (the hypothesis, sentence2), label (contradiction, entailment or neutral),
        pair_id, image_id.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad: a missing image, an empty sentence, an unknown label, a line that is no JSON.

    References:
        Xie et al., 2019, arXiv 1901.06706; github.com/necla-ml/SNLI-VE

    Example:
        >>> load_snli_ve("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    reader = RecordReader("snli_ve", _FEATURES, **reading)
    files = official_splits(path, _NAMES, LAYOUT)
    image_folder = ImageFolder(images or files["train"].parent / "flickr30k-images")
    for split, file in files.items():
        make_row = partial(_make_row, images=image_folder, pair_ids=set(), report=reader.report)
        reader.read(split, read_json_lines(file), make_row)
    return reader.finish()


def _make_row(record: Any, images: ImageFolder, pair_ids: set[str], report: ReadingReport) -> dict[str, Any] | None:
    label = record.choice("gold_label", (*(TASKS["snli_ve"].label_names or ()), _NO_MAJORITY))
    if label == _NO_MAJORITY:
        report.left_out["gold_label '-' (no majority among the annotators)"] += 1
        return None

    image_id = str(record.value("Flickr30K_ID", str)).removesuffix(".jpg")
    image, text = images.find(f"{image_id}.jpg"), record.text("sentence2")

    pair_id = record.value("pairID", str) if "pairID" in record else None
    if pair_id in pair_ids:
        report.notes["pairID that occurred before"] += 1
    elif pair_id is not None:
        pair_ids.add(pair_id)
    return {"image": image, "sentence": text, "label": label, "pair_id": pair_id, "image_id": image_id}
