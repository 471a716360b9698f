"""`dual-distill attention`: a picture and its numbers, of a teacher as it stands and of a student beside it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from worlds.tiny_teachers import save_teacher

from dual_distill import load_teacher
from dual_distill.cli import main
from dual_distill.data import decode_image
from dual_distill.inference import attention_maps
from dual_distill.teachers import load_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("attention")
    for name in ("smolvlm", "fusion"):
        save_teacher(name, root / name)
    Image.effect_noise((96, 64), 90).convert("RGB").save(root / "photo.png")
    return root


def test_a_teacher_and_another_model_are_drawn_over_the_same_cells(folder, capsys):
    words = ["attention", folder / "smolvlm", "--image", folder / "photo.png", "two dogs on a sofa", "--json"]
    words += ["--out", folder / "map.png", "--against", folder / "fusion", "--layers", "0", "1"]
    assert main([str(word) for word in words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["words"] == ["two", "dogs", "on", "a", "sofa"]
    assert Image.open(printed["picture"]).width >= 960

    numbers = json.loads((folder / "map.json").read_text())
    assert list(numbers["maps"]) == ["smolvlm", "fusion"]
    image = Image.open(folder / "photo.png")
    for name, grid in (("smolvlm", None), ("fusion", (4, 4))):
        _, expected = attention_maps(*load_teacher(folder / name), image, "two dogs on a sofa", (0, 1), grid)
        assert expected.shape == (5, 4, 4)
        np.testing.assert_allclose(numbers["maps"][name], expected, atol=1e-6)
        peak = printed["looks"][name][0]
        assert peak["share"] == pytest.approx(expected[0].max(), abs=1e-4)


def test_two_revisions_of_one_repository_are_two_models(folder, monkeypatch):
    of_revision = {"v1": folder / "smolvlm", None: folder / "fusion"}
    monkeypatch.setattr(
        "dual_distill.cli.attention.load_teacher", lambda name, revision: load_teacher(of_revision[revision])
    )
    words = ["attention", "me/student", "--revision", "v1", "--against", "me/student", "red sofa"]
    assert main([*words, "--image", str(folder / "photo.png"), "--out", str(folder / "two.png")]) == 0
    maps = json.loads((folder / "two.json").read_text())["maps"]
    assert list(maps) == ["me/student@v1", "me/student"]
    _, expected = attention_maps(*load_teacher(folder / "smolvlm"), Image.open(folder / "photo.png"), "red sofa")
    np.testing.assert_allclose(maps["me/student@v1"], expected, atol=1e-6)


def test_each_model_decodes_a_jpeg_as_its_processor_asks(folder, capsys):
    Image.effect_noise((960, 640), 90).convert("RGB").save(folder / "photo.jpg", quality=95)
    shutil.copytree(folder / "fusion", folder / "margin")
    processor = load_processor(folder / "margin")
    processor.jpeg_margin = 1
    processor.save_pretrained(folder / "margin")
    words = [
        "attention",
        folder / "margin",
        "--image",
        folder / "photo.jpg",
        "red sofa",
        "--against",
        folder / "fusion",
    ]
    words += ["--against", folder / "fusion", "--out", folder / "jpeg.png"]
    assert main([*map(str, words)]) == 0

    maps = json.loads((folder / "jpeg.json").read_text())["maps"]
    for name, size in (("margin", processor.jpeg_size), ("fusion", None)):
        image = decode_image(folder / "photo.jpg", 0, jpeg_size=size)
        _, expected = attention_maps(*load_teacher(folder / name), image, "red sofa")
        np.testing.assert_allclose(maps[name], expected, atol=1e-6)
    assert maps["margin"] != maps["fusion"]


def test_what_is_printed_names_the_cell_that_each_word_looks_at_most(folder, capsys):
    words = ["attention", folder / "fusion", "--image", folder / "photo.png", "red sofa", "--smooth"]
    assert main([*map(str, words), "--out", str(folder / "one.png")]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "fusion looks most at"
    assert [line.split()[0] for line in lines] == ["red", "sofa", "picture:", "numbers:"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["two dogs", "--layers", "9"], "has 2 layers in which text and image meet, but layers is [9]"),
        (["  "], "which has no word; write one or more."),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder, capsys, words, message):
    model = ["attention", str(folder / "smolvlm"), "--image", str(folder / "photo.png")]
    assert main([*model, *words, "--out", str(folder / "no.png")]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "no.png").exists()


def test_a_picture_goes_into_a_new_folder_and_has_a_pictures_name(folder, capsys):
    words = ["attention", str(folder / "fusion"), "--image", str(folder / "photo.png"), "red sofa", "--out"]
    assert main([*words, str(folder / "new" / "map.jpg")]) == 0
    assert Image.open(folder / "new" / "map.jpg").format == "JPEG"
    assert (folder / "new" / "map.json").is_file()
    assert main([*words, str(folder / "map")]) == 2
    assert "map'; give the name of a picture, such as map.png." in capsys.readouterr().err
