"""A custom dataset by the names of its columns: questions with free answers, or texts and images to classify.

The result is what the official readers give, a `DatasetDict` with undecoded images, and beside it a `Task` whose
`label_names` become `id2label` in the config and the card. Answers stay as they are written but for blanks at their
ends.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets

from dual_distill.data.answers import build_answer_vocabulary
from dual_distill.data.reading import ReadingReport, make_rows, rows_to_dataset
from dual_distill.data.records import FilePath, InvalidRecordError, Records
from dual_distill.data.tasks import Task, nearest_name

from .custom_rows import ROW_NUMBER, CustomColumns, RecordBuilder
from .custom_tables import CustomTable, find_tables


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
            which starts at the folder of the file, or (Parquet, Hub) a picture.
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
        skip_bad: pass over bad entries and list them, instead of an error at the first.
        report: takes what was read and skipped; it is printed on stderr either way. An answer that is no class is not
            bad: the row is taken and noted, and counts as wrong.

    Returns:
        The data, with the columns named here and no others, and its task. Each split has labels, test too.

    Raises:
        FileNotFoundError: there is no such file, folder or data set.
        ValueError: a column does not exist, an entry is bad (a missing image, an empty text, no label, a label that is
            no class, an id twice, a malformed line), a split is empty, or an argument is out of range.

    Example:
        >>> rows = Dataset.from_dict({"picture": [b"...", b"..."], "text": ["a cat?", "a dog?"], "label": [1, 0]})
        >>> own = load_custom_dataset(DatasetDict(train=rows, validation=rows), "picture", "text", "label",
        ...                     head="images_and_text_classification")
        >>> own.task.label_names, own.data["train"]["label"][:]
        (('0', '1'), ['1', '0'])
    """
    columns = CustomColumns(
        (image_column,) if isinstance(image_column, str) else tuple(image_column),
        text_column,
        label_column,
        answers_column,
        id_column,
    )
    _check_arguments(columns, head, label_names, min_answer_count, validation_share)
    report = ReadingReport() if report is None else report
    report.source = "custom dataset"
    tables = find_tables(data, config, revision)
    is_class = head == "images_and_text_classification"
    classes = list(label_names) if label_names is not None else None
    splits: dict[str, Dataset] = {}
    for split, table in tables.items():
        splits[split] = _read_split(table, split, columns, classes if is_class else None, report, skip_bad)
        if is_class and classes is None:  # train comes first
            feature = table.dataset.features[label_column] if table.dataset is not None else None
            if isinstance(feature, ClassLabel):
                classes = list(feature.names)
            else:
                classes = _in_order(splits["train"].unique(label_column))
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(splits["train"], columns.images, validation_share, seed)
        report.rows |= {"train": splits["train"].num_rows, "validation": splits["validation"].num_rows}
    if classes is None:
        classes = build_answer_vocabulary(splits["train"], label_column, min_answer_count)
    known = set(classes)
    for split, rows in splits.items():
        if unknown := sum(label not in known for label in rows[label_column]):
            report.notes[f"answer outside the {len(classes):,} classes ({split}; it counts as wrong)"] += unknown
    report.show()
    task = Task(
        "custom", head, columns.images, text_column, label_column, tuple(classes), answers_column=answers_column
    )
    order = [split for split in ("train", "validation", "test") if split in splits]
    return CustomDataset(DatasetDict({split: splits[split] for split in order}), task)


def _check_arguments(
    columns: CustomColumns, head: str, label_names: Sequence[str] | None, min_answer_count: int, validation_share: float
) -> None:
    names = columns.read() + ([columns.label] if columns.answers else [])
    if len(set(names)) < len(names):
        raise ValueError(f"The columns are {', '.join(names)}, but each is another one; name each once.")
    if not columns.images:
        raise ValueError("image_column names no column, but a row has one image or more.")
    if head not in ("question_answering", "images_and_text_classification"):
        raise ValueError(f"head is {head!r}, but it is 'question_answering' or 'images_and_text_classification'.")
    if columns.answers is not None and head != "question_answering":
        raise ValueError(
            f"answers_column is {columns.answers!r}, but several answers go with head='question_answering'."
        )
    if label_names is not None and (not label_names or len(set(label_names)) < len(label_names)):
        raise ValueError(f"label_names is {list(label_names)!r}, but expected are one or more names, each once.")
    if min_answer_count < 1:
        raise ValueError(f"min_answer_count is {min_answer_count}, but an answer that occurs has a count of 1 or more.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}, but it is above 0 and below 1.")


