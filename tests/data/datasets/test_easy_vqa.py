import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dual_distill.data.datasets.easy_vqa import load_easy_vqa
from dual_distill.data.reading import ReadingReport


@pytest.fixture
def folder(tmp_path, png):
    """Four training images and two test images; image 1 exists in both splits. Written in an order of its own."""
    images = [("train", 3), ("test", 1), ("train", 0), ("train", 1), ("test", 0), ("train", 2)]
    table = [{"image": png((i, len(split), 0)), "image_id": i, "split": split} for split, i in images]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "images.parquet")
    questions = [
        {"question": f"what is {n} on {i}?", "answer": split, "image_id": i, "split": split, "question_id": 10 * i + n}
        for split, i in sorted(images)
        for n in range(i + 1)
    ]
    pq.write_table(pa.Table.from_pylist(questions), tmp_path / "questions.parquet")
    return tmp_path


def rewrite(file, change):
    pq.write_table(change(pq.read_table(file)), file)


def test_each_question_meets_the_image_of_its_split(folder, png):
    data = load_easy_vqa(folder, validation_images=0)
    assert data.num_rows == {"train": 10, "validation": 0, "test": 3}
    for split in ("train", "test"):
        for row in data[split]:
            assert row["image"]["bytes"] == png((row["image_id"], len(split), 0))
            assert row["answer"] == split
            assert row["question"] == f"what is {row['question_id'] % 10} on {row['image_id']}?"


def test_validation_holds_out_whole_images(folder):
    for seed in range(4):
        data = load_easy_vqa(folder, validation_images=2, seed=seed)
        held_out, kept = set(data["validation"]["image_id"]), set(data["train"]["image_id"])
        assert len(held_out) == 2
        assert held_out | kept == {0, 1, 2, 3}
        assert not held_out & kept
        assert data["train"].num_rows + data["validation"].num_rows == 10


@pytest.mark.parametrize("images", [-1, 4])
def test_validation_images_has_a_range(folder, images):
    with pytest.raises(ValueError, match=f"validation_images is {images}, but it is 0 or more and fewer than the 4"):
        load_easy_vqa(folder, validation_images=images)


@pytest.mark.parametrize(("file", "column"), [("images.parquet", "image_id"), ("questions.parquet", "answer")])
def test_a_missing_column_is_named_with_its_file(folder, file, column):
    rewrite(folder / file, lambda table: table.drop_columns([column]))
    with pytest.raises(ValueError, match=rf"{file}' has no column '{column}': expected .*, found "):
        load_easy_vqa(folder, 1)


def test_a_missing_file_is_named(folder):
    (folder / "questions.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no file questions\.parquet"):
        load_easy_vqa(folder, 1)


def test_a_question_without_image_and_an_image_twice(folder):
    whole = pq.read_table(folder / "images.parquet")
    pq.write_table(whole.slice(0, 5), folder / "images.parquet")
    with pytest.raises(
        ValueError,
        match=r"questions\.parquet, row 6: it asks about image_id 2 of split 'train', which images\.parquet lacks",
    ):
        load_easy_vqa(folder, 1)
    pq.write_table(pa.concat_tables([whole, whole.slice(0, 1)]), folder / "images.parquet")
    with pytest.raises(ValueError, match="image_id 3 occurs twice in split 'train'"):
        load_easy_vqa(folder, 1)


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_question_needs_text_and_answer(folder, name):
    def empty_one(table):
        return table.set_column(table.column_names.index(name), name, pa.array([None, *table[name].to_pylist()[1:]]))

    rewrite(folder / "questions.parquet", empty_one)
    with pytest.raises(ValueError, match=rf"questions\.parquet, row 0: {name} is empty \(None\), but a row"):
        load_easy_vqa(folder, 1)
    assert load_easy_vqa(folder, 0, skip_bad=True, check_images=False).num_rows["test"] == 2


def test_questions_of_another_split_are_counted(folder):
    def rename(table):
        splits = ["val", *table["split"].to_pylist()[1:]]
        return table.set_column(table.column_names.index("split"), "split", pa.array(splits))

    rewrite(folder / "questions.parquet", rename)
    report = ReadingReport()
    assert load_easy_vqa(folder, 0, report=report).num_rows == {"train": 10, "validation": 0, "test": 2}
    assert report.left_out == {"questions of split 'val', which is neither train nor test": 1}


def test_an_image_that_is_missing(folder):
    def empty_one(table):  # image 3 of train, with four questions
        return table.set_column(0, "image", pa.array([None, *table["image"].to_pylist()[1:]], pa.binary()))

    rewrite(folder / "images.parquet", empty_one)
    with pytest.raises(ValueError, match=r"images\.parquet, row 0: the image is missing: neither bytes nor a path"):
        load_easy_vqa(folder, 0)
    assert load_easy_vqa(folder, 0, skip_bad=True).num_rows == {"train": 6, "validation": 0, "test": 3}


def test_an_image_column_of_another_type(folder):
    rewrite(folder / "images.parquet", lambda table: table.set_column(0, "image", pa.array(range(table.num_rows))))
    with pytest.raises(ValueError, match=r"The column 'image' of '.*images\.parquet' holds int64"):
        load_easy_vqa(folder, 1)


def test_the_official_files(data_folder):
    data = load_easy_vqa(data_folder("easy_vqa"))
    assert data["train"].num_rows + data["validation"].num_rows == 38_575
    assert data["test"].num_rows == 9_673
    assert len(set(data["validation"]["image_id"])) == 400
    assert not set(data["validation"]["image_id"]) & set(data["train"]["image_id"])
    assert len(data["train"].unique("answer")) == 13
