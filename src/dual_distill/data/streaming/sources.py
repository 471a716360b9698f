"""Where images with texts lie: sources as data, the shards that a source falls into, and the rows of a shard.

What is unusual: everything is cut into shards that one reader can take, tar files and Parquet row groups as they are,
folders and caption files into ranges of rows, so that one process or worker never has to read what is another's. A row
that cannot be used does not end the reading here: it travels with what is wrong (`bad`, `why`), so that what a reader
has read so far can be counted, saved and resumed whatever the rows hold. And tar files are not read by `datasets`,
whose reader takes a file that was cut between two members for a whole one, and ends a run at a damaged one without the
name of the shard.
"""

import functools
import itertools
import json
import lzma
import operator
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from datasets.data_files import resolve_pattern
from datasets.utils.file_utils import xopen

from dual_distill.credentials import without_credentials
from dual_distill.data.datasets.captions import load_captions
from dual_distill.data.fingerprint import described_fingerprint
from dual_distill.data.images import IMAGE_SUFFIXES
from dual_distill.data.records import MAX_CHARACTERS, InvalidRecordError, existing_folder, read_json_lines
from dual_distill.data.tasks import nearest_name

KINDS = ("webdataset", "parquet", "folder", "karpathy", "coco")
CAPTION_COLUMN = "caption"
_TEXTS = dict.fromkeys(("caption", "name", "bad", "why"), Value("string"))
# What `read_image_texts` yields: an image (undecoded), its caption, where it is; `bad` is None, or what is wrong.
IMAGE_TEXT_FEATURES = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, **_TEXTS})

Rows = Iterator[dict[str, Any]]

_METADATA = "metadata.jsonl"
_READING_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_RANGES, _ROWS_AT_ONCE = 64, 64
_MAX_MEMBER_BYTES = 256_000_000  # of a tar file; the largest allowed image without compression has 192


