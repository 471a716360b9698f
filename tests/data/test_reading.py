import json
import re
from collections import Counter

import pytest
from datasets import Dataset, Features, Value

from dual_distill.data import ReadingReport
from dual_distill.data.reading import ImageFolder, RecordReader, hold_out
from dual_distill.data.records import (
    InvalidRecordError,
    Record,
    UniqueIds,
    document_records,
    read_csv,
    read_json,
    read_json_lines,
)


def test_the_report_says_what_was_taken_and_what_not():
    report = ReadingReport(
        "mine",
        rows={"train": 12_000, "test": 3},
        left_out=Counter({"no majority": 2}),
        notes=Counter({"answer outside": 1}),
        bad={"missing image": [f"line {number}" for number in range(102)]},
    )
    lines = str(report).splitlines()
    assert lines[:5] == [
        "mine: train 12,000 rows, test 3 rows",
        "  left out 2: no majority",
        "  taken 1: answer outside",
        "  skipped 102: missing image",
        "    line 0",
    ]
    assert lines[-2:] == ["    line 99", "    ... and 2 more, all in ReadingReport.bad"]


NUMBERS = Features({"x": Value("int64")})


def test_only_bad_records_are_skipped():
    def make_row(record):
        if record == 1:
            raise InvalidRecordError("odd", "it is odd")
        if record == 3:
            raise KeyError("a mistake of ours")
        return {"x": record} if record else None

    reader = RecordReader("mine", NUMBERS, skip_bad=True, report=None)
    rows = reader.rows(iter([("a", 0), ("b", 1), ("c", 2)]), make_row)
    assert list(rows) == [{"x": 2}]
    assert reader.report.bad == {"odd": ["b: it is odd"]}
    with pytest.raises(KeyError):
        reader.row("d", 3, make_row)
    strict = RecordReader("mine", NUMBERS, skip_bad=False, report=None)
    with pytest.raises(ValueError, match=r"^b: it is odd; mend it, or leave such records out with skip_bad=True"):
        strict.row("b", 1, make_row)


def test_rows_go_to_arrow_in_batches(capsys):
    report = ReadingReport()
    reader = RecordReader("mine", NUMBERS, skip_bad=False, report=report)
    reader.read("train", ((f"line {number}", number) for number in range(25_000)), lambda number: {"x": number})
    dataset = reader.finish()["train"]
    assert dataset.data.column("x").num_chunks == 13
    assert dataset["x"][:] == list(range(25_000))
    assert report.rows == {"train": 25_000}
    assert capsys.readouterr().err == "mine: train 25,000 rows\n"


def test_equal_rows_are_known_by_one_fingerprint():
    def known_by(numbers, split="train"):
        return RecordReader("mine", NUMBERS).table(split, ({"x": number} for number in numbers))._fingerprint

    assert known_by(range(3_000)) == known_by(range(3_000))
    assert len({known_by([1, 2]), known_by([2, 1]), known_by([1, None]), known_by([1, 2], "test")}) == 4


def test_records_by_their_id():
    reader = RecordReader("mine", NUMBERS, skip_bad=True, report=None)
    records = [("a", Record(id=7)), ("b", Record(id=7)), ("c", Record(id="8")), ("d", Record(id=9))]
    assert reader.by_id(iter(records), "id") == {7: ("a", {"id": 7}), 9: ("d", {"id": 9})}
    assert list(reader.report.bad) == ["duplicate id", "malformed record"]


@pytest.mark.parametrize(
    ("order", "rows", "moved"), [("ab", None, "aab"), ("cab", 1, "cc"), ("cab", 3, "aacc"), ("", None, "")]
)
def test_whole_groups_are_held_out(order, rows, moved):
    groups = list("aabccd")
    dataset = Dataset.from_dict({"group": groups})
    train, validation = hold_out(dataset, groups, order, "held_out is 1", rows)
    assert "".join(validation["group"]) == moved
    assert sorted([*train["group"], *validation["group"]]) == groups
    assert not set(train["group"]) & set(validation["group"])


