"""A custom dataset by the names of its columns: questions with free answers, or texts and images to classify.

The result is what the official readers give, a `DatasetDict` with undecoded images, and beside it a `Task` whose
`label_names` become `id2label` in the config and the card. Answers that differ in case or blanks alone are one class.
Parquet, the Hub and data in memory come through `datasets`, and images inside them stay where they are.
"""

import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import datasets
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value, concatenate_datasets

from dual_distill.data.answers import build_answer_vocabulary
from dual_distill.data.fingerprint import fingerprint
from dual_distill.data.reading import ImageFolder, Reading, RecordReader, hold_out, undecoded
from dual_distill.data.records import FilePath, InvalidRecordError, Record, UniqueIds, existing_file, read_lines
from dual_distill.data.tasks import TASKS, Task, check_options, nearest_name

_SPLIT_WORDS = {"train": "train", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"), "test": "test"}
_SPLITS = tuple(dict.fromkeys(_SPLIT_WORDS.values()))
_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_METADATA = ("metadata.csv", "metadata.jsonl")
_FIXED_LABELS = {task.head: task.fixed_labels for task in TASKS.values() if task.label_column}
_TEXT_TYPES = (Value("string"), Value("large_string"))
_GROUP_COLUMNS = ("directory", "identifier")
_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")  # 1.0 is 1
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
    data: FilePath | Mapping[str, FilePath] | Dataset | DatasetDict,
    image_column: str | Sequence[str] = "image",
    text_column: str = "question",
    label_column: str = "answer",
    answers_column: str | None = None,
    id_column: str | None = None,
    head: str = "question_answering",
    label_names: Sequence[str] | None = None,
    min_answer_count: int = 1,
    merge_spellings: bool = True,
    validation_share: float = 0.1,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    **reading: Unpack[Reading],
) -> CustomDataset:
    """Read a custom dataset, and make the task that it is.

    Args:
        data: a file .csv, .tsv, .jsonl, .json (lines, or one array) or .parquet; a folder with train.csv,
            validation.csv, test.csv (or the other formats), or with images and metadata.csv or metadata.jsonl (whose
            `file_name` is the column image), in it or in train/, validation/, test/; the name of a data set on the Hub,
            owner/name; split -> file; or rows or splits that are loaded already. val, valid and dev mean validation. A
            BOM and CRLF are fine.
        image_column: column of the images, or several in the order in which the model sees them. A value is a path,
            which starts at the folder of the file, or (Parquet, Hub) an image.
        text_column: column of the question or sentence.
        label_column: column of the answer or class: text, a whole number, true or false, or a `ClassLabel`.
        answers_column: column of lists, what several people answered. Then labels are soft scores, and the column
            `label_column` is written anew with the most common of them. Not in CSV.
        id_column: column of ids that must not repeat in a split, kept as they are; None: ids are not looked at.
        head: question_answering, or images_and_text_classification.
        label_names: the classes in the order of the logits. None: for classification the labels of train, in
            alphabetical order (whole numbers by size); for questions the answers of train, most frequent first.
        min_answer_count: fewest training rows with an answer that becomes a class; for questions without `label_names`.
        merge_spellings: an answer that differs from another by case or blanks alone is no class of its own, and neither
            is 1.0 beside 1; a class is spelled as in `label_names`, or as it is first. The report counts them. Classes
            of a classifier keep their case.
        validation_share: share of train in (0, 1) that becomes validation where the data has none, at most so many
            rows. All rows of one image (with several, of one first image) go together, by its path or its bytes; where
            there is a column `directory`, or `identifier` with repeated values, all rows of one of its values do.
            Which ones, `seed` draws.
        seed: of that draw.
        config: configuration of a data set on the Hub.
        revision: branch, tag or commit of a data set on the Hub.
        **reading: `skip_bad` and `report`, see `Reading`. An answer that is no class is not bad: the
            row is taken and noted, and counts as wrong.

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
    check_options("custom", load_custom_dataset, reading)
    images = (image_column,) if isinstance(image_column, str) else tuple(image_column)
    if head not in _FIXED_LABELS:
        raise ValueError(f"head is {head!r}, but it is {' or '.join(map(repr, _FIXED_LABELS))}.")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}, but it is above 0 and below 1.")
    names = None if label_names is None else [*label_names]
    is_text = isinstance(label_names, str) or not all(isinstance(name, str) for name in names or ())
    if names is not None and (is_text or not names or len(set(names)) < len(names)):
        raise ValueError(f"label_names is {label_names!r}, but expected is a list of one or more names, each once.")
    fixed, classes = _FIXED_LABELS[head], [unicodedata.normalize("NFC", name) for name in label_names or ()]
    task = Task("custom", head, images, text_column, label_column, answers_column=answers_column, fixed_labels=fixed)

    reader = _TableReader(task, id_column, merge_spellings, **reading)
    for split, (name, table) in _find_tables(data, config, revision).items():  # train comes first
        rows, kind = reader.read_table(split, name, table, classes)
        if fixed and not classes:
            labels = rows.unique(label_column)
            are_numbers = all(label.removeprefix("-").isdecimal() for label in labels)
            in_order = sorted(labels, key=int if are_numbers else None)
            names = list(kind.names) if isinstance(kind, ClassLabel) else in_order
            classes = [unicodedata.normalize("NFC", name) for name in names]

    splits = reader.splits
    if "validation" not in splits:
        groups = reader.groups_of_train()
        splits["train"], splits["validation"] = _hold_out_groups(splits["train"], groups, validation_share, seed)
    reader.splits = {split: splits[split] for split in _SPLITS if split in splits}

    classes = classes or build_answer_vocabulary(splits["train"], label_column, min_answer_count)
    if reader.respelled:
        merged = f"{len(set(reader.respelled)):,} spellings; merge_spellings=False keeps them apart"
        reader.report.notes[f"answer in another spelling than its class ({merged})"] = len(reader.respelled)
    known = set(classes)
    for split, rows in reader.splits.items():
        if unknown := sum(label not in known for label in rows[label_column]):
            remark = f"answer outside the {len(classes):,} classes ({split}; it counts as wrong)"
            reader.report.notes[remark] += unknown
    return CustomDataset(reader.finish(), replace(task, label_names=tuple(classes)))


def _find_tables(data: Any, config: str | None, revision: str | None) -> dict[str, tuple[str, Any]]:
    """What sentences call each split, and its rows or files: train, validation and test, in this order."""
    name = "the data"
    if isinstance(data, Dataset):
        data = {"train": data}
    elif not isinstance(data, Mapping | str | os.PathLike):
        raise ValueError(f"The data are a {type(data).__name__}; give a file, a folder, owner/name, or loaded splits.")
    if not isinstance(data, Mapping):
        path, name = Path(data), os.fspath(data)
        if path.is_dir():
            data = _folder_files(path)
        elif path.is_file() or path.suffix in _FORMATS or name.count("/") != 1 or name.startswith((".", "/", "~")):
            data = {"train": name}
        else:
            try:
                data = datasets.load_dataset(name, config, revision=revision)
            except (OSError, ValueError, RuntimeError) as error:  # no such name, no network, no such configuration
                message = f"There is no file or folder {name!r}, and it cannot be loaded as a data set of the Hub"
                raise FileNotFoundError(f"{message} ({error}).") from error

    tables: dict[str, tuple[str, Any]] = {}
    for word, table in data.items():
        split = _SPLIT_WORDS.get(word)
        if split is None or split in tables:
            problem = f"the split {word!r}" if split is None else f"two splits for {split!r}"
            raise ValueError(f"There are {problem} in {name}; expected are train, validation (val, valid, dev), test.")
        tables[split] = f"split {word!r} of {name}", table
    if "train" not in tables:
        raise ValueError(f"There is no split 'train' in {name}, only {', '.join(data)}; name one train.")
    return {split: tables[split] for split in _SPLITS if split in tables}


def _folder_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder."""
    found: dict[str, list[Path]] = {}
    for word in _SPLIT_WORDS:
        files = [folder / f"{word}{suffix}" for suffix in _FORMATS] + [folder / word / name for name in _METADATA]
        files = [file for file in files if file.is_file()]
        shards = sorted(folder.glob(f"{word}-*.parquet"))
        if len(files) + bool(shards) > 1:
            names = ", ".join(file.name for file in [*files, *shards])
            raise ValueError(f"The folder {str(folder)!r} holds several tables for {word!r} ({names}); leave one.")
        if files or shards:
            found[word] = files or shards

    files = [folder / name for name in _METADATA if (folder / name).is_file()]
    if not found and len(files) != 1:
        lacks = f"holds no table called train ({', '.join(_FORMATS)}), and no metadata.csv or metadata.jsonl"
        raise ValueError(f"The folder {str(folder)!r} {lacks}; name it so, or give the file itself.")
    return found or {"train": files}


