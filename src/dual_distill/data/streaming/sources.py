"""Where images with texts lie: sources as data, and the shards that a source falls into.

What is unusual: everything is cut into shards that one reader can take, tar files and Parquet row groups as they are,
folders and caption files into ranges of rows, so that one process or worker never has to read what is another's.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import resolve_pattern
from datasets.utils.file_utils import xopen

from dual_distill.data.datasets.captions import load_captions
from dual_distill.data.reading import ReadingReport
from dual_distill.data.records import InvalidRecordError, read_json_lines
from dual_distill.data.tasks import nearest_name

KINDS = ("webdataset", "parquet", "folder", "karpathy", "coco")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
CAPTION_COLUMN = "caption"
_RANGES = 64


@dataclass(frozen=True)
class ImageTextSource:
    """One place that images with texts come from.

    Args:
        path: webdataset, parquet: a file or a glob, local, `hf://` or `https://` (an `https://` address has no glob);
            folder: a folder; karpathy: its JSON file; coco: its captions JSON file.
        kind: one of `KINDS`. "webdataset" are tar files as img2dataset writes them (`key.jpg`, `key.txt`, `key.json`);
            "folder" is images with a `.txt` beside each or one `metadata.jsonl`.
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
        if self.kind not in KINDS:
            known = nearest_name(self.kind, list(KINDS))
            raise ValueError(f"The source {self.path!r} has the kind {self.kind!r}{known}")
        if not self.weight > 0:
            raise ValueError(f"The source {self.path!r} has the weight {self.weight}, but it must be above 0.")
        if (self.images is not None) != (self.kind in ("karpathy", "coco")):
            said = "needs images=, the folder of its images" if self.images is None else "takes no images="
            raise ValueError(f"The source {self.path!r} of kind {self.kind!r} {said}.")

        if self.name is None:
            parts = [part for part in self.path.split("://")[-1].split("/") if part]
            folders = parts if self.kind == "folder" else parts[:-1]
            named = [part for part in folders if not any(sign in part for sign in "*?[")]
            object.__setattr__(self, "name", named[-1] if named else "image_text")


class Shard(NamedTuple):
    """What one reader takes as a whole.

    Attributes:
        source: where it belongs.
        path: the file, or the folder.
        start: parquet: number of the row group; folder, karpathy, coco: first row.
        stop: folder, karpathy, coco: the row after the last.
        problem: why it cannot be read, where that is known already.
    """

    source: ImageTextSource
    path: str
    start: int = 0
    stop: int = 0
    problem: str | None = None

    @property
    def name(self) -> str:
        """Its name in the names of rows."""
        is_range = self.stop > 0
        return str(self.source.name) if is_range else f"{self.source.name}/{self.path.rsplit('/', 1)[-1]}"


