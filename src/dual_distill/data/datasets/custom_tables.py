"""Tables of one's own as entries with their place: CSV, JSON lines, Parquet, an image folder, a data set of the Hub.

What is unusual: CSV and JSON lines are read here line by line, so that an error names the line; Parquet and the Hub go
through `datasets`, so that pictures inside them stay on the disk and are never copied row by row.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import Dataset, DatasetDict

from dual_distill.data.records import FilePath, InvalidRecordError, Records, existing_file, read_json_lines

SPLIT_WORDS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
"""Words for a split, in file names, folders and on the Hub, and what they mean."""

_LINE_FORMATS = (".csv", ".tsv", ".jsonl", ".json")
_FORMATS = (*_LINE_FORMATS, ".parquet")
_IMAGE_FOLDER_FILES = ("metadata.csv", "metadata.jsonl")
OWN_DATA_LAYOUT = (
    "a file .csv, .tsv, .jsonl or .parquet; a folder with train.csv, validation.csv, test.csv (or the other formats), "
    "or "
    "with images and a metadata.csv or metadata.jsonl, in it or in train/, validation/, test/; or the name of a data "
    "set "
    "on the Hub, owner/name"
)
"""What one's own data may be."""


class CustomTable(NamedTuple):
    """One split, before its columns were looked at.

    Attributes:
        name: file or data set, for errors.
        dataset: its rows, where `datasets` reads them; None: they are read from the file line by line.
        folder: where relative image paths start.
    """

    name: str
    dataset: Dataset | None
    folder: Path

    def entries(self) -> Records:
        """The rows of a file that is read line by line, each with file and line."""
        path = Path(self.name)
        rows = _read_csv(path) if path.suffix in (".csv", ".tsv") else read_json_lines(path)
        for place, entry in rows:
            if path.name in _IMAGE_FOLDER_FILES and isinstance(entry, dict):
                entry = {_image_folder_column(str(column)): value for column, value in entry.items()}
            yield place, entry


def find_tables(
    data: FilePath | Mapping[str, FilePath] | DatasetDict, config: str | None = None, revision: str | None = None
) -> dict[str, CustomTable]:
    """The splits of one's own data.

    Args:
        data: see `OWN_DATA_LAYOUT`; split -> file; or splits that are loaded already.
        config: configuration of a data set on the Hub.
        revision: branch, tag or commit of a data set on the Hub.

    Returns:
        Split ("train", "validation", "test") -> its table.

    Raises:
        FileNotFoundError: there is no such file or folder, nor a data set of that name.
        ValueError: the format is another one, a split has another name or occurs twice, or nothing is found.

    Example:
        >>> find_tables("no/such/file.csv")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.csv'; relative paths start at the current folder.
    """
    if isinstance(data, DatasetDict):
        return _by_split(
            {split: CustomTable(f"split {split!r}", rows, Path.cwd()) for split, rows in data.items()}, "the data"
        )
    if isinstance(data, Mapping):
        return _by_split({split: _file_table([existing_file(file)]) for split, file in data.items()}, "the mapping")
    path = Path(data)
    if path.is_dir():
        return _folder_tables(path)
    name = os.fspath(data)
    if path.is_file() or path.suffix in _FORMATS or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return {"train": _file_table([existing_file(data)])}
    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # no such name, no network, no such configuration
        raise FileNotFoundError(
            f"There is no file or folder {name!r}, and it cannot be loaded as a data set of the Hub ({error})."
        ) from error
    return _by_split(
        {split: CustomTable(f"{name}, split {split!r}", rows, Path.cwd()) for split, rows in loaded.items()}, name
    )


def _folder_tables(folder: Path) -> dict[str, CustomTable]:
    found: dict[str, CustomTable] = {}
    for word in SPLIT_WORDS:
        files = [folder / f"{word}{suffix}" for suffix in _FORMATS]
        files += [folder / word / name for name in _IMAGE_FOLDER_FILES]
        files = [file for file in files if file.is_file()]
        shards = sorted(folder.glob(f"{word}-*.parquet"))
        if len(files) + bool(shards) > 1:
            names = ", ".join(file.name for file in [*files, *shards])
            raise ValueError(f"The folder {str(folder)!r} holds several tables for {word!r} ({names}); leave one.")
        if files or shards:
            found[word] = _file_table(files or shards)
    files = [folder / name for name in _IMAGE_FOLDER_FILES if (folder / name).is_file()]
    if not found and len(files) == 1:
        found["train"] = _file_table(files)
    if not found:
        raise ValueError(f"The folder {str(folder)!r} holds no table; expected is {OWN_DATA_LAYOUT}.")
    return _by_split(found, str(folder))


def _by_split(tables: Mapping[str, CustomTable], name: str) -> dict[str, CustomTable]:
    result: dict[str, CustomTable] = {}
    for word, table in tables.items():
        split = SPLIT_WORDS.get(word)
        if split is None or split in result:
            problem = f"the split {word!r}" if split is None else f"two splits for {split!r}"
            raise ValueError(
                f"There are {problem} in {name}; expected are train, validation (val, valid, dev) and test."
            )
        result[split] = table
    if "train" not in result:
        raise ValueError(f"There is no split 'train' in {name}, only {', '.join(tables)}; name one train.")
    return {split: result[split] for split in ("train", "validation", "test") if split in result}


def _file_table(files: list[Path]) -> CustomTable:
    file = files[0]
    if file.suffix == ".parquet":
        rows = Dataset.from_parquet([str(file) for file in files])
        return CustomTable(str(file), rows, file.parent)
    if file.suffix not in _LINE_FORMATS:
        raise ValueError(f"{str(file)!r} is none of the known formats ({', '.join(_FORMATS)}); save it as one of them.")
    return CustomTable(str(file), None, file.parent)


def _read_csv(path: Path) -> Records:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}, line {reader.line_num + 1}"
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield (
                    place,
                    InvalidRecordError("malformed line", f"the line is not {path.suffix[1:].upper()} ({error})"),
                )
                continue
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: the file is not UTF-8 ({error}); save it as UTF-8.") from error
            if values is None:
                return
            if header is None:
                header = values
                twice = [name for name in header if header.count(name) > 1]
                if twice:
                    raise ValueError(f"{place}: the column {twice[0]!r} occurs twice in the header; rename one.")
            elif values and len(values) != len(header):
                message = f"the line has {len(values)} fields, but the header {len(header)} ({', '.join(header)})"
                yield place, InvalidRecordError("malformed line", message)
            elif values:
                yield place, dict(zip(header, values, strict=True))


def _image_folder_column(column: str) -> str:
    """`file_name` of an image folder's metadata is the column image, `left_file_name` the column left."""
    return "image" if column == "file_name" else column.removesuffix("_file_name")
