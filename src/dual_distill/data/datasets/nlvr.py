"""People's sentences about images, true or false: NLVR (three boxes of shapes) and NLVR2 (two photographs).

What is unusual: an example of NLVR comes as six images, the six orders of its three boxes, all with one label; and its
validation split holds out whole `directory` values of train. Random rows would put permutations of one image on both
sides of the line. In NLVR2 everything is in the identifier, `split-set-pair-sentence`: the first three parts name the
two images, and all parts but the pair name the sentence, which is judged for several pairs. Consistency counts
sentences, so it groups by the latter.
"""

import random
import re
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import (
    ImageFolder,
    Reading,
    RecordReader,
    hold_out,
    official_folder,
    official_splits,
    read_parquet,
)
from dual_distill.data.records import FilePath, InvalidRecordError, Record, Records, UniqueIds, read_json_lines

# What the folder of NLVR v1 holds: the authors' repository, or Parquet with the columns image (PNG bytes), sentence,
# label (bool, or text), identifier ("n-m"), permutation (0 to 5) and directory.
NLVR_LAYOUT = "train/train.json, train/images/, the same of dev and test, or train-*.parquet, dev-* and test-*."

# What the folder of NLVR2 holds: JSON lines, and images such as dev-850-0-img0.png, there at once, in train/, dev/,
# test1/, or in train/DIRECTORY/.
NLVR2_LAYOUT = "train.json, dev.json and, if wanted, test1.json, and the images, in it or in images/."

_COLUMNS = ("image", "sentence", "label", "identifier", "permutation", "directory")
_LABELS = ("false", "true")
_NAMES = {"train": "train.json", "validation": "dev.json", "test": "test1.json"}
_IDENTIFIER = re.compile(r"([a-z]+[0-9]?)-([0-9]+)-([0-9]+)-([0-9]+)")
_TEXTS = dict.fromkeys(("sentence", "label", "identifier", "sentence_id"), Value("string"))
_BOXES = Features({"image": Image(decode=False), **_TEXTS, "permutation": Value("int8"), "directory": Value("int16")})
_PHOTOGRAPHS = Features({"image_0": Image(decode=False), "image_1": Image(decode=False), **_TEXTS})