class _TableReader(RecordReader):
    """Reads tables by the names of their columns, which are those of the task."""

    def __init__(self, task: Task, id_column: str | None, merge_spellings: bool, **reading: Unpack[Reading]) -> None:
        images, text, label, answers = task.image_columns, task.text_column, str(task.label_column), task.answers_column
        self.task, self.label, self.id_column, self.merges = task, label, id_column, merge_spellings
        self.respelled: list[str] = []
        self._spellings: dict[str, str] = {}
        self._groups: dict[str, list[list[Any]]] = {}
        self._id_types: dict[str, set[type]] = {}

        self.columns = [*images, text, answers or label, *([id_column] if id_column else [])]
        names = [*self.columns, label] if answers else self.columns
        if not images or len(set(names)) < len(names):
            found = f"The columns are {', '.join(names)}, {len(images)} of them of images"
            raise ValueError(f"{found}; give one image column or more, and each column another name.")
        if answers and task.fixed_labels:
            raise ValueError(f"answers_column is {answers!r}, but several answers go with a head for questions.")

        features = dict.fromkeys(images, Image(decode=False)) | dict.fromkeys([text, label], Value("string"))
        features |= {answers: List(Value("string"))} if answers else {}
        features |= {id_column: Value("string")} if id_column else {}
        super().__init__("custom dataset", Features(features), **reading)

    def read_table(self, split: str, name: str, table: Any, classes: list[str]) -> tuple[Dataset, Any]:
        """Add a split, and return it with the type of its labels, as far as there is one.

        Labels are spelled as in `classes`; those of a classifier that are none of them are bad, if there are any.
        """
        folder, images, kind, records, folders = Path.cwd(), None, None, None, {Path()}
        if isinstance(table, list) and all(isinstance(one, tuple) for one in table):  # a task's reader read them
            records, table = iter(table), None
        elif not isinstance(table, Dataset):
            listed = table if isinstance(table, list) else [table]
            if not all(isinstance(file, str | os.PathLike) for file in listed):
                raise ValueError(f"The {name} is a {type(table).__name__}; give a file, or a datasets.Dataset.")
            files = [existing_file(file) for file in listed]
            name, folder, suffix = str(files[0]), files[0].parent, files[0].suffix
            if suffix not in _FORMATS:
                raise ValueError(f"{name!r} is none of the known formats ({', '.join(_FORMATS)}); save it as one.")
            folders = {file.parent for file in files}
            of_files = f"The split {split!r} is {len(files)} files ({', '.join(str(file) for file in files)})"
            if len(files) > 1 and any(file.suffix != ".parquet" for file in files):
                raise ValueError(f"{of_files}, but only Parquet may be several; join them into one.")
            name += f" and {len(files) - 1} more" if len(files) > 1 else ""
            table = Dataset.from_parquet([str(file) for file in files]) if suffix == ".parquet" else None

        # Images inside a data set stay where they are; everything else is a record, whatever it is read from.
        if table is not None:
            self._check_columns(name, table.column_names)
            kind = table.features.get(self.label)
            inside = [column for column in self.task.image_columns if table.features[column] not in _TEXT_TYPES]
            if len(folders) > 1 and len(inside) < len(self.task.image_columns):
                way_out = "paths of images start at the folder of their table; join them into one, or give one folder's"
                raise ValueError(f"{of_files} of {len(folders)} folders, but {way_out}.")
            images = table.select_columns(inside) if inside else None
            for column in inside:
                images = undecoded(images, column, name)
            records = _dataset_records(name, table, images, {*self.columns, *_GROUP_COLUMNS})

        names = classes or (kind.names if isinstance(kind, ClassLabel) else [])
        known = [unicodedata.normalize("NFC", name) for name in names]
        # All as they are first: two of them may differ in case alone.
        for spelling, label in [*((label, label) for label in known), *((self._key(label), label) for label in known)]:
            self._spellings.setdefault(spelling, label)
        make_row = self._row_maker(split, folder, [] if images is None else images.column_names, kind, classes)
        records = self._file_records(Path(name)) if records is None else records
        if images is None:
            self.read(split, records, make_row)
        else:
            self.splits[split] = self._beside(split, images, records, make_row)
        return self.splits[split], kind

    def table(self, split: str, rows: Iterable[dict[str, Any]], features: Features | None = None) -> Dataset:
        """A data set in memory of rows, in which ids that are all whole numbers are numbers again."""
        made = super().table(split, rows, features)
        if self.id_column is None or self._id_types[split] != {int}:
            return made
        numbered = Features({**made.features, self.id_column: Value("int64")})
        return Dataset(made.data.table.cast(numbered.arrow_schema), info=DatasetInfo(features=numbered), split=split)

    def groups_of_train(self) -> list[Any]:
        """What the rows of train are of that must not stand on both sides of the line, one a row."""
        # An image inside the table is known by its bytes: each of its rows holds them.
        images = self.splits["train"].select_columns([self.task.image_columns[0]])
        found = (row[self.task.image_columns[0]] for row in images)
        of_image = (one["path"] if one["bytes"] is None else fingerprint(one["bytes"]) for one in found)
        for values in zip(*self._groups["train"], strict=True):
            # Six images of one example of NLVR share these; a column that numbers the rows says nothing.
            named = [value for value in values if value is not None]
            if len(set(named)) < len(named) and len(set(values)) > 1:
                pairs = zip(values, of_image, strict=True) if None in values else ((value, None) for value in values)
                return [image if value is None else value for value, image in pairs]
        return list(of_image)

    def _check_columns(self, name: str, found: Iterable[str]) -> None:
        """Refuse a table without a column, which is no matter of skipping."""
        for column in self.columns:
            if column not in found:
                raise ValueError(f"{name}: there is no column {column!r}{nearest_name(column, list(found))}")

    def _file_records(self, file: Path) -> Iterator[tuple[str, Any]]:
        """The lines of a file; in an image folder's, `file_name` is the column image, `a_file_name` the column a."""
        for place, record in read_lines(file):
            if file.name in _METADATA and isinstance(record, Record):
                names = {"file_name": "image"}
                renamed = [names.get(column, column.removesuffix("_file_name")) for column in record]
                if twice := [column for column in self.columns if renamed.count(column) > 1]:
                    found = f"two columns for {twice[0]!r}, one of them as the name of a file ({', '.join(record)})"
                    raise ValueError(f"{file}: there are {found}; rename the other.")
                record = Record(zip(renamed, record.values(), strict=True))
            if file.suffix in (".csv", ".tsv") and isinstance(record, Record):
                self._check_columns(str(file), record)
            yield place, record

    def _row_maker(
        self, split: str, folder: Path, inside: Sequence[str], kind: Any, classes: list[str]
    ) -> Callable[[Record], dict[str, Any]]:
        """What makes a row of a record, but for images that are inside the table."""
        task, images, ids = self.task, ImageFolder(folder), UniqueIds(self.id_column or "id")
        paths = [column for column in task.image_columns if column not in inside]
        groups: list[list[Any]] = []
        id_types: set[type] = set()
        self._groups[split], self._id_types[split] = groups, id_types

        def make_row(record: Record) -> dict[str, Any]:
            row: dict[str, Any] = {column: images.find(record.text(column, _IMAGE).strip()) for column in paths}
            row[task.text_column] = record.text(task.text_column)

            if task.answers_column is not None:
                answers = [Record(answer=_as_text(one)) for one in record.value(task.answers_column, list) or [None]]
                row[task.answers_column] = [self._spelled(answer.text("answer", _LABEL)) for answer in answers]
                row[self.label] = Counter(row[task.answers_column]).most_common(1)[0][0]
            else:
                row[self.label] = self._label(record, kind, classes)
            if self.id_column is not None:
                value = ids.add(record.get(self.id_column))
                id_types.add(int if type(value) is int and -(2**63) <= value < 2**63 else str)
                row[self.id_column] = str(value)
            named = [record.get(column) for column in _GROUP_COLUMNS]
            groups.append([one if isinstance(one, str | int | float | None) else repr(one) for one in named])
            return row

        return make_row

    def _label(self, record: Record, kind: Any, classes: list[str]) -> str:
        """The label of a record as text: a word, a whole number, true or false, or the name of a `ClassLabel`."""
        value = record.get(self.label)
        if isinstance(kind, ClassLabel) and isinstance(value, int):
            record = Record({self.label: kind.int2str(value) if value >= 0 else None})
        elif value is not None:
            record = Record({self.label: _as_text(value)})

        label = self._spelled(record.text(self.label, _LABEL))
        if self.task.fixed_labels and classes and label not in classes:
            message = f"{self.label} is {label!r}{nearest_name(label, classes)}".removesuffix(".")
            raise InvalidRecordError("unknown label", message)
        return label

    def _spelled(self, label: str) -> str:
        """A label as its class is spelled; classes that are known keep theirs, others that of their first row."""
        label = label.strip()
        if not self.merges:
            return label

        plain = _WHOLE.sub(r"\1", " ".join(label.split()))
        spelled = self._spellings.get(label) or self._spellings.setdefault(self._key(plain), plain)
        if spelled not in (label, plain):
            self.respelled.append(label)
        return spelled

    def _key(self, label: str) -> str:
        """What all spellings of a label share; the classes of a classifier keep their case."""
        label = _WHOLE.sub(r"\1", label)
        return label if self.task.fixed_labels else unicodedata.normalize("NFC", label.casefold())

    def _beside(
        self, split: str, images: Dataset, records: Iterator[Any], make_row: Callable[[Record], Any]
    ) -> Dataset:
        """The rows of records beside their images."""
        features = Features({name: kind for name, kind in self.features.items() if name not in images.column_names})
        good: list[int] = []

        def rows() -> Iterator[dict[str, Any]]:
            for index, (place, record) in enumerate(records):
                row = self.row(place, record, make_row)
                if row is not None:
                    good.append(index)
                # Written blank where it is bad, so that the images beside it need not be copied.
                yield row or dict.fromkeys(features)

        written = self.table(split, rows(), features)
        if not good:
            return self.table(split, [])  # which says that nothing is left
        joined = concatenate_datasets([images, written], axis=1, split=split).select_columns(list(self.features))
        return joined if len(good) == joined.num_rows else joined.select(good)


