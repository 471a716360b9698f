"""Reading one shard of image-text pairs: tar files, Parquet row groups, ranges of folders and caption files.

What is unusual: a pair that cannot be used does not end the reading here, it travels as a row that says what is wrong
(`bad`, `why`), so that what a reader has read so far can be counted, saved and resumed whatever the rows hold. And a
tar file
that ends without its end mark is broken: Python's tarfile takes one that was cut between two files for a whole one.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from datasets.utils.file_utils import xopen

from dual_distill.data.records import InvalidRecordError

from .sources import CAPTION_COLUMN, IMAGE_SUFFIXES, Shard, listed_records

BAD_KINDS = (
    "broken shard",
    "unusable image",
    "missing image",
    "missing caption",
    "empty caption",
    "malformed caption",
    "malformed entry",
    "duplicate key",
)
"""What can be wrong with a row, or with the rest of its shard."""

IMAGE_TEXT_FEATURES = Features(
    {
        "image": {"bytes": Value("binary"), "path": Value("string")},
        "caption": Value("string"),
        "place": Value("string"),
        "bad": Value("string"),
        "why": Value("string"),
    }
)
"""What `read_image_texts` yields: a picture (undecoded), its caption, where it is; `bad` is one of `BAD_KINDS`, or None."""

_READING_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_ROWS_AT_ONCE = 64


def read_image_texts(shards: list[Shard], skip_bad: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of shards, one after the other.

    Args:
        shards: which.
        skip_bad: as the shards were found with.

    Yields:
        The place of a row, and the row with the columns of `IMAGE_TEXT_FEATURES`.
    """
    for shard in shards:
        if shard.problem is not None:
            rows: Iterator[dict[str, Any]] = iter([_bad(shard.name, "broken shard", shard.problem)])
        elif shard.source.kind == "webdataset":
            rows = _tar_rows(shard)
        elif shard.source.kind == "parquet":
            rows = _parquet_rows(shard)
        elif shard.source.kind == "folder":
            rows = _folder_rows(shard, skip_bad)
        else:
            rows = _caption_file_rows(shard, skip_bad)
        for row in rows:
            yield row["place"], row


def _pair(image: dict[str, Any] | None, caption: Any, place: str) -> dict[str, Any]:
    if image is None:
        return _bad(place, "missing image", "there is a caption and no image")
    if caption is None:
        return _bad(place, "missing caption", "there is an image and no caption")
    if not isinstance(caption, str):
        return _bad(place, "malformed caption", f"the caption is {caption!r:.80}, but expected is a text")
    if not caption.strip():
        return _bad(place, "empty caption", f"the caption is empty ({caption!r:.80})")
    return {"image": image, "caption": caption, "place": place, "bad": None, "why": None}


def _bad(place: str, kind: str, why: str) -> dict[str, Any]:
    return {
        "image": {"bytes": None, "path": None},
        "caption": None,
        "place": place,
        "bad": kind,
        "why": " ".join(why.split()),
    }


def _caption_rows(image: dict[str, Any] | None, captions: Any, place: str) -> Iterator[dict[str, Any]]:
    """One row a caption, where an image may have a list of them."""
    if not isinstance(captions, list | tuple) or not captions:
        yield _pair(image, None if isinstance(captions, list | tuple) else captions, place)
        return
    for number, caption in enumerate(captions, start=1):
        yield _pair(image, caption, f"{place}, caption {number}")


