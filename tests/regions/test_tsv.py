"""Published region features in their layouts, and every way in which a line can be wrong, named with file and line."""

import base64
import json

import pytest
import torch
from PIL import Image

from dual_distill.regions.tsv import read_region_tsv

F = 5
FEATURES = torch.arange(2 * 3 * F, dtype=torch.float32).reshape(2, 3, F) / 7
BOXES = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 20, 10], [1, 2, 3, 4.5]], [[0, 0, 7, 7], [2, 2, 4, 4], [1, 1, 9, 3]]])
CONFIDENCES = [[0.5, 0.875, 0.75], [0.25, 0.25, 0.5]]
CLASSES = [["cat", "dog", "red cup"], ["tree", "car", "cat"]]
ORDERS = [[1, 2, 0], [2, 0, 1]]
IDS = ["139", "COCO_val2014_42"]


def encoded(tensor):
    return base64.b64encode(tensor.numpy().astype("<f4").tobytes()).decode()


def write(path, rows):
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def bottom_up(features=FEATURES, boxes=BOXES):
    return [[IDS[i], 20, 10, 3, encoded(boxes[i]), encoded(features[i])] for i in range(2)]


def objects(i, with_features=False):
    return [
        {"rect": BOXES[i, j].tolist(), "class": CLASSES[i][j], "conf": CONFIDENCES[i][j]}
        | ({"feature": encoded(FEATURES[i, j])} if with_features else {})
        for j in range(3)
    ]


def test_bottom_up_attention(tmp_path) -> None:
    store = read_region_tsv(
        write(tmp_path / "a.tsv", bottom_up()), tmp_path / "store", made_by="bottom-up attention, 36 boxes"
    )
    assert (store.ids(), store.feature_size) == (IDS, F)
    assert store.boxes_id.startswith("bottom-up attention, 36 boxes [")
    for i, name in enumerate(IDS):
        found = store.find(name)
        assert torch.equal(found.features, FEATURES[i])
        assert torch.equal(found.boxes_px, BOXES[i])
        assert (found.scores.tolist(), found.tags, found.width, found.height) == ([1, 1, 1], [""] * 3, 20, 10)
    assert torch.equal(store.find(139).features, FEATURES[0])


def test_other_features_at_the_same_boxes_have_the_same_boxes_id(tmp_path) -> None:
    ours = read_region_tsv(write(tmp_path / "a.tsv", bottom_up()), tmp_path / "a", made_by="detector")
    theirs = read_region_tsv(write(tmp_path / "b.tsv", bottom_up(FEATURES * 2)), tmp_path / "b", made_by="detector")
    moved = read_region_tsv(write(tmp_path / "c.tsv", bottom_up(boxes=BOXES / 2)), tmp_path / "c", made_by="detector")
    assert ours.boxes_id == theirs.boxes_id != moved.boxes_id
    assert len({store.features_id for store in (ours, theirs, moved)}) == 3


@pytest.fixture(params=["vinvl", "oscar", "oscar with columns"])
def with_classes(request, tmp_path):
    if request.param == "vinvl":
        rows = [[IDS[i], json.dumps({"image_w": 20, "image_h": 10, "objects": objects(i, True)})] for i in range(2)]
        return {"file": write(tmp_path / "predictions.tsv", rows)}
    if request.param == "oscar":
        rows = [[IDS[i], json.dumps({"num_boxes": 3, "features": encoded(FEATURES[i])})] for i in range(2)]
    else:
        rows = [[IDS[i], 3, encoded(FEATURES[i])] for i in range(2)]
    labels = [[IDS[i], json.dumps(objects(i))] for i in (1, 0)]
    sizes = [[IDS[i], json.dumps([{"height": 10, "width": 20}])] for i in (1, 0)]
    return {
        "file": write(tmp_path / "features.tsv", rows),
        "labels": write(tmp_path / "labels.tsv", labels),
        "sizes": write(tmp_path / "hw.tsv", sizes),
    }


def test_classes_and_certainties(with_classes, tmp_path) -> None:
    file = with_classes.pop("file")
    store = read_region_tsv(file, tmp_path / "store", made_by="vinvl", **with_classes)
    for i, name in enumerate(IDS):
        found = store.find(name)
        assert torch.equal(found.features, FEATURES[i][ORDERS[i]])
        assert torch.equal(found.boxes_px, BOXES[i][ORDERS[i]])
        assert found.scores.tolist() == [CONFIDENCES[i][j] for j in ORDERS[i]]
        assert found.tags == [CLASSES[i][j] for j in ORDERS[i]]


