"""Regions of generated scenes: features that tell what a box holds, and detectors of every kind of lightness."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from worlds.scene_regions import SceneBackbone, backbone_accuracy, scene_region_store, train_scene_backbone

from dual_distill.data import generate_scenes
from dual_distill.regions import RegionStore


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes({"train": 200, "validation": 40}, questions_per_scene=2, seed=3)


@pytest.fixture(scope="module")
def backbone(scenes):
    return train_scene_backbone(scenes["train"], 32)


def one_row_a_scene(split):
    return {row["scene_id"]: row for row in split}


def test_a_trained_backbone_tells_colours_and_shapes_of_scenes_that_it_never_saw(scenes, backbone) -> None:
    accuracy = backbone_accuracy(backbone, scenes["validation"])
    assert accuracy["colour_accuracy"] > 0.98
    assert accuracy["shape_accuracy"] > 0.85
    untrained = backbone_accuracy(SceneBackbone(32), scenes["validation"])
    assert max(untrained.values()) < 0.7


def test_known_boxes_with_their_names(scenes, backbone, tmp_path) -> None:
    store = scene_region_store(scenes, backbone, tmp_path / "store")
    rows = one_row_a_scene(scenes["train"]) | one_row_a_scene(scenes["validation"])
    assert store.ids() == list(rows)
    assert (store.feature_size, store.boxes_id[:34]) == (32, "boxes of scenes, as they are, seed 0"[:34])
    for name in ("train-7", "validation-3"):
        row, found = rows[name], store.find(name)
        assert found.boxes_px.tolist() == row["boxes"]
        assert found.tags == [f"{item['colour']} {item['shape']}" for item in row["objects"]]
        assert (found.width, found.height, found.whole_image) == (36, 36, False)
        pixels = torch.tensor(np.asarray(row["image"].convert("RGB")), dtype=torch.float32).reshape(1, 36, 36, 3)
        expected = backbone.describe(pixels.permute(0, 3, 1, 2) / 127.5 - 1, [found.boxes_px])
        torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=0)
        buffer = io.BytesIO()
        row["image"].save(buffer, "BMP")
        assert torch.equal(store.find_image(Image.open(buffer)).features, found.features)


def test_a_lighter_detector(scenes, backbone, tmp_path) -> None:
    settings = {"jitter_px": 1.5, "miss_rate": 0.2, "shuffled": True}
    light = scene_region_store(scenes["validation"], backbone, tmp_path / "light", **settings, seed=5)
    again = scene_region_store(
        scenes["validation"].select(range(40, 80)), backbone, tmp_path / "again", **settings, seed=5
    )
    other = scene_region_store(scenes["validation"], backbone, tmp_path / "other", **settings, seed=6)
    assert light.boxes_id.startswith("boxes of scenes, moved by up to 1.5 px, 20% missed, shuffled, seed 5 [")
    assert light.boxes_id == again.boxes_id != other.boxes_id
    assert light.features_id == other.features_id
    seen = objects = moved = out_of_order = 0
    for name, row in one_row_a_scene(scenes["validation"]).items():
        found = light.find(name)
        names = [f"{item['colour']} {item['shape']}" for item in row["objects"]]
        known = torch.tensor(row["boxes"], dtype=torch.float32)
        distances = (found.boxes_px[:, None] - known[None]).abs().amax(2)
        assert distances.min(1).values.max() <= 1.5
        assert [names[place] for place in distances.argmin(1)] == found.tags
        assert 0 <= found.boxes_px.min() <= found.boxes_px.max() <= 36
        seen, objects = seen + len(found.tags), objects + len(names)
        moved += int((distances.min(1).values > 0).sum())
        out_of_order += distances.argmin(1).tolist() != sorted(distances.argmin(1).tolist())
    assert 0.7 < seen / objects < 0.9
    assert moved == seen
    assert out_of_order > 20
    assert torch.equal(again.find("validation-25").boxes_px, light.find("validation-25").boxes_px)


def test_all_missed(scenes, backbone, tmp_path) -> None:
    store = scene_region_store(scenes["validation"], backbone, tmp_path / "blind", miss_rate=1.0)
    found = store.find("validation-0")
    assert (found.boxes_px.tolist(), found.tags, found.whole_image) == ([[0, 0, 36, 36]], [""], True)


def test_another_backbone_at_the_same_boxes(scenes, backbone, tmp_path) -> None:
    student = scene_region_store(scenes["validation"], backbone, tmp_path / "student", jitter_px=1.0, shuffled=True)
    teacher = scene_region_store(scenes["validation"], SceneBackbone(48, 1), tmp_path / "teacher", boxes=student)
    assert teacher.boxes_id == student.boxes_id
    assert teacher.features_id.startswith("scene backbone of 48 channels x 1 layers, seed 0 [")
    for name in student.ids():
        assert torch.equal(student.find(name).boxes_px, teacher.find(name).boxes_px)
        assert student.find(name).tags == teacher.find(name).tags
    with pytest.raises(ValueError, match="lacks 'train-0'"):
        scene_region_store(scenes["train"], backbone, tmp_path / "train", boxes=student)


def test_a_continued_store_has_the_same_bits(scenes, backbone, tmp_path) -> None:
    scene_region_store(scenes["validation"], backbone, tmp_path / "store", shard_size=15, jitter_px=1.0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    (tmp_path / "store" / "shard-00001.arrow").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 3 shards"):
        RegionStore(tmp_path / "store")
    scene_region_store(scenes["validation"], backbone, tmp_path / "store", shard_size=15, jitter_px=1.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


def test_random_numbers_of_others_are_left_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(1)
    assert torch.equal(SceneBackbone(8, seed=2).layers[0].weight, SceneBackbone(8, seed=2).layers[0].weight)
    assert (torch.rand(1), random.random()) == expected


def test_settings_out_of_range(scenes, backbone, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"jitter_px is 0.0 and miss_rate 1.5"):
        scene_region_store(scenes["validation"], backbone, tmp_path / "store", miss_rate=1.5)
