import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image

from dual_distill.data.datasets.nlvr import load_nlvr


def write_split(folder, split, directories, png, drop=None, examples=3):
    """`examples` sentences in each directory, with six permutations of one picture each."""
    rows = [
        {
            "image": png((directory, example, permutation)),
            "sentence": f"There is  a box {directory}.",
            "label": (directory + example) % 2 == 0,
            "identifier": f"{100 * directory + example}-{example}",
            "split": split,
            "permutation": permutation,
            "directory": directory,
        }
        for directory in directories
        for example in range(examples)
        for permutation in range(6)
    ]
    table = pa.Table.from_pylist(rows)
    half = len(rows) // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        part = part.drop_columns([drop]) if drop else part
        pq.write_table(part, folder / f"{split}-{number:05}-of-00002.parquet")


@pytest.fixture
def folder(tmp_path, png):
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, directories in {"train": range(10), "dev": [20], "test": [30]}.items():
        write_split(folder, split, directories, png)
    return folder


def test_validation_is_made_of_whole_directories(folder):
    data = load_nlvr(folder, validation_rows=20)
    assert data.num_rows == {"train": 144, "validation": 36, "dev": 18, "test": 18}  # 18 rows a directory
    held_out, kept = set(data["validation"]["directory"]), set(data["train"]["directory"])
    assert held_out | kept == set(range(10))
    assert not held_out & kept


def test_the_seed_chooses_the_directories(folder):
    chosen = [tuple(load_nlvr(folder, 20, seed=seed)["validation"].unique("directory")) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) >= 3


def test_rows_are_as_they_were(folder, png):
    row = next(row for row in load_nlvr(folder, 0)["train"] if row["identifier"] == "702-2" and row["permutation"] == 4)
    assert row == {
        "image": {"bytes": png((7, 2, 4)), "path": None},
        "sentence": "There is  a box 7.",
        "label": "false",
        "identifier": "702-2",
        "sentence_id": "702",
        "permutation": 4,
        "directory": 7,
    }


def test_images_stay_undecoded(folder):
    assert load_nlvr(folder, 0)["dev"].features["image"] == Image(decode=False)


def test_images_may_also_be_structs_of_bytes_and_path(folder, png):
    for file in folder.glob("dev-*.parquet"):
        table = pq.read_table(file)
        structs = pa.array([{"bytes": content, "path": "a.png"} for content in table["image"].to_pylist()])
        pq.write_table(table.set_column(0, "image", structs), file)
    assert load_nlvr(folder, 0)["dev"][0]["image"] == {"bytes": png((20, 0, 0)), "path": "a.png"}


def with_column(folder, name, change):
    """Write the split dev anew with one column changed: `change` makes a list of a list."""
    for file in folder.glob("dev-*.parquet"):
        table = pq.read_table(file)
        index, values = table.column_names.index(name), table[name].to_pylist()
        pq.write_table(table.set_column(index, name, pa.array(change(values))), file)


def test_labels_of_parquet_may_be_the_two_words(folder):
    expected = load_nlvr(folder, 0)["dev"]["label"][:]
    with_column(folder, "label", lambda labels: [str(label).lower() for label in labels])
    assert load_nlvr(folder, 0)["dev"]["label"][:] == expected
    assert set(expected) == {"false", "true"}


@pytest.mark.parametrize(
    ("name", "change", "message", "left"),
    [
        ("label", lambda labels: [None, *labels[1:]], r"row 0: label is None, but expected is text", 16),
        ("label", lambda labels: ["maybe", "True"] + ["true"] * (len(labels) - 2), r"row 0: label is 'maybe'", 14),
        ("sentence", lambda texts: [*texts[:2], " ", *texts[3:]], r"row 2: sentence is empty \(' '\)", 16),
        ("identifier", lambda texts: [None, *texts[1:]], r"row 0: identifier is None, but expected is text", 16),
        ("directory", lambda numbers: [None, *numbers[1:]], r"row 0: directory is None, but expected is a whole", 16),
        ("image", lambda images: [None, *images[1:]], r"row 0: the image is missing: neither bytes nor a path", 16),
    ],
)
def test_a_bad_row_of_parquet(folder, name, change, message, left):
    with_column(folder, name, change)
    with pytest.raises(ValueError, match=r"dev-00000-of-00002\.parquet, " + message):
        load_nlvr(folder, 0)
    assert load_nlvr(folder, 0, skip_bad=True, check_images=False)["dev"].num_rows == left


