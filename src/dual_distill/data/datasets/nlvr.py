"""NLVR v1: people's sentences about images of three boxes of shapes, true or false (Suhr et al., ACL 2017).

What is unusual: each example comes as six images, the six orders of its three boxes, all with one label; and the
validation split holds out whole `directory` values of train. Random rows would put permutations of one image on both
sides of the line.
"""

import random
from typing import Any, Literal

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import ReadingReport, RecordReader, hold_out, official_folder, read_parquet
from dual_distill.data.records import FilePath

LAYOUT = (
    "train-*.parquet, dev-*.parquet and test-*.parquet, each with the columns image (PNG bytes), sentence, "
    'label (bool), identifier ("n-m"), permutation (0 to 5) and directory.'
)
"""What the folder of NLVR v1 holds."""

_COLUMNS = ("image", "sentence", "label", "identifier", "permutation", "directory")
_TEXTS = ("sentence", "label", "identifier", "sentence_id")
_FEATURES = Features(
    {"image": Image(decode=False), **dict.fromkeys(_TEXTS, Value("string"))}
    | {"permutation": Value("int8"), "directory": Value("int16")}
)


def load_nlvr(
    path: FilePath,
    validation_rows: int = 4_000,
    permutations: Literal["all", "first"] = "all",
    seed: int = 0,
    skip_bad: bool = False,
    report: ReadingReport | None = None,
) -> DatasetDict:
    """NLVR v1 as train, validation, dev and test.

    Args:
        path: folder with the files of `LAYOUT`.
        validation_rows: whole directories of train, in an order drawn by `seed`, move to validation until it has this
            many rows or more; 0 leaves validation empty.
        permutations: "all" six images of each example in train, or the "first" only. The other splits always hold
            all six.
        seed: which directories become validation.
        skip_bad: pass over bad records and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way.

    Returns:
        Columns image (undecoded), sentence (as it is), label ("true" or "false"), identifier, sentence_id (the n of
        "n-m": rows about one sentence share it), permutation, directory.

    Raises:
        FileNotFoundError: the folder lacks one of the splits.
        ValueError: a file lacks a column, `permutations` is neither word, or `validation_rows` is negative or leaves
            no training row.

    References:
        Suhr et al., ACL 2017, "A Corpus of Natural Language for Visual Reasoning"; github.com/lil-lab/nlvr.

    Example:
        >>> load_nlvr("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    if permutations not in ("all", "first"):
        raise ValueError(f"permutations is {permutations!r}, but it is 'all' or 'first'.")

    reader = RecordReader("nlvr", _FEATURES, skip_bad, report)
    for split in ("train", "dev", "test"):
        reader.read(split, read_parquet(official_folder(path, LAYOUT), f"{split}-*.parquet", _COLUMNS), _make_row)
    train, dev, test = reader.splits.values()

    directories = train["directory"][:]
    order = sorted(set(directories))
    random.Random(seed).shuffle(order)
    asked = f"validation_rows is {validation_rows:,}"
    train, validation = hold_out(train, directories, order[::-1], asked, validation_rows)
    if permutations == "first":
        train = train.select([index for index, number in enumerate(train["permutation"]) if number == 0])
    reader.splits = {"train": train, "validation": validation, "dev": dev, "test": test}
    return reader.finish()


def _make_row(record: Any) -> dict[str, Any]:
    sentence_id = record["identifier"].partition("-")[0]
    return {**record, "label": "true" if record["label"] else "false", "sentence_id": sentence_id}
