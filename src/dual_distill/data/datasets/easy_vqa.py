"""easy-VQA: 64-pixel images of one coloured shape, template questions, 13 answers (Zhou, 2019).

`image_id` starts again at 0 in each split, so a image is known by (split, image_id), and validation holds out whole
images.
"""

import random
from contextlib import suppress
from functools import partial
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import Reading, RecordReader, hold_out, official_folder, read_parquet
from dual_distill.data.records import FilePath, InvalidRecordError

# What the folder of easy-VQA holds.
LAYOUT = "images.parquet (image, image_id, split), questions.parquet (question, answer, image_id, split, question_id)."

_QUESTIONS = ("question", "answer", "image_id", "split", "question_id")
_TEXTS = {"question": Value("string"), "answer": Value("string")}
_FEATURES = Features(
    {"image": Image(decode=False), **_TEXTS, "image_id": Value("int64"), "question_id": Value("int64")}
)


def load_easy_vqa(
    path: FilePath | None = None, validation_images: int = 400, seed: int = 0, **reading: Unpack[Reading]
) -> DatasetDict:
    """easy-VQA, or what else has its layout (question_id may be missing), as train, validation and test.

    Args:
        path: folder with the files of `LAYOUT`.
        validation_images: training images that move to validation with all their questions, >= 0 and fewer than there
            are.
        seed: which images those are.
        **reading: `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image (undecoded), question, answer, image_id, question_id. Questions of another split are left out,
            and counted in the report.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a file lacks a column, a question has no image, text or answer, two images share an id, or
            `validation_images` does not fit.

    References:
        github.com/vzhou842/easy-VQA

    Example:
        >>> load_easy_vqa("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    folder = official_folder(path, LAYOUT)
    reader = RecordReader("easy_vqa", _FEATURES.copy(), **reading)
    images: dict[tuple[str, int], Any] = {}

    def keep_image(record: Any) -> None:
        if (known_by := (record["split"], record["image_id"])) in images:
            message = f"image_id {record['image_id']} occurs twice in split {record['split']!r}"
            raise InvalidRecordError("image twice", message)
        images[known_by] = record["image"]

    for place, record in read_parquet(folder, "images.parquet", ("image", "image_id", "split")):
        reader.row(place, record, keep_image)
    image_ids = sorted(image_id for split, image_id in images if split == "train")
    reader.features["image_id"] = Value("string" if image_ids and isinstance(image_ids[0], str) else "int64")
    asked, most = f"validation_images is {validation_images}", len(image_ids)
    if not 0 <= validation_images < max(most, 1):
        raise ValueError(f"{asked}, but it is 0 or more and fewer than the {most} training images.")

    def make_row(question: Any, split: str) -> dict[str, Any] | None:
        if (named := question["split"]) != split:
            if split == "train" and named != "test":  # once, of the two times that the file is read
                reader.report.left_out[f"questions of split {named!r}, which is neither train nor test"] += 1
            return None
        if (split, question["image_id"]) not in images:
            message = f"it asks about image_id {question['image_id']} of split {split!r}, which images.parquet lacks"
            raise InvalidRecordError("question without image", message)
        texts = {name: question.text(name) for name in _TEXTS}
        return {**question, **texts, "image": images[split, question["image_id"]]}

    columns = list(_QUESTIONS)
    with suppress(OSError, pa.ArrowException):  # what cannot be read is said below
        if "question_id" not in pq.read_schema(folder / "questions.parquet").names:
            columns.remove("question_id")
    for split in ("train", "test"):
        reader.read(split, read_parquet(folder, "questions.parquet", columns), partial(make_row, split=split))
    train, test = reader.splits.values()
    # Rows of one image go together, else a question about it would tell of another.
    held_out = random.Random(seed).sample(image_ids, validation_images)
    train, validation = hold_out(train, train["image_id"][:], held_out, asked)
    reader.splits = {"train": train, "validation": validation, "test": test}
    return reader.finish()
