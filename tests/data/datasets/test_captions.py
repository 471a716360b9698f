import json

import pytest

from dual_distill.data import TASKS, DistillationCollator, ReadingReport, load_task
from dual_distill.data.datasets.captions import load_captions


def karpathy_image(number, split, captions=2):
    return {
        "filepath": "val2014",
        "filename": f"COCO_val2014_{number:012}.jpg",
        "imgid": number,
        "cocoid": 100 + number,
        "split": split,
        "sentences": [
            {"raw": f"A dog {number}-{place}.", "tokens": ["a", "dog"], "imgid": number, "sentid": 10 * number + place}
            for place in range(captions)
        ],
    }


@pytest.fixture
def folder(tmp_path, png):
    (tmp_path / "val2014").mkdir()
    for number in range(6):
        (tmp_path / "val2014" / f"COCO_val2014_{number:012}.jpg").write_bytes(png())
    return tmp_path


def write_karpathy(folder, images):
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def write_coco(folder, images=(0, 1), captions=((7, 0), (8, 0), (9, 1)), name="captions_val2014.json"):
    document = {
        "images": [{"id": 100 + number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in images],
        "annotations": [{"id": i, "image_id": 100 + image, "caption": f"Cat {i}"} for i, image in captions],
    }
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_karpathys_splits(folder):
    splits = ["train", "restval", "val", "test"]
    write_karpathy(folder, [karpathy_image(number, split) for number, split in enumerate(splits)])
    data = load_task("coco_retrieval", folder)
    assert data.num_rows == {"train": 4, "validation": 2, "test": 2}
    assert data["train"]["split"][:] == ["train", "train", "restval", "restval"]
    assert data["validation"][1] == {
        "image": {"bytes": None, "path": str(folder / "val2014" / "COCO_val2014_000000000002.jpg")},
        "caption": "A dog 2-1.",
        "image_id": 102,
        "split": "val",
    }
    assert data["test"]["image_id"][:] == [103, 103]


def test_flickrs_file_has_neither_folders_nor_cocoids(folder):
    image = karpathy_image(3, "test")
    del image["filepath"], image["cocoid"]
    write_karpathy(folder, [image])
    data = load_captions(captions=folder / "dataset_coco.json", images=folder / "val2014")
    assert list(data) == ["test"]
    assert data["test"]["image_id"][:] == [3, 3]


def test_cocos_own_files(folder, capsys):
    train = write_coco(folder, name="captions_train.json")
    validation = write_coco(folder, images=(2, 3), captions=[(1, 3)])
    report = ReadingReport()
    data = load_captions(captions={"train": train, "validation": validation}, images=folder / "val2014", report=report)
    assert data.num_rows == {"train": 3, "validation": 1}
    assert data["train"]["caption"][:] == ["Cat 7", "Cat 8", "Cat 9"]
    assert data["train"]["image_id"][:] == [100, 100, 101]
    assert data["validation"]["split"][:] == ["validation"]
    assert report.left_out == {"image without a caption": 1}
    assert "captions: train 3 rows, validation 1 rows\n  left out 1: image without a caption" in capsys.readouterr().err


def test_one_image_folder_a_split(folder, tmp_path):
    file = write_coco(folder)
    arguments = {"captions": {"test": file}, "images": {"test": folder / "val2014"}}
    assert load_captions(**arguments)["test"].num_rows == 3
    with pytest.raises(ValueError, match="images names the splits train, captions test; name the same"):
        load_captions(**arguments | {"images": {"train": folder}})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"filename": "x.jpg"},
            "missing image",
            r"image 2 \(imgid 1\), sentence 1: the image is missing: .* val2014/x.jpg nor x.jpg",
        ),
        (
            {"split": "dev"},
            "unknown split",
            r"image 2 \(imgid 1\), sentence 1: split is 'dev', but expected is train, restval",
        ),
        ({"cocoid": 100}, "duplicate image id", r"image 2 \(imgid 1\): image id 100 occurs twice"),
        ({"sentences": None}, "malformed record", r"image 2 \(imgid 1\): sentences is None, but expected is a list"),
        ({"sentences": [{"raw": ""}]}, "empty raw", r"image 2 \(imgid 1\), sentence 1: raw is empty"),
        ({"sentences": ["A dog"]}, "malformed record", r"image 2 \(imgid 1\), sentence 1: the sentence is 'A dog'"),
        (
            {"sentences": [{"raw": "x", "sentid": 0}]},
            "duplicate sentid",
            r"image 2 \(imgid 1\), sentence 1: sentid 0 occurs",
        ),
    ],
)
def test_a_bad_entry_of_karpathys_file(folder, changes, kind, message):
    write_karpathy(folder, [karpathy_image(0, "train"), karpathy_image(1, "train", captions=1) | changes])
    with pytest.raises(ValueError, match=rf"dataset_coco\.json, {message}"):
        load_captions(folder)
    report = ReadingReport()
    assert load_captions(folder, skip_bad=True, report=report).num_rows == {"train": 2}
    assert {found: len(sentences) for found, sentences in report.bad.items()} == {kind: 1}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["annotations"][1].update(image_id=5),
            r"caption 2 \(id 8\): image_id is 5, which is not among the images",
        ),
        (lambda d: d["annotations"][1].update(caption=" "), r"caption 2 \(id 8\): caption is empty"),
        (lambda d: d["annotations"][1].update(id=7), r"caption 2 \(id 7\): caption id 7 occurs twice"),
        (lambda d: d["images"][1].update(id=100), r"image 2 \(id 100\): id 100 occurs twice"),
        (lambda d: d["images"][0].update(file_name="no.jpg"), r"caption 1 \(id 7\): the image is missing"),
        (lambda d: d.pop("annotations"), "holds no list 'annotations': expected images and annotations, found images"),
    ],
)
def test_a_bad_entry_of_cocos_file(folder, edit, message):
    file = write_coco(folder)
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        load_captions(captions={"train": file}, images=folder / "val2014")


