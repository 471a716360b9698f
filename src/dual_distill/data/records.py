"""Records of JSON files with their place: file and line, or file, place and id, so that an error says where to look.

What is unusual: a line that cannot be read does not end the reading here; a `InvalidRecordError` travels in its place, and
`make_rows` decides whether that is an error or a line in the report.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FilePath = str | os.PathLike[str]
Records = Iterator[tuple[str, Any]]
"""Pairs of a place (file and line, or file, place and id) and an entry, or the `InvalidRecordError` that stands in its place."""


class InvalidRecordError(ValueError):
    """An entry that cannot become a row.

    Args:
        kind: what is wrong in two or three words, by which a report counts.
        message: what was given, what was expected, what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_json_lines(file: FilePath) -> Records:
    r"""The objects of a file of JSON lines, each with file and line; a BOM, CRLF and empty lines are fine.

    Args:
        file: its path, UTF-8.

    Yields:
        `("file, line 1", object)`, with a `InvalidRecordError` where the line holds no JSON object.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> next(read_json_lines("no/such/file.jsonl"))
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.jsonl'; ...
    """
    with existing_file(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            entry: Any
            try:
                entry = json.loads(line)
            except ValueError as error:  # bytes that are not UTF-8 among them
                entry = InvalidRecordError("malformed line", f"the line is not JSON ({error}): {_shortened(line)}")
            if not isinstance(entry, dict | InvalidRecordError):
                entry = InvalidRecordError(
                    "malformed line", f"the line holds {_shortened(line)}, but expected is an object {{...}}"
                )
            yield f"{os.fspath(file)}, line {number}", entry


def read_json_document(file: FilePath, *keys: str) -> dict[str, Any]:
    """A file that is one JSON object; a BOM is fine.

    Args:
        file: its path, UTF-8.
        *keys: what the object holds, each a list of entries.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or lacks one of the lists.

    Example:
        >>> read_json_document("no/such/file.json", "questions")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.json'; ...
    """
    path = existing_file(file)
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not one JSON document ({error}); download it again.") from error
    found = list(document) if isinstance(document, dict) else [type(document).__name__]
    for key in keys:
        if key not in found or not isinstance(document[key], list):
            raise ValueError(
                f"{str(path)!r} holds no list {key!r}: expected {' and '.join(keys)}, found "
                f"{', '.join(map(str, found))}; "
                "is it the right file?"
            )
    return document


def document_records(file: FilePath, entries: Sequence[Any], noun: str, id_name: str) -> Records:
    """The entries of a list in a JSON document, each with its place in the list and its id.

    Args:
        file: names the document.
        entries: the list.
        noun: what an entry is called in errors, such as "question".
        id_name: key of its id.

    Yields:
        `("file, question 3 (question_id 17)", entry)`, counted from 1, with a `InvalidRecordError` where the entry is no object.

    Example:
        >>> next(document_records("a.json", [{"id": 7}], "caption", "id"))
        ('a.json, caption 1 (id 7)', {'id': 7})
    """
    for number, entry in enumerate(entries, start=1):
        place = f"{os.fspath(file)}, {noun} {number}"
        if isinstance(entry, Mapping):
            yield f"{place} ({id_name} {entry.get(id_name)})", entry
        else:
            yield (
                place,
                InvalidRecordError(
                    "malformed entry", f"the {noun} is {_shortened(entry)}, but expected is an object {{...}}"
                ),
            )


def record_value(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    """The value of a key of an entry.

    Args:
        entry: an object of a JSON file.
        name: the key.
        kind: what the value is: `str`, `int`, `list` or `dict`.

    Returns:
        The value.

    Raises:
        InvalidRecordError: the key is missing or its value is of another kind.

    Example:
        >>> record_value({"image_id": 7}, "image_id", int)
        7
    """
    if name not in entry:
        raise InvalidRecordError(
            "malformed entry", f"there is no {name!r} among {', '.join(map(str, entry)) or 'no keys at all'}"
        )
    value = entry[name]
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if fits and kind is str:
        fits = is_unicode(value)
    elif fits and kind is int:
        fits = -(2**63) <= value < 2**63
    if not fits:
        raise InvalidRecordError("malformed entry", f"{name} is {_shortened(value)}, but expected is {_WORDS[kind]}")
    return value


def record_text(entry: Mapping[str, Any], name: str) -> str:
    """The text of a key of an entry, as it is.

    Args:
        entry: an object of a JSON file.
        name: the key.

    Returns:
        The text.

    Raises:
        InvalidRecordError: the key is missing, or holds no text or an empty one.

    Example:
        >>> record_text({"question": "what is it?"}, "question")
        'what is it?'
    """
    text: str = record_value(entry, name, str)
    if not text.strip():
        raise InvalidRecordError(f"empty {name}", f"{name} is empty ({text!r}), but a row needs words")
    return text


def is_unicode(text: str) -> bool:
    r"""Whether a text can be written as UTF-8; half of a surrogate pair, which JSON may spell out, cannot.

    Args:
        text: any text.

    Returns:
        Whether it can.

    Example:
        >>> is_unicode("\u00e9"), is_unicode("\ud83d")
        (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class UniqueIds:
    """Refuses an id that was there before.

    Args:
        name: what the id is called in errors.

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
            raise InvalidRecordError(
                f"malformed {self.name}", f"{self.name} is {_shortened(value)}, but expected is a text or a number"
            )
        if value in self._seen:
            raise InvalidRecordError(f"duplicate {self.name}", f"{self.name} {value} occurs twice")
        self._seen.add(value)
        return value


def existing_file(file: FilePath) -> Path:
    """The path of a file that is there.

    Args:
        file: its path.

    Returns:
        The same as a `Path`.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> existing_file("no/such/file")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file'; relative paths start at the current folder.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(file)!r}; relative paths start at the current folder.")
    return path


_WORDS = {str: "text in Unicode", int: "a whole number of 64 bits", list: "a list [...]", dict: "an object {...}"}


def _shortened(value: Any) -> str:
    text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
