"""NLVR2 from its official files: people's sentences about two photographs, true or false (Suhr et al., ACL 2019).

Everything is in the identifier, `split-set-pair-sentence`: the first three parts name the two images, and all parts but
the pair name the sentence, which is judged for several pairs. Consistency counts sentences, so it groups by the latter.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Features, Image, Value

from dual_distill.data.reading import ImageFolder, OfficialSplits, ReadingReport
from dual_distill.data.records import InvalidRecordError, UniqueIds

LAYOUT = (
    "train.json, dev.json and (if test-P is wanted) test1.json, JSON lines all, and the images, such as "
    "dev-850-0-img0.png, in it or in images/, and there at once, in train/, dev/, test1/, or in train/DIRECTORY/."
)
"""What the folder of NLVR2 holds."""

_NAMES = {"train": "train.json", "validation": "dev.json", "test": "test1.json"}
_IDENTIFIER = re.compile(r"([a-z]+[0-9]?)-([0-9]+)-([0-9]+)-([0-9]+)")
_IMAGES, _TEXTS = ("image_0", "image_1"), ("sentence", "label", "identifier", "sentence_id")
_FEATURES = Features(dict.fromkeys(_IMAGES, Image(decode=False)) | dict.fromkeys(_TEXTS, Value("string")))


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


def _row_maker(images: ImageFolder, report: ReadingReport) -> Callable[[Any], dict[str, Any]]:
    return partial(_make_row, images=images, ids=UniqueIds("identifier"))


load_nlvr2 = OfficialSplits("nlvr2", _FEATURES, _NAMES, ("images", "."), LAYOUT, _row_maker).load
"""Read NLVR2 as `OfficialSplits.load` says: columns image_0 (left) and image_1 (right), undecoded, sentence, label
("True" or "False"), identifier, sentence_id (the identifier without its pair: rows about one sentence share it). Images
in train/, dev/, test1/ and, for train, in the record's `directory` below the folder (or below its train/) are found.

References:
    Suhr et al., ACL 2019, arXiv 1811.00491; github.com/lil-lab/nlvr
"""
