"""Records of CSV and JSON files with their place, file and line, so that an error says where to look.

The readers of `datasets` serve Parquet, the Hub and data in memory. CSV and JSON are read here, line by line: those
readers guess types ("1" becomes a number), take broken lines, and name none. A record that cannot be read does not end
the reading: an `InvalidRecordError` travels in its place, and `RecordReader` decides what becomes of it.
"""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

FilePath = str | os.PathLike[str]
# Pairs of a place (file and line, or file, index and id) and a record, or the `InvalidRecordError` in its stead.
Records = Iterator[tuple[str, Any]]

# Longest text of a record: whatever is longer is no question, and takes gigabytes as tokens.
MAX_CHARACTERS = 1_000_000

# Longest line that is read into memory.
MAX_LINE_BYTES = 100_000_000

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates, which JSON may spell out and UTF-8 cannot
_BLANKS = b" \t\r\n\xef\xbb\xbf"  # a BOM among them
_MOST_SHOWN = 80
_EXPECTED = {str: "text in Unicode", int: "a whole number of 64 bits", list: "a list [...]", dict: "an object {...}"}


class InvalidRecordError(ValueError):
    """A record that cannot become a row; `kind` says why in two or three words, by which a report counts."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Record(dict[str, Any]):
    """An object of a file, whose values are asked for by name and kind; what does not fit is an InvalidRecordError."""

    __slots__ = ()

    def value(self, name: str, kind: type, expected: str | None = None) -> Any:
        """The value of a key: `str`, `int`, `list` or `dict`; `expected` says so in the error."""
        if name not in self:
            found = ", ".join(map(str, self)) or "no keys at all"
            raise InvalidRecordError("malformed record", f"there is no {name!r} among {found}")

        value = self[name]
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if fits and kind is str:
            fits = not _HALF_PAIR.search(value)
        elif fits and kind is int:
            fits = -(2**63) <= value < 2**63

        if not fits:
            message = f"{name} is {_shortened(repr(value))}, but expected is {expected or _EXPECTED[kind]}"
            raise InvalidRecordError("malformed record", message)
        return value

    def choice(self, name: str, known: Collection[str]) -> str:
        """The text of a key that is one of some words."""
        value: str = self.value(name, str)
        if value not in known:
            raise InvalidRecordError(f"unknown {name}", f"{name} is {value!r}, but expected is {', '.join(known)}")
        return value

    def text(self, name: str, expected: str = "a text of one word or more") -> str:
        """The text of a key, composed (NFC), else as it is; one that is empty is refused."""
        value = self.get(name, "missing")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InvalidRecordError(f"empty {name}", f"{name} is empty ({value!r}), but a row needs {expected}")
        text: str = self.value(name, str, expected)
        if len(text) > MAX_CHARACTERS:
            message = f"{name} has {len(text):,} characters, but a text has {MAX_CHARACTERS:,} at most"
            raise InvalidRecordError(f"long {name}", message)
        return unicodedata.normalize("NFC", text)


def existing_file(file: FilePath) -> Path:
    """The path of a file that is there; raises FileNotFoundError."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(file)!r}; relative paths start at the current folder.")
    return path


def existing_folder(folder: FilePath, purpose: str = "") -> Path:
    """The path of a folder that is there; raises FileNotFoundError, which names what it is for."""
    path = Path(folder)
    if not path.is_dir():
        missing = f"There is no folder {os.fspath(folder)!r}{purpose}"
        raise FileNotFoundError(f"{missing}; relative paths start at the current folder.")
    return path


def read_json_lines(file: FilePath) -> Records:
    """The objects of a file of JSON lines, each with file and line; a BOM, CRLF and empty lines are fine.

    A file that is one array of objects is read as well, whole.
    """
    with existing_file(file).open("rb") as content:
        start = content.read(1_000).lstrip(_BLANKS)
    if start.startswith(b"[") and start.lstrip(b"[").lstrip(_BLANKS).startswith(b"{"):
        yield from document_records(file, _read_document(Path(file)), "record", "id")
        return

    with existing_file(file).open("rb") as lines:
        for number, line in enumerate(_bounded_lines(lines, file), start=1):
            if not line.strip(_BLANKS):
                continue

            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 and deep nesting among them
                text = _shortened(line[: 4 * _MOST_SHOWN].decode("utf-8", "replace").strip())
                record = InvalidRecordError("malformed line", f"the line is not JSON ({error}): {text}")
            yield f"{os.fspath(file)}, line {number}", _object_or_error(record, "line")


