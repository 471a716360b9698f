"""NLVR v1: people's sentences about pictures of three boxes of shapes, true or false (Suhr et al., ACL 2017).

What is unusual: each example comes as six pictures, the six orders of its three boxes, all with one label; and the
validation split holds out whole `directory` values of train. Random rows would put permutations of one picture on both
sides of the line.
"""

import os
import random
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, Value

from .parquet import read_columns

LAYOUT = (
    "train-*.parquet, dev-*.parquet and test-*.parquet, each with the columns image (PNG bytes), sentence, "
    'label (bool), identifier ("n-m"), permutation (0 to 5) and directory.'
)
"""What the folder of NLVR v1 holds."""

_COLUMNS = ("image", "sentence", "label", "identifier", "permutation", "directory")
_FEATURES = Features(
    {
        "image": Image(decode=False),
        "sentence": Value("string"),
        "label": Value("string"),
        "identifier": Value("string"),
        "sentence_id": Value("string"),
        "permutation": Value("int8"),
        "directory": Value("int16"),
    }
)


def load_nlvr(
    path: str | os.PathLike[str],
    validation_rows: int = 4_000,
    permutations: Literal["all", "first"] = "all",
    seed: int = 0,
) -> DatasetDict:
    """NLVR v1 as train, validation, dev and test.

    Args:
        path: folder with the files of `LAYOUT`.
        validation_rows: whole directories of train, in an order drawn by `seed`, move to validation until it has this
            many rows or more; 0 leaves validation empty.
        permutations: "all" six pictures of each example in train, or the "first" only. The other splits always hold
            all six.
        seed: which directories become validation.

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
    if validation_rows < 0:
        raise ValueError(f"validation_rows is {validation_rows}, but a number of rows is 0 or more.")
    splits = {split: read_columns(path, f"{split}-*.parquet", _COLUMNS) for split in ("train", "dev", "test")}
    train, validation = _hold_out_directories(splits.pop("train"), validation_rows, seed, Path(path))
    if permutations == "first":
        train = train.filter(pc.equal(train["permutation"], 0))
    return DatasetDict(
        {
            split: Dataset(_arrange(table), info=DatasetInfo(features=_FEATURES.copy()), split=split)
            for split, table in {"train": train, "validation": validation, **splits}.items()
        }
    )


def _hold_out_directories(train: pa.Table, rows: int, seed: int, path: Path) -> tuple[pa.Table, pa.Table]:
    sizes = {entry["values"]: entry["counts"] for entry in pc.value_counts(train["directory"]).to_pylist()}
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    held_out: list[int] = []
    held_rows = 0
    while held_rows < rows and order:
        held_out.append(order.pop())
        held_rows += sizes[held_out[-1]]
    if rows > 0 and not order:
        raise ValueError(
            f"validation_rows is {rows:,}, but {str(path)!r} has {train.num_rows:,} training rows in {len(sizes)} "
            "directories, and whole directories move: ask for fewer rows."
        )
    is_held_out = pc.is_in(train["directory"], value_set=pa.array(held_out, type=train.schema.field("directory").type))
    return train.filter(pc.invert(is_held_out)), train.filter(is_held_out)


def _arrange(table: pa.Table) -> pa.Table:
    label = pc.if_else(table["label"].cast(pa.bool_()), "true", "false")
    sentence_id = pc.list_element(pc.split_pattern(table["identifier"], "-"), 0)
    arranged = table.append_column("sentence_id", sentence_id).set_column(
        table.schema.get_field_index("label"), "label", label
    )
    return arranged.select(list(_FEATURES)).cast(_FEATURES.arrow_schema)