def test_lines_are_numbered_from_one_and_empty_ones_count(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf\r\n{"a": 1}\r\n\n  \n[1]\n{"a": \n\xff\n{"a": 2}')
    found = [(place.removeprefix(f"{file}, "), entry) for place, entry in read_json_lines(file)]
    assert [place for place, _ in found] == ["line 2", "line 5", "line 6", "line 7", "line 8"]
    assert [entry for _, entry in found if isinstance(entry, dict)] == [{"a": 1}, {"a": 2}]
    assert [entry.kind for _, entry in found if isinstance(entry, InvalidRecordError)] == ["malformed line"] * 3


def test_long_records_are_cut_in_errors():
    (_, problem), *_ = document_records("a.json", ["x" * 500], "question", "id")
    assert len(str(problem)) < 150


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        ({}, int, "there is no 'x' among no keys at all"),
        ({"x": "1"}, int, "x is '1', but expected is a whole number"),
        ({"x": True}, int, "x is True, but expected is a whole number"),
        ({"x": 2**63}, int, "x is 9223372036854775808, but expected is a whole number of 64 bits"),
        ({"x": 1}, str, "x is 1, but expected is text"),
        ({"x": "half a pair: \ud83d"}, str, "but expected is text in Unicode"),
        ({"x": {}}, list, "x is {}, but expected is a list [...]"),
    ],
)
def test_values_of_another_kind(record, kind, message):
    with pytest.raises(InvalidRecordError, match=re.escape(message)):
        Record(record).value("x", kind)


def test_texts_and_ids():
    assert Record(x=" a ").text("x") == " a "
    with pytest.raises(InvalidRecordError, match="x is empty") as caught:
        Record(x="\n").text("x")
    assert caught.value.kind == "empty x"
    ids = UniqueIds("id")
    assert [ids.add(value) for value in ("1", 1)] == ["1", 1]
    with pytest.raises(InvalidRecordError, match="id 1 occurs twice"):
        ids.add(1)
    with pytest.raises(InvalidRecordError, match=r"id is \[1\], but expected is a text or a number"):
        ids.add([1])


def test_an_image_folder_finds_the_first_name_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    for name in ("x.jpg", "b/x.jpg", "b/y.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    folder = ImageFolder(".")
    assert folder.find("b/x.jpg", "x.jpg") == {"bytes": None, "path": str(tmp_path / "b" / "x.jpg")}
    assert folder.find("y.jpg", "b/y.jpg")["path"] == str(tmp_path / "b" / "y.jpg")
    assert folder.find(str(tmp_path / "x.jpg"))["path"] == str(tmp_path / "x.jpg")
    with pytest.raises(InvalidRecordError, match=r"the image is missing: .* holds no z\.jpg nor c/z\.jpg"):
        folder.find("z.jpg", "c/z.jpg")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (4, "held_out is 4, but there are 4 rows in 2 groups that stay together, which leaves none to train on"),
        (-1, "held_out is -1, but a number of rows must be at least 0"),
    ],
)
def test_a_row_is_left_to_train_on(rows, message):
    groups = list("aabb")
    with pytest.raises(ValueError, match=message):
        hold_out(Dataset.from_dict({"group": groups}), groups, "ab", f"held_out is {rows}", rows)


def test_nesting_length_and_size_have_bounds(tmp_path, monkeypatch):
    """A line of a hundred thousand brackets ends in a RecursionError, a text of 100 MB in 6 GB of tokens."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n' + "[" * 200_000 + "\n" + json.dumps({"a": "x" * 1_000_001}) + '\n{"a": "y"}\n')
    places, records = zip(*read_json_lines(file), strict=True)
    assert isinstance(records[1], InvalidRecordError)
    assert str(records[1]).startswith("the line is not JSON (")
    with pytest.raises(InvalidRecordError, match="a has 1,000,001 characters, but a text has 1,000,000 at most"):
        records[2].text("a")
    assert records[3].text("a") == "y"
    assert places[3].endswith("line 4")

    nested = tmp_path / "nested.json"
    nested.write_text('{"questions": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ValueError, match=r"nested\.json' is not one JSON document"):
        read_json(nested, "questions")

    monkeypatch.setattr("dual_distill.data.records.MAX_LINE_BYTES", 1_000)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: the line has more than the 1,000 bytes"):
        list(read_json_lines(file))
    table = tmp_path / "rows.csv"
    table.write_text("a,b\n1,2\n" + "x" * 3_000 + ",3\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 3: the line has more than the 1,000 bytes"):
        list(read_csv(table))
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(FileNotFoundError, match="There is no file '/dev/"):
            list(read_json_lines(path))
