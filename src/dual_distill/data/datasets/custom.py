"""A custom dataset by the names of its columns: questions with free answers, or texts and images to classify.

The result is what the official readers give, a `DatasetDict` with undecoded images, and beside it a `Task` whose
`label_names` become `id2label` in the config and the card. Answers stay as they are written but for blanks at their
ends. Parquet, the Hub and data in memory come through `datasets`, and images inside them stay where they are.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets

from dual_distill.data.answers import build_answer_vocabulary
from dual_distill.data.reading import ImageFolder, ReadingReport, RecordReader, hold_out, undecoded
from dual_distill.data.records import (
    FilePath,
    InvalidRecordError,
    Records,
    UniqueIds,
    existing_file,
    read_csv,
    read_json_lines,
    record_text,
    record_value,
)
from dual_distill.data.tasks import Task, nearest_name

LAYOUT = (
    "a file .csv, .tsv, .jsonl or .parquet; a folder with train.csv, validation.csv, test.csv (or the other formats), "
    "or with images and a metadata.csv or metadata.jsonl, in it or in train/, validation/, test/; or the name of a "
    "data set on the Hub, owner/name"
)
"""What a custom dataset may be."""

_SPLIT_WORDS = {"train": "train", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"), "test": "test"}
_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_METADATA = ("metadata.csv", "metadata.jsonl")
_HAS_CLASSES = {"question_answering": False, "images_and_text_classification": True}  # labels of a fixed set
_TEXT_TYPES = (Value("string"), Value("large_string"))
_IMAGE, _LABEL = "the path of an image", "a word, a whole number, or true or false"


class CustomDataset(NamedTuple):
    """What `load_custom_dataset` made of a table.

    Attributes:
        data: train, validation and, where there is one, test.
        task: its columns, head and label names.
    """

    data: DatasetDict
    task: Task


def load_custom_dataset(
    data: FilePath | Mapping[str, FilePath] | DatasetDict,
    image_column: str | Sequence[str] = "image",
    text_column: str = "question",
    label_column: str = "answer",
    answers_column: str | None = None,
    id_column: str | None = None,
    head: str = "question_answering",
    label_names: Sequence[str] | None = None,
    min_answer_count: int = 1,
    validation_share: float = 0.1,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    skip_bad: bool = False,
    report: ReadingReport | None = None,
) -> CustomDataset:
    """Read a custom dataset, and make the task that it is.

    Args:
        data: a file .csv, .tsv, .jsonl or .parquet; a folder with train.csv, validation.csv, test.csv (or the other
            formats), or with images and metadata.csv or metadata.jsonl (whose `file_name` is the column image), in it
            or in train/, validation/, test/; the name of a data set on the Hub, owner/name; split -> file; or splits
            that are loaded already. val, valid and dev mean validation. A BOM and CRLF are fine.
        image_column: column of the images, or several in the order in which the model sees them. A value is a path,
            which starts at the folder of the file, or (Parquet, Hub) an image.
        text_column: column of the question or sentence.
        label_column: column of the answer or class: text, a whole number, true or false, or a `ClassLabel`.
        answers_column: column of lists, what several people answered. Then labels are soft scores, and the column
            `label_column` is written anew with the most common of them. Not in CSV.
        id_column: column of ids that must not repeat in a split; None: ids are not looked at.
        head: question_answering, or images_and_text_classification.
        label_names: the classes in the order of the logits. None: for classification the labels of train, in
            alphabetical order (whole numbers by size); for questions the answers of train, most frequent first.
        min_answer_count: fewest training rows with an answer that becomes a class; for questions without `label_names`.
        validation_share: share of train in (0, 1) that becomes validation where the data has none. All rows of one
            image (with several, of one first image) go together, where images are paths; which ones, `seed` draws.
        seed: of that draw.
        config: configuration of a data set on the Hub.
        revision: branch, tag or commit of a data set on the Hub.
        skip_bad: pass over bad records and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way. An answer that is no class is not
            bad: the row is taken and noted, and counts as wrong.

    Returns:
        The data, with the columns named here and no others, and its task. Each split has labels, test too.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        ValueError: a column does not exist, a record is bad (a missing image, an empty text, no label, a label that is
            no class, an id twice, a malformed line), a split is empty, or an argument is out of range.

    Example:
        >>> rows = Dataset.from_dict({"photo": [b"...", b"..."], "text": ["a cat?", "a dog?"], "label": [1, 0]})
        >>> custom = load_custom_dataset(DatasetDict(train=rows, validation=rows), "photo", "text", "label",
        ...                     head="images_and_text_classification")
        >>> custom.task.label_names, custom.data["train"]["label"][:]
        (('0', '1'), ['1', '0'])
    """
    images = (image_column,) if isinstance(image_column, str) else tuple(image_column)
    task = Task("custom", head, images, text_column, label_column, answers_column=answers_column)
    tables = _TableReader(task, id_column, skip_bad, report)
    _check_arguments(tables.columns, task, label_names, min_answer_count, validation_share)

    classes = list(label_names) if label_names is not None else None
    for split, table in _find_tables(data, config, revision).items():  # train comes first
        rows = tables.read(split, table, classes if _HAS_CLASSES[head] else None)
        if _HAS_CLASSES[head] and classes is None:
            kind = table.rows.features[label_column] if table.rows is not None else None
            classes = list(kind.names) if isinstance(kind, ClassLabel) else _in_order(rows.unique(label_column))
    splits = tables.reader.splits
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out_images(splits["train"], images, validation_share, seed)
    tables.reader.splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}

    if classes is None:
        classes = build_answer_vocabulary(splits["train"], label_column, min_answer_count)
    known = set(classes)
    for split, rows in splits.items():
        if unknown := sum(label not in known for label in rows[label_column]):
            remark = f"answer outside the {len(classes):,} classes ({split}; it counts as wrong)"
            tables.reader.report.notes[remark] += unknown
    return CustomDataset(tables.reader.finish(), replace(task, label_names=tuple(classes)))


def _check_arguments(
    columns: Sequence[str],
    task: Task,
    label_names: Sequence[str] | None,
    min_answer_count: int,
    validation_share: float,
) -> None:
    names = [*columns, str(task.label_column)] if task.answers_column else list(columns)
    if len(set(names)) < len(names):
        raise ValueError(f"The columns are {', '.join(names)}, but each is another one; name each once.")
    if not task.image_columns:
        raise ValueError("image_column names no column, but a row has one image or more.")
    if task.head not in _HAS_CLASSES:
        raise ValueError(f"head is {task.head!r}, but it is {' or '.join(map(repr, _HAS_CLASSES))}.")
    if task.answers_column and _HAS_CLASSES[task.head]:
        raise ValueError(f"answers_column is {task.answers_column!r}, but several answers go with question_answering.")
    if label_names is not None and (not label_names or len(set(label_names)) < len(label_names)):
        raise ValueError(f"label_names is {list(label_names)!r}, but expected are one or more names, each once.")
    if min_answer_count < 1:
        raise ValueError(f"min_answer_count is {min_answer_count}, but an answer that occurs has a count of 1 or more.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}, but it is above 0 and below 1.")


class _Table(NamedTuple):
    """One split before its columns were looked at: `rows` that `datasets` holds, or None and the file is `name`."""

    name: str
    folder: Path  # where relative image paths start
    rows: Dataset | None


def _find_tables(
    data: FilePath | Mapping[str, FilePath] | DatasetDict, config: str | None, revision: str | None
) -> dict[str, _Table]:
    """The table of each split, train first."""
    if isinstance(data, DatasetDict):
        return _by_split({word: _Table(f"split {word!r}", Path.cwd(), rows) for word, rows in data.items()}, "the data")
    if isinstance(data, Mapping):
        return _by_split({word: _file_table([existing_file(file)]) for word, file in data.items()}, "the mapping")
    path, name = Path(data), os.fspath(data)
    if path.is_dir():
        return _by_split(_folder_tables(path), name)
    if path.is_file() or path.suffix in _FORMATS or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return {"train": _file_table([existing_file(data)])}

    try:
        loaded = datasets.load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # no such name, no network, no such configuration
        raise FileNotFoundError(
            f"There is no file or folder {name!r}, and it cannot be loaded as a data set of the Hub ({error})."
        ) from error
    named = {word: _Table(f"{name}, split {word!r}", Path.cwd(), rows) for word, rows in loaded.items()}
    return _by_split(named, name)


def _folder_tables(folder: Path) -> dict[str, _Table]:
    found: dict[str, _Table] = {}
    for word in _SPLIT_WORDS:
        files = [folder / f"{word}{suffix}" for suffix in _FORMATS]
        files = [file for file in (*files, *(folder / word / name for name in _METADATA)) if file.is_file()]
        shards = sorted(folder.glob(f"{word}-*.parquet"))
        if len(files) + bool(shards) > 1:
            names = ", ".join(file.name for file in [*files, *shards])
            raise ValueError(f"The folder {str(folder)!r} holds several tables for {word!r} ({names}); leave one.")
        if files or shards:
            found[word] = _file_table(files or shards)

    files = [folder / name for name in _METADATA if (folder / name).is_file()]
    if not found and len(files) != 1:
        raise ValueError(f"The folder {str(folder)!r} holds no table; expected is {LAYOUT}.")
    return found or {"train": _file_table(files)}


def _by_split(tables: Mapping[str, _Table], name: str) -> dict[str, _Table]:
    """Tables under the names train, validation and test, in this order."""
    result: dict[str, _Table] = {}
    for word, table in tables.items():
        split = _SPLIT_WORDS.get(word)
        if split is None or split in result:
            problem = f"the split {word!r}" if split is None else f"two splits for {split!r}"
            expected = "train, validation (val, valid, dev) and test"
            raise ValueError(f"There are {problem} in {name}; expected are {expected}.")
        result[split] = table
    if "train" not in result:
        raise ValueError(f"There is no split 'train' in {name}, only {', '.join(tables)}; name one train.")
    return {split: result[split] for split in ("train", "validation", "test") if split in result}


def _file_table(files: list[Path]) -> _Table:
    file = files[0]
    if file.suffix not in _FORMATS:
        raise ValueError(f"{str(file)!r} is none of the known formats ({', '.join(_FORMATS)}); save it as one of them.")
    is_parquet = file.suffix == ".parquet"
    return _Table(str(file), file.parent, Dataset.from_parquet([str(f) for f in files]) if is_parquet else None)


class _TableReader:
    """Reads tables by the names of their columns, which are those of the task."""

    def __init__(self, task: Task, id_column: str | None, skip_bad: bool, report: ReadingReport | None) -> None:
        self.task, self.id_column = task, id_column
        label = task.answers_column or str(task.label_column)
        self.columns = [*task.image_columns, task.text_column, label, *([id_column] if id_column else [])]
        features = dict.fromkeys((task.text_column, str(task.label_column)), Value("string"))
        features |= {task.answers_column: List(Value("string"))} if task.answers_column else {}
        features |= {id_column: Value("string")} if id_column else {}
        images = dict.fromkeys(task.image_columns, Image(decode=False))
        self.reader = RecordReader("custom dataset", Features(images | features), skip_bad, report)

    def read(self, split: str, table: _Table, classes: list[str] | None) -> Dataset:
        """Add a split, with the columns of the task and no others; labels outside `classes` are bad."""
        ids, folder = UniqueIds(self.id_column or "id"), ImageFolder(table.folder)
        make_row = partial(self._row, folder=folder, ids=ids, classes=classes)
        if table.rows is None:
            self.reader.read(split, self._file_records(Path(table.name)), partial(make_row, self.task.image_columns))
        else:
            self.reader.splits[split] = self._read_rows(split, table.name, table.rows.with_format(None), make_row)
        return self.reader.splits[split]

    def _file_records(self, file: Path) -> Records:
        """The lines of a file; in an image folder's, `file_name` is the column image, `left_file_name` the column left."""
        is_csv = file.suffix in (".csv", ".tsv")
        for place, record in read_csv(file) if is_csv else read_json_lines(file):
            if isinstance(record, dict):
                if file.name in _METADATA:
                    record = {
                        "image" if column == "file_name" else column.removesuffix("_file_name"): value
                        for column, value in record.items()
                    }
                for column in self.columns if is_csv else ():  # the header lacks it, so every line does
                    if column not in record:
                        raise ValueError(f"{file}: there is no column {column!r}{nearest_name(column, list(record))}")
            yield place, record

    def _read_rows(self, split: str, name: str, rows: Dataset, make_row: Callable[..., Any]) -> Dataset:
        """Rows of a data set: images inside it stay where they are, its other columns are written anew."""
        for column in self.columns:
            if column not in rows.column_names:
                raise ValueError(f"{name} has no column {column!r}{nearest_name(column, rows.column_names)}")
        if not rows.num_rows:
            return self.reader.table(split, [])  # which says that it is empty
        paths = [column for column in self.task.image_columns if rows.features[column] in _TEXT_TYPES]
        images = rows.select_columns([column for column in self.task.image_columns if column not in paths])
        for column in images.column_names:
            images = undecoded(images, column, name)

        missing = {row for column in images.column_names for row in _rows_without_image(images, column)}
        problem = "the image is missing: there are neither bytes nor a file at its path"
        labels = rows.features[self.columns[len(self.task.image_columns) + 1]]
        good: dict[int, dict[str, Any]] = {}
        for number, record in enumerate(rows.select_columns([c for c in self.columns if c not in images.column_names])):
            found = InvalidRecordError("missing image", problem) if number in missing else record
            row = self.reader.row(f"{name}, row {number}", found, partial(make_row, paths, labels=labels))
            if row is not None:
                good[number] = row
        if not images.column_names or not good:
            return self.reader.table(split, good.values())

        features = Features({k: v for k, v in self.reader.features.items() if k not in images.column_names})
        blank: dict[str, Any] = dict.fromkeys(features)
        written = self.reader.table(split, (good.get(i, blank) for i in range(rows.num_rows)), features)
        joined = concatenate_datasets([images, written], axis=1, split=split).select_columns(list(self.reader.features))
        return joined if len(good) == joined.num_rows else joined.select(sorted(good))

    def _row(
        self,
        paths: Sequence[str],
        record: Mapping[str, Any],
        folder: ImageFolder,
        ids: UniqueIds,
        classes: list[str] | None,
        labels: Any = None,
    ) -> dict[str, Any]:
        """One row of a record, without the images that are no paths."""
        task, label_column = self.task, str(self.task.label_column)
        row: dict[str, Any] = {column: folder.find(record_text(record, column, _IMAGE).strip()) for column in paths}
        row[task.text_column] = record_text(record, task.text_column)

        if task.answers_column is not None:
            answers = record_value(record, task.answers_column, list) or [None]
            answers = [record_text({task.answers_column: one}, task.answers_column, _LABEL).strip() for one in answers]
            row |= {task.answers_column: answers, label_column: Counter(answers).most_common(1)[0][0]}
        else:
            if label_column in record:
                record = {**record, label_column: _label_text(record[label_column], labels)}
            label = row[label_column] = record_text(record, label_column, _LABEL).strip()
            if classes is not None and label not in classes:
                message = f"{label_column} is {label!r}{nearest_name(label, classes)}".removesuffix(".")
                raise InvalidRecordError("unknown label", message)
        if self.id_column is not None:
            row[self.id_column] = str(ids.add(record.get(self.id_column)))
        return row