def load_nlvr(
    path: FilePath | None = None, validation_rows: int = 4_000, seed: int = 0, **reading: Unpack[Reading]
) -> DatasetDict:
    """NLVR v1 as train, validation, dev and test.

    Args:
        path: folder with the files of `NLVR_LAYOUT`.
        validation_rows: whole directories of train, in an order drawn by `seed`, move to validation until it has this
            many rows or more; 0 leaves validation empty.
        seed: which directories become validation.
        **reading: `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image (undecoded), sentence (as it is), label ("true" or "false"), identifier, sentence_id (the n of
        "n-m": rows about one sentence share it), permutation, directory.

    Raises:
        FileNotFoundError: the folder lacks one of the splits.
        ValueError: a file lacks a column, a record is bad, or `validation_rows` is negative or leaves no training row.

    References:
        Suhr et al., ACL 2017, "A Corpus of Natural Language for Visual Reasoning"; github.com/lil-lab/nlvr.

    Example:
        >>> load_nlvr("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    reader = RecordReader("nlvr", _BOXES, **reading)
    folder = official_folder(path, NLVR_LAYOUT)
    for split in ("train", "dev", "test"):
        if (file := folder / split / f"{split}.json").is_file():
            make_row = partial(_repository_row, split=split, images=ImageFolder(file.parent / "images"))
            reader.read(split, _permutations(file), make_row)
        else:
            reader.read(split, read_parquet(folder, f"{split}-*.parquet", _COLUMNS), _parquet_row)
    train, dev, test = reader.splits.values()

    directories = train["directory"][:]
    order = sorted(set(directories))
    random.Random(seed).shuffle(order)
    asked = f"validation_rows is {validation_rows:,}"
    train, validation = hold_out(train, directories, order[::-1], asked, validation_rows)
    reader.splits = {"train": train, "validation": validation, "dev": dev, "test": test}
    return reader.finish()


def _permutations(file: Path) -> Records:
    """Each record of a file six times, with the number of its image."""
    for place, record in read_json_lines(file):
        if isinstance(record, InvalidRecordError):
            yield place, record
        else:
            yield from ((f"{place}, permutation {number}", Record(record, permutation=number)) for number in range(6))


def _repository_row(record: Any, split: str, images: ImageFolder) -> dict[str, Any]:
    identifier, directory = (record.value(name, str) for name in ("identifier", "directory"))
    label = record.choice("label", _LABELS)
    if not directory.isdecimal():
        raise InvalidRecordError("malformed directory", f"directory is {directory!r}, but expected is a whole number")

    image = images.find(f"{directory}/{split}-{identifier}-{record['permutation']}.png")
    known = {"sentence": record.text("sentence"), "directory": int(directory), "permutation": record["permutation"]}
    sentence_id = identifier.partition("-")[0]
    return {"image": image, "label": label, "identifier": identifier, "sentence_id": sentence_id, **known}


def _parquet_row(record: Any) -> dict[str, Any]:
    if isinstance(record["label"], bool):
        record["label"] = str(record["label"]).lower()
    numbers = {name: record.value(name, int) for name in ("permutation", "directory")}
    known = {"label": record.choice("label", _LABELS), "identifier": record.value("identifier", str), **numbers}
    sentence_id = known["identifier"].partition("-")[0]
    return {"image": record["image"], "sentence": record.text("sentence"), "sentence_id": sentence_id, **known}


def load_nlvr2(path: FilePath | None = None, images: FilePath | None = None, **reading: Unpack[Reading]) -> DatasetDict:
    """NLVR2 as train, validation (its dev) and, if its file is there, test (its test-P).

    Args:
        path: folder with the files of `NLVR2_LAYOUT`.
        images: folder of the images; None: images/ in `path`, or `path`.
        **reading: `skip_bad` and `report`, see `Reading`.

    Returns:
        Columns image_0 (left) and image_1 (right), undecoded, sentence, label ("True" or "False"), identifier,
        sentence_id (the identifier without its pair: rows about one sentence share it). Images in train/, dev/, test1/
        and, for train, in the record's `directory` below the folder (or below its train/) are found.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad: a missing image, an empty sentence, an unknown label, an identifier twice, a line
            that is no JSON.

    References:
        Suhr et al., ACL 2019, arXiv 1811.00491; github.com/lil-lab/nlvr

    Example:
        >>> load_nlvr2("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'...
    """
    reader = RecordReader("nlvr2", _PHOTOGRAPHS, **reading)
    files = official_splits(path, _NAMES, NLVR2_LAYOUT)
    folder = files["train"].parent
    image_folder = ImageFolder(images or next(place for place in (folder / "images", folder) if place.is_dir()))
    for split, file in files.items():
        make_row = partial(_photographs_row, images=image_folder, ids=UniqueIds("identifier"))
        reader.read(split, read_json_lines(file), make_row)
    return reader.finish()


def _photographs_row(record: Any, images: ImageFolder, ids: UniqueIds) -> dict[str, Any]:
    identifier: str = record.value("identifier", str)
    parts = _IDENTIFIER.fullmatch(identifier)
    if parts is None:
        message = f"identifier is {identifier!r}, but expected is split-set-pair-sentence"
        raise InvalidRecordError("malformed identifier", message)

    label = Record(label=str(record.get("label"))).choice("label", ("True", "False"))

    text = record.text("sentence")
    split, image_set, pair, sentence = parts.groups()
    folders = ["", f"{split}/"]
    if "directory" in record:
        folders += [f"{split}/{record['directory']}/", f"{record['directory']}/"]
    names = [f"{split}-{image_set}-{pair}-img{number}.png" for number in (0, 1)]
    found = [images.find(*(folder + name for folder in folders)) for name in names]
    values = (*found, text, label, ids.add(identifier), f"{split}-{image_set}-{sentence}")
    return dict(zip(_PHOTOGRAPHS, values, strict=True))
