"""Where inputs come from: images to encode by id, undecoded; texts; one image from a path, a URL, bytes or PIL.

An id is what a user finds an image by: its path below a folder, the value of an id column, or the number of its row.
Nothing is decoded before it is needed, and of a folder nothing but names is read.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import category

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from huggingface_hub.utils import httpx
from PIL import Image

from dual_distill.credentials import without_credentials
from dual_distill.data import IMAGE_SUFFIXES, ImageError, decode_image, existing_file, image_source

MAX_DOWNLOAD_BYTES = 64_000_000

_TIMEOUT_S = 30.0
_NAMED = 3
_UNREADABLE = {"Cc", "Cs", "Zl", "Zp"}


@dataclass
class Inputs:
    """Inputs by id, and a way to fetch each.

    Attributes:
        ids: in order, each once.
        value: id -> what `decode_image` accepts, or a text.
    """

    ids: list[str]
    value: Callable[[str], Any]


def open_images(
    images: Any, image_column: str | None = None, id_column: str | None = None, split: str | None = None
) -> Inputs:
    """Return the images, by id and undecoded, of whatever names or holds them.

    Args:
        images: a folder of image files, searched with all its sub-folders, also linked ones (hidden ones and files of
            other kinds are passed over); a Parquet file; a folder that `Dataset.save_to_disk` wrote; a dataset on the
            Hub; a `datasets.Dataset`; a mapping from id to image; or what this function returned.
        image_column: of Parquet and data sets: `datasets.Image`, bytes or paths; None: `image`.
        id_column: likewise, each id once; None: the number of the row.
        split: of a dataset that has splits.

    Returns:
        The images; of a folder, in the order of their paths.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it cannot be read, holds no images, has no such column, repeats an id, has splits and none is named,
            or has none and one is.

    Example:
        >>> open_images({"a": "photos/a.png"}).ids
        ['a']
    """
    image_column = None if image_column == "image" else image_column
    named = {"image_column": image_column, "id_column": id_column, "split": split}
    if isinstance(images, Inputs):
        _refuse_named("images by their ids have neither columns nor splits", named)
        return images
    if isinstance(images, Mapping) and not isinstance(images, DatasetDict):
        if not images:
            raise ValueError("There are no images; give at least one.")
        _refuse_named("a mapping of images has neither columns nor splits", named)
        if unfit := [key for key in images if not isinstance(key, str)]:
            raise ValueError(f"The id {unfit[0]!r} is a {type(unfit[0]).__name__}, but an id is a string.")
        return Inputs(list(images), images.__getitem__)

    path, name, shown = Path(str(images)), str(images), repr(str(images))
    found: Dataset | DatasetDict
    if isinstance(images, Dataset | DatasetDict):
        found, shown = images, "the dataset"
    elif path.suffix == ".parquet":
        found = Dataset.from_parquet(str(existing_file(name)))
    elif path.is_file():
        raise ValueError(f"{name!r} is one file, and no Parquet file; give the folder that holds the images.")
    elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = load_from_disk(name)
    elif path.is_dir() or path.as_posix().count("/") != 1 or name.startswith((".", "/", "~")):
        # A dataset on the Hub is owner/name; any other path is said not to be there.
        inputs = _folder_images(name)
        _refuse_named("a folder of images has neither columns nor splits", named)
        return inputs
    else:
        try:
            found, split = load_dataset(name, split=split), None  # which is taken already
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
    elif split is not None and split != str(found.split):
        _refuse_named(f"{shown} has no splits", {"split": split})
    return dataset_images(found, image_column or "image", id_column)


def _refuse_named(why: str, named: Mapping[str, str | None]) -> None:
    """Refuse a column or a split that is named of what has none."""
    for name, value in named.items():
        if value is not None:
            raise ValueError(f"{name} is {value!r}, but {why}; leave it out.")


def _folder_images(folder: str) -> Inputs:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder!r} of images; check the path.")
    found = []
    root = Path(folder).resolve()

    def is_elsewhere(path: Path) -> bool:
        # A link to a folder that is walked anyway gives its images twice; one to a folder above, without end.
        target = path.resolve()
        return not target.is_relative_to(root) and target not in {one.resolve() for one in path.parents}

    for current, folders, names in os.walk(folder, followlinks=True):
        shown = [Path(current, name) for name in folders if not name.startswith(".")]
        folders[:] = [one.name for one in shown if not one.is_symlink() or is_elsewhere(one)]
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        found += [(Path(current) / name).relative_to(folder).as_posix() for name in images]

    if not found:
        raise ValueError(f"The folder {folder!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    # Blanks of other widths and joiners are part of many a name; lines, controls and stray bytes are no text.
    if unreadable := [name for name in found if any(category(letter) in _UNREADABLE for letter in name)]:
        name = repr(unreadable[0])
        raise ValueError(f"The folder {folder!r} holds a file with an unreadable name ({name}); rename it.")
    return Inputs(sorted(found), partial(os.path.join, folder))


def dataset_images(rows: Dataset, image_column: str, id_column: str | None = None) -> Inputs:
    """Return the images of a dataset by the values of a column, or by the numbers of their rows."""
    ids = row_ids(rows, image_column, id_column)
    # Cast, so that reading a row does not decode its image.
    if isinstance(rows.features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    numbers = {identifier: number for number, identifier in enumerate(ids)}
    return Inputs(ids, partial(_row_image, rows.select_columns([image_column]), image_column, numbers))


def row_ids(rows: Dataset, column: str, id_column: str | None, repeats: bool = False) -> list[str]:
    """Return the ids of rows: the values of a column, each once unless it `repeats`, or the numbers of the rows."""
    for name in (column, id_column):
        if name is not None and name not in rows.column_names:
            raise ValueError(f"The dataset has no column {name!r}, only {', '.join(rows.column_names)}.")
    ids = [str(key) for key in (range(len(rows)) if id_column is None else rows[id_column])]
    if not repeats and (twice := [repr(identifier) for identifier, number in Counter(ids).items() if number > 1]):
        found = f"{len(twice)} ids occur more than once in the column {id_column!r}"
        raise ValueError(f"{found}, such as {', '.join(twice[:_NAMED])}; give each an id of its own.")
    return ids


def _row_image(rows: Dataset, column: str, numbers: Mapping[str, int], identifier: str) -> Any:
    return rows[numbers[identifier]][column]


def distinct_texts(texts: Iterable[str]) -> Inputs:
    """Return texts as inputs, which are their own ids; a text that occurs again is left out.

    Example:
        >>> distinct_texts(["what is it?", "is it red?", "what is it?"]).ids
        ['what is it?', 'is it red?']
    """
    ids = list(dict.fromkeys(check_texts(texts)))
    return Inputs(ids, str)


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Refuse none, one that is no list, and any without words; return them as a list."""
    if isinstance(texts, str):  # whose letters would be taken for texts
        raise ValueError(f"{name} is the string {texts!r}; give a list of them, such as [{texts!r}].")
    found = list(texts)
    if not found:
        raise ValueError(f"There are no {name}; give one or more.")
    for text in found:
        check_text("A text", text)
    return found


