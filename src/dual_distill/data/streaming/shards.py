"""Reading one shard of images with texts: tar files, Parquet row groups, ranges of folders and caption files.

A row that cannot be used does not end the reading here: it travels with what is wrong (`bad`, `why`), so that what a
reader has read so far can be counted, saved and resumed whatever the rows hold. And tar files are not read by
`datasets`, whose reader takes a file that was cut between two members for a whole one, and ends a run at a damaged one
without the name of the shard.
"""

import itertools
import json
import lzma
import operator
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

_TEXTS = dict.fromkeys(("caption", "name", "bad", "why"), Value("string"))
IMAGE_TEXT_FEATURES = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, **_TEXTS})
"""What `read_image_texts` yields: an image (undecoded), its caption, where it is; `bad` is None, or what is wrong."""

Rows = Iterator[dict[str, Any]]

_READING_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_ROWS_AT_ONCE = 64


def read_image_texts(shards: list[Shard], skip_bad: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of shards one after the other, each after its name, with the columns of `IMAGE_TEXT_FEATURES`."""
    for shard in shards:
        if shard.problem is not None:
            rows: Rows = iter([_bad(shard.name, "broken shard", shard.problem)])
        elif shard.source.kind == "webdataset":
            rows = _tar_rows(shard)
        elif shard.source.kind == "parquet":
            rows = _parquet_rows(shard)
        else:
            rows = _listed_rows(shard, skip_bad)

        for row in rows:
            yield row["name"], row


def _image_rows(name: str, image: Any, captions: Any) -> Rows:
    """The rows of an image, which may have one caption or a list of them."""
    several = isinstance(captions, list | tuple) and len(captions) > 0
    if not several:
        captions = [None if isinstance(captions, list | tuple) else captions]

    for number, caption in enumerate(captions, start=1):
        row_name = f"{name}, caption {number}" if several else name
        if image is None:
            yield _bad(row_name, "missing image", "there is a caption and no image")
        elif caption is None:
            yield _bad(row_name, "missing caption", "there is an image and no caption")
        elif not isinstance(caption, str):
            yield _bad(row_name, "malformed caption", f"the caption is {caption!r:.80}, but expected is a text")
        elif not caption.strip():
            yield _bad(row_name, "empty caption", f"the caption is empty ({caption!r:.80})")
        else:
            yield {"image": image, "caption": caption, "name": row_name, "bad": None, "why": None}


def _bad(name: str, kind: str, why: str) -> dict[str, Any]:
    nothing = {"image": {"bytes": None, "path": None}, "caption": None}
    return {**nothing, "name": name, "bad": kind, "why": " ".join(why.split())}


class _CheckedTarInfo(tarfile.TarInfo):
    """A header that must be there and be right: tarfile itself takes a missing or wrong one for the end of the file."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            reason = "it ends without an end mark" if len(buf) < tarfile.BLOCKSIZE else str(error)
            raise tarfile.ReadError(reason) from error


def _tar_rows(shard: Shard) -> Rows:
    """The samples of a tar file in WebDataset's layout: members in a row that share their name up to its first dot."""
    key, seen = None, set()
    try:
        with (
            xopen(shard.path, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_CheckedTarInfo) as archive,
        ):
            for key, members in itertools.groupby(_members(archive), key=operator.itemgetter(0)):
                parts = {extension: content for _, extension, content in members}
                if key in seen:
                    yield _bad(f"{shard.name}: {key}", "duplicate key", "the key occurs twice in its shard")
                else:
                    seen.add(key)
                    yield from _sample(shard, key, parts)
    except _READING_ERRORS as error:
        name = shard.name if key is None else f"{shard.name}: {key}"
        yield _bad(name, "broken shard", f"the archive is cut or damaged after {len(seen)} samples ({error})")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Key, extension and content of each file."""
    for member in archive:
        path = PurePosixPath(member.name)
        stem, _, extension = path.name.partition(".")
        content = archive.extractfile(member) if member.isfile() and stem and extension else None
        if content is not None:
            yield (path.parent / stem).as_posix(), extension.lower(), content.read()


def _sample(shard: Shard, key: str, parts: dict[str, bytes]) -> Rows:
    name, column = f"{shard.name}: {key}", shard.source.caption_column
    images = [extension for extension in parts if f".{extension}" in IMAGE_SUFFIXES]
    image = {"bytes": parts[images[0]], "path": f"{key}.{images[0]}"} if images else None

    # img2dataset writes the caption twice; further columns are in the JSON alone.
    try:
        if column == CAPTION_COLUMN and "txt" in parts:
            caption = parts["txt"].decode()
        else:
            caption = json.loads(parts.get("json", b"{}")).get(column)
    except (ValueError, AttributeError) as error:  # bytes that are not UTF-8, no JSON, or JSON that is no object
        yield _bad(name, "malformed caption", f"the caption cannot be read ({error})")
    else:
        yield from _image_rows(name, image, caption)


def _parquet_rows(shard: Shard) -> Rows:
    image_column, caption_column = columns = [shard.source.image_column, shard.source.caption_column]
    number = 0

    try:
        with xopen(shard.path, "rb") as file:
            table = pq.ParquetFile(file)
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[shard.start], columns=columns):
                for entry in batch.to_pylist():
                    name = f"{shard.name}: row {number} of group {shard.start}"
                    number += 1
                    yield from _image_rows(name, _image(entry[image_column]), entry[caption_column])
    except _READING_ERRORS as error:
        why = f"the row group is damaged after {number} rows ({error})"
        yield _bad(f"{shard.name}: group {shard.start}", "broken shard", why)


def _image(value: Any) -> dict[str, Any] | None:
    """An image as `{bytes, path}`; None where there is none."""
    if isinstance(value, bytes | str):
        value = {"bytes" if isinstance(value, bytes) else "path": value}
    if not isinstance(value, dict) or (value.get("bytes") is None and value.get("path") is None):
        return None
    return {"bytes": value.get("bytes"), "path": value.get("path")}


def _listed_rows(shard: Shard, skip_bad: bool) -> Rows:
    """The rows of a range of a folder or of a caption file."""
    records = listed_records(shard.source, skip_bad)[0]
    for number in range(shard.start, shard.stop):
        if shard.source.kind == "folder":
            image, caption, record = records[number]
        else:
            row = records[number]
            image, caption, record = row["image"], row["caption"], f"caption {number} (image {row['image_id']})"

        name = f"{shard.name}: {record}"
        if isinstance(caption, InvalidRecordError):
            yield _bad(name, "malformed entry", str(caption))
            continue
        # A folder of thousands of text files is read as it is trained on, not when it is listed.
        if isinstance(caption, Path):
            try:
                caption = caption.read_text("utf-8") if caption.is_file() else None
            except UnicodeDecodeError as error:
                yield _bad(name, "malformed caption", f"the caption cannot be read ({error})")
                continue
        yield from _image_rows(name, _image(image), caption)