def test_lxmert_s_ten_columns(tmp_path) -> None:
    """Height before width, certainties as numbers, classes as numbers that only its own list names."""
    rows = []
    for i, name in enumerate(IDS):
        numbers, certain = base64.b64encode(bytes(3 * 8)).decode(), encoded(torch.tensor(CONFIDENCES[i]))
        rows.append([name, 10, 20, numbers, certain, numbers, certain, 3, encoded(BOXES[i]), encoded(FEATURES[i])])
    store = read_region_tsv(write(tmp_path / "train2014_obj36.tsv", rows), tmp_path / "store", made_by="lxmert")
    for i, name in enumerate(IDS):
        found = store.find(name)
        assert torch.equal(found.features, FEATURES[i][ORDERS[i]])
        assert torch.equal(found.boxes_px, BOXES[i][ORDERS[i]])
        assert found.scores.tolist() == [CONFIDENCES[i][j] for j in ORDERS[i]]
        assert (found.tags, found.width, found.height) == ([""] * 3, 20, 10)


def test_labels_without_certainties_and_ids_with_and_without_file_extension(tmp_path) -> None:
    features = write(tmp_path / "features.tsv", [[f"{IDS[i]}.jpg", 3, encoded(FEATURES[i])] for i in range(2)])
    bare = [[{k: v for k, v in one.items() if k != "conf"} for one in objects(i)] for i in range(2)]
    labels = write(tmp_path / "labels.tsv", [[IDS[i], json.dumps(bare[i])] for i in range(2)])
    sizes = write(tmp_path / "hw.tsv", [[f"{IDS[i]}.png", json.dumps([{"height": 10, "width": 20}])] for i in (0,)])
    sizes.write_text(sizes.read_text().replace(".png", "") + f'{IDS[1]}\t[{{"height": 10, "width": 20}}]\n')
    images = Images(ids=[f"{IDS[0]}", f"{IDS[1]}.JPG"])
    with pytest.raises(ValueError, match=r"not among the images given, such as 'COCO_val2014_42\.jpg'"):
        read_region_tsv(features, tmp_path / "a", made_by="x", labels=labels, sizes=sizes, images=images)
    images = Images(ids=[IDS[0], f"{IDS[1]}.jpg"])
    store = read_region_tsv(features, tmp_path / "store", made_by="x", labels=labels, sizes=sizes, images=images)
    for i, name in enumerate(IDS):
        assert torch.equal(store.find_image(images.value(images.ids[i])).features, FEATURES[i])
        assert (store.find(name).scores.tolist(), store.find(name).tags) == ([1, 1, 1], CLASSES[i])
        assert name in store
        assert f"{name}.jpg" in store
        assert "nobody" not in store


def test_box_numbers_at_the_end_of_a_vector_are_cut(tmp_path) -> None:
    wide = torch.cat([FEATURES, torch.rand(2, 3, 6)], dim=2)
    file = write(tmp_path / "a.tsv", bottom_up(wide))
    store = read_region_tsv(file, tmp_path / "store", made_by="x", cut_box_numbers=True)
    assert torch.equal(store.find("139").features, FEATURES[0])