def _bounded_lines(lines: IO[Any], file: FilePath) -> Iterator[Any]:
    """The lines of a file, none of which may fill the memory."""
    number = 0
    while line := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            place = f"{os.fspath(file)}, line {number}"
            raise ValueError(f"{place}: the line has more than the {MAX_LINE_BYTES:,} bytes that are read at once.")
        yield line


def read_csv(file: FilePath) -> Records:
    """The rows of a file of comma (.tsv: tab) separated values, each with file and line; a BOM and CRLF are fine."""
    path, header = existing_file(file), None
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(_bounded_lines(lines, file), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        while True:
            first = reader.line_num + 1
            place = f"{path}, line {first}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                kind = path.suffix[1:].upper()
                # A quote that is never closed takes the lines behind it along.
                place = f"{path}, lines {first} to {reader.line_num}" if reader.line_num > first else place
                yield place, InvalidRecordError("malformed line", f"the line is not {kind} ({error})")
                continue
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: the file is not UTF-8 ({error}); save it as UTF-8.") from error

            if header is None:
                header = values
                if twice := [name for name in header if header.count(name) > 1]:
                    raise ValueError(f"{place}: the column {twice[0]!r} occurs twice in the header; rename one.")
            elif values and len(values) != len(header):
                message = f"the line has {len(values)} fields, but the header {len(header)} ({', '.join(header)})"
                yield place, InvalidRecordError("malformed line", message)
            elif values:
                yield place, Record(zip(header, values, strict=True))


def read_lines(file: FilePath) -> Records:
    """The records of a file of CSV, TSV or JSON lines, each with file and line."""
    return read_csv(file) if Path(file).suffix in (".csv", ".tsv") else read_json_lines(file)


def read_json(file: FilePath, *keys: str) -> dict[str, Any]:
    """A file that is one JSON object with a list under each of `keys`; a BOM is fine."""
    path = existing_file(file)
    document = _read_document(path)
    found = list(document) if isinstance(document, dict) else [type(document).__name__]
    for key in keys:
        if key not in found or not isinstance(document[key], list):
            names = f"expected {' and '.join(keys)}, found {', '.join(map(str, found))}"
            raise ValueError(f"{str(path)!r} holds no list {key!r}: {names}; is it the right file?")
    return dict(document)


def read_json_objects(file: FilePath, noun: str) -> Records:
    """The objects of a file that is one JSON object of them by id, each with its id under "id"."""
    document = _read_document(existing_file(file))
    if not isinstance(document, dict):
        found = f"is a {type(document).__name__}, but expected is one object of {noun}s by id"
        raise ValueError(f"{os.fspath(file)!r} {found}; is it the right file?")
    for identifier, record in document.items():
        record = record | {"id": identifier} if isinstance(record, dict) else record
        yield f"{os.fspath(file)}, {noun} {identifier}", _object_or_error(record, noun)


def _read_document(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not one JSON document ({error}); download it again.") from error


def document_records(file: FilePath, records: list[Any], noun: str, id_name: str) -> Records:
    """The records of a list in a JSON document, placed as "file, question 3 (question_id 17)", counted from 1.

    The list is used up: what was read of a file of gigabytes makes room for the rows that are made of it.
    """
    for index, record in enumerate(records):
        records[index] = None
        identity = f" ({id_name} {record.get(id_name)})" if isinstance(record, dict) and id_name in record else ""
        yield f"{os.fspath(file)}, {noun} {index + 1}{identity}", _object_or_error(record, noun)


class UniqueIds:
    """Refuses an id that was there before.

    Example:
        >>> ids = UniqueIds("question_id")
        >>> ids.add(7), ids.add(8)
        (7, 8)
        >>> ids.add(7)
        Traceback (most recent call last):
        dual_distill.data.records.InvalidRecordError: question_id 7 occurs twice
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: set[Any] = set()

    def add(self, value: Any) -> Any:
        """Return the id, or raise `InvalidRecordError` where it was there before or is neither text nor number."""
        if not isinstance(value, str | int):
            message = f"{self.name} is {_shortened(repr(value))}, but expected is a text or a number"
            raise InvalidRecordError(f"malformed {self.name}", message)

        if value in self._seen:
            raise InvalidRecordError(f"duplicate {self.name}", f"{self.name} {value} occurs twice")
        self._seen.add(value)
        return value


def _object_or_error(record: Any, noun: str) -> Any:
    """The record where it is an object, or already an error; else the error that it is none."""
    if isinstance(record, InvalidRecordError):
        return record
    if isinstance(record, dict):
        return Record(record)
    message = f"the {noun} is {_shortened(repr(record))}, but expected is an object {{...}}"
    return InvalidRecordError(f"malformed {noun}", message)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
