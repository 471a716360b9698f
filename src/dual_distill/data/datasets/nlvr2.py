"""NLVR2 from its official files: people's sentences about two photographs, true or false (Suhr et al., ACL 2019).

Everything is in the identifier, `split-set-pair-sentence`: the first three parts name the two images, and all parts but
the pair name the sentence, which is judged for several pairs. Consistency counts sentences, so it groups by the latter.
"""

import re
from functools import partial
from typing import Any

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import ImageFolder, ReadingReport, RecordReader, official_splits
from dual_distill.data.records import FilePath, InvalidRecordError, UniqueIds, read_json_lines

LAYOUT = (
    "train.json, dev.json and (if test-P is wanted) test1.json, JSON lines all, and the images, such as "
    "dev-850-0-img0.png, in it or in images/, and there at once, in train/, dev/, test1/, or in train/DIRECTORY/."
)
"""What the folder of NLVR2 holds."""

_NAMES = {"train": "train.json", "validation": "dev.json", "test": "test1.json"}
_IDENTIFIER = re.compile(r"([a-z]+[0-9]?)-([0-9]+)-([0-9]+)-([0-9]+)")
_IMAGES, _TEXTS = ("image_0", "image_1"), ("sentence", "label", "identifier", "sentence_id")
_FEATURES = Features(dict.fromkeys(_IMAGES, Image(decode=False)) | dict.fromkeys(_TEXTS, Value("string")))


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
        images: folder of the images of all of them; images in train/, dev/, test1/ and, for train, in the record's
            `directory` below it (or below train/) are found too.
        skip_bad: pass over bad records and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way.

    Returns:
        Columns image_0 (left) and image_1 (right), undecoded, sentence, label ("True" or "False"), identifier,
        sentence_id (the identifier without its pair: rows about one sentence share it).

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad (a missing image, an identifier of another shape or twice, an empty sentence, a
            label of another name, a line that is no JSON), or the arguments do not fit one another.

    References:
        Suhr et al., ACL 2019, arXiv 1811.00491; github.com/lil-lab/nlvr

    Example:
        >>> load_nlvr2("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'; it should hold train.json, ...
    """
    reader = RecordReader("nlvr2", _FEATURES, skip_bad, report)
    given = {"train": train, "validation": validation, "test": test}
    files, folder = official_splits(path, given, images, _NAMES, ("images", "."), LAYOUT)
    for split, file in files.items():
        make_row = partial(_make_row, images=folder, ids=UniqueIds("identifier"))
        reader.read(split, read_json_lines(file), make_row)
    return reader.finish()


def _make_row(record: Any, images: ImageFolder, ids: UniqueIds) -> dict[str, Any]:
    identifier: str = record.value("identifier", str)
    parts = _IDENTIFIER.fullmatch(identifier)
    if parts is None:
        message = f"identifier is {identifier!r}, but expected is split-set-pair-sentence"
        raise InvalidRecordError("malformed identifier", message)

    label = str(record.get("label"))
    if label not in ("True", "False"):
        message = f"label is {record.get('label')!r}, but expected is 'True' or 'False'"
        raise InvalidRecordError("unknown label", message)
    text = record.text("sentence")

    split, image_set, pair, sentence = parts.groups()
    folders = ["", f"{split}/"]
    if "directory" in record:
        folders += [f"{split}/{record['directory']}/", f"{record['directory']}/"]
    names = [f"{split}-{image_set}-{pair}-img{number}.png" for number in (0, 1)]
    found = [images.find(*(folder + name for folder in folders)) for name in names]
    texts = (text, label, ids.add(identifier), f"{split}-{image_set}-{sentence}")
    return dict(zip(_FEATURES, (*found, *texts), strict=True))