@dataclass(frozen=True)
class ImageTextSource:
    """One place that images with texts come from.

    Args:
        path: webdataset, parquet: a file or a glob, local, `hf://` or `https://` (an `https://` address has no glob);
            folder: a folder; karpathy: its JSON file; coco: its captions JSON file.
        kind: one of `KINDS`. "webdataset" are tar files as img2dataset writes them (`key.jpg`, `key.txt`, `key.json`);
            "folder" is images with a `metadata.jsonl`.
        weight: how often it is drawn from, relative to the others, as long as it lasts.
        split: which split of Karpathy's file; the others have none.
        images: karpathy, coco: the folder of the images.
        image_column: parquet: column of the image, bytes or `{bytes, path}`.
        caption_column: parquet, `metadata.jsonl`: column of the caption, a string or a list of them, one row each;
            webdataset: "caption" is `key.txt` or, without one, that entry of `key.json`; other names are entries.
        name: what rows are called after; None: the folder of the files.

    Raises:
        ValueError: the kind is unknown, the weight is not above 0, or `images` is missing or not needed.

    Example:
        >>> ImageTextSource("/data/cc3m/*.tar", "webdataset").name
        'cc3m'
    """

    path: str
    kind: str
    weight: float = 1.0
    split: str = "train"
    images: str | None = None
    image_column: str = "image"
    caption_column: str = CAPTION_COLUMN
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the fields, and name the source after the folder of its files."""
        source = f"The source {self.path!r}"
        if self.kind not in KINDS:
            raise ValueError(f"{source} has the kind {self.kind!r}{nearest_name(self.kind, list(KINDS))}")
        if not self.weight > 0:
            raise ValueError(f"{source} has the weight {self.weight}, but it must be above 0.")
        if (self.images is not None) != (self.kind in ("karpathy", "coco")):
            said = "needs images=, the folder of its images" if self.images is None else "takes no images="
            raise ValueError(f"{source} of kind {self.kind!r} {said}.")

        # The last folder of the path that is no pattern.
        if self.name is None:
            parts = [part for part in without_credentials(self.path).split("://")[-1].split("/") if part]
            folders = parts if self.kind == "folder" else parts[:-1]
            named = [part for part in folders if not any(sign in part for sign in "*?[")]
            object.__setattr__(self, "name", named[-1] if named else "image_text")


class Shard(NamedTuple):
    """What one reader takes as a whole.

    Attributes:
        source: where it belongs.
        name: in the names of its rows.
        path: the file, or the folder.
        num_rows: rows in it, bad ones included; None where that is not known without reading them.
        start: parquet: number of the row group; folder, karpathy, coco: first row.
        listed: folder, karpathy, coco: size and time of the file that lists the rows.
    """

    source: ImageTextSource
    name: str
    path: str
    num_rows: int | None
    start: int = 0
    listed: tuple[int, int] | None = None


def parse_sources(sources: Any) -> list[ImageTextSource]:
    """Sources from what a recipe holds.

    Args:
        sources: `ImageTextSource`s, or objects with their fields; one or a list.

    Returns:
        The sources, each with a name of its own.

    Raises:
        ValueError: there is none, one is no object or has an unknown field, or two have one name.

    Example:
        >>> parse_sources([{"path": "/data/sbu/*.tar", "kind": "webdataset", "weight": 2}])[0].weight
        2
        >>> parse_sources([{"path": "/data/sbu/*.tar", "kind": "webdataset", "wieght": 2}])
        Traceback (most recent call last):
        ValueError: A source is {...} (...argument 'wieght'...), but expected is an object of path, ...
    """
    parsed: dict[str | None, ImageTextSource] = {}
    for given in [sources] if isinstance(sources, Mapping | ImageTextSource) else list(sources):
        try:
            source = given if isinstance(given, ImageTextSource) else ImageTextSource(**given)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(ImageTextSource))
            raise ValueError(f"A source is {given!r} ({error}), but expected is an object of {known}.") from error
        if source.name in parsed:
            raise ValueError(f"Two sources are named {source.name!r}, by which rows are told apart; give each a name=.")
        parsed[source.name] = source

    if not parsed:
        raise ValueError("There are no sources; give at least one, {'path': 'cc3m/*.tar', 'kind': 'webdataset'}.")
    return list(parsed.values())


def find_shards(source: ImageTextSource, skip_bad: bool = False) -> list[Shard]:
    """The shards of a source; reads listings, Parquet's footers and caption files, and no image.

    Args:
        source: which.
        skip_bad: pass over bad entries of caption files, and leave broken Parquet files to be counted.

    Returns:
        The shards, in the order of their names.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a Parquet file lacks a column, an entry is bad, or there are no rows.

    Example:
        >>> find_shards(ImageTextSource("no/such/*.tar", "webdataset"))
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/*.tar' ...
    """
    if source.kind in ("webdataset", "parquet"):
        try:
            files = sorted(resolve_pattern(source.path, base_path="."))
        except FileNotFoundError as error:
            missing = f"There is no file {source.path!r} for a source of kind {source.kind!r}"
            raise FileNotFoundError(f"{missing}; relative paths start at the current folder.") from error
        find = _tar_shard if source.kind == "webdataset" else _parquet_shards
        shards = [shard for file in files for shard in find(source, f"{source.name}/{file.rsplit('/', 1)[-1]}", file)]
    else:
        # Ranges of rows, so many that a few workers share them evenly.
        listed = _list_state(source)
        count = len(_listed_records(source, skip_bad, listed))
        bounds = [count * piece // _RANGES for piece in range(_RANGES + 1)]
        ranges = [(start, stop - start) for start, stop in itertools.pairwise(bounds) if stop > start]
        shards = [Shard(source, str(source.name), source.path, rows, start, listed) for start, rows in ranges]

    if not shards:
        raise ValueError(f"The source {source.path!r} has no rows; leave it out.")
    return shards


def described_sources(shards: list[list[Shard]]) -> list[str]:
    """What the shards of each source are known by, as one line a source: a row's position follows from all of it.

    The folder above them is no part of it, but for the name, by which their order is drawn; and a tar file that was
    mended keeps the positions of its rows.
    """
    total, found = sum(each[0].source.weight for each in shards), []
    for each in shards:
        source, share = each[0].source, each[0].source.weight / total
        columns = [source.kind, source.image_column, source.caption_column, source.split]
        rows = [(one.name, one.start, None if source.kind == "webdataset" else one.num_rows) for one in each]
        found.append(described_fingerprint(f"{source.name} x {share:.3g}", [share, columns, rows]))
    return found


def file_sizes(shards: list[list[Shard]]) -> list[int | None]:
    """Bytes of each shard's file, or of the one that lists its images; None where it does not lie on this machine."""
    every = dict.fromkeys((one.path, one.source.kind) for each in shards for one in each)
    files = [_list_file(path, kind) for path, kind in every]
    return [file.stat().st_size if file.is_file() else None for file in files]


def _list_file(path: str, kind: str) -> Path:
    """The file of a shard, or the one that lists its rows."""
    return Path(path, _METADATA) if kind == "folder" else Path(path)


def _list_state(source: ImageTextSource) -> tuple[int, int] | None:
    """By what a file that was written anew is told from the one before."""
    file = _list_file(source.path, source.kind)
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None


def _tar_shard(source: ImageTextSource, name: str, file: str) -> list[Shard]:
    # img2dataset writes this file beside each of its own.
    stats = Path(file.removesuffix(".gz").removesuffix(".tar") + "_stats.json")
    return [Shard(source, name, file, json.loads(stats.read_bytes()).get("successes") if stats.is_file() else None)]


def _parquet_shards(source: ImageTextSource, name: str, file: str) -> list[Shard]:
    try:
        with xopen(file, "rb") as stream:
            described = pq.ParquetFile(stream)
            columns, metadata = described.schema_arrow.names, described.metadata
    except (pa.ArrowException, OSError):
        # Said when it is read, so that it may be passed over.
        return [Shard(source, name, file, 0)]

    for column in (source.image_column, source.caption_column):
        if column not in columns:
            found = f"{file!r} has no column {column!r}, but {', '.join(columns)}"
            raise ValueError(f"{found}; name image_column and caption_column.")
    groups = range(metadata.num_row_groups)
    return [Shard(source, name, file, metadata.row_group(group).num_rows, group) for group in groups]


@functools.lru_cache(maxsize=32)
def _listed_records(source: ImageTextSource, skip_bad: bool, listed: tuple[int, int] | None) -> Any:
    """The rows of a caption file, a data set; or of a folder, (image path, caption or error, name); read once."""
    if source.kind == "folder":
        return list(_folder_records(source))

    captions: Any = source.path if source.kind == "karpathy" else {source.split: source.path}
    splits = load_captions(captions=captions, images=source.images, skip_bad=skip_bad, check_images=False)
    if source.split not in splits:
        found = ", ".join(splits)
        raise ValueError(f"{source.path!r} has no rows of the split {source.split!r}, but of {found}; choose one.")
    return splits[source.split]


def _folder_records(source: ImageTextSource) -> Iterator[tuple[str | None, Any, str]]:
    folder = existing_folder(source.path, " of images with texts").absolute()
    for place, record in read_json_lines(folder / _METADATA):
        name = place.rsplit("/", 1)[-1]  # "metadata.jsonl, line 3"
        if not isinstance(record, InvalidRecordError) and not isinstance(record.get("file_name"), str):
            record = InvalidRecordError("malformed entry", "there is no file_name")
        if isinstance(record, InvalidRecordError):
            yield None, record, name
        else:
            yield str(folder / record["file_name"]), record.get(source.caption_column), name


def read_image_texts(shards: list[Shard], skip_bad: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of shards one after the other, each after its name, with the columns of `IMAGE_TEXT_FEATURES`."""
    for shard in shards:
        if shard.source.kind == "webdataset":
            rows = _tar_rows(shard)
        elif shard.source.kind == "parquet":
            rows = _parquet_rows(shard)
        else:
            rows = _listed_rows(shard, skip_bad)
        yield from ((row["name"], row) for row in rows)


def _image_rows(name: str, image: Any, captions: Any) -> Rows:
    """The rows of an image (`{bytes, path}`, bytes or a path), with one caption, a list of them, or what is wrong."""
    if not isinstance(image, dict):
        image = {"bytes": image} if isinstance(image, bytes) else {"path": image if isinstance(image, str) else None}
    image = {key: image.get(key) for key in ("bytes", "path")}

    several = isinstance(captions, list) and len(captions) > 0
    for number, caption in enumerate(captions if several else [None if captions == [] else captions], start=1):
        row_name, bad, why = f"{name}, caption {number}" if several else name, None, ""
        if isinstance(caption, InvalidRecordError):
            bad, why = caption.kind, str(caption)
        elif image == {"bytes": None, "path": None}:
            bad, why = "missing image", "there is a caption and no image"
        elif caption is None:
            bad, why = "missing caption", "there is an image and no caption"
        elif not isinstance(caption, str):
            bad, why = "malformed caption", f"the caption is {caption!r:.80}, but expected is a text"
        elif len(caption) > MAX_CHARACTERS:
            bad, why = "malformed caption", f"the caption has {len(caption):,} characters, {MAX_CHARACTERS:,} at most"
        elif not caption.strip():
            bad, why = "empty caption", f"the caption is empty ({caption!r:.80})"
        yield _row(row_name, image, caption) if bad is None else _row(row_name, bad=bad, why=why)


def _row(name: str, image: Any = None, caption: str | None = None, bad: str | None = None, why: str = "") -> Any:
    image = image or {"bytes": None, "path": None}
    return {"image": image, "caption": caption, "name": name, "bad": bad, "why": " ".join(why.split())}


class _CheckedTarInfo(tarfile.TarInfo):
    """A header that must be there and be right: tarfile itself takes a missing or wrong one for the end of the file."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            reason = "it ends without an end mark" if len(buf) < tarfile.BLOCKSIZE else str(error)
            raise tarfile.ReadError(reason) from error

        # Three compressed megabytes may declare gigabytes, which would be read at once.
        if member.size > _MAX_MEMBER_BYTES:
            found = f"{member.name!r} has {member.size:,} bytes, more than the {_MAX_MEMBER_BYTES:,} that are allowed"
            raise tarfile.ReadError(found)
        return member


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
                    why = "the key occurs twice in its shard"
                    yield _row(f"{shard.name}: {key}", bad="duplicate key", why=why)
                else:
                    seen.add(key)
                    yield from _sample(shard, key, parts)
    except _READING_ERRORS as error:
        name = shard.name if key is None else f"{shard.name}: {key}"
        why = f"the archive is cut or damaged after {len(seen)} samples ({error})"
        yield _row(name, bad="broken shard", why=why)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Key, extension and content of each file."""
    for member in archive:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = name.partition(".")
        content = archive.extractfile(member) if member.isfile() and stem and extension else None
        if content is not None:
            yield folder + slash + stem, extension.lower(), content.read()


def _sample(shard: Shard, key: str, parts: dict[str, bytes]) -> Rows:
    name, column = f"{shard.name}: {key}", shard.source.caption_column
    images = [extension for extension in parts if f".{extension}" in IMAGE_SUFFIXES]
    image = {"bytes": parts[images[0]], "path": f"{key}.{images[0]}"} if images else None

    # img2dataset writes the caption twice; further columns are in the JSON alone.
    caption: Any
    try:
        if column == CAPTION_COLUMN and "txt" in parts:
            caption = parts["txt"].decode()
        else:
            caption = json.loads(parts.get("json", b"{}")).get(column)
    except (ValueError, AttributeError, RecursionError) as error:  # no UTF-8, no JSON, no object, or nested too deeply
        caption = InvalidRecordError("malformed caption", f"the caption cannot be read ({error})")
    yield from _image_rows(name, image, caption)


def _parquet_rows(shard: Shard) -> Rows:
    image_column, caption_column = columns = [shard.source.image_column, shard.source.caption_column]
    number = 0

    try:
        with xopen(shard.path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, row_groups=[shard.start], columns=columns):
                for entry in batch.to_pylist():
                    name = f"{shard.name}: row {number} of group {shard.start}"
                    number += 1
                    yield from _image_rows(name, entry[image_column], entry[caption_column])
    except _READING_ERRORS as error:
        why = f"the row group is damaged after {number} rows ({error})"
        yield _row(f"{shard.name}: group {shard.start}", bad="broken shard", why=why)


def _listed_rows(shard: Shard, skip_bad: bool) -> Rows:
    """The rows of a range of a folder or of a caption file."""
    records = _listed_records(shard.source, skip_bad, shard.listed)
    for number in range(shard.start, shard.start + (shard.num_rows or 0)):
        if shard.source.kind == "folder":
            image, caption, record = records[number]
        else:
            row = records[number]
            image, caption, record = row["image"], row["caption"], f"caption {number} (image {row['image_id']})"
        yield from _image_rows(f"{shard.name}: {record}", image, caption)
