"""easy-VQA: 64-pixel pictures of one coloured shape, template questions, 13 answers (Zhou, 2019).

`image_id` starts again at 0 in each split, so a picture is known by (split, image_id), and validation holds out whole
images.
"""

import os
import random

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, Value

from .parquet import read_columns

LAYOUT = (
    'images.parquet with the columns image (PNG bytes), image_id and split ("train" or "test"), and questions.parquet '
    "with the columns question, answer, image_id, split and question_id."
)
"""What the folder of easy-VQA holds."""

_IMAGE_COLUMNS = ("image", "image_id", "split")
_QUESTION_COLUMNS = ("question", "answer", "image_id", "split", "question_id")
_FEATURES = Features(
    {
        "image": Image(decode=False),
        "question": Value("string"),
        "answer": Value("string"),
        "image_id": Value("int64"),
        "question_id": Value("int64"),
    }
)


def load_easy_vqa(path: str | os.PathLike[str], validation_images: int = 400, seed: int = 0) -> DatasetDict:
    """easy-VQA as train, validation and test.

    Args:
        path: folder with the files of `LAYOUT`.
        validation_images: training images that move to validation with all their questions, >= 0 and fewer than there
            are.
        seed: which images those are.

    Returns:
        Columns image (undecoded), question, answer, image_id, question_id.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a file lacks a column, a question has no image, two images share an id, or `validation_images` does
            not fit.

    References:
        github.com/vzhou842/easy-VQA

    Example:
        >>> load_easy_vqa("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    images = read_columns(path, "images.parquet", _IMAGE_COLUMNS)
    questions = read_columns(path, "questions.parquet", _QUESTION_COLUMNS)
    ids = {
        split: images.filter(pc.equal(images["split"], split))["image_id"].to_pylist() for split in ("train", "test")
    }
    if not 0 <= validation_images < max(len(ids["train"]), 1):
        raise ValueError(
            f"validation_images is {validation_images}, but it is 0 or more and fewer than the {len(ids['train'])} "
            "training images."
        )
    held_out = sorted(random.Random(seed).sample(sorted(ids["train"]), validation_images))
    train = _join(images, questions, "train", path)
    is_held_out = pc.is_in(train["image_id"], value_set=pa.array(held_out, type=train.schema.field("image_id").type))
    tables = {
        "train": train.filter(pc.invert(is_held_out)),
        "validation": train.filter(is_held_out),
        "test": _join(images, questions, "test", path),
    }
    return DatasetDict(
        {
            split: Dataset(table, info=DatasetInfo(features=_FEATURES.copy()), split=split)
            for split, table in tables.items()
        }
    )


def _join(images: pa.Table, questions: pa.Table, split: str, path: str | os.PathLike[str]) -> pa.Table:
    images = images.filter(pc.equal(images["split"], split))
    questions = questions.filter(pc.equal(questions["split"], split))
    if len(images["image_id"].unique()) < images.num_rows:
        raise ValueError(f"images.parquet in {os.fspath(path)!r} holds an image_id twice in split {split!r}.")
    places = pc.index_in(questions["image_id"], value_set=images["image_id"].combine_chunks())
    if places.null_count:
        missing = questions.filter(pc.is_null(places))["image_id"][0].as_py()
        raise ValueError(
            f"questions.parquet in {os.fspath(path)!r} asks about image_id {missing} of split {split!r}, which "
            f"images.parquet does not hold ({places.null_count} such questions): are both files of one release?"
        )
    joined = questions.append_column("image", images["image"].take(places))
    return joined.select(list(_FEATURES)).cast(_FEATURES.arrow_schema)