def check_text(name: str, text: object) -> None:
    """Refuse a text without words."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r}, but must be a string with words in it.")


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
        lines = existing_file(file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 ({error}); save it as UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def load_image(value: Any, name: int | str, max_bytes: int = MAX_DOWNLOAD_BYTES, jpeg_size: Any = None) -> Image.Image:
    """An upright RGB image, through the one safe decoder.

    Args:
        value: a URL that starts with http:// or https://, or what `decode_image` accepts: a path, a PIL image, bytes,
            or `{"bytes": ..., "path": ...}`.
        name: names the image in errors.
        max_bytes: largest download.
        jpeg_size: as for `decode_image`.

    Returns:
        A `PIL.Image.Image` of mode RGB.

    Raises:
        ImageError: the image cannot be fetched, is larger than the limits, or cannot be decoded.

    Example:
        >>> load_image(Image.new("L", (3, 2)), name=0).mode
        'RGB'
    """
    return decode_image(fetch_image(value, name, max_bytes), name, jpeg_size=jpeg_size)


def fetch_image(value: Any, name: int | str, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Any:
    """Fetch or read an image once, for all that decode it: a PIL image, or `{"bytes": ..., "path": ...}`."""
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        shown = without_credentials(value)
        return {"bytes": _download(value, f"row {name} (image {shown!r})", max_bytes), "path": shown}
    path, content = image_source(value, name)
    return content if isinstance(content, Image.Image) else {"bytes": content, "path": path}


def _download(url: str, where: str, max_bytes: int) -> bytes:
    """Fetch a URL; what sends more than the limit is given up at once."""
    content = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                # Counted as it comes: a header may say less than what is sent.
                content += part
                if len(content) > max_bytes:
                    most = f"the {max_bytes:,} bytes that are allowed"
                    raise ImageError(f"{where}: the server sends more than {most}; download the file yourself.")
    except httpx.HTTPStatusError as error:
        status = f"{error.response.status_code} {error.response.reason_phrase}"
        raise ImageError(f"{where}: the server answers {status}; open the address in a browser.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = without_credentials(str(error)) or type(error).__name__
        raise ImageError(f"{where}: it cannot be downloaded ({reason}); check the address and the network.") from error

    return bytes(content)