class FoundShards(NamedTuple):
    """The shards of a source.

    Attributes:
        source: where they belong.
        shards: in the order of their names.
        num_rows: rows in them, broken ones included; None where that is not known without reading them.
        skipped: kind -> entries of caption files that were passed over.
    """

    source: ImageTextSource
    shards: list[Shard]
    num_rows: int | None
    skipped: Counter[str] = Counter()


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
        ValueError: A source has no field 'wieght'; did you mean 'weight'? Known are: caption_column, ...
    """
    known = [field.name for field in fields(ImageTextSource)]
    parsed: dict[str | None, ImageTextSource] = {}
    for source in [sources] if isinstance(sources, Mapping | ImageTextSource) else list(sources):
        if not isinstance(source, ImageTextSource):
            if not isinstance(source, Mapping) or not {"path", "kind"} <= set(source):
                more = ", ".join(known[2:])
                raise ValueError(f"A source is {source!r}, but expected is an object with path and kind (and {more}).")
            for name in source:
                if name not in known:
                    raise ValueError(f"A source has no field {name!r}{nearest_name(name, known)}")
            source = ImageTextSource(**source)

        if source.name in parsed:
            raise ValueError(f"Two sources are named {source.name!r}, by which rows are told apart; give each a name=.")
        parsed[source.name] = source

    if not parsed:
        raise ValueError("There are no sources; give at least one, {'path': 'cc3m/*.tar', 'kind': 'webdataset'}.")
    return list(parsed.values())


def find_shards(source: ImageTextSource, skip_bad: bool = False) -> FoundShards:
    """The shards of a source; reads listings, Parquet's footers and caption files, and no image.

    Args:
        source: which.
        skip_bad: pass over bad entries of caption files, and leave broken Parquet files to be counted.

    Returns:
        The shards.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a Parquet file lacks a column, or an entry is bad.

    Example:
        >>> find_shards(ImageTextSource("no/such/*.tar", "webdataset"))
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/*.tar' ...
    """
    if source.kind == "webdataset":
        return _tar_shards(source)
    if source.kind == "parquet":
        return _parquet_shards(source)

    records, skipped = listed_records(source, skip_bad)
    # Ranges of rows, so many that a few workers share them evenly.
    count, pieces = len(records), min(_RANGES, len(records))
    bounds = [count * piece // pieces for piece in range(pieces + 1)] if pieces else []
    shards = [Shard(source, source.path, start, stop) for start, stop in itertools.pairwise(bounds)]
    return FoundShards(source, shards, count, skipped)


def _tar_shards(source: ImageTextSource) -> FoundShards:
    shards = [Shard(source, file) for file in _files(source)]
    known = [count for shard in shards if (count := _counted_by_img2dataset(shard.path)) is not None]
    return FoundShards(source, shards, sum(known) if len(known) == len(shards) else None)


def _counted_by_img2dataset(file: str) -> int | None:
    """The rows of a local tar file, where img2dataset's `00000_stats.json` lies beside it."""
    stats = Path(file.removesuffix(".gz").removesuffix(".tar") + "_stats.json")
    count = json.loads(stats.read_bytes()).get("successes") if stats.is_file() else None
    return count if isinstance(count, int) else None


def _parquet_shards(source: ImageTextSource) -> FoundShards:
    shards: list[Shard] = []
    num_rows = 0
    for file in _files(source):
        try:
            with xopen(file, "rb") as stream:
                described = pq.ParquetFile(stream)
                columns, metadata = described.schema_arrow.names, described.metadata
        except (pa.ArrowException, OSError) as error:
            shards.append(Shard(source, file, problem=f"the file is no Parquet, or damaged ({error})"))
            continue

        for column in (source.image_column, source.caption_column):
            if column not in columns:
                found = f"{file!r} has no column {column!r}, but {', '.join(columns)}"
                raise ValueError(f"{found}; name image_column and caption_column.")
        shards += [Shard(source, file, start=group) for group in range(metadata.num_row_groups)]
        num_rows += metadata.num_rows
    return FoundShards(source, shards, num_rows)


def _files(source: ImageTextSource) -> list[str]:
    try:
        return sorted(resolve_pattern(source.path, base_path="."))
    except FileNotFoundError as error:
        missing = f"There is no file {source.path!r} for a source of kind {source.kind!r}"
        raise FileNotFoundError(f"{missing}; relative paths start at the current folder.") from error


@functools.lru_cache(maxsize=32)
def listed_records(source: ImageTextSource, skip_bad: bool) -> tuple[Any, Counter[str]]:
    """The rows of a folder or of a caption file; read once a process, and by forked workers not at all.

    Args:
        source: of kind folder, karpathy or coco.
        skip_bad: pass over bad entries of a caption file.

    Returns:
        A list of `(image path, caption, name)` (folder; a `InvalidRecordError` or the path of a text file may stand for
        the caption) or a data set with image and caption; and the entries that were passed over.
    """
    if source.kind == "folder":
        return _folder_records(source), Counter()

    report = ReadingReport()
    captions: Any = source.path if source.kind == "karpathy" else {source.split: source.path}
    splits = load_captions(captions=captions, images=source.images, skip_bad=skip_bad, report=report)
    if source.split not in splits:
        found = ", ".join(splits)
        raise ValueError(f"{source.path!r} has no rows of the split {source.split!r}, but of {found}; choose one.")
    return splits[source.split], Counter({kind: len(sentences) for kind, sentences in report.bad.items()})


def _folder_records(source: ImageTextSource) -> list[tuple[str | None, Any, str]]:
    folder = Path(source.path).absolute()
    if not folder.is_dir():
        way_out = "relative paths start at the current folder"
        raise FileNotFoundError(f"There is no folder {source.path!r} of images with texts; {way_out}.")
    if (folder / METADATA).is_file():
        return [_metadata_record(source, folder, *record) for record in read_json_lines(folder / METADATA)]

    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"The folder {source.path!r} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return [(str(image), image.with_suffix(".txt"), image.relative_to(folder).as_posix()) for image in images]


def _metadata_record(source: ImageTextSource, folder: Path, where: str, entry: Any) -> tuple[str | None, Any, str]:
    name = where.rsplit("/", 1)[-1]  # "metadata.jsonl, line 3"
    if not isinstance(entry, InvalidRecordError) and not isinstance(entry.get("file_name"), str):
        entry = InvalidRecordError("malformed entry", "there is no file_name")
    if isinstance(entry, InvalidRecordError):
        return None, entry, name
    return str(folder / entry["file_name"]), entry.get(source.caption_column), name
