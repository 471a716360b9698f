"""What the rows of a run are known by, so that a run does not go on with others.

Neither a path nor `datasets`' fingerprint says it: the same rows lie in a folder that was copied, or were read by
another process. All of a large data set is too much to read at each start, so that their number and a sample count:
numbers and texts of about a thousand rows, images and lists of some sixty, which are not decoded. What was changed in
a few rows of many is not noticed.
"""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Value

from .fingerprint import described_fingerprint, fingerprint
from .indexed_dataset import IndexedDataset
from .streaming.stream import ImageTextStream
from .tasks import Task

_SAMPLE, _LARGE_SAMPLE = 1024, 64


def identify_rows(rows: Any) -> str | None:
    """Return what rows are known by, as one line; None where nothing of them is known.

    Args:
        rows: a `datasets.Dataset` or `ImageTextStream`; of anything else, whose rows may be drawn, the number alone.

    Example:
        >>> identify_rows(Dataset.from_dict({"question": ["what?"], "answer": ["a cat"]}))
        '1 rows [3cdc13634a40]'
    """
    if isinstance(rows, ImageTextStream):
        return rows.content
    rows = rows.dataset if isinstance(rows, IndexedDataset) else rows
    if not isinstance(rows, Dataset):
        return f"{len(rows):,} rows" if isinstance(rows, Sized) else None

    small = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel | Value)]
    small = [name for name in small if "binary" not in rows.features[name].dtype]
    sample = []
    for names, size in ((small, _SAMPLE), ({*rows.column_names} - {*small}, _LARGE_SAMPLE)):
        part = rows.select_columns(sorted(names)).with_format("arrow")
        sample.append(_portable(part[:: -(-len(rows) // size)].to_pylist()) if names and len(rows) else [])
    return described_fingerprint(f"{len(rows):,} rows", sample)


def identify_data(splits: Mapping[str, Any], task: Task, split: str = "train") -> str | None:
    """Return what data are known by: images and texts of a split as read; labels are spelled as a model's are.

    Example:
        >>> rows = Dataset.from_dict({"image": ["a.png"], "question": ["what?"], "answer": ["a cat"]})
        >>> task = Task("mine", "question_answering", ("image",), "question", "answer")
        >>> identify_data({"train": rows}, task) == identify_data({"train": rows.remove_columns("answer")}, task)
        True
    """
    rows = splits.get(split)
    if isinstance(rows, Dataset):
        rows = rows.select_columns([*task.image_columns, task.text_column])
    return identify_rows(rows)


def _portable(value: Any) -> Any:
    """A value without the folder that it lies in, as JSON can hold it."""
    if isinstance(value, bytes):
        return fingerprint(value)
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        file = Path(value["path"] or "")
        size = file.stat().st_size if file.is_file() else None
        return [file.name, size] if value["bytes"] is None else _portable(value["bytes"])

    if isinstance(value, dict):
        return {name: _portable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_portable(one) for one in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value if isinstance(value, str | int | float | None) else str(value)
