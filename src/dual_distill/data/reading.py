"""From records to data sets: one way for bad records, a report of what was skipped and why, Arrow in batches.

What is unusual: a reader is a function from one record to one row that raises `InvalidRecordError`; whether that ends
the reading (the default) or is listed and passed over (`skip_bad=True`) is decided here, once. Images are stored as
paths and not decoded, but where bad ones are to be passed over.
"""

import itertools
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image

from .fingerprint import fingerprint
from .images import ImageError, decode_image
from .records import FilePath, InvalidRecordError, Record, Records, UniqueIds, existing_file, existing_folder

_ROWS_A_BATCH = 2_000
_MOST_PRINTED = 100


@dataclass
class ReadingReport:
    """What a reader took, what it left out, and why; `print(report)` shows it as the readers do on stderr.

    Attributes:
        source: what was read, such as "vqa".
        rows: split -> rows taken.
        left_out: reason -> number of records that are no mistake and yet no rows, such as SNLI-VE's gold_label "-".
        notes: remark -> number of rows that were taken and are worth a remark, such as answers outside a vocabulary.
        bad: kind -> one sentence for each bad record that `skip_bad=True` passed over, with its file and line.

    Example:
        >>> report = ReadingReport("snli_ve", rows={"train": 2}, left_out=Counter({"no majority": 1}))
        >>> print(report)
        snli_ve: train 2 rows
          left out 1: no majority
    """

    source: str = "data"
    rows: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    bad: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.source}: " + ", ".join(f"{split} {number:,} rows" for split, number in self.rows.items())]
        lines += [f"  left out {number:,}: {reason}" for reason, number in self.left_out.items()]
        lines += [f"  taken {number:,}: {remark}" for remark, number in self.notes.items()]

        for kind, sentences in self.bad.items():
            lines.append(f"  skipped {len(sentences):,}: {kind}")
            lines += [f"    {sentence}" for sentence in sentences[:_MOST_PRINTED]]
            if len(sentences) > _MOST_PRINTED:
                lines.append(f"    ... and {len(sentences) - _MOST_PRINTED:,} more, all in ReadingReport.bad")
        return "\n".join(lines)


class Reading(TypedDict, total=False):
    """What every reader of files takes, as further keywords.

    Attributes:
        skip_bad: pass over bad records and list them in the report, instead of an error at the first (the default).
        check_images: whether passing over bad records means decoding each image once, to find those that are truncated
            or damaged (the default); not where whoever reads them does it.
        report: takes what was read, skipped and left out; None: a new one. It is printed on stderr either way.
    """

    skip_bad: bool
    check_images: bool
    report: ReadingReport | None


