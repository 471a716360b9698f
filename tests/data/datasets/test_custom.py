import csv
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from dual_distill.data import DistillationCollator, ReadingReport, load_custom_dataset

CLASSES = {"text_column": "text", "label_column": "label", "head": "images_and_text_classification"}


@pytest.fixture
def folder(tmp_path, png, monkeypatch):
    """Eight images, a.png to h.png; Parquet's cache lies beside them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for number, letter in enumerate("abcdefgh"):
        (tmp_path / "images" / f"{letter}.png").write_bytes(png((number, 0, 0)))
    return tmp_path


def questions(letters="abcd", **changes):
    """One question about each image; the answers are red, blue, red, blue."""
    rows = [
        {
            "id": str(i),
            "image": f"images/{letter}.png",
            "question": f"Which colour, {letter}?",
            "answer": ["red", "blue"][i % 2],
        }
        for i, letter in enumerate(letters)
    ]
    for place, change in changes.items():
        rows[int(place[1:])] |= change
    return rows


def write(file, rows, newline="\n", bom=False):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(row) + newline for row in rows)
    else:
        buffer = io.StringIO()
        delimiter = "\t" if file.suffix == ".tsv" else ","
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator=newline, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    file.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return file


def splits(folder, suffix, **rows):
    return {split: write(folder / f"{split}{suffix}", values) for split, values in rows.items()}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(folder, suffix):
    files = splits(folder, suffix, train=questions(), validation=questions("ef"))
    data, task = load_custom_dataset(files)
    assert data["train"].to_list() == [
        {
            "image": {"bytes": None, "path": str(folder / row["image"])},
            "question": row["question"],
            "answer": row["answer"],
        }
        for row in questions()
    ]
    assert data["train"].features["image"] == Image(decode=False)
    assert data["validation"]["question"][:] == ["Which colour, e?", "Which colour, f?"]
    assert (task.head, task.image_columns, task.text_column, task.label_column) == (
        "question_answering",
        ("image",),
        "question",
        "answer",
    )
    assert task.label_names == ("blue", "red")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_bom_and_crlf_are_no_trouble(folder, suffix, newline, bom):
    file = write(folder / f"mine{suffix}", questions("abcdefgh"), newline, bom)
    data, _ = load_custom_dataset(file, id_column="id")
    rows = [*data["train"], *data["validation"]]
    assert sorted(row["id"] for row in rows) == list("01234567")
    assert {row["answer"] for row in rows} == {"red", "blue"}


@pytest.mark.parametrize("ids", [[30, 10, 20], ["30", "10", "20"], [30, "a", 2**63]])
def test_ids_stay_as_they_are_and_a_mixture_is_text(folder, ids):
    rows = [{**row, "id": value} for row, value in zip(questions("abc"), ids, strict=True)]
    data, _ = load_custom_dataset(splits(folder, ".jsonl", train=rows, validation=questions("h")), id_column="id")
    assert data["train"]["id"][:] == (list(map(str, ids)) if "a" in ids else ids)


def test_a_csv_field_may_hold_commas_quotes_and_lines(folder):
    rows = questions(_1={"question": 'Is it "red",\nor not?'}, _2={"image": "no.png"})
    with pytest.raises(ValueError, match=r"train\.csv, line 5: the image is missing"):  # line 3 goes on in line 4
        load_custom_dataset(splits(folder, ".csv", train=rows))
    rows[2] = questions()[2]
    data, _ = load_custom_dataset(splits(folder, ".csv", train=rows, validation=questions()))
    assert data["train"][1]["question"] == 'Is it "red",\nor not?'


def test_columns_have_any_names_and_images_may_be_several(folder):
    rows = [
        {"links": f"images/{a}.png", "rechts": str(folder / "images" / f"{b}.png"), "satz": f"{a} {b}", "urteil": a < b}
        for a, b in ("ab", "ba", "cd", "hc")
    ]
    data, task = load_custom_dataset(
        splits(folder, ".jsonl", train=rows, validation=rows),
        image_column=["links", "rechts"],
        text_column="satz",
        label_column="urteil",
        head="images_and_text_classification",
    )
    assert (task.image_columns, task.label_names) == (("links", "rechts"), ("false", "true"))
    assert data["train"]["urteil"][:] == ["true", "false", "true", "false"]
    assert data["train"][3]["rechts"] == {"bytes": None, "path": str(folder / "images" / "c.png")}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cat", "dog", "ape"], ("ape", "cat", "dog")),
        ([10, 9, 2], ("2", "9", "10")),
        (["1", "0", "-1"], ("-1", "0", "1")),
    ],
)
def test_classes_of_train_in_order(folder, labels, names):
    rows = [{"image": f"images/{x}.png", "text": x, "label": label} for x, label in zip("abc", labels, strict=True)]
    assert load_custom_dataset(splits(folder, ".jsonl", train=rows, val=rows), **CLASSES).task.label_names == names
    given = load_custom_dataset(splits(folder, ".jsonl", train=rows, val=rows), label_names=names[::-1], **CLASSES)
    assert given.task.label_names == names[::-1]


def test_pictures_inside_a_parquet_file_stay_there(folder, png):
    rows = [{"picture": png((i, 0, 0)), "text": f"text {i}", "label": i % 2} for i in range(4)]
    rows[1]["text"] = " "
    file = write(folder / "train.parquet", rows)
    report = ReadingReport()
    data, task = load_custom_dataset(
        {"train": file, "test": file, "dev": file}, image_column="picture", skip_bad=True, report=report, **CLASSES
    )
    assert data["train"]["text"][:] == ["text 0", "text 2", "text 3"]
    assert data["train"][2]["picture"] == {"bytes": png((3, 0, 0)), "path": None}
    assert task.label_names == ("0", "1")
    assert report.rows == {"train": 3, "validation": 3, "test": 3}
    assert (
        report.bad["empty text"][0] == f"{file}, row 1: text is empty (' '), but a row needs a text of one word or more"
    )


def test_a_picture_column_without_picture_names_the_row(folder, png):
    file = write(
        folder / "train.parquet",
        [{"image": png(), "text": "a", "label": "x"}, {"image": None, "text": "b", "label": "y"}],
    )
    with pytest.raises(ValueError, match=r"train\.parquet, row 1: the image is missing"):
        load_custom_dataset(file, **CLASSES)


def test_splits_in_memory_with_named_classes(folder):
    features = Features({"image": Image(), "text": Value("string"), "label": ClassLabel(names=["dog", "cat", "ape"])})
    rows = {"image": [str(folder / "images" / "a.png")] * 3, "text": ["x", "y", "z"], "label": [1, 0, 1]}
    loaded = DatasetDict(train=Dataset.from_dict(rows, features), validation=Dataset.from_dict(rows, features))
    data, task = load_custom_dataset(loaded, **CLASSES)
    assert task.label_names == ("dog", "cat", "ape")  # in the order of the feature, with the class that no row has
    assert data["validation"]["label"][:] == ["cat", "dog", "cat"]
    assert data["train"].features["image"] == Image(decode=False)


def test_several_answers_become_soft_labels(folder):
    rows = [{k: v for k, v in row.items() if k != "answer"} | {"answers": ["b", " a", "a "]} for row in questions()]
    files = splits(folder, ".jsonl", train=rows, validation=rows)
    data, task = load_custom_dataset(files, answers_column="answers")
    assert (task.answers_column, task.label_column, task.label_names) == ("answers", "answer", ("a",))
    assert data["train"][0]["answers"] == ["b", "a", "a"]
    assert data["train"][0]["answer"] == "a"
    collator = DistillationCollator(None, task, task.label_names)
    assert collator._scores(data["train"][0]["answers"], "0").tolist() == pytest.approx([0.6])


def test_folders_of_tables_and_of_images(folder):
    splits(folder, ".csv", train=questions(), dev=questions("ef"))
    assert load_custom_dataset(folder).data.num_rows == {"train": 4, "validation": 2}
    write(folder / "train.jsonl", questions())
    with pytest.raises(ValueError, match=r"several tables for 'train' \(train\.csv, train\.jsonl\)"):
        load_custom_dataset(folder)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_image_folder_with_metadata(folder, suffix):
    rows = [{"file_name": f"{x}.png", "text": x, "label": x in "aceg"} for x in "abcdefgh"]
    write(folder / "images" / f"metadata{suffix}", rows)
    data, task = load_custom_dataset(folder / "images", validation_share=0.25, **CLASSES)
    assert data.num_rows == {"train": 6, "validation": 2}
    assert task.label_names == (
        ("False", "True") if suffix == ".csv" else ("false", "true")
    )  # CSV holds what it was told
    pairs = [{"left_file_name": "a.png", "right_file_name": "b.png", "text": "x", "label": i} for i in (0, 1)]
    for split in ("train", "test", "validation"):
        (folder / "pairs" / split).mkdir(parents=True)
        for letter in "ab":
            (folder / "pairs" / split / f"{letter}.png").touch()
        write(folder / "pairs" / split / f"metadata{suffix}", pairs)
    data, _ = load_custom_dataset(folder / "pairs", image_column=["left", "right"], **CLASSES)
    assert data["test"][0]["right"]["path"] == str(folder / "pairs" / "test" / "b.png")


def test_validation_holds_out_whole_images(folder):
    file = write(folder / "mine.csv", questions("abcdabcdabcdabcd"))
    seen = set()
    for seed in range(4):
        data, _ = load_custom_dataset(file, validation_share=0.2, seed=seed)
        images = [{row["image"]["path"] for row in data[split]} for split in ("train", "validation")]
        assert data.num_rows == {"train": 12, "validation": 4}
        assert not images[0] & images[1]
        seen |= images[1]
    assert len(seen) > 1
    assert (
        load_custom_dataset(file, seed=3).data["validation"].to_list()
        == load_custom_dataset(file, seed=3).data["validation"].to_list()
    )
    with pytest.raises(ValueError, match=r"validation_share is 0.1, but there are 3 rows in 1 groups"):
        load_custom_dataset(write(folder / "mine.csv", questions("aaa")))


def test_validation_holds_out_whole_images_that_lie_in_the_table(folder, png):
    """Questions about one picture hold its bytes each; a row drawn alone would leave its picture in train."""
    rows = [
        row | {"image": {"bytes": png((number % 4, 0, 0)), "path": None}}
        for number, row in enumerate(questions("a" * 16))
    ]
    file = write(folder / "mine.parquet", rows)
    for seed in range(3):
        data, _ = load_custom_dataset(file, validation_share=0.25, seed=seed)
        images = [{row["image"]["bytes"] for row in data[split]} for split in ("train", "validation")]
        assert data.num_rows == {"train": 12, "validation": 4}
        assert [len(one) for one in images] == [3, 1]
        assert not images[0] & images[1]


def test_accents_written_in_two_ways_are_one_answer_one_word_and_one_file(folder, png):
    """Composed (as most programs write them) and taken apart (as some file systems do)."""
    (folder / "images" / "cafe\u0301.png").write_bytes(png())
    rows = questions(["caf\u00e9", "cafe\u0301", "a", "b"], _0={"answer": "caf\u00e9"}, _1={"answer": "cafe\u0301"})
    for merge in (True, False):
        data, task = load_custom_dataset(
            splits(folder, ".csv", train=rows, val=questions()),
            merge_spellings=merge,
            label_names=["cafe\u0301", "red"],
        )
        assert task.label_names == ("caf\u00e9", "red")
        assert data["train"]["answer"][:2] == ["caf\u00e9"] * 2
        assert data["train"][0]["question"] == data["train"][1]["question"] == "Which colour, caf\u00e9?"
        assert data["train"][0]["image"] == data["train"][1]["image"]


def test_answers_outside_the_vocabulary_are_taken_and_noted(folder, capsys):
    files = splits(folder, ".csv", train=questions("abcdef"), validation=questions("gh", _1={"answer": "green"}))
    report = ReadingReport()
    data, task = load_custom_dataset(files, report=report)
    assert task.label_names == ("blue", "red")
    assert data["validation"]["answer"][:] == ["red", "green"]
    assert report.notes == {"answer outside the 2 classes (validation; it counts as wrong)": 1}
    assert "taken 1: answer outside the 2 classes" in capsys.readouterr().err
    rare = load_custom_dataset(
        splits(folder, ".csv", train=questions("abc"), validation=questions()), min_answer_count=2
    )
    assert rare.task.label_names == ("red",)


BAD = [
    ({"image": "images/z.png"}, "missing image", "the image is missing: .* holds no images/z.png"),
    ({"image": ""}, "empty image", r"image is empty \(''\), but a row needs the path of an image"),
    ({"question": " "}, "empty question", r"question is empty \(' '\), but a row needs a text"),
    ({"answer": ""}, "empty answer", r"answer is empty \(''\), but a row needs a word"),
    ({"id": "0"}, "duplicate id", "id 0 occurs twice"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_bad_row_is_named_or_listed(folder, suffix, change, kind, message, capsys):
    files = splits(folder, suffix, train=questions(_1=change), validation=questions())
    place = {".csv": r"train\.csv, line 3", ".jsonl": r"train\.jsonl, line 2", ".parquet": r"train\.parquet, row 1"}[
        suffix
    ]
    with pytest.raises(ValueError, match=f"{place}: {message}.*skip_bad=True"):
        load_custom_dataset(files, id_column="id")
    report = ReadingReport()
    data, _ = load_custom_dataset(files, id_column="id", skip_bad=True, report=report)
    assert data["train"]["id"][:] == ["0", "2", "3"]
    assert {found: len(sentences) for found, sentences in report.bad.items()} == {kind: 1}
    assert f"skipped 1: {kind}" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_images_that_cannot_be_decoded_are_bad_rows_too(folder, suffix, capsys):
    """A truncated image would end the training, one a run; a file that many rows name is decoded once."""
    good = folder / "images" / "b.png"
    (folder / "images" / "cut.png").write_bytes(good.read_bytes()[:45])
    cut = {"image": "images/cut.png"}
    files = splits(folder, suffix, train=questions(_1=cut, _3=cut), validation=questions(_0=cut))
    assert load_custom_dataset(files).data["train"].num_rows == 4
    report = ReadingReport()
    data, _ = load_custom_dataset(files, skip_bad=True, report=report)
    assert data.num_rows == report.rows == {"train": 2, "validation": 3}
    [sentences] = report.bad.values()
    assert len(sentences) == 3
    assert all("cut.png'): the image is truncated or damaged" in sentence for sentence in sentences)
    assert sentences[0].startswith("row 1 of train (image '")
    assert "skipped 3: image that cannot be decoded" in capsys.readouterr().err

    with pytest.raises(ValueError, match=r"split 'validation' of .* has no rows \(.* records were left out or skipped"):
        load_custom_dataset(splits(folder, suffix, train=questions(), validation=questions("a", _0=cut)), skip_bad=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": 5}, "line 2: question is 5, but expected is a text"),
        ({"answer": 1.5}, "line 2: answer is 1.5, but expected is a word, a whole number, or true or false"),
        ({"answer": ["red"]}, r"line 2: answer is \['red'\], but expected is a word"),
        ({"answer": None}, r"line 2: answer is empty \(None\)"),
        ({"image": None}, r"line 2: image is empty \(None\)"),
    ],
)
def test_values_of_another_kind(folder, change, message):
    with pytest.raises(ValueError, match=message):
        load_custom_dataset(splits(folder, ".jsonl", train=questions(_1=change)))


def test_an_unknown_label_is_named_with_its_line(folder):
    rows = [
        {"image": f"images/{x}.png", "text": x, "label": label}
        for x, label in zip("abc", ["cat", "dog", "cta"], strict=True)
    ]
    files = splits(folder, ".csv", train=rows[:2], validation=rows)
    with pytest.raises(
        ValueError, match=r"validation\.csv, line 4: label is 'cta'; did you mean 'cat'\? Known are: cat, dog"
    ):
        load_custom_dataset(files, **CLASSES)
    assert load_custom_dataset(files, skip_bad=True, **CLASSES).data["validation"].num_rows == 2
    with pytest.raises(ValueError, match=r"train\.csv, line 3: label is 'dog'"):
        load_custom_dataset(files, label_names=["cat", "ape"], **CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image,question,answer\nimages/a.png,why?\n",
            r"line 2: the line has 2 fields, but the header 3 \(image, question",
        ),
        ('image,question,answer\nimages/a.png,"why?,x\n', r"line 2: the line is not CSV \(unexpected end of data\)"),
        ("image,question,image\n", "line 1: the column 'image' occurs twice in the header"),
        ("image,questions,answer\nimages/a.png,why?,x\n", "there is no column 'question'; did you mean 'questions'"),
        ("image,question,answer\n", "The split 'train' of 'custom dataset' has no rows"),
        ("", "The split 'train' of 'custom dataset' has no rows"),
        ("image,question,answer\nimages/a.png,wh\xff?,x\n", "the file is not UTF-8"),
    ],
)
def test_a_csv_file_that_is_wrong(folder, content, message):
    (folder / "mine.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_custom_dataset(folder / "mine.csv")


def test_a_csv_line_that_is_wrong_may_be_skipped(folder):
    lines = [
        "image,question,answer",
        'images/a.png,"why" not?,x',
        "images/b.png,why?,x",
        "images/c.png,why?",
        'images/d.png,"',
    ]
    (folder / "mine.csv").write_text("\n".join(lines))
    report = ReadingReport()
    files = {"train": folder / "mine.csv", "validation": write(folder / "other.csv", questions())}
    assert load_custom_dataset(files, skip_bad=True, report=report).data["train"]["image"][0]["path"].endswith("b.png")
    places = [sentence.split(": ")[0].rpartition(", ")[2] for sentence in report.bad["malformed line"]]
    assert places == ["line 2", "line 4", "line 5"]


def test_a_header_without_the_column_is_no_matter_of_skipping(folder):
    file = write(folder / "mine.csv", questions())
    with pytest.raises(ValueError, match=r"mine\.csv: there is no column 'sentence'"):
        load_custom_dataset(file, text_column="sentence", skip_bad=True)


def test_an_empty_split_and_an_empty_file(folder):
    files = splits(folder, ".jsonl", train=questions(), validation=[])
    with pytest.raises(ValueError, match="The split 'validation' of 'custom dataset' has no rows"):
        load_custom_dataset(files)
    with pytest.raises(ValueError, match="The split 'train' of 'custom dataset' has no rows"):
        load_custom_dataset(DatasetDict(train=Dataset.from_dict({"image": [], "question": [], "answer": []})))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no.csv", FileNotFoundError, "There is no file 'no.csv'"),
        ("./some/folder", FileNotFoundError, "There is no file './some/folder'"),
        (
            "nobody-at-all/nothing",
            FileNotFoundError,
            "There is no file or folder 'nobody-at-all/nothing', and it cannot be loaded",
        ),
        ("images", ValueError, r"The folder 'images' holds no table called train \(\.csv, \.tsv"),
        ("images/a.png", ValueError, r"'images/a.png' is none of the known formats \(\.csv, \.tsv"),
        (
            {"train": "t.csv", "extra": "t.csv"},
            ValueError,
            "There are the split 'extra' in the data; expected are train, val",
        ),
        ({"dev": "t.csv", "val": "t.csv"}, ValueError, "There are two splits for 'validation' in the data"),
        ({"test": "t.csv"}, ValueError, "There is no split 'train' in the data, only test"),
    ],
)
def test_data_that_is_not_there(folder, name, error, message, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder / "t.csv", questions())
    with pytest.raises(error, match=message):
        load_custom_dataset(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": []}, "The columns are question, answer, 0 of them of images; give one image column"),
        ({"text_column": "image"}, "The columns are image, image, answer, 1 of them of images"),
        ({"answers_column": "answer"}, "The columns are image, question, answer, answer, 1 of them"),
        ({"head": "image_text_retrieval"}, "head is 'image_text_retrieval', but it is 'question_answering' or"),
        (
            {"head": "images_and_text_classification", "answers_column": "all"},
            "answers_column is 'all', but several answers go",
        ),
        (
            {"label_names": ["a", "a"]},
            r"label_names is \['a', 'a'\], but expected is a list of one or more names, each",
        ),
        ({"label_names": []}, r"label_names is \[\]"),
        ({"label_names": "red"}, "label_names is 'red', but expected is a list"),
        ({"label_names": [0, 1]}, r"label_names is \[0, 1\], but expected is a list"),
        ({"label_colum": "question"}, "Task 'custom' has no option 'label_colum'; did you mean 'label_column'"),
        ({"min_answer_count": 0}, "min_answer_count is 0"),
        ({"min_answer_count": 9}, "No answer in column 'answer' occurs 9 times or more"),
        ({"validation_share": 1.0}, "validation_share is 1.0, but it is above 0 and below 1"),
    ],
)
def test_wrong_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_custom_dataset(write(folder / "mine.csv", questions()), **arguments)


def test_a_column_of_the_data_set_that_is_missing_or_no_image(folder):
    rows = Dataset.from_dict({"image": [1, 2], "question": ["a", "b"], "answer": ["x", "y"]})
    with pytest.raises(
        ValueError,
        match=r"split .train. of the data: there is no column .frage.; did you mean|Known are: answer, image, question",
    ):
        load_custom_dataset(DatasetDict(train=rows), text_column="frage")
    with pytest.raises(
        ValueError, match=r"The column 'image' of split .train. of the data holds int64, but images are paths, bytes or"
    ):
        load_custom_dataset(DatasetDict(train=rows))


def test_pictures_in_parquet_without_a_path_are_taken(tmp_path, png):
    """pandas and pyarrow write `{"bytes": ..., "path": None}` with a path of type null."""
    pictures = [{"bytes": png((number, 0, 0)), "path": None} for number in range(4)]
    table = pa.table({"image": pictures, "question": ["what is it?"] * 4, "answer": ["a"] * 4})
    assert pa.types.is_null(table.schema.field("image").type.field("path").type)
    pq.write_table(table, tmp_path / "rows.parquet")
    own = load_custom_dataset(tmp_path / "rows.parquet", validation_share=0.5)
    assert own.data["train"].features["image"] == Image(decode=False)
    assert {row["image"]["bytes"] for split in own.data.values() for row in split} == {one["bytes"] for one in pictures}


def test_spellings_of_an_answer_are_one_class(folder, capsys):
    """61 of the 477 answers of VQA-RAD are another one in another spelling, and cost 6.5 points."""
    said = ["Yes", "yes", "No", " NO ", "right  Lung", "Right lung"]
    rows = [row | {"answer": answer} for row, answer in zip(questions("abcdef"), said, strict=True)]
    files = splits(folder, ".csv", train=rows, validation=questions("gh", _0={"answer": "YES"}, _1={"answer": "no"}))
    report = ReadingReport()
    data, task = load_custom_dataset(files, report=report)
    assert task.label_names == ("No", "Yes", "right Lung")
    assert data["train"]["answer"][:] == ["Yes", "Yes", "No", "No", "right Lung", "right Lung"]
    assert data["validation"]["answer"][:] == ["Yes", "No"]
    remark = "answer in another spelling than its class (5 spellings; merge_spellings=False keeps them apart)"
    assert report.notes == {remark: 5}
    assert f"taken 5: {remark}" in capsys.readouterr().err

    apart = load_custom_dataset(files, merge_spellings=False).task.label_names
    assert apart == ("NO", "No", "Right lung", "Yes", "right  Lung", "yes")
    # A checkpoint's classes keep their spelling, whatever the data writes first.
    given = load_custom_dataset(files, label_names=["yes", "no", "right lung"])
    assert set(given.data["train"]["answer"]) == {"yes", "no", "right lung"}


def test_spellings_among_several_answers(folder):
    rows = [{k: v for k, v in row.items() if k != "answer"} | {"answers": ["Cat", "cat", "dog"]} for row in questions()]
    data, _ = load_custom_dataset(splits(folder, ".jsonl", train=rows, validation=rows), answers_column="answers")
    assert data["train"][0]["answers"] == ["Cat", "Cat", "dog"]
    assert data["train"][0]["answer"] == "Cat"


def test_classes_of_a_classifier_keep_their_case(folder):
    rows = [{"image": f"images/{x}.png", "text": x, "label": label} for x, label in zip("abc", "aAb", strict=True)]
    assert load_custom_dataset(splits(folder, ".csv", train=rows, val=rows), **CLASSES).task.label_names == (
        "A",
        "a",
        "b",
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("head", ["question_answering", "images_and_text_classification"])
def test_1_and_1_point_0_are_one_class(folder, suffix, head):
    """pandas writes whole numbers beside an empty cell as 1.0."""
    train = questions("abcd", _0={"answer": 1}, _1={"answer": 2}, _2={"answer": 1}, _3={"answer": 2})
    validation = questions("ef", _0={"answer": 1.0}, _1={"answer": 2.0})
    data, task = load_custom_dataset(splits(folder, suffix, train=train, validation=validation), head=head)
    assert task.label_names == ("1", "2")
    assert data["validation"]["answer"][:] == ["1", "2"]


def test_the_held_out_share_is_one_of_rows(folder):
    """Where one image has most of the rows, its rows would be 60 of the 10 that are asked for."""
    file = write(folder / "mine.csv", questions("a" * 60 + "bcdefgh" * 6)[:100])
    for seed in range(8):
        data, _ = load_custom_dataset(file, seed=seed)
        assert 10 - 6 < data["validation"].num_rows <= 10
        assert data["train"].num_rows + data["validation"].num_rows == 100
    few = load_custom_dataset(write(folder / "mine.csv", questions("aaaaabbb"))).data  # the smallest image is too large
    assert few.num_rows == {"train": 5, "validation": 3}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", ["directory", "identifier"])
def test_validation_holds_out_whole_groups_that_the_data_names(folder, suffix, column):
    """The six permutations of an example of NLVR are six images with one identifier."""
    rows = [row | {column: f"{number // 2}-0"} for number, row in enumerate(questions("abcdefgh"))]
    file = write(folder / f"mine{suffix}", rows)
    for seed in range(4):
        data, _ = load_custom_dataset(file, validation_share=0.3, seed=seed)
        letters = {split: [row["image"]["path"][-5] for row in rows] for split, rows in data.items()}
        assert len(letters["validation"]) == 2
        assert "".join(letters["validation"]) in ("ab", "cd", "ef", "gh")
        assert column not in data["train"].column_names


def test_a_json_file_may_be_one_array(folder):
    """VQA-RAD is published as one array of objects."""
    file = folder / "rad.json"
    file.write_text("\ufeff\n" + json.dumps(questions("abcdefgh"), indent=1))
    data, _ = load_custom_dataset(file)
    assert data.num_rows == {"train": 7, "validation": 1}
    file.write_text(json.dumps([*questions("ab"), "what?", questions()[0] | {"answer": None}]))
    with pytest.raises(ValueError, match=r"rad\.json, record 3: the record is 'what\?', but expected is an object"):
        load_custom_dataset(file)
    report = ReadingReport()
    assert sum(load_custom_dataset(file, skip_bad=True, report=report).data.num_rows.values()) == 2
    assert set(report.bad) == {"malformed record", "empty answer"}


def test_an_image_may_be_named_without_its_extension(folder, png):
    rows = [row | {"image": row["image"].removesuffix(".png")} for row in questions()]
    files = splits(folder, ".csv", train=rows, validation=questions())
    data, _ = load_custom_dataset(files)
    assert data["train"]["image"][:] == data["validation"]["image"][:]
    (folder / "images" / "a.jpg").write_bytes(png())  # now there are two that it could be
    with pytest.raises(ValueError, match=r"train\.csv, line 2: the image is missing: .* holds no images/a;"):
        load_custom_dataset(files)


def test_rows_that_are_loaded_are_those_of_train(folder, png):
    rows = Dataset.from_list([row | {"image": png((i, 0, 0))} for i, row in enumerate(questions("abcdefgh"))])
    assert load_custom_dataset(rows).data.num_rows == {"train": 7, "validation": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rows: rows, "The data are a list; give a file, a folder"),
        (lambda rows: None, "The data are a NoneType"),
        (lambda rows: {"train": rows}, "The split 'train' of the data is a list; give a file, or a datasets.Dataset"),
        (lambda rows: {"train": Dataset.from_list(rows).to_iterable_dataset()}, "is a IterableDataset; give a file"),
        (lambda rows: {"train": []}, "The split 'train' of 'custom dataset' has no rows"),
        (
            lambda rows: {"train": ["t.csv", "t.csv"]},
            r"The split 'train' is 2 files \(t.csv, t.csv\), but only Parquet",
        ),
        (
            lambda rows: {"train": [Dataset.from_list(rows).to_parquet("0.parquet") and "0.parquet", "t.csv"]},
            r"The split 'train' is 2 files \(0.parquet, t.csv\), but only Parquet",
        ),
    ],
)
def test_data_of_another_kind(folder, make, message, monkeypatch):
    """Of several tables the first alone was read."""
    monkeypatch.chdir(folder)
    write(folder / "t.csv", questions())
    with pytest.raises(ValueError, match=message):
        load_custom_dataset(make(questions()))


def test_parquet_of_two_folders_holds_its_images(folder):
    """The folder of a table is that of images that are given as paths, and of no others."""
    images = sorted((folder / "images").iterdir())[:4]
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "question": "why?", "answer": "x"} for file in images]
    kinds = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    paths = [{**row, "image": f"images/{file.name}"} for row, file in zip(rows, images, strict=True)]
    files: dict[str, list] = {"inside": [], "paths": []}
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 4))):
        (folder / name).mkdir()
        for kind, table in (
            ("inside", Dataset.from_list(rows[part], kinds)),
            ("paths", Dataset.from_list(paths[part])),
        ):
            files[kind].append(folder / name / f"{kind}.parquet")
            table.to_parquet(files[kind][-1])
    data = load_custom_dataset({"train": files["inside"], "validation": files["inside"][1:]}).data
    assert [row["image"]["bytes"] for row in data["train"]] == [row["image"]["bytes"] for row in rows]
    with pytest.raises(ValueError, match=r"is 2 files \(.*\) of 2 folders, but paths of images start at the folder of"):
        load_custom_dataset({"train": files["paths"], "validation": files["inside"]})


def test_two_columns_for_one_image_are_refused(folder):
    """The rows of one were paired with the images of the other."""
    rows = [{"file_name": "a.png", "image": "b.png", "question": "why?", "answer": "x"}] * 2
    write(folder / "images" / "metadata.csv", rows)
    with pytest.raises(ValueError, match=r"metadata\.csv: there are two columns for 'image', one of them as the name"):
        load_custom_dataset(folder / "images", skip_bad=True)


def test_an_open_quote_names_all_lines_that_it_takes_along(folder):
    lines = ["image,question,answer", 'images/a.png,"why?,x', *["images/b.png,why?,x"] * 3, 'images/c.png,"why?",x']
    (folder / "mine.csv").write_text("\n".join([*lines, "images/d.png,why?,x"]))
    report = ReadingReport()
    files = {"train": folder / "mine.csv", "validation": write(folder / "other.csv", questions())}
    assert load_custom_dataset(files, skip_bad=True, report=report).data["train"].num_rows == 1
    assert [bad.split(": ")[0].rpartition(", ")[2] for bad in report.bad["malformed line"]] == ["lines 2 to 6"]


@pytest.mark.parametrize(("answers", "common"), [([3, 3, 4], "3"), ([True, False, True], "true"), (["3", 3.0, 4], "3")])
def test_several_answers_may_be_numbers_and_truths(folder, answers, common):
    rows = [row | {"people": answers} for row in questions()]
    data, _ = load_custom_dataset(splits(folder, ".jsonl", train=rows, validation=rows), answers_column="people")
    assert data["train"]["answer"][:] == [common] * 4


@pytest.mark.parametrize("values", ["x" * 8, [1, "x"] * 4, [[1]] * 8])
def test_groups_of_any_values(folder, values):
    """One value for all rows is no group that could stand on one side."""
    rows = [row | {"directory": value} for row, value in zip(questions("abcdefgh"), values, strict=True)]
    found = load_custom_dataset(write(folder / "mine.jsonl", rows)).data.num_rows
    held_out = 4 if len({str(value) for value in values}) == 2 else 1
    assert found == {"train": 8 - held_out, "validation": held_out}


def test_rows_without_a_group_do_not_undo_those_of_the_others(folder):
    rows = [row | {"directory": f"{number // 2}"} for number, row in enumerate(questions("abcdefgh"))]
    del rows[0]["directory"]
    for seed in range(8):
        data = load_custom_dataset(write(folder / "mine.jsonl", rows), validation_share=0.3, seed=seed).data
        letters = {row["image"]["path"][-5] for row in data["validation"]}
        assert all(len(letters & pair) in (0, 2) for pair in ({"c", "d"}, {"e", "f"}, {"g", "h"}))


def test_a_folder_is_no_image(folder):
    (folder / "images" / "a").mkdir()
    rows = [questions()[0] | {"image": "images/a"}]
    data, _ = load_custom_dataset(splits(folder, ".csv", train=rows, validation=questions()))
    assert data["train"][0]["image"]["path"] == str(folder / "images" / "a.png")


def test_numbered_answers_are_spelled_as_the_classes_that_are_asked_for(folder, png):
    kinds = Features(image=Value("binary"), question=Value("string"), answer=ClassLabel(names=["Red", "BLUE"]))
    columns = {"image": [png((i, 0, 0)) for i in range(4)], "question": list("abcd"), "answer": [0, 1, 0, 1]}
    rows = Dataset.from_dict(columns, features=kinds)
    data, task = load_custom_dataset(DatasetDict(train=rows, validation=rows), label_names=["blue", "red"])
    assert (data["train"]["answer"][:], task.label_names) == (["red", "blue", "red", "blue"], ("blue", "red"))