def _label_text(value: Any, feature: Any) -> Any:
    """A label as text where it is a whole number, true or false, or the index of a class; else as it is."""
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


def _rows_without_image(images: Dataset, column: str) -> list[int]:
    """Numbers of the rows with neither bytes nor a file; no bytes are read for it."""
    missing, number = [], 0
    for batch in images.select_columns([column]).with_format("arrow").iter(1_000):
        no_bytes = pc.is_null(pc.struct_field(batch[column], "bytes")).to_pylist()
        for is_empty, path in zip(no_bytes, pc.struct_field(batch[column], "path").to_pylist(), strict=True):
            if is_empty and (path is None or not Path(path).is_file()):
                missing.append(number)
            number += 1
    return missing


def _in_order(labels: Sequence[str]) -> list[str]:
    return sorted(labels, key=int if all(label.removeprefix("-").isdecimal() for label in labels) else None)


def _hold_out_images(rows: Dataset, images: Sequence[str], share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation; rows of one image go together where images are paths."""
    groups: list[Any] = list(range(rows.num_rows))
    if all(rows[0][column]["bytes"] is None for column in images):
        groups = [image["path"] for image in rows[images[0]]]
    order = sorted(set(groups))
    random.Random(seed).shuffle(order)

    train, validation = hold_out(rows, groups, order, max(1, round(share * rows.num_rows)))
    if not train.num_rows:
        raise ValueError(
            f"The data has no validation split, and its {rows.num_rows:,} rows about {len(order):,} images cannot be "
            f"parted by validation_share {share}; give a validation split, or more images."
        )
    return train, validation
