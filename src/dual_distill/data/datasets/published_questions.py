"""Questions with one short answer each, from the files that their authors publish: GQA, VQA-RAD and DAQUAR.

GQA's files are one object of questions by id, nearly a million of them. VQA-RAD is one array whose answers are typed by
hand, and DAQUAR alternates lines of questions and answers: both are read as custom datasets are, so that spellings are
merged and whole images held out.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pyarrow.parquet as pq
from datasets import DatasetDict, Features, Image, Value

from dual_distill.data import records
from dual_distill.data.reading import ImageFolder, Reading, RecordReader, official_folder

from .custom import load_custom_dataset
from .easy_vqa import load_easy_vqa

GQA_LAYOUT = "train_balanced_questions.json, val_balanced_questions.json, testdev_balanced_questions.json and images/."
VQA_RAD_LAYOUT = "'VQA_RAD Dataset Public.json' and the folder 'VQA_RAD Image Folder'."
DAQUAR_LAYOUT = "qa.894.raw.train.txt, qa.894.raw.test.txt and nyu_depth_images/, or Parquet as easy-VQA's."

_GQA_NAMES = {"train": "train", "validation": "val", "test": "testdev"}
_TEXTS = dict.fromkeys(("question", "answer", "question_type", "question_id", "image_id"), Value("string"))
_FEATURES = Features({"image": Image(decode=False), **_TEXTS})
_NAMED_IMAGE = re.compile(r"(?:\s*\b(?:in|of|on) (?:the |this )?)?(?P<image>\bimage\d+)\b")


def load_gqa(
    path: records.FilePath | None = None, test_questions: records.FilePath | None = None, **reading: Unpack[Reading]
) -> DatasetDict:
    """GQA's balanced questions as train, validation and test, which is test-dev.

    Args:
        path: folder with the files of `GQA_LAYOUT`; test-dev may be missing.
        test_questions: questions without answers that become test instead, such as submission_all_questions.json.
        **reading: `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image (undecoded), question, answer (None where there is none), question_type (verify, query, choose,
        logical, compare, other), question_id and image_id, both text as in the files.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad: a missing image, an empty question, an answer that is no text.

    References:
        Hudson and Manning, CVPR 2019, arXiv 1902.09506; cs.stanford.edu/people/dorarad/gqa

    Example:
        >>> load_gqa("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    folder = official_folder(path, GQA_LAYOUT)
    reader, images = RecordReader("gqa", _FEATURES, **reading), ImageFolder(folder / "images")
    files = {split: folder / f"{name}_balanced_questions.json" for split, name in _GQA_NAMES.items()}
    if test_questions is not None:
        files["test"] = Path(test_questions)
    elif not files["test"].is_file():
        del files["test"]
    for split, file in files.items():
        reader.read(split, records.read_json_objects(file, "question"), partial(_gqa_row, images=images))
    return reader.finish()


def _gqa_row(record: Any, images: ImageFolder) -> dict[str, Any]:
    image_id = record.value("imageId", str)
    image, kinds = images.find(image_id), record.get("types")
    return {
        "image": image,
        "question": record.text("question"),
        "answer": record.text("answer") if "answer" in record else None,
        "question_type": str(kinds.get("structural", "other")) if isinstance(kinds, dict) else "other",
        "question_id": record["id"],
        "image_id": image_id,
    }


class _Reading(Reading, total=False):
    """What is handed on to `load_custom_dataset`."""

    validation_share: float
    seed: int
    merge_spellings: bool


def load_vqa_rad(path: records.FilePath | None = None, **reading: Unpack[_Reading]) -> DatasetDict:
    """VQA-RAD as train, validation and test (the questions whose phrase_type begins with "test").

    Args:
        path: folder with the files of `VQA_RAD_LAYOUT`.
        **reading: also `validation_share`, the share of train that becomes validation, by whole images, `seed`, which
            images those are, and `merge_spellings`, see `load_custom_dataset`; `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image (undecoded), question, answer (text, one spelling a class) and question_id (its qid).

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad.

    References:
        Lau et al., Scientific Data 2018, "A dataset of clinically generated visual questions and answers about
        radiology images"; osf.io/89kps

    Example:
        >>> load_vqa_rad("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    folder = official_folder(path, VQA_RAD_LAYOUT).absolute()
    splits: dict[str, list[Any]] = {"train": [], "test": []}
    for place, record in records.read_json_lines(folder / "VQA_RAD Dataset Public.json"):
        if isinstance(record, records.Record):
            names = {"qid": "question_id", "image_name": "image"}
            record = records.Record({names.get(name, name): value for name, value in record.items()})
            if isinstance(record.get("image"), str):
                record["image"] = str(folder / "VQA_RAD Image Folder" / record["image"])
            is_test = str(record.get("phrase_type")).startswith("test")
        splits["test" if isinstance(record, records.Record) and is_test else "train"].append((place, record))
    splits = {split: found for split, found in splits.items() if found}
    return load_custom_dataset(splits, id_column="question_id", **reading).data


def load_daquar(path: records.FilePath | None = None, **reading: Unpack[_Reading]) -> DatasetDict:
    """DAQUAR as train, validation and test; an answer of several words with commas is one class.

    Args:
        path: folder with the files of `DAQUAR_LAYOUT`; of the 37 classes, qa.37.raw.train.txt and so on, is read where
            it is the only one.
        **reading: as in `load_vqa_rad`; of Parquet, `validation_share` is one of its images.

    Returns:
        Columns image (undecoded), question (without "in the image7"), answer.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a question names no image, or one that is missing, or has no answer.

    References:
        Malinowski and Fritz, NIPS 2014, arXiv 1410.0210

    Example:
        >>> load_daquar("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    folder = official_folder(path, DAQUAR_LAYOUT).absolute()
    if (folder / "images.parquet").is_file():
        images = pq.read_table(folder / "images.parquet", columns=["split"])["split"].to_pylist().count("train")
        share, seed = reading.get("validation_share", 0.1), reading.get("seed", 0)
        kept: Any = {name: value for name, value in reading.items() if name in Reading.__annotations__}
        return load_easy_vqa(folder, round(share * images), seed, **kept)
    kind = "894" if (folder / "qa.894.raw.train.txt").is_file() else "37"
    splits = {split: list(_daquar_records(folder, f"qa.{kind}.raw.{split}.txt")) for split in ("train", "test")}
    return load_custom_dataset(splits, **reading).data


def _daquar_records(folder: Path, name: str) -> records.Records:
    """Lines of a question and of its answer, in turn."""
    lines = records.existing_file(folder / name).read_text(encoding="utf-8-sig").splitlines()
    for number in range(0, len(lines), 2):
        question, answer = lines[number], "".join(lines[number + 1 : number + 2])
        place, named = f"{folder / name}, line {number + 1}", _NAMED_IMAGE.search(question)
        if named is None:
            yield place, records.InvalidRecordError("missing image", f"the question names no image: {question!r}")
        else:
            image = str(folder / "nyu_depth_images" / named["image"])
            yield place, records.Record(image=image, question=_NAMED_IMAGE.sub("", question), answer=answer)