def test_a_call_that_was_killed_is_continued(tmp_path) -> None:
    file = write(tmp_path / "a.tsv", bottom_up())
    read_region_tsv(file, tmp_path / "store", made_by="x", shard_size=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    (tmp_path / "store" / "shard-00001.arrow").unlink()
    read_region_tsv(file, tmp_path / "store", made_by="x", shard_size=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


class Images:
    """Images by id, as `open_images` gives them."""

    def __init__(self, size=(20, 10), ids=IDS):
        self.ids = list(ids)
        self._images = {name: Image.new("RGB", size, (index, 0, 0)) for index, name in enumerate(ids)}

    def value(self, identifier):
        return self._images[identifier]


def test_regions_are_found_by_the_content_of_their_images(tmp_path) -> None:
    file = write(tmp_path / "a.tsv", bottom_up())
    images = Images()
    store = read_region_tsv(file, tmp_path / "store", made_by="x", images=images)
    assert torch.equal(store.find_image(images.value(IDS[1])).features, FEATURES[1])
    with pytest.raises(ValueError, match=r"a\.tsv, line 1: it says 20 x 10 pixels, but the image '139' has 20 x 11"):
        read_region_tsv(file, tmp_path / "other", made_by="x", images=Images(size=(20, 11)))
    with pytest.raises(
        ValueError, match=r"1 images of .*a\.tsv' are not among the images given, such as 'COCO_val2014_42'"
    ):
        read_region_tsv(file, tmp_path / "fewer", made_by="x", images=Images(ids=IDS[:1]))


def second_line(**changes):
    """The good rows, with columns of the second changed."""
    rows = bottom_up()
    for column, value in changes.items():
        rows[1][int(column.removeprefix("column"))] = value
    return rows


NAN = FEATURES[1].clone()
NAN[1, 2] = float("nan")
BAD = {
    "truncated base64": (
        second_line(column5=encoded(FEATURES[1])[:-3]),
        "the base64 of its features is truncated or damaged",
    ),
    "a lost byte": (second_line(column5=encoded(FEATURES[1])[:-4]), "its features are 57 bytes, which is not 3 rows"),
    "another width": (second_line(column5=encoded(FEATURES[1, :, :4])), "a feature vector is 4 wide, expected is 5"),
    "NaN": (second_line(column5=encoded(NAN)), "the feature of region 1 holds NaN"),
    "a box outside": (second_line(column4=encoded(BOXES[1] * 3)), r"box 0 is \[0, 0, 21, 21\], which is not"),
    "no box": (second_line(column3=0, column4="", column5=""), "there is no region at all"),
    "another number of boxes": (
        second_line(column3=2),
        "its boxes are 48 bytes|boxes have shape|features are 60 bytes",
    ),
    "no number": (second_line(column1="wide"), "image_w is wide, but expected is int"),
    "too few columns": ([bottom_up()[0], bottom_up()[1][:4]], "it has 4 columns, but expected are 10, 6, 3 or 2"),
    "no tab": ([bottom_up()[0], ["139 20 10"]], "there is no tab in it"),
    "twice": ([bottom_up()[0], bottom_up()[0]], "the image '139' was there before, in line 1"),
}


@pytest.mark.parametrize("rows, message", BAD.values(), ids=BAD)
def test_a_bad_line_is_named(rows, message, tmp_path) -> None:
    file = write(tmp_path / "a.tsv", rows)
    with pytest.raises(ValueError, match=rf"a\.tsv, line 2: .*({message})"):
        read_region_tsv(file, tmp_path / "store", made_by="x")


BAD_JSON = {
    "no rect": ({"objects": [{"class": "cat", "conf": 1.0, "feature": encoded(FEATURES[0, 0])}]}, "rect is missing"),
    "three corners": (
        {"objects": [{"rect": [1, 2, 3], "class": "cat", "conf": 1.0, "feature": encoded(FEATURES[0, 0])}]},
        r"a rect is \[x0, y0, x1, y1\]",
    ),
    "no features": ({"num_boxes": 3}, "features is missing, but expected is str"),
    "no labels": ({"num_boxes": 3, "features": encoded(FEATURES[0])}, "it holds features and no boxes"),
    "a list": ([], "its last column is a list"),
}


@pytest.mark.parametrize("entry, message", BAD_JSON.values(), ids=BAD_JSON)
def test_a_bad_entry_is_named(entry, message, tmp_path) -> None:
    if isinstance(entry, dict):
        entry = {"image_w": 20, "image_h": 10, **entry}
    file = write(tmp_path / "a.tsv", [[IDS[0], json.dumps(entry)]])
    with pytest.raises(ValueError, match=rf"a\.tsv, line 1: .*{message}"):
        read_region_tsv(file, tmp_path / "store", made_by="x")


def test_files_that_do_not_belong_together(tmp_path) -> None:
    features = write(tmp_path / "features.tsv", [[IDS[0], 3, encoded(FEATURES[0])]])
    few = write(tmp_path / "labels.tsv", [[IDS[0], json.dumps(objects(0)[:2])]])
    with pytest.raises(
        ValueError, match=r"labels.tsv, line 1: it has 2 objects, but .*features.tsv, line 1 features of 3"
    ):
        read_region_tsv(features, tmp_path / "store", made_by="x", labels=few)
    labels = write(tmp_path / "labels.tsv", [[IDS[0], json.dumps(objects(0))]])
    with pytest.raises(ValueError, match=r"labels.tsv, line 1: it does not say how large the image is"):
        read_region_tsv(features, tmp_path / "store", made_by="x", labels=labels)
    other = write(tmp_path / "other.tsv", [[IDS[1], json.dumps(objects(0))]])
    with pytest.raises(ValueError, match=r"other.tsv' has no line for the image '139'"):
        read_region_tsv(features, tmp_path / "store", made_by="x", labels=other)
    with pytest.raises(ValueError, match="holds no line"):
        read_region_tsv(write(tmp_path / "empty.tsv", []), tmp_path / "store", made_by="x")
