"""Generated worlds as folders: what is written is what the package's own readers read."""

import json
from pathlib import Path

import pytest
from datasets import Image
from worlds.scene_captions import generate_scene_captions
from worlds.scene_statements import generate_scene_statements
from worlds.write import TOKENIZER_TEXTS, write_captions, write_statements

from dual_distill.data import generate_scenes, load_custom_dataset, load_task
from dual_distill.regions import RegionStore

SCENES = {"train": 12, "validation": 10, "test": 11}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "worlds" / "write.py"


def test_captions_are_read_as_they_were_generated(tmp_path) -> None:
    write_captions(tmp_path, SCENES, captions_per_scene=2, seed=5)
    made = generate_scene_captions(SCENES, 2, seed=5).cast_column("image", Image(decode=False))
    read = load_task("coco_retrieval", tmp_path)
    assert list(read) == ["train", "validation", "test"]
    for split, rows in read.items():
        assert rows["caption"][:] == made[split]["caption"][:]
        assert [Path(image["path"]).read_bytes() for image in rows["image"]] == [
            image["bytes"] for image in made[split]["image"]
        ]
        assert len(set(rows["image_id"])) == SCENES[split]
    sentence = json.loads((tmp_path / "dataset_coco.json").read_text())["images"][0]["sentences"][0]
    assert sentence["hard_negative"] != sentence["raw"]


def test_the_texts_for_a_tokenizer_hold_every_word_of_the_other_worlds(tmp_path) -> None:
    write_captions(tmp_path, {"train": 1})
    known = set((tmp_path / TOKENIZER_TEXTS).read_text().split())
    others = [
        *generate_scenes({"test": 100})["test"]["question"],
        *generate_scene_statements({"test": 100})["test"]["sentence"],
    ]
    assert {word for text in others for word in text.split()} <= known


def test_statements_are_a_custom_dataset_with_two_image_columns(tmp_path) -> None:
    write_statements(tmp_path, SCENES, seed=5)
    made = generate_scene_statements(SCENES, seed=5).cast_column("image_1", Image(decode=False))
    columns = (["image_0", "image_1"], "sentence", "label")
    read = load_custom_dataset(tmp_path, *columns, head="images_and_text_classification")
    assert read.task.label_names == ("False", "True")
    for split, rows in read.data.items():
        assert (rows["sentence"][:], rows["label"][:]) == (made[split]["sentence"][:], made[split]["label"][:])
        assert Path(rows[0]["image_1"]["path"]).read_bytes() == made[split][0]["image_1"]["bytes"]


def test_the_script_writes_regions_and_says_what_is_wrong(scripts, tmp_path) -> None:
    words = ["--scenes", 20, 2, 2, "--steps", 2, "--width", 4, "--miss-rate", 0.1]
    [done] = scripts(SCRIPT, "regions", tmp_path / "light", *map(str, words))
    assert done.returncode == 0, done.stderr
    store = RegionStore(tmp_path / "light")
    assert (len(store), store.feature_size) == (24, 4)
    assert "10% missed" in store.boxes_id
    words = ["--scenes", 1, 1, 1, "--captions-per-scene", 11]
    [done] = scripts(SCRIPT, "captions", tmp_path / "captions", *map(str, words))
    assert (done.returncode, done.stderr) == (
        1,
        "error: captions_per_scene is 11, but an image has 1 to 10 captions.\n",
    )


@pytest.mark.parametrize("world", ["captions", "statements", "regions"])
def test_the_help_names_the_command_that_reads_a_world(world, capsys) -> None:
    from worlds.write import make_parser

    with pytest.raises(SystemExit):
        make_parser().parse_args([world, "--help"])
    assert "read it with: dual-distill train" in capsys.readouterr().out
