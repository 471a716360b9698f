"""Image-text pairs: captions from Karpathy's JSON or from COCO's own, one row a caption.

The two formats differ in where the split is said: Karpathy's file names it at each image, COCO has one file a split. So
one path means the former, and a mapping from split to path the latter.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, Value

from dual_distill.data.reading import ReadingReport, make_rows, rows_to_dataset
from dual_distill.data.records import (
    FilePath,
    InvalidRecordError,
    Records,
    UniqueIds,
    document_records,
    read_json_document,
    record_text,
    record_value,
)

from .image_folder import ImageFolder

LAYOUT = (
    "dataset_coco.json or dataset_flickr30k.json (Karpathy's splits) and the images, below it as the file says. For "
    "COCO's "
    'own files pass captions={"train": file, "validation": file} and images=.'
)
"""What a folder of image-text pairs holds."""

_KARPATHY_NAMES = ("dataset_coco.json", "dataset_flickr30k.json")
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
_FEATURES = Features(
    {"image": Image(decode=False), "caption": Value("string"), "image_id": Value("int64"), "split": Value("string")}
)


def load_captions(
    path: FilePath | None = None,
    captions: FilePath | Mapping[str, FilePath] | None = None,
    images: FilePath | Mapping[str, FilePath] | None = None,
    skip_bad: bool = False,
    report: ReadingReport | None = None,
) -> DatasetDict:
    """Captions with their images, in the splits of the files.

    Args:
        path: folder with the files of `LAYOUT`; None where the next two are given.
        captions: one file in Karpathy's format, or split -> file in COCO's captions format.
        images: folder of all images, or (COCO's format) split -> folder. Karpathy's `filepath` is a sub-folder of it.
        skip_bad: pass over bad entries and list them, instead of an error at the first.
        report: takes what was read, skipped, and left out (images without a caption); it is printed on stderr either
            way.

    Returns:
        Columns image (undecoded), caption (as it is), image_id (cocoid where there is one, or imgid; COCO's id), split
        (the word of the file: Karpathy's "restval" is part of train, his "val" is validation).

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an entry is bad (a missing image, an empty caption, a caption of an image that is not listed, an id
            twice, an unknown split), the format is another one, or the arguments do not fit one another.

    References:
        Karpathy and Fei-Fei, CVPR 2015, arXiv 1412.2306; cocodataset.org

    Example:
        >>> load_captions("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'; it should hold dataset_coco.json or ...
    """
    report = ReadingReport() if report is None else report
    report.source = "captions"
    if path is not None:
        if captions is not None or images is not None:
            raise ValueError(f"path is {str(path)!r}, but captions or images are given too; give either.")
        captions, images = _karpathy_file(Path(path)), path
    if captions is None or images is None:
        raise ValueError(f"Captions need captions= and images=, or path=, a folder that holds {LAYOUT}")
    if isinstance(captions, Mapping):
        splits = _read_coco(captions, images, report, skip_bad)
    elif isinstance(images, Mapping):
        raise ValueError(
            "images maps splits to folders, but captions is one file in Karpathy's format; give one folder."
        )
    else:
        splits = _read_karpathy(captions, ImageFolder(images), report, skip_bad)
    report.show()
    return DatasetDict(splits)


def _karpathy_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}; it should hold {LAYOUT}")
    for name in _KARPATHY_NAMES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"The folder {str(folder)!r} holds none of {', '.join(_KARPATHY_NAMES)}; it should hold one."
    )


def _read_karpathy(file: FilePath, images: ImageFolder, report: ReadingReport, skip_bad: bool) -> dict[str, Dataset]:
    document = read_json_document(file, "images")
    if "annotations" in document:
        raise ValueError(f"{str(file)!r} is in COCO's format; pass it with its split, captions={{'train': ...}}.")
    entries = document["images"]
    image_ids, sentence_ids = UniqueIds("image id"), UniqueIds("sentid")

    def sentences() -> Records:
        for place, entry in document_records(file, entries, "image", "imgid"):
            try:
                if isinstance(entry, InvalidRecordError):
                    raise entry
                image_id = image_ids.add(record_value(entry, "cocoid" if "cocoid" in entry else "imgid", int))
                listed = record_value(entry, "sentences", list)
            except InvalidRecordError as problem:
                yield place, problem
                continue
            if not listed:
                report.left_out["image without a caption"] += 1
            for number, sentence in enumerate(listed, start=1):
                yield f"{place}, sentence {number}", (image_id, entry, sentence)

    def make_row(entry: Any) -> dict[str, Any]:
        image_id, image, sentence = entry
        word = record_value(image, "split", str)
        if word not in _KARPATHY_SPLITS:
            raise InvalidRecordError(
                "unknown split", f"split is {word!r}, but expected is {', '.join(_KARPATHY_SPLITS)}"
            )
        if not isinstance(sentence, dict):
            raise InvalidRecordError(
                "malformed entry", f"the sentence is {sentence!r:.80}, but expected is an object {{...}}"
            )
        if "sentid" in sentence:
            sentence_ids.add(sentence["sentid"])
        name = record_value(image, "filename", str)
        names = (f"{image['filepath']}/{name}", name) if image.get("filepath") else (name,)
        return {
            "image": images.find(*names),
            "caption": record_text(sentence, "raw"),
            "image_id": image_id,
            "split": word,
        }

    table = rows_to_dataset(make_rows(sentences(), make_row, report, skip_bad), _FEATURES, "all", report).data.table
    del report.rows["all"]
    splits = {}
    for split in ("train", "validation", "test"):
        words = [word for word, meant in _KARPATHY_SPLITS.items() if meant == split]
        part = table.filter(pc.is_in(table["split"], value_set=pa.array(words)))
        if part.num_rows:
            splits[split] = Dataset(part, info=DatasetInfo(features=_FEATURES.copy()), split=split)
            report.rows[split] = part.num_rows
    return splits


def _read_coco(
    files: Mapping[str, FilePath], images: FilePath | Mapping[str, FilePath], report: ReadingReport, skip_bad: bool
) -> dict[str, Dataset]:
    if isinstance(images, Mapping) and set(images) != set(files):
        raise ValueError(f"images names the splits {', '.join(images)}, captions {', '.join(files)}; name the same.")
    splits = {}
    for split, file in files.items():
        folder = ImageFolder(images[split] if isinstance(images, Mapping) else images)
        splits[split] = rows_to_dataset(
            _read_coco_split(split, file, folder, report, skip_bad), _FEATURES, split, report
        )
    return splits


def _read_coco_split(
    split: str, file: FilePath, images: ImageFolder, report: ReadingReport, skip_bad: bool
) -> Iterable[dict[str, Any]]:
    document = read_json_document(file, "images", "annotations")
    names: dict[int, str] = {}

    def take_image(entry: Any) -> None:
        image_id: int = record_value(entry, "id", int)
        if image_id in names:
            raise InvalidRecordError("duplicate image id", f"the image id {image_id} occurs twice")
        names[image_id] = record_value(entry, "file_name", str)

    list(make_rows(document_records(file, document["images"], "image", "id"), take_image, report, skip_bad))
    captioned: set[int] = set()
    ids = UniqueIds("caption id")

    def make_row(entry: Any) -> dict[str, Any]:
        image_id: int = record_value(entry, "image_id", int)
        if image_id not in names:
            raise InvalidRecordError(
                "caption without image", f"image_id is {image_id}, which is not among the images of the file"
            )
        captioned.add(image_id)
        ids.add(record_value(entry, "id", int))
        return {
            "image": images.find(names[image_id]),
            "caption": record_text(entry, "caption"),
            "image_id": image_id,
            "split": split,
        }

    yield from make_rows(document_records(file, document["annotations"], "caption", "id"), make_row, report, skip_bad)
    if without := len(names) - len(captioned):
        report.left_out["image without a caption"] += without
