"""Image-text pairs: captions from Karpathy's JSON or from COCO's own, one row a caption.

The two formats differ in where the split is said: Karpathy's file names it at each image, COCO has one file a split. So
one path means the former, and a mapping from split to path the latter.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.reading import ImageFolder, Reading, RecordReader, official_folder
from dual_distill.data.records import FilePath, InvalidRecordError, Record, UniqueIds, document_records, read_json

# What a folder of captions holds; in Karpathy's splits, images lie below it as the file says.
LAYOUT = "dataset_coco.json or dataset_flickr30k.json and the images. Of COCO's own files give captions= and images=."

_KARPATHY_NAMES = ("dataset_coco.json", "dataset_flickr30k.json")
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
_TEXTS = {"caption": Value("string"), "image_id": Value("int64"), "split": Value("string")}
_FEATURES = Features({"image": Image(decode=False), **_TEXTS})


def load_captions(
    path: FilePath | None = None,
    captions: FilePath | Mapping[str, FilePath] | None = None,
    images: FilePath | Mapping[str, FilePath] | None = None,
    **reading: Unpack[Reading],
) -> DatasetDict:
    """Captions with their images, in the splits of the files.

    Args:
        path: folder with the files of `LAYOUT`; None where the next two are given.
        captions: one file in Karpathy's format, or split -> file in COCO's captions format; None: Karpathy's in `path`.
        images: folder of all images, or (COCO's format) split -> folder. Karpathy's `filepath` is a sub-folder of it.
            None: `path`.
        **reading: `skip_bad` and `report`, see `Reading`. Images without a caption are left out.

    Returns:
        Columns image (undecoded), caption (as it is), image_id (cocoid where there is one, or imgid; COCO's id), split
        (the word of the file: Karpathy's "restval" is part of train, his "val" is validation).

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a record is bad (a missing image, an empty caption, a caption of an image that is not listed, an id
            twice, an unknown split), the format is another one, or the arguments do not fit one another.

    References:
        Karpathy and Fei-Fei, CVPR 2015, arXiv 1412.2306; cocodataset.org

    Example:
        >>> load_captions("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder'; it should hold dataset_coco.json or ...
    """
    reader = RecordReader("captions", _FEATURES, **reading)
    if captions is None:
        folder = official_folder(path, LAYOUT)
        names = [name for name in _KARPATHY_NAMES if (folder / name).exists()]
        if not names:
            known = ", ".join(_KARPATHY_NAMES)
            raise FileNotFoundError(f"The folder {str(folder)!r} holds none of {known}; it should hold one.")
        captions = folder / names[0]

    images = images or official_folder(path, LAYOUT)
    if not isinstance(captions, Mapping):
        if isinstance(images, Mapping):
            raise ValueError("images maps splits to folders, but captions is one file of Karpathy's; give one folder.")
        _read_karpathy(captions, ImageFolder(images), reader)
        return reader.finish()

    folders = images if isinstance(images, Mapping) else dict.fromkeys(captions, images)
    if set(folders) != set(captions):
        named = f"images names the splits {', '.join(folders)}, captions {', '.join(captions)}"
        raise ValueError(f"{named}; name the same.")
    for split, file in captions.items():
        _read_coco(split, file, ImageFolder(folders[split]), reader)
    return reader.finish()


def _read_karpathy(file: FilePath, images: ImageFolder, reader: RecordReader) -> None:
    document = read_json(file, "images")
    if "annotations" in document:
        raise ValueError(f"{str(file)!r} is in COCO's format; pass it with its split, captions={{'train': ...}}.")
    image_ids, sentence_ids = UniqueIds("image id"), UniqueIds("sentid")

    def id_and_sentences(image: Record) -> tuple[int, list[Any]]:
        image_id = image_ids.add(image.value("cocoid" if "cocoid" in image else "imgid", int))
        return image_id, image.value("sentences", list)

    def sentences() -> Iterator[tuple[str, Any]]:
        for place, image in document_records(file, document["images"], "image", "imgid"):
            image_id, listed = reader.row(place, image, id_and_sentences) or (None, None)
            if listed == []:
                reader.report.left_out["image without a caption"] += 1
            for number, sentence in enumerate(listed or (), start=1):
                yield f"{place}, sentence {number}", (image_id, image, sentence)

    def make_row(record: Any) -> dict[str, Any]:
        image_id, image, sentence = record
        word = image.choice("split", _KARPATHY_SPLITS)
        if not isinstance(sentence, dict):
            message = f"the sentence is {sentence!r:.80}, but expected is an object {{...}}"
            raise InvalidRecordError("malformed record", message)
        if "sentid" in sentence:
            sentence_ids.add(sentence["sentid"])

        name = image.value("filename", str)
        names = (f"{image['filepath']}/{name}", name) if image.get("filepath") else (name,)
        caption = Record(sentence).text("raw")
        return {"image": images.find(*names), "caption": caption, "image_id": image_id, "split": word}

    # One pass over the file, whose images stand in no order of splits.
    parts: dict[str, list[pa.Table]] = {"train": [], "validation": [], "test": []}
    for batch in reader.batches(reader.rows(sentences(), make_row)):
        for split, tables in parts.items():
            words = [word for word, meant in _KARPATHY_SPLITS.items() if meant == split]
            tables += [part] if (part := batch.filter(pc.field("split").isin(words))).num_rows else []
    found = {split: tables for split, tables in parts.items() if tables} or {"all": []}
    reader.splits |= {split: reader.joined(split, tables) for split, tables in found.items()}


def _read_coco(split: str, file: FilePath, images: ImageFolder, reader: RecordReader) -> None:
    document = read_json(file, "images", "annotations")
    listed = reader.by_id(document_records(file, document["images"], "image", "id"), "id")
    captioned: set[int] = set()
    ids = UniqueIds("caption id")

    def make_row(caption: Record) -> dict[str, Any]:
        image_id: int = caption.value("image_id", int)
        if image_id not in listed:
            message = f"image_id is {image_id}, which is not among the images of the file"
            raise InvalidRecordError("caption without image", message)
        captioned.add(image_id)
        ids.add(caption.value("id", int))

        image = images.find(listed[image_id][1].value("file_name", str))
        return {"image": image, "caption": caption.text("caption"), "image_id": image_id, "split": split}

    reader.read(split, document_records(file, document["annotations"], "caption", "id"), make_row)
    if without := len(listed) - len(captioned):
        reader.report.left_out["image without a caption"] += without
