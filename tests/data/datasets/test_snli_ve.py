import json

import pytest

from dual_distill.data import TASKS, ReadingReport, load_task
from dual_distill.data.datasets.snli_ve import load_snli_ve

LABELS = ["entailment", "neutral", "contradiction", "-", "entailment"]


def example(number, label):
    return {
        "Flickr30K_ID": f"47055529{number:02}",
        "gold_label": label,
        "sentence1": "Two women are embracing.",
        "sentence2": f"The sisters are hugging goodbye {number}.",
        "pairID": f"47055529{number:02}.jpg#2r1n",
    }


@pytest.fixture
def folder(tmp_path, png):
    (tmp_path / "flickr30k-images").mkdir()
    for number in range(5):
        (tmp_path / "flickr30k-images" / f"47055529{number:02}.jpg").write_bytes(png())
    for split in ("train", "dev", "test"):
        lines = [json.dumps(example(number, label)) for number, label in enumerate(LABELS)]
        (tmp_path / f"snli_ve_{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_rows_without_majority_are_left_out_and_counted(folder, capsys):
    report = ReadingReport()
    data = load_task("snli_ve", folder, report=report)
    assert data.num_rows == {"train": 4, "validation": 4, "test": 4}
    assert data["train"]["label"][:] == ["entailment", "neutral", "contradiction", "entailment"]
    assert report.left_out == {"gold_label '-' (no majority among the annotators)": 3}
    assert "left out 3: gold_label '-'" in capsys.readouterr().err
    assert data["validation"][1] == {
        "image": {"bytes": None, "path": str(folder / "flickr30k-images" / "4705552901.jpg")},
        "sentence": "The sisters are hugging goodbye 1.",
        "label": "neutral",
        "pair_id": "4705552901.jpg#2r1n",
        "image_id": "4705552901",
    }


def test_the_labels_have_the_order_of_the_release():
    assert TASKS["snli_ve"].label_names == ("contradiction", "entailment", "neutral")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"gold_label": "maybe"},
            "unknown gold_label",
            "gold_label is 'maybe', but expected is contradiction, entailment, neutral",
        ),
        ({"Flickr30K_ID": "1"}, "missing image", "the image is missing: .* holds no 1.jpg"),
        ({"Flickr30K_ID": 1}, "malformed record", "Flickr30K_ID is 1, but expected is text"),
        ({"sentence2": "\t"}, "empty sentence2", "sentence2 is empty"),
        ({"gold_label": None}, "malformed record", "gold_label is None"),
    ],
)
def test_a_bad_line_is_named_or_listed(folder, change, kind, message):
    file = folder / "snli_ve_dev.jsonl"
    file.write_text(json.dumps(example(0, "neutral")) + "\n" + json.dumps(example(1, "neutral") | change))
    with pytest.raises(ValueError, match=rf"snli_ve_dev\.jsonl, line 2: {message}"):
        load_snli_ve(folder)
    report = ReadingReport()
    assert load_snli_ve(folder, skip_bad=True, report=report)["validation"].num_rows == 1
    assert list(report.bad) == [kind]


def test_a_pair_id_that_repeats_is_noted_and_one_may_be_absent(folder):
    lines = [
        example(0, "neutral"),
        example(1, "neutral") | {"pairID": example(0, "-")["pairID"]},
        example(2, "neutral"),
    ]
    del lines[2]["pairID"]
    file = folder / "snli_ve_train.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    report = ReadingReport()
    data = load_snli_ve(folder, report=report)
    assert data["train"]["pair_id"][:] == ["4705552900.jpg#2r1n", "4705552900.jpg#2r1n", None]
    assert report.notes == {"pairID that occurred before": 1}


def test_a_split_without_any_majority_is_refused(folder):
    (folder / "snli_ve_test.jsonl").write_text(json.dumps(example(0, "-")))
    with pytest.raises(ValueError, match=r"The split 'test' of 'snli_ve' has no rows \(3 records were left out"):
        load_snli_ve(folder)


def test_a_missing_image_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match="There is no folder 'nowhere' for images"):
        load_snli_ve(folder, images="nowhere")