def _as_text(value: Any) -> Any:
    """A whole number, or true or false, as text; anything else as it is."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return str(value).removesuffix(".0").lower() if is_whole else value


def _dataset_records(name: str, table: Dataset, images: Dataset | None, wanted: set[str]) -> Iterator[tuple[str, Any]]:
    """The rows of a data set, but for the images inside it, whose absence makes a row bad."""
    inside = [] if images is None else images.column_names
    missing: set[int] = set()
    # No bytes are read to learn whether there are any.
    for number, batch in enumerate(images.with_format("arrow").iter(1_000) if images is not None else ()):
        for column in batch.itercolumns():
            is_empty = pc.is_null(pc.struct_field(column, "bytes")).to_pylist()
            for index, path in enumerate(pc.struct_field(column, "path").to_pylist()):
                if is_empty[index] and (path is None or not Path(path).is_file()):
                    missing.add(1_000 * number + index)

    problem = InvalidRecordError(
        "missing image", "the image is missing: there are neither bytes nor a file at its path"
    )
    kept = [column for column in table.column_names if column in wanted and column not in inside]
    for index, values in enumerate(table.with_format(None).select_columns(kept)):
        yield f"{name}, row {index}", problem if index in missing else Record(values)


def _hold_out_groups(rows: Dataset, groups: list[Any], share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation, which gets whole groups as long as they fit into its share; one group at least."""
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: (isinstance(group, str), group))
    random.Random(seed).shuffle(order)

    held_out: list[Any] = []
    free = round(share * rows.num_rows)
    for group in order:
        if sizes[group] <= free:
            held_out.append(group)
            free -= sizes[group]

    asked = f"there is no validation split and validation_share is {share}"
    return hold_out(rows, groups, held_out or [min(order, key=lambda group: sizes[group])], asked)