class RecordReader:
    """Makes the splits of a data set from records.

    Args:
        source: what is read, such as "vqa", for report and errors.
        features: columns of the rows and their types.
        **reading: see `Reading`.
    """

    def __init__(self, source: str, features: Features, **reading: Unpack[Reading]) -> None:
        self.features, self.skip_bad = features, reading.get("skip_bad", False)
        self.check_images = self.skip_bad and reading.get("check_images", True)
        self.report = reading.get("report") or ReadingReport()
        self.report.source = source
        self.splits: dict[str, Dataset] = {}

    def row(self, place: str, record: Any, make_row: Callable[[Any], Any]) -> Any:
        """What `make_row` makes of a record; None where it leaves it out, or where the record is bad and skipped."""
        try:
            if isinstance(record, InvalidRecordError):
                raise record
            return make_row(record)

        except InvalidRecordError as problem:
            if not self.skip_bad:
                way_out = "mend it, or leave such records out with skip_bad=True (--skip_bad), which lists them."
                raise ValueError(f"{place}: {problem}; {way_out}") from problem
            self.report.bad.setdefault(problem.kind, []).append(f"{place}: {problem}")
            return None

    def rows(self, records: Records, make_row: Callable[[Any], Any]) -> Iterator[Any]:
        """The rows of records, one after the other."""
        rows = (self.row(place, record, make_row) for place, record in records)
        return (row for row in rows if row is not None)

    def by_id(self, records: Records, id_name: str) -> dict[int, tuple[str, Any]]:
        """Records that others refer to, with their places: id -> (place, record)."""
        ids = UniqueIds(id_name)
        found = {self.row(*one, lambda record: ids.add(record.value(id_name, int))): one for one in records}
        found.pop(None, None)  # of bad ones
        return found

    def table(self, split: str, rows: Iterable[dict[str, Any]], features: Features | None = None) -> Dataset:
        """A data set in memory of rows, written to Arrow in batches; one without rows is refused."""
        return self.joined(split, list(self.batches(rows, features)), features)

    def batches(self, rows: Iterable[dict[str, Any]], features: Features | None = None) -> Iterator[pa.Table]:
        """Tables of some thousands of rows each, the last of the rest."""
        schema, rows = (features or self.features).arrow_schema, iter(rows)
        while batch := list(itertools.islice(rows, _ROWS_A_BATCH)):
            yield pa.Table.from_pylist(batch, schema=schema)

    def joined(self, split: str, tables: Sequence[pa.Table], features: Features | None = None) -> Dataset:
        """A data set of tables, which are not copied; none at all are refused."""
        if not tables:
            missing = self.report.left_out.total() + sum(map(len, self.report.bad.values()))
            found = f"has no rows ({missing:,} records were left out or skipped)"
            raise ValueError(f"The split {split!r} of {self.report.source!r} {found}; leave it out, or give some.")

        # Of the content as it lies there: the one that `datasets` makes pickles all of it, several times over.
        columns = itertools.chain.from_iterable(table.itercolumns() for table in tables)
        buffers = (
            memoryview(part) for column in columns for chunk in column.chunks for part in chunk.buffers() if part
        )
        known_by = fingerprint(split, str(tables[0].schema), *buffers)[:16]
        info = DatasetInfo(features=(features or self.features).copy())
        return Dataset(pa.concat_tables(tables), info=info, split=split, fingerprint=known_by)

    def read(self, split: str, records: Records, make_row: Callable[[Any], Any]) -> None:
        """Add the split that records make."""
        self.splits[split] = self.table(split, self.rows(records, make_row))

    def finish(self) -> DatasetDict:
        """The splits; the report is completed and written on stderr."""
        problems: dict[str | None, str] = {}
        if self.check_images:
            self.splits = {split: self._decodable(split, rows, problems) for split, rows in self.splits.items()}
        self.report.rows = {split: rows.num_rows for split, rows in self.splits.items()}
        sys.stderr.write(f"{self.report}\n")
        return DatasetDict(self.splits)

    def _decodable(self, split: str, rows: Dataset, problems: dict[str | None, str]) -> Dataset:
        """The rows whose images can be decoded; `problems` keeps what is known of a file ("": it is good)."""
        columns = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
        bad: dict[int, str] = {}
        for index, row in enumerate(rows.select_columns(columns)):
            for image in row.values():
                file = image["path"] if image["bytes"] is None else None
                try:
                    if file is None or file not in problems:
                        problems[file] = ""
                        decode_image(image, f"{index} of {split}")
                except ImageError as error:
                    problems[file] = str(error)
                if problems[file]:
                    bad[index] = problems[file]

        if bad:
            self.report.bad.setdefault("image that cannot be decoded", []).extend(bad.values())
        good = [index for index in range(rows.num_rows) if index not in bad]
        return rows.select(good) if good or not bad else self.table(split, [])  # which says that nothing is left


class ImageFolder:
    """A folder of image files. Its sub-folders are listed once, on a network drive seconds instead of minutes."""

    def __init__(self, folder: FilePath) -> None:
        self.folder = existing_folder(folder, " for images").absolute()
        self._listed: dict[tuple[Path, bool], dict[str, str]] = {}

    def find(self, *names: str) -> dict[str, Any]:
        """The first of some files, below the folder or absolute, with or without extension, as an undecoded image."""
        for name, stems in itertools.product(names, (False, True)):
            path = self.folder / name
            if file := self._files(path.parent, stems).get(path.name):
                return {"bytes": None, "path": str(path.parent / file)}

        message = f"the image is missing: {str(self.folder)!r} holds no {' nor '.join(names)}"
        raise InvalidRecordError("missing image", message)

    def _files(self, folder: Path, stems: bool) -> dict[str, str]:
        """Files of a folder by name or, `stems`, by name without extension, listed once that is asked for."""
        if (folder, stems) in self._listed:
            return self._listed[folder, stems]
        if stems:
            # A name without extension means a file if it can mean only one.
            files = set(self._files(folder, stems=False).values())
            once = Counter(file.rpartition(".")[0] for file in files)
            known = {file.rpartition(".")[0]: file for file in files if once[file.rpartition(".")[0]] == 1}
        else:
            entries = os.scandir(folder) if folder.is_dir() else ()
            known = {file.name: file.name for file in entries if not file.is_dir()}

        # Some file systems take accents in names apart.
        composed = {unicodedata.normalize("NFC", name): file for name, file in known.items()}
        self._listed[folder, stems] = composed | known
        return self._listed[folder, stems]


