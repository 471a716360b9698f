"""One row of one's own data: what its columns may hold, and what each value becomes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Features

from dual_distill.data.records import InvalidRecordError, UniqueIds, is_unicode
from dual_distill.data.tasks import nearest_name

from .custom_tables import CustomTable
from .image_folder import ImageFolder

ROW_NUMBER = "__number__"
"""Entry that is handed through from an entry to its row, where there is one."""


@dataclass(frozen=True)
class CustomColumns:
    """The names that one's own columns have.

    Attributes:
        images: in the order in which the model sees them.
        text: question or sentence.
        label: answer or class; with `answers`, the name of the column that is made of them.
        answers: lists of what several people answered, or None.
        id: ids that must not repeat, or None.
    """

    images: tuple[str, ...]
    text: str
    label: str
    answers: str | None
    id: str | None

    def read(self) -> list[str]:
        """The columns that the data must have."""
        label = self.label if self.answers is None else self.answers
        return [*self.images, self.text, label, *([self.id] if self.id else [])]


class RecordBuilder:
    """One row of one entry, images as paths; pictures that are no paths are left to the caller.

    Args:
        table: where entries come from; relative image paths start at its folder.
        columns: the names of the columns.
        paths: those image columns that hold paths.
        features: types of the columns, where they are known.
        classes: the labels that there are; None: any.
    """

    def __init__(
        self,
        table: CustomTable,
        columns: CustomColumns,
        paths: tuple[str, ...],
        features: Features | None,
        classes: list[str] | None,
    ) -> None:
        self.table, self.columns, self.paths, self.classes = table, columns, paths, classes
        self.label_feature = features.get(columns.label) if features is not None else None
        self.needed = [column for column in columns.read() if column in paths or column not in columns.images]
        self.folder = ImageFolder(table.folder)
        self.ids = UniqueIds(columns.id or "id")

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row, or raise `InvalidRecordError`."""
        columns = self.columns
        for column in self.needed:
            if column not in entry:
                sentence = f"there is no column {column!r}{nearest_name(column, [str(name) for name in entry])}"
                if self.table.name.endswith((".csv", ".tsv")):  # the header lacks it, so every line does
                    raise ValueError(f"{self.table.name}: {sentence}")
                raise InvalidRecordError("malformed line", sentence.removesuffix("."))
        row: dict[str, Any] = {column: self.folder.find(_word(entry[column], column, "image")) for column in self.paths}
        text = entry[columns.text]
        _word(text, columns.text, "text")
        row[columns.text] = text
        if columns.answers is not None:
            answers = _answers(entry[columns.answers], columns.answers)
            row |= {columns.answers: answers, columns.label: Counter(answers).most_common(1)[0][0]}
        else:
            row[columns.label] = self._label(entry[columns.label])
        if columns.id is not None:
            row[columns.id] = str(self.ids.add(entry[columns.id]))
        return row | ({ROW_NUMBER: entry[ROW_NUMBER]} if ROW_NUMBER in entry else {})

    def _label(self, value: Any) -> str:
        column = self.columns.label
        if isinstance(self.label_feature, ClassLabel) and isinstance(value, int):
            value = self.label_feature.int2str(value) if value >= 0 else None
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, int):
            value = str(value)
        label = _word(value, column, "label")
        if self.classes is not None and label not in self.classes:
            raise InvalidRecordError(
                "unknown label", f"{column} is {label!r}{nearest_name(label, self.classes)}".removesuffix(".")
            )
        return label


def _word(value: Any, column: str, noun: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InvalidRecordError(f"no {noun}", f"{column} is empty ({value!r}), but a row needs {_NOUNS[noun]}")
    if not isinstance(value, str) or not is_unicode(value):
        raise InvalidRecordError(f"malformed {noun}", f"{column} is {value!r:.80}, but expected is {_NOUNS[noun]}")
    return value.strip()


def _answers(value: Any, column: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise InvalidRecordError("no label", f"{column} is {value!r:.80}, but expected is a list of one answer or more")
    return [_word(answer, column, "label") for answer in value]


_NOUNS = {
    "image": "the path of an image",
    "text": "a text of one word or more",
    "label": "a word, a whole number, or true or false",
}
