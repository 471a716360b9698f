"""What is to be encoded, as ids and a way to fetch each: a folder of images, Parquet, a dataset, texts.

An id is what a user finds an image by: its path below the folder, the value of an id column, or the number of its row.
Nothing is decoded here, and of a folder nothing but names is read.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from dual_distill.data import existing_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""Endings of the files that a folder of images is searched for, of any case."""

_NAMED = 3


class FolderSource:
    """The image files below a folder, in the order of their paths, which are their ids.

    Args:
        folder: searched with all its sub-folders; hidden files and folders and files of other kinds are passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image.

    Example:
        >>> FolderSource("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder' of images; check the path.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r} of images; check the path.")
        found = []
        for current, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
            found += [(Path(current) / name).relative_to(self.folder).as_posix() for name in images]

        if not found:
            raise ValueError(f"The folder {str(folder)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        if unreadable := [name for name in found if not name.isprintable()]:
            name = repr(unreadable[0])
            raise ValueError(f"The folder {str(folder)!r} holds a file with an unreadable name ({name}); rename it.")
        self.ids = sorted(found)

    def value(self, identifier: str) -> str:
        """Return the path of an image."""
        return str(self.folder / identifier)


class DatasetSource:
    """The images of a dataset, undecoded.

    Args:
        rows: the dataset.
        image_column: its images, as `datasets.Image`, bytes or paths.
        id_column: its ids, each once; None: the numbers of the rows.

    Raises:
        ValueError: there is no such column, or an id occurs twice.

    Example:
        >>> rows = Dataset.from_dict({"image": ["a.png", "b.png"], "name": ["a", "b"]})
        >>> source = DatasetSource(rows, id_column="name")
        >>> source.ids, source.value("b")
        (['a', 'b'], 'b.png')
    """

    def __init__(self, rows: Dataset, image_column: str = "image", id_column: str | None = None) -> None:
        for column in (image_column, id_column):
            if column is not None and column not in rows.column_names:
                raise ValueError(f"The dataset has no column {column!r}, only {', '.join(rows.column_names)}.")

        if isinstance(rows.features[image_column], datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        self._images = rows.select_columns([image_column])
        self._column = image_column

        self.ids = [str(number) for number in range(len(rows))]
        if id_column is not None:
            self.ids = [str(value) for value in rows[id_column]]
            if twice := [repr(identifier) for identifier, number in Counter(self.ids).items() if number > 1]:
                found = f"{len(twice)} ids occur more than once in the column {id_column!r}"
                raise ValueError(f"{found}, such as {', '.join(twice[:_NAMED])}; give each image an id of its own.")
        self._numbers = {identifier: number for number, identifier in enumerate(self.ids)}

    def value(self, identifier: str) -> Any:
        """Return an image as the dataset holds it."""
        return self._images[self._numbers[identifier]][self._column]


class MappingSource:
    """Images by id, as a mapping holds them.

    Args:
        images: id -> what `decode_image` accepts.

    Raises:
        ValueError: there is no image, or an id is no string.

    Example:
        >>> MappingSource({"a": "photos/a.png"}).value("a")
        'photos/a.png'
    """

    def __init__(self, images: Mapping[str, Any]) -> None:
        self._images = images
        self.ids = list(images)
        if not self.ids:
            raise ValueError("There are no images; give at least one.")
        if wrong := [identifier for identifier in self.ids if not isinstance(identifier, str)]:
            raise ValueError(f"The id {wrong[0]!r} is a {type(wrong[0]).__name__}, but an id is a string.")

    def value(self, identifier: str) -> Any:
        """Return an image as the mapping holds it."""
        return self._images[identifier]


class TextSource:
    """Texts, which are their own ids; a text that occurs again is left out.

    Args:
        texts: strings with words in them.

    Raises:
        ValueError: there is none, or one is empty.

    Example:
        >>> TextSource(["what is it?", "is it red?", "what is it?"]).ids
        ['what is it?', 'is it red?']
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.ids = list(dict.fromkeys(texts))
        if not self.ids:
            raise ValueError("There are no texts; give at least one.")
        for text in self.ids:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"A text is {text!r}, but it should be a string with words in it; leave it out.")

    def value(self, identifier: str) -> str:
        """Return the text."""
        return identifier


def open_images(
    images: Any, image_column: str = "image", id_column: str | None = None, split: str | None = None
) -> FolderSource | DatasetSource | MappingSource:
    """Return the source of images from whatever names or holds them.

    Args:
        images: a folder of image files; a Parquet file; a folder that `Dataset.save_to_disk` wrote; a dataset on the
            Hub; a `datasets.Dataset`; or a mapping from id to image.
        image_column: of Parquet and data sets.
        id_column: likewise; None: the number of the row.
        split: of a dataset that has splits.

    Returns:
        The source.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it cannot be read, holds no images, or has splits and none is named.

    Example:
        >>> open_images({"a": "photos/a.png"}).ids
        ['a']
    """
    if isinstance(images, Mapping) and not isinstance(images, DatasetDict):
        return MappingSource(images)

    path, name, shown = Path(str(images)), str(images), repr(str(images))
    found: Dataset | DatasetDict
    if isinstance(images, Dataset | DatasetDict):
        found, shown = images, "the dataset"
    elif path.suffix == ".parquet":
        found = Dataset.from_parquet(str(existing_file(name)))
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = load_from_disk(name)
    elif path.is_dir() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        # A dataset on the Hub is owner/name; of any other path, the folder's source says that it is not there.
        return FolderSource(name)
    else:
        try:
            found = load_dataset(name, split=split)
        except (OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            wrong = f"{name!r} is not a folder or Parquet file here, nor a dataset that can be fetched from the Hub"
            raise ValueError(f"{wrong} ({reason}); check the spelling.") from error

    if isinstance(found, DatasetDict):
        if split is None and len(found) == 1:
            [split] = found
        if split not in found:
            raise ValueError(f"There are the splits {', '.join(found)} in {shown}, but {split or 'none'} is named.")
        found = found[split]
    return DatasetSource(found, image_column, id_column)


def read_texts(file: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a UTF-8 text file, empty ones left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.

    Example:
        >>> read_texts("no/such/file.txt")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.txt'; relative paths start at the current folder.
    """
    try:
        return [
            line.strip() for line in existing_file(file).read_text(encoding="utf-8-sig").split("\n") if line.strip()
        ]
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 ({error}); save it as UTF-8.") from error
