import json
import re

import pytest
from datasets import Image

from dual_distill.data import TASKS, ReadingReport, load_task
from dual_distill.data.datasets.nlvr import load_nlvr2

IDENTIFIERS = {
    "train.json": ["train-10-0-0", "train-10-1-0", "train-10-0-1", "train-11-3-0"],
    "dev.json": ["dev-850-0-1", "dev-850-1-1"],
    "test1.json": ["test1-0-0-0"],
}


def example(identifier):
    return {
        "sentence": f"There are two dogs in {identifier}.",
        "left_url": "http://example.org/a.png",
        "label": "True" if identifier.endswith("0") else "False",
        "identifier": identifier,
        "directory": 40,
    }


def write(file, examples, newline="\n"):
    file.write_bytes("".join(json.dumps(example) + newline for example in examples).encode())


def image_names(identifier):
    return [f"{identifier.rpartition('-')[0]}-img{number}.png" for number in (0, 1)]


@pytest.fixture
def folder(tmp_path, png):
    """The official layout: train's images in numbered directories, dev's and test1's in a folder each."""
    for name, identifiers in IDENTIFIERS.items():
        write(tmp_path / name, map(example, identifiers))
        split = name.removesuffix(".json")
        images = tmp_path / "images" / split / ("40" if split == "train" else "")
        images.mkdir(parents=True)
        for identifier in identifiers:
            for image in image_names(identifier):
                (images / image).write_bytes(png())
    return tmp_path


def test_rows_of_the_official_layout(folder):
    data = load_task("nlvr2", folder)
    assert data.num_rows == {"train": 4, "validation": 2, "test": 1}
    assert data["validation"][0] == {
        "image_0": {"bytes": None, "path": str(folder / "images" / "dev" / "dev-850-0-img0.png")},
        "image_1": {"bytes": None, "path": str(folder / "images" / "dev" / "dev-850-0-img1.png")},
        "sentence": "There are two dogs in dev-850-0-1.",
        "label": "False",
        "identifier": "dev-850-0-1",
        "sentence_id": "dev-850-1",
    }
    assert data["train"][3]["image_1"]["path"] == str(folder / "images" / "train" / "40" / "train-11-3-img1.png")
    assert data["train"].features["image_1"] == Image(decode=False)
    task = TASKS["nlvr2"]
    assert set(data["train"]["label"]) == set(task.label_names)
    assert {*task.image_columns, task.text_column, task.consistency_column} <= set(data["train"].column_names)


def test_one_sentence_groups_its_pairs(folder):
    assert load_nlvr2(folder)["train"]["sentence_id"][:] == ["train-10-0", "train-10-0", "train-10-1", "train-11-0"]


@pytest.mark.parametrize("place", ["", "dev", "40", "dev/40"])
def test_where_images_may_lie(folder, tmp_path, place):
    images = tmp_path / "elsewhere" / place
    images.mkdir(parents=True)
    for identifier in IDENTIFIERS["dev.json"]:
        for image in image_names(identifier):
            (images / image).touch()
    for identifier in IDENTIFIERS["train.json"] + IDENTIFIERS["test1.json"]:
        for image in image_names(identifier):
            (tmp_path / "elsewhere" / image).touch()
    data = load_nlvr2(folder, images=tmp_path / "elsewhere")
    assert data["validation"][1]["image_0"]["path"] == str(images / "dev-850-1-img0.png")


def test_bom_crlf_and_empty_lines_are_no_trouble(folder):
    write(folder / "dev.json", map(example, IDENTIFIERS["dev.json"]), newline="\r\n\r\n")
    (folder / "dev.json").write_bytes(b"\xef\xbb\xbf" + (folder / "dev.json").read_bytes())
    assert load_nlvr2(folder)["validation"].num_rows == 2


GOOD = example("train-10-1-0")
BAD = [
    ({**GOOD, "identifier": "train-10-9-0"}, "missing image", "train-10-9-img0.png nor train/train-10-9-img0.png nor"),
    ({**GOOD, "identifier": "train-10-0-0"}, "duplicate identifier", "identifier train-10-0-0 occurs twice"),
    (
        {**GOOD, "identifier": "train-10-0"},
        "malformed identifier",
        "identifier is 'train-10-0', but expected is split-set-pair",
    ),
    ({**GOOD, "identifier": "../train-1-0-0"}, "malformed identifier", "identifier is '../train-1-0-0'"),
    ({**GOOD, "label": "true"}, "unknown label", "label is 'true', but expected is True, False"),
    ({**GOOD, "sentence": ""}, "empty sentence", "sentence is empty ('')"),
    (
        {"identifier": "train-10-1-0", "label": "True"},
        "malformed record",
        "there is no 'sentence' among identifier, label",
    ),
    (["a", "list"], "malformed line", "but expected is an object"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD)
def test_a_bad_line_is_named_or_listed(folder, bad, kind, message, capsys):
    write(folder / "train.json", [example("train-10-0-0"), bad, example("train-11-3-0")])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_nlvr2(folder)
    assert str(caught.value).startswith(f"{folder / 'train.json'}, line 2: ")
    report = ReadingReport()
    data = load_nlvr2(folder, skip_bad=True, report=report)
    assert data["train"]["identifier"][:] == ["train-10-0-0", "train-11-3-0"]
    ((found, (sentence,)),) = report.bad.items()
    assert found == kind
    assert sentence.startswith(f"{folder / 'train.json'}, line 2: ")
    assert message in sentence
    printed = capsys.readouterr().err
    assert "nlvr2: train 2 rows, validation 2 rows, test 1 rows" in printed
    assert f"skipped 1: {kind}" in printed
    assert sentence in printed


def test_a_line_that_is_no_json_or_no_utf8(folder):
    file = folder / "dev.json"
    write(file, [example("dev-850-0-1")])
    for line in (b'{"sentence": "cut', b'{"sentence": "\xff\xfe"}\n'):
        file.write_bytes(json.dumps(example("dev-850-0-1")).encode() + b"\n" + line)
        with pytest.raises(ValueError, match=r"dev\.json, line 2: the line is not JSON \("):
            load_nlvr2(folder)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Give path= .data= of a recipe., a folder that holds train.json"),
        ({"path": "."}, FileNotFoundError, "holds no train.json"),
    ],
)
def test_wrong_arguments(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_nlvr2(**arguments)


def test_an_empty_split_is_refused(folder):
    (folder / "dev.json").write_text("\n\n")
    with pytest.raises(ValueError, match="The split 'validation' of 'nlvr2' has no rows"):
        load_nlvr2(folder)
