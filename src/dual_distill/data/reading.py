"""From entries to a data set: one door for bad entries, a report of what was skipped and why, Arrow in batches.

What is unusual: a reader is a function from one entry to one row that raises `InvalidRecordError`; whether that ends the reading
(the default) or is listed and passed over (`skip_bad=True`) is decided here, once. Images are stored as paths; nothing
is decoded.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features

from .records import InvalidRecordError, Records

_ROWS_A_BATCH = 10_000
_MOST_PRINTED = 100


@dataclass
class ReadingReport:
    """What a reader took, what it left out, and why; `print(report)` shows it as the readers do on stderr.

    Attributes:
        source: what was read, such as "vqa".
        rows: split -> rows taken.
        left_out: reason -> number of entries that are no mistake and yet no rows, such as SNLI-VE's gold_label "-".
        notes: remark -> number of rows that were taken and are worth a remark, such as answers outside a vocabulary.
        bad: kind -> one sentence for each bad entry that `skip_bad=True` passed over, with its file and line.

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

    def show(self) -> None:
        """Write the report on stderr."""
        sys.stderr.write(f"{self}\n")


def make_rows(
    entries: Records, make_row: Callable[[Any], dict[str, Any] | None], report: ReadingReport, skip_bad: bool
) -> Iterator[dict[str, Any]]:
    """The rows of entries, one after the other.

    Args:
        entries: places and entries.
        make_row: row of an entry, None for an entry that it leaves out; raises `InvalidRecordError`.
        report: takes the sentences of bad entries.
        skip_bad: pass over bad entries instead of ending with the first.

    Yields:
        What `make_row` returned.

    Raises:
        ValueError: an entry is bad, and `skip_bad` is False.

    Example:
        >>> report = ReadingReport()
        >>> entries = [("a.jsonl, line 1", {"x": 1}), ("a.jsonl, line 2", InvalidRecordError("malformed line", "it is empty"))]
        >>> list(make_rows(iter(entries), lambda entry: entry, report, skip_bad=True)), report.bad
        ([{'x': 1}], {'malformed line': ['a.jsonl, line 2: it is empty']})
    """
    for place, entry in entries:
        try:
            if isinstance(entry, InvalidRecordError):
                raise entry
            row = make_row(entry)
        except InvalidRecordError as problem:
            if not skip_bad:
                raise ValueError(
                    f"{place}: {problem}; mend it, or leave such entries out with skip_bad=True (--skip_bad), which "
                    f"lists them."
                ) from problem
            report.bad.setdefault(problem.kind, []).append(f"{place}: {problem}")
            continue
        if row is not None:
            yield row


def rows_to_dataset(rows: Iterable[dict[str, Any]], features: Features, split: str, report: ReadingReport) -> Dataset:
    """A data set in memory of rows that are written to Arrow in batches; counted in the report.

    Args:
        rows: values by column.
        features: columns and their types.
        split: its name.
        report: `rows[split]` is set.

    Returns:
        The data set.

    Raises:
        ValueError: there is no row.

    Example:
        >>> from datasets import Value
        >>> rows_to_dataset([{"x": 1}], Features({"x": Value("int64")}), "train", ReadingReport())[0]
        {'x': 1}
    """
    schema, rows = features.arrow_schema, iter(rows)
    tables = []
    while batch := list(itertools.islice(rows, _ROWS_A_BATCH)):
        tables.append(pa.Table.from_pylist(batch, schema=schema))
    if not tables:
        left_out = sum(report.left_out.values()) + sum(map(len, report.bad.values()))
        raise ValueError(
            f"The split {split!r} of {report.source!r} has no rows ({left_out:,} entries were left out or skipped); "
            f"give "
            "files that hold some, or leave the split out."
        )
    report.rows[split] = sum(table.num_rows for table in tables)
    return Dataset(pa.concat_tables(tables), info=DatasetInfo(features=features.copy()), split=split)
