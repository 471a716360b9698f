"""A region store gives back what was written, finds images by id and content, refuses what no model should read."""

import copy
import io
import json
import shutil

import pytest
import torch
from PIL import Image

from dual_distill.data import RegionSet, fingerprint
from dual_distill.regions.store import RegionManifest, RegionStore, StoredImage, fill_store

F = 6
MANIFEST = RegionManifest("detector a, 2 boxes [0]", "backbone b [1]", F, "float32", 3, {"threshold": 0.2})


def regions(number, count=2, width=20, height=10):
    """Regions whose every value follows from the image's number."""
    draw = torch.Generator().manual_seed(number)
    corner = torch.rand(count, 2, generator=draw) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + torch.tensor([width / 3, height / 3])], 1)
    scores = torch.rand(count, generator=draw).sort(descending=True).values
    tags = [f"tag {number} {index}" for index in range(count)]
    return RegionSet(torch.randn(count, F, generator=draw), boxes, scores, tags, width, height)


def image_of(number):
    return Image.new("RGB", (20, 10), (number, 2 * number, 3 * number))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def stored(number):
    image = image_of(number)
    return StoredImage(
        f"image {number}", fingerprint(png(image)), fingerprint(image), regions(number, count=1 + number % 3)
    )


def describe(ids):
    return (stored(int(identifier.split()[1])) for identifier in ids)


IDS = [f"image {number}" for number in range(8)]


@pytest.fixture
def store(tmp_path):
    assert fill_store(tmp_path / "store", MANIFEST, IDS, describe) == 8
    return RegionStore(tmp_path / "store")


def assert_same(found, expected):
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.boxes_px, expected.boxes_px)
    assert torch.equal(found.scores, expected.scores)
    assert (list(found.tags), *found[4:]) == (list(expected.tags), *expected[4:])


def test_what_was_written_comes_back(store) -> None:
    assert (len(store), store.ids(), store.feature_size) == (8, IDS, F)
    assert (store.boxes_id, store.features_id) == (MANIFEST.boxes_id, MANIFEST.features_id)
    for number in reversed(range(8)):
        assert_same(store.find(f"image {number}"), stored(number).regions)
        assert_same(store.read(number), stored(number).regions)


def test_an_image_is_found_by_its_bytes_and_by_its_pixels(store, tmp_path) -> None:
    image = image_of(5)
    expected = stored(5).regions
    assert_same(store.find(fingerprint(png(image))), expected)
    assert_same(store.find_image(png(image)), expected)
    assert_same(store.find_image(image), expected)
    image.save(tmp_path / "other.bmp")
    assert_same(store.find_image(str(tmp_path / "other.bmp")), expected)
    assert "image 5" in store
    assert "image 8" not in store
    assert None not in store


def test_an_id_may_be_a_number(tmp_path) -> None:
    fill_store(tmp_path / "store", MANIFEST, ["139"], lambda ids: iter([StoredImage("139", None, None, regions(1))]))
    assert_same(RegionStore(tmp_path / "store").find(139), regions(1))


def test_what_is_not_there_is_named(store) -> None:
    with pytest.raises(
        ValueError, match=r"8 images, boxes by detector a, 2 boxes \[0\]\) lacks 'cat': its ids are like 'image 0'"
    ):
        store.find("cat")
    with pytest.raises(ValueError, match="lacks 'row 17'"):
        store.find_image(image_of(99), row=17)
    with pytest.raises(IndexError, match="Index 8 was asked for"):
        store.read(8)


def test_a_store_travels_to_another_process(store) -> None:
    assert_same(copy.copy(store).find("image 7"), stored(7).regions)


def test_half_precision_halves_the_file_and_rounds(store, tmp_path) -> None:
    fill_store(tmp_path / "half", RegionManifest(**{**vars(MANIFEST), "dtype": "float16"}), IDS, describe)
    assert torch.equal(RegionStore(tmp_path / "half").read(4).features, store.read(4).features.half().float())


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("gone", [("plan-*", "shard-*"), ("shard-*",), ("shard-00001.arrow",), ("shard-00002*",)])
def test_a_killed_run_continues_to_the_same_bits(gone, store, tmp_path) -> None:
    whole, killed = tmp_path / "store", tmp_path / "killed"
    shutil.copytree(whole, killed)
    for pattern in gone:
        for path in killed.glob(pattern):
            path.unlink()
    if (killed / "plan-00000.arrow").is_file():
        with pytest.raises(ValueError, match=r"lacks [13] of 3 shards .* The same command continues it"):
            RegionStore(killed)
    fill_store(killed, MANIFEST, IDS, describe)
    assert contents(killed) == contents(whole)


def test_new_images_are_added_behind(store, tmp_path) -> None:
    assert fill_store(tmp_path / "store", MANIFEST, ["image 9", *IDS], describe) == 1
    assert RegionStore(tmp_path / "store").ids() == [*IDS, "image 9"]