def test_a_missing_column_is_named_with_its_file(folder, png):
    write_split(folder, "dev", [20], png, drop="permutation")
    with pytest.raises(
        ValueError, match=r"dev-00000-of-00002\.parquet' has no column 'permutation': expected .* found image"
    ):
        load_nlvr(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_rows": 180}, r"validation_rows is 180, but there are 180 rows in 10 groups"),
        ({"validation_rows": -1}, "validation_rows is -1"),
    ],
)
def test_wrong_options(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_nlvr(folder, **arguments)


def test_missing_files_and_broken_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder 'nowhere'"):
        load_nlvr("nowhere")
    (folder / "test-00000-of-00002.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"test-00000-of-00002\.parquet' cannot be read as parquet"):
        load_nlvr(folder)
    for file in folder.glob("test-*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no file test-\*\.parquet"):
        load_nlvr(folder)


def test_the_official_files(data_folder):
    data = load_nlvr(data_folder("nlvr1"))
    assert {split: data[split].num_rows for split in ("dev", "test")} == {"dev": 5_934, "test": 5_940}
    assert data["train"].num_rows + data["validation"].num_rows == 74_448
    assert 4_000 <= data["validation"].num_rows < 5_000
    assert not set(data["train"]["directory"]) & set(data["validation"]["directory"])
    assert not set(data["train"]["identifier"]) & set(data["validation"]["identifier"])
    share_true = sum(label == "true" for label in data["test"]["label"]) / 5_940
    assert round(share_true, 3) == 0.562  # the published majority of test


@pytest.fixture
def repository(tmp_path, png):
    """The folder nlvr/ of the authors' repository: JSON lines and numbered folders of images in each split's folder."""
    for split, directories in {"train": range(10), "dev": [20], "test": [30]}.items():
        examples = [(directory, example) for directory in directories for example in range(3)]
        lines = [
            {
                "sentence": f"There is  a box {directory}.",
                "label": str((directory + example) % 2 == 0).lower(),
                "identifier": f"{100 * directory + example}-{example}",
                "directory": str(directory),
                "evals": {"r0": "true"},
            }
            for directory, example in examples
        ]
        for (directory, example), line in zip(examples, lines, strict=True):
            folder = tmp_path / split / "images" / str(directory)
            folder.mkdir(parents=True, exist_ok=True)
            for permutation in range(6):
                file = folder / f"{split}-{line['identifier']}-{permutation}.png"
                file.write_bytes(png((directory, example, permutation)))
        (tmp_path / split / f"{split}.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_the_repository_gives_what_parquet_gives(repository, folder):
    from_repository, from_parquet = load_nlvr(repository, 20), load_nlvr(folder, 20)
    for split, rows in from_parquet.items():
        assert from_repository[split].remove_columns("image").to_list() == rows.remove_columns("image").to_list()
        for row, expected in zip(from_repository[split], rows, strict=True):
            assert Path(row["image"]["path"]).read_bytes() == expected["image"]["bytes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 2, permutation 0: label is 'maybe', but expected is false, true"),
        ({"directory": "x"}, "line 2, permutation 0: directory is 'x', but expected is a whole number"),
        ({"identifier": "7-7"}, "line 2, permutation 0: the image is missing: .* holds no 20/dev-7-7-0.png"),
    ],
)
def test_a_bad_line_of_the_repository(repository, change, message):
    file = repository / "dev" / "dev.json"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1] |= change
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=message):
        load_nlvr(repository, 20)
    assert load_nlvr(repository, 20, skip_bad=True)["dev"].num_rows == 12