def _read_split(
    table: CustomTable,
    split: str,
    columns: CustomColumns,
    classes: list[str] | None,
    report: ReadingReport,
    skip_bad: bool,
) -> Dataset:
    features = Features({column: Image(decode=False) for column in columns.images})
    features |= {columns.text: Value("string"), columns.label: Value("string")}
    if columns.answers is not None:
        features[columns.answers] = List(Value("string"))
    if columns.id is not None:
        features[columns.id] = Value("string")
    if table.dataset is None:
        make_row = RecordBuilder(table, columns, columns.images, None, classes)
        return rows_to_dataset(make_rows(table.entries(), make_row, report, skip_bad), features, split, report)
    return _read_dataset(table.name, table.dataset, table, split, columns, features, classes, report, skip_bad)


def _read_dataset(
    name: str,
    dataset: Dataset,
    table: CustomTable,
    split: str,
    columns: CustomColumns,
    features: Features,
    classes: list[str] | None,
    report: ReadingReport,
    skip_bad: bool,
) -> Dataset:
    """Rows of a data set: its pictures stay where they are, its other columns are written anew."""
    for column in columns.read():
        if column not in dataset.column_names:
            raise ValueError(f"{name} has no column {column!r}{nearest_name(column, dataset.column_names)}")
    dataset = dataset.with_format(None)
    if not dataset.num_rows:
        return rows_to_dataset([], features, split, report)  # which says that it is empty
    paths = tuple(column for column in columns.images if dataset.features[column] in _TEXT_TYPES)
    pictures = dataset.select_columns([column for column in columns.images if column not in paths])
    for column in pictures.column_names:
        if not isinstance(pictures.features[column], Image) and pictures.features[column] not in _BINARY_TYPES:
            raise ValueError(
                f"The column {column!r} of {name} holds {pictures.features[column]}, but images are paths or pictures; "
                "name another column."
            )
        pictures = pictures.cast_column(column, Image(decode=False))
    missing = {row for column in pictures.column_names for row in _rows_without_picture(pictures, column)}
    light = dataset.select_columns([column for column in columns.read() if column not in pictures.column_names])

    def entries() -> Records:
        for number, row in enumerate(light):
            place = f"{name}, row {number}"
            bad = InvalidRecordError(
                "missing image", "the image is missing: there are neither bytes nor a file at its path"
            )
            yield place, bad if number in missing else row | {ROW_NUMBER: number}

    make_row = RecordBuilder(table, columns, paths, dataset.features, classes)
    good = {row.pop(ROW_NUMBER): row for row in make_rows(entries(), make_row, report, skip_bad)}
    if len(paths) == len(columns.images) or not good:
        return rows_to_dataset(good.values(), features, split, report)
    blank: dict[str, Any] = dict.fromkeys(name for name in features if name not in pictures.column_names)
    written = rows_to_dataset(
        (good.get(number, blank) for number in range(dataset.num_rows)),
        Features({name: features[name] for name in blank}),
        split,
        report,
    )
    joined = concatenate_datasets([pictures, written], axis=1, split=split).select_columns(list(features))
    report.rows[split] = len(good)
    return joined if len(good) == joined.num_rows else joined.select(sorted(good))


def _rows_without_picture(pictures: Dataset, column: str) -> list[int]:
    missing = []
    number = 0
    for batch in pictures.select_columns([column]).with_format("arrow").iter(1_000):
        values = batch[column]
        no_bytes, paths = pc.is_null(pc.struct_field(values, "bytes")), pc.struct_field(values, "path")
        for is_empty, path in zip(no_bytes.to_pylist(), paths.to_pylist(), strict=True):
            if is_empty and (path is None or not Path(path).is_file()):
                missing.append(number)
            number += 1
    return missing


def _in_order(labels: Sequence[str]) -> list[str]:
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _hold_out(rows: Dataset, images: tuple[str, ...], share: float, seed: int) -> tuple[Dataset, Dataset]:
    keys: list[Any] = list(range(rows.num_rows))
    if all(rows[0][column]["bytes"] is None for column in images):
        keys = [value["path"] for value in rows[images[0]]]
    sizes = Counter(keys)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    wanted, held_out = max(1, round(share * rows.num_rows)), set()
    for key in order:
        if wanted <= 0:
            break
        held_out.add(key)
        wanted -= sizes[key]
    if len(held_out) == len(order):
        raise ValueError(
            f"The data has no validation split, and its {rows.num_rows:,} rows about {len(order):,} images cannot be "
            f"parted "
            f"by validation_share {share}; give a validation split, or more images."
        )
    chosen = [number for number, key in enumerate(keys) if key in held_out]
    others = [number for number, key in enumerate(keys) if key not in held_out]
    return rows.select(others), rows.select(chosen)


_TEXT_TYPES = (Value("string"), Value("large_string"))
_BINARY_TYPES = (
    Value("binary"),
    Value("large_binary"),
    {"bytes": Value("binary"), "path": Value("string")},
    {"bytes": Value("binary"), "path": Value("null")},  # as pandas and pyarrow write it where no path is given
)