def test_a_store_begun_with_something_else_is_refused(store, tmp_path) -> None:
    other = RegionManifest(**{**vars(MANIFEST), "made_with": {"threshold": 0.5}})
    with pytest.raises(ValueError, match=r"begun with other settings \(made_with.threshold: 0.2 there, 0.5 now\)"):
        fill_store(tmp_path / "store", other, IDS, describe)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no region store and is not empty \(thesis.txt\)"):
        fill_store(tmp_path / "full", MANIFEST, IDS, describe)


def test_damaged_files_are_named(store, tmp_path) -> None:
    shard = tmp_path / "store" / "shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[-300] ^= 1  # among the features
    shard.write_bytes(content)
    damaged = RegionStore(tmp_path / "store")
    assert damaged.ids() == IDS
    assert_same(damaged.read(0), stored(0).regions)
    with pytest.raises(ValueError, match=r"shard-00001.arrow' is missing or damaged .*SHA-256.* which makes it anew"):
        damaged.read(4)
    shard.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"shard-00001.arrow' is missing or damaged"):
        RegionStore(tmp_path / "store")


def test_a_store_of_the_format_before_is_refused(store, tmp_path) -> None:
    manifest = {**json.loads((tmp_path / "store" / "regions.json").read_text()), "format": 1}
    (tmp_path / "store" / "regions.json").write_text(json.dumps(manifest))
    (tmp_path / "store" / "plan-00000.arrow").write_bytes(b"an Arrow file of that format")
    message = "has format 1, but this version reads 2; repeat `dual-distill regions` into another folder"
    with pytest.raises(ValueError, match=message):
        RegionStore(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        fill_store(tmp_path / "store", MANIFEST, IDS, describe)


def test_an_id_twice(tmp_path) -> None:
    with pytest.raises(ValueError, match="The id 'image 3' occurs more than once"):
        fill_store(tmp_path / "store", MANIFEST, [*IDS, "image 3"], describe)


NAN = torch.full((2, F), float("nan"))
BAD = {
    "a wrong width": ({"features": torch.zeros(2, F + 1)}, "a feature vector is 7 wide, expected is 6"),
    "features of other boxes": (
        {"features": torch.zeros(3, F)},
        r"features have shape \(3, 6\), expected is one row for each of 2",
    ),
    "a box to the right": (
        {"boxes_px": torch.tensor([[0.0, 0, 5, 5], [10, 0, 22, 5]])},
        r"box 1 is \[10, 0, 22, 5\], which is not",
    ),
    "a box above": ({"boxes_px": torch.tensor([[0.0, -1.5, 5, 5], [1, 1, 2, 2]])}, r"box 0 is \[0, -1.5, 5, 5\]"),
    "width and height for corners": ({"boxes_px": torch.tensor([[8.0, 5, 4, 2]] * 2)}, r"not \[x, y, width, height\]"),
    "no box": (
        {"boxes_px": torch.zeros(0, 4), "features": torch.zeros(0, F), "scores": torch.zeros(0), "tags": []},
        "there is no region at all",
    ),
    "NaN features": ({"features": NAN}, "the feature of region 0 holds NaN or infinity"),
    "a NaN box": (
        {"boxes_px": torch.tensor([[0.0, 0, 5, 5], [float("nan"), 0, 1, 1]])},
        "the box of region 1 holds NaN",
    ),
    "a NaN score": ({"scores": torch.tensor([1.0, float("inf")])}, "the score of region 1 holds NaN or infinity"),
    "a missing tag": ({"tags": ["one"]}, "there are 2 boxes, but scores of shape .* and 1 tags"),
    "no image": ({"width": 0}, "the image is 0 x 10 pixels"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_regions_that_are_not_usable_are_refused(change, message, tmp_path) -> None:
    bad = StoredImage("image 0", None, None, regions(0)._replace(**change))
    with pytest.raises(ValueError, match=rf"^image 'image 0': .*{message}"):
        fill_store(tmp_path / "store", MANIFEST, ["image 0"], lambda ids: iter([bad]))
    assert not list((tmp_path / "store").glob("*shard-*"))


def test_a_box_that_was_rounded_is_cut_to_the_image() -> None:
    rounded = regions(0)._replace(boxes_px=torch.tensor([[-0.5, 0, 20.75, 10], [0, 0, 1, 1]])).checked("here")
    assert rounded.boxes_px[0].tolist() == [0, 0, 20, 10]
    assert rounded.normalized_boxes()[0].tolist() == [0, 0, 1, 1, 1, 1]


def test_the_first_regions() -> None:
    first = regions(0, count=3).first(2)
    assert (len(first.features), len(first.boxes_px), len(first.scores), first.tags) == (
        2,
        2,
        2,
        ["tag 0 0", "tag 0 1"],
    )
