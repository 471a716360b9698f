"""Where the files of a data set lie: the official names in a folder, and image files, found without asking for each.

A folder of 200,000 images is listed once, on a network drive a matter of seconds instead of minutes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_distill.data.records import FilePath, InvalidRecordError


class ImageFolder:
    """A folder of image files, whose sub-folders are listed once and then known.

    Args:
        folder: its path.

    Raises:
        FileNotFoundError: there is no such folder.

    Example:
        >>> ImageFolder("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder 'no/such/folder' for images; relative paths start at the current folder.
    """

    def __init__(self, folder: FilePath) -> None:
        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {os.fspath(folder)!r} for images; relative paths start at the current folder."
            )
        self._listed: dict[Path, set[str]] = {}

    def find(self, *names: str) -> dict[str, Any]:
        """The first of some files that exists, as the undecoded image `{"bytes": None, "path": ...}`.

        Args:
            *names: paths below the folder (or absolute ones), tried in this order.

        Returns:
            The image.

        Raises:
            InvalidRecordError: none of them is there.
        """
        for name in names:
            path = self.folder / name
            if path.name in self._names_in(path.parent):
                return {"bytes": None, "path": str(path)}
        raise InvalidRecordError(
            "missing image", f"the image is missing: {str(self.folder)!r} holds no {' nor '.join(names)}"
        )

    def _names_in(self, folder: Path) -> set[str]:
        if folder not in self._listed:
            self._listed[folder] = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return self._listed[folder]


def official_files(
    path: FilePath | None,
    given: Mapping[str, FilePath | None],
    images: FilePath | None,
    official_names: Mapping[str, str],
    image_folders: Sequence[str],
    layout: str,
) -> tuple[dict[str, FilePath], ImageFolder]:
    """The file of each split that is to be read and the folder of their images, from one folder or from arguments.

    Args:
        path: a folder with official names, or None.
        given: split -> file or None.
        images: the folder of images; None with `path`.
        official_names: split -> file name in `path`; those of train and validation must be there.
        image_folders: sub-folders of `path` where the images may be; the first that exists is taken.
        layout: what `path` holds, for errors.

    Returns:
        Split -> file, and the folder.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a file.
        ValueError: neither a folder nor files are given, or both, or files without images.

    Example:
        >>> official_files(None, {"train": "a.jsonl", "test": None}, ".", {}, [], "files")[0]
        {'train': 'a.jsonl'}
    """
    files = {split: file for split, file in given.items() if file is not None}
    if path is None:
        if not files or images is None:
            raise ValueError(
                f"Give images= and one or more of {', '.join(f'{split}=' for split in given)}, or path=, a folder that "
                f"holds {layout}"
            )
        return files, ImageFolder(images)
    if files or images is not None:
        raise ValueError(f"path is {str(path)!r}, but {', '.join([*files] or ['images'])} is given too; give either.")
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r}; it should hold {layout}")
    found: dict[str, FilePath] = {
        split: folder / name for split, name in official_names.items() if (folder / name).exists()
    }
    for split in ("train", "validation"):
        if split not in found:
            raise FileNotFoundError(
                f"The folder {str(path)!r} holds no {official_names[split]}; it should hold {layout}"
            )
    places = [folder / name for name in image_folders]
    return found, ImageFolder(next((place for place in places if place.is_dir()), places[0]))