class _CheckedTarInfo(tarfile.TarInfo):
    """A header that must be there and be right: tarfile itself takes a missing or wrong one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            reason = "it ends without an end mark" if len(buf) < tarfile.BLOCKSIZE else str(error)
            raise tarfile.ReadError(reason) from error


def _tar_rows(shard: Shard) -> Iterator[dict[str, Any]]:
    """The samples of a tar file in WebDataset's layout: files in a row that share all of their name before its first dot."""
    key: str | None = None
    parts: dict[str, bytes] = {}
    seen: set[str] = set()
    try:
        with (
            xopen(shard.path, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_CheckedTarInfo) as archive,
        ):
            for member in archive:
                path = PurePosixPath(member.name)
                stem, _, extension = path.name.partition(".")
                if not member.isfile() or not stem or not extension:
                    continue
                member_key = (path.parent / stem).as_posix()
                if member_key != key:
                    if key is not None:
                        yield from _sample(shard, key, parts, seen)
                    key, parts = member_key, {}
                content = archive.extractfile(member)
                parts[extension.lower()] = b"" if content is None else content.read()
    except _READING_ERRORS as error:
        why = f"the archive is cut or damaged after {len(seen)} samples ({error})"
        yield _bad(f"{shard.name}: {key}" if key is not None else shard.name, "broken shard", why)
        return
    if key is not None:
        yield from _sample(shard, key, parts, seen)


def _sample(shard: Shard, key: str, parts: dict[str, bytes], seen: set[str]) -> Iterator[dict[str, Any]]:
    place = f"{shard.name}: {key}"
    if key in seen:
        yield _bad(place, "duplicate key", "the key occurs twice in its shard")
        return
    seen.add(key)
    image = next(
        (
            {"bytes": content, "path": f"{key}.{name}"}
            for name, content in parts.items()
            if f".{name}" in IMAGE_SUFFIXES
        ),
        None,
    )
    column = shard.source.caption_column
    try:
        if column == CAPTION_COLUMN and "txt" in parts:
            caption = parts["txt"].decode()
        else:
            caption = json.loads(parts.get("json", b"{}")).get(column)
    except (ValueError, AttributeError) as error:  # bytes that are not UTF-8, no JSON, or JSON that is no object
        yield _bad(place, "malformed caption", f"the caption cannot be read ({error})")
        return
    yield from _caption_rows(image, caption, place)


def _parquet_rows(shard: Shard) -> Iterator[dict[str, Any]]:
    columns = [shard.source.image_column, shard.source.caption_column]
    number = 0
    try:
        with xopen(shard.path, "rb") as file:
            batches = pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, row_groups=[shard.start], columns=columns)
            for batch in batches:
                for entry in batch.to_pylist():
                    place = f"{shard.name}: row {number} of group {shard.start}"
                    number += 1
                    yield from _caption_rows(_image(entry[columns[0]]), entry[columns[1]], place)
    except _READING_ERRORS as error:
        place = f"{shard.name}: group {shard.start}"
        yield _bad(place, "broken shard", f"the row group is damaged after {number} rows ({error})")


def _image(value: Any) -> dict[str, Any] | None:
    """A picture as `{bytes, path}`; None where there is none."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str):
        return {"bytes": None, "path": value}
    if isinstance(value, dict) and (value.get("bytes") is not None or value.get("path") is not None):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    return None


def _folder_rows(shard: Shard, skip_bad: bool) -> Iterator[dict[str, Any]]:
    for path, caption, entry_place in listed_records(shard.source, skip_bad)[0][shard.start : shard.stop]:
        place = f"{shard.name}: {entry_place}"
        if isinstance(caption, InvalidRecordError):
            yield _bad(place, "malformed entry", str(caption))
            continue
        if isinstance(caption, Path):
            try:
                caption = caption.read_text("utf-8") if caption.is_file() else None
            except UnicodeDecodeError as error:
                yield _bad(place, "malformed caption", f"the caption cannot be read ({error})")
                continue
        yield from _caption_rows({"bytes": None, "path": path}, caption, place)


def _caption_file_rows(shard: Shard, skip_bad: bool) -> Iterator[dict[str, Any]]:
    dataset = listed_records(shard.source, skip_bad)[0]
    for number in range(shard.start, shard.stop):
        row = dataset[number]
        yield _pair(row["image"], row["caption"], f"{shard.name}: caption {number} (image {row['image_id']})")


__all__ = ["BAD_KINDS", "IMAGE_TEXT_FEATURES", "read_image_texts"]
