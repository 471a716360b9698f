"""NLVR2 from its official files: people's sentences about two photographs, true or false (Suhr et al., ACL 2019).

Everything is in the identifier, `split-set-pair-sentence`: the first three parts name the two images, and all parts but
the pair name the sentence, which is judged for several pairs. Consistency counts sentences, so it groups by the latter.
"""

import re
from functools import partial
from typing import Any

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import ReadingReport, make_rows, rows_to_dataset
from dual_distill.data.records import (
    FilePath,
    InvalidRecordError,
    UniqueIds,
    read_json_lines,
    record_text,
    record_value,
)

from .image_folder import ImageFolder, official_files

LAYOUT = (
    "train.json, dev.json and (if test-P is wanted) test1.json, JSON lines all, and the images, such as "
    "dev-850-0-img0.png, in it or in images/, and there at once, in train/, dev/, test1/, or in train/DIRECTORY/."
)
"""What the folder of NLVR2 holds."""

_IDENTIFIER = re.compile(r"([a-z]+[0-9]?)-([0-9]+)-([0-9]+)-([0-9]+)")
_FEATURES = Features(
    {
        "image_0": Image(decode=False),
        "image_1": Image(decode=False),
        "sentence": Value("string"),
        "label": Value("string"),
        "identifier": Value("string"),
        "sentence_id": Value("string"),
    }
)


def load_nlvr2(
    path: FilePath | None = None,
    train: FilePath | None = None,
    validation: FilePath | None = None,
    test: FilePath | None = None,
    images: FilePath | None = None,
    skip_bad: bool = False,
    report: ReadingReport | None = None,
) -> DatasetDict:
    """NLVR2 as train, validation (its dev) and test (test-P), as far as they are given.

    Args:
        path: folder with the files of `LAYOUT`; None where files are given.
        train: train.json.
        validation: dev.json.
        test: test1.json.
        images: folder of the images of all of them; images in train/, dev/, test1/ and, for train, in the entry's
            `directory` below it (or below train/) are found too.
        skip_bad: pass over bad entries and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way.

    Returns:
        Columns image_0 (left) and image_1 (right), undecoded, sentence, label ("True" or "False"), identifier,
        sentence_id (the identifier without its pair: rows about one sentence share it).

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an entry is bad (a missing image, an identifier of another shape or twice, an empty sentence, a
            label of another name, a line that is no JSON), or the arguments do not fit one another.

    References:
        Suhr et al., ACL 2019, arXiv 1811.00491; github.com/lil-lab/nlvr

    Example:
        >>> load_nlvr2("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'; it should hold train.json, ...
    """
    report = ReadingReport() if report is None else report
    report.source = "nlvr2"
    files, folder = official_files(
        path,
        {"train": train, "validation": validation, "test": test},
        images,
        {"train": "train.json", "validation": "dev.json", "test": "test1.json"},
        ("images", "."),
        LAYOUT,
    )
    splits = {}
    for split, file in files.items():
        ids = UniqueIds("identifier")
        rows = make_rows(read_json_lines(file), partial(_make_row, images=folder, ids=ids), report, skip_bad)
        splits[split] = rows_to_dataset(rows, _FEATURES, split, report)
    report.show()
    return DatasetDict(splits)


def _make_row(entry: Any, images: ImageFolder, ids: UniqueIds) -> dict[str, Any]:
    identifier: str = record_value(entry, "identifier", str)
    parts = _IDENTIFIER.fullmatch(identifier)
    if parts is None:
        raise InvalidRecordError(
            "malformed identifier", f"identifier is {identifier!r}, but expected is split-set-pair-sentence"
        )
    split, image_set, pair, sentence = parts.groups()
    label = str(entry.get("label"))
    if label not in ("True", "False"):
        raise InvalidRecordError("unknown label", f"label is {entry.get('label')!r}, but expected is 'True' or 'False'")
    text = record_text(entry, "sentence")
    pictures = []
    for number in (0, 1):
        name = f"{split}-{image_set}-{pair}-img{number}.png"
        places = [name, f"{split}/{name}"]
        if "directory" in entry:
            places += [f"{split}/{entry['directory']}/{name}", f"{entry['directory']}/{name}"]
        pictures.append(images.find(*places))
    return {
        "image_0": pictures[0],
        "image_1": pictures[1],
        "sentence": text,
        "label": label,
        "identifier": ids.add(identifier),
        "sentence_id": f"{split}-{image_set}-{sentence}",
    }