def test_each_format_is_told_from_the_other(folder):
    with pytest.raises(ValueError, match=r"is in COCO's format; pass it with its split"):
        load_captions(captions=write_coco(folder), images=folder)
    write_karpathy(folder, [karpathy_image(0, "train")])
    with pytest.raises(ValueError, match="holds no list 'annotations'"):
        load_captions(captions={"train": folder / "dataset_coco.json"}, images=folder)
    with pytest.raises(ValueError, match=r"Give path= .data= of a recipe., a folder that holds dataset_coco\.json"):
        load_captions()
    (folder / "dataset_coco.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds none of dataset_coco\.json, dataset_flickr30k\.json"):
        load_captions(folder)


def test_a_caption_has_no_label(folder):
    write_karpathy(folder, [karpathy_image(0, "train")])
    task = TASKS["coco_retrieval"]
    assert task.label_column is None
    assert {*task.image_columns, task.text_column, task.image_id_column} <= set(
        load_captions(folder)["train"].column_names
    )
    assert DistillationCollator(None, task, ()).label_names == ()


def test_karpathys_format_of_real_photographs(data_folder, tmp_path):
    annotations = data_folder("coco_mini_ccby") / "annotations"
    listed = json.loads((annotations / "dataset_karpathy_format.json").read_text())["images"]
    for image in listed:
        (tmp_path / image["filepath"]).mkdir(exist_ok=True)
        (tmp_path / image["filepath"] / image["filename"]).touch()
    data = load_captions(captions=annotations / "dataset_karpathy_format.json", images=tmp_path)
    assert sum(data.num_rows.values()) == sum(len(image["sentences"]) for image in listed) == 380
    coco = {"train": annotations / "captions_train2017.json", "validation": annotations / "captions_val2017.json"}
    folders = {"train": tmp_path / "train2017", "validation": tmp_path / "val2017"}
    captions = load_captions(captions=coco, images=folders)
    assert sum(captions.num_rows.values()) == 380