def official_folder(path: FilePath | None, layout: str) -> Path:
    """The folder in which files have their official names."""
    if path is None:
        raise ValueError(f"Give path= (data= of a recipe), a folder that holds {layout}")
    if not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {os.fspath(path)!r}; it should hold {layout}")
    return Path(path)


def official_splits(path: FilePath | None, names: Mapping[str, str], layout: str) -> dict[str, Path]:
    """The file of each split by its official name, as far as they are there; train and validation must be."""
    folder = official_folder(path, layout)
    files = {split: folder / name for split, name in names.items() if (folder / name).exists()}
    if missing := [names[split] for split in ("train", "validation") if split not in files]:
        raise FileNotFoundError(f"The folder {str(folder)!r} holds no {missing[0]}; it should hold {layout}")
    return files


def read_parquet(folder: Path, pattern: str, columns: Sequence[str]) -> Records:
    """The rows of the Parquet files in a folder that match a pattern, with file and row, `image` as `{bytes, path}`."""
    files = sorted(folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"The folder {str(folder)!r} holds no file {pattern}; is it the data set's own folder?")

    for file in files:
        try:
            found = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{str(file)!r} cannot be read as parquet ({error}); download it again.") from error
        if missing := [column for column in columns if column not in found]:
            names = f"expected {', '.join(columns)}, found {', '.join(found)}"
            raise ValueError(f"{str(file)!r} has no column {missing[0]!r}: {names}.")

        # Only the Arrow types count, not the schema that `datasets` may have written into the file.
        rows = Dataset(pq.read_table(file, columns=list(columns)).replace_schema_metadata(None))
        rows = undecoded(rows, "image", repr(str(file))) if "image" in columns else rows
        numbers = itertools.count()
        # In pieces, since images may lie in the rows.
        for batch in rows.data.table.to_batches(1_000):
            for record in batch.to_pylist():
                has_image = "image" not in columns or any((record["image"] or {}).values())
                bad = InvalidRecordError("missing image", "the image is missing: neither bytes nor a path")
                yield f"{file}, row {next(numbers)}", Record(record) if has_image else bad


def undecoded(dataset: Dataset, column: str, name: str) -> Dataset:
    """The data set with a column of paths, bytes or `{bytes, path}` as images that are not decoded."""
    try:
        return dataset.cast_column(column, Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        found = f"The column {column!r} of {name} holds {getattr(dataset.features[column], 'dtype', 'lists')}"
        raise ValueError(f"{found}, but images are paths, bytes or {{bytes, path}}; name another column.") from error


def hold_out(
    dataset: Dataset, groups: Sequence[Hashable], order: Iterable[Hashable], asked: str, rows: int | None = None
) -> tuple[Dataset, Dataset]:
    """Train and validation: whole groups of rows move to the latter, in an order, until it has `rows` (None: all)."""
    if rows is not None and rows < 0:
        raise ValueError(f"{asked}, but a number of rows must be at least 0.")

    sizes, held_out, moved = Counter(groups), set(), 0
    for group in order:
        if rows is not None and moved >= rows:
            break
        held_out.add(group)
        moved += sizes[group]

    if moved == len(groups):
        found = f"there are {len(groups):,} rows in {len(sizes):,} groups that stay together"
        raise ValueError(f"{asked}, but {found}, which leaves none to train on; hold out less, or give more.")

    # Both sides keep the order of the data.
    kept = [index for index, group in enumerate(groups) if group not in held_out]
    return dataset.select(kept), dataset.select([i for i, group in enumerate(groups) if group in held_out])


def table_rows(rows: Any, made_with: str) -> Dataset:
    """Return a `Dataset`, or the rows of a Parquet file, or of a folder of such, in the order of their names.

    Args:
        rows: those that workers made, each with what it was made with in its column `made_with`.
        made_with: fingerprint that all have.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the folder holds no Parquet file, or rows were made with something else.
    """
    if not isinstance(rows, Dataset):
        path = Path(rows)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [existing_file(path)]
        if not files:
            raise ValueError(f"The folder {str(path)!r} holds no *.parquet; give the folder that the workers wrote.")
        rows = Dataset.from_parquet([str(file) for file in files])

    told = rows.select_columns(["made_with"]).unique("made_with") if "made_with" in rows.column_names else [None]
    if set(told) - {made_with}:
        unlike = "rows were made with another model or other settings, or have no column 'made_with'"
        raise ValueError(f"{unlike}; make them again, or call write_store of the object that made them.")
    return rows
