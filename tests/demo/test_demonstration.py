"""What the demo's page asks, without a browser: answers, maps, times, searches, and a sentence for each mistake."""

import re
import shutil
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from worlds.tiny_teachers import save_teacher

from dual_distill import modeling
from dual_distill.cli import demo as command
from dual_distill.cli import main
from dual_distill.data import decode_image
from dual_distill.demo import Answered, DemoImages, Demonstration, generated_scenes, launch
from dual_distill.demo.demonstration import MOST_PIXELS, looks, read_upload
from dual_distill.inference import DualVisualQuestionAnsweringPipeline, FeatureStore, attention_maps, encode_images
from dual_distill.teachers import load_processor

QUESTION = "is there a red circle?"


@pytest.fixture(scope="module")
def shown(student, teacher):
    return Demonstration(student, teacher, generated_scenes(6))


@pytest.fixture
def image():
    return Image.new("RGB", (48, 32), "red")


def test_both_models_answer_look_and_are_timed(shown, image):
    answered = shown.ask(image, QUESTION)
    names = ["student: student", "teacher: teacher"]
    assert list(answered.answers) == list(answered.maps) == names
    assert all(len(probs) == 3 and 0 < sum(probs.values()) <= 1 for probs in answered.answers.values())
    assert answered.words == ["is", "there", "a", "red", "circle", "?"]
    assert {maps.shape for maps in answered.maps.values()} == {(6, 2, 2)}
    routes = ["student: student, nothing stored", "student: student, image stored", "teacher: teacher, nothing stored"]
    assert sorted(answered.milliseconds) == sorted(routes)
    assert min(answered.milliseconds.values()) > 0
    assert answered.caption is None


def test_answers_are_those_of_predict(shown, student, image, tmp_path, capsys):
    image.save(tmp_path / "image.png")
    assert main(["predict", student, "--image", str(tmp_path / "image.png"), QUESTION, "--top-k", "3"]) == 0
    printed = capsys.readouterr().out
    for answer, probability in shown.ask(image, QUESTION).answers["student: student"].items():
        assert answer in printed
        assert f"{100 * probability:.1f} %" in printed


def test_a_teacher_of_another_family_judges_the_students_answers(student, image, tmp_path):
    shown = Demonstration(student, str(save_teacher("smolvlm", tmp_path / "smolvlm")))
    answered = shown.ask(image, QUESTION)
    judged = answered.answers["teacher: smolvlm"]
    assert judged.keys() == answered.answers["student: student"].keys()
    assert sum(judged.values()) == pytest.approx(1)
    assert {len(maps) for maps in answered.maps.values()} == {6}


def test_a_teacher_that_says_nothing_of_answers_shows_where_it_looks(student, image, tmp_path):
    shown = Demonstration(student, str(save_teacher("blip", tmp_path / "blip")))
    assert not shown.answers("teacher: blip")
    answered = shown.ask(image, QUESTION)
    assert (list(answered.answers), list(answered.maps)) == ([shown.name], [shown.name, "teacher: blip"])


def test_two_maps_of_a_word_have_one_scale():
    image, strong = Image.new("RGB", (40, 40), "white"), np.array([[[0.8, 0.0], [0.0, 0.0]]])
    tiles = looks(image, Answered({}, ["red"], {"a": strong, "b": strong / 2}, {}), 0)
    assert [round(peak, 3) for _, peak in tiles.values()] == [0.8, 0.4]
    brightest = [np.asarray(tile).astype(int).sum(-1).max() for tile, _ in tiles.values()]
    assert brightest[0] > brightest[1]


def test_a_word_that_nobody_looks_by_is_drawn_dark():
    tiles = looks(Image.new("RGB", (8, 8)), Answered({}, ["a"], {"a": np.zeros((1, 2, 2))}, {}), 0)
    assert tiles["a"][1] == 0


def test_generated_scenes_are_ranked_by_an_answer(shown):
    assert (shown.searches, shown.ranks_answers) == (True, True)
    found = shown.search(QUESTION, "yes", top_k=4)
    assert len(found) == 4
    assert all(hit.caption.startswith("yes  ") for hit in found)
    assert [picture.size for picture in shown.images_of([found[0].image])] == [(36, 36)]


def test_a_store_is_asked_in_place_of_encoding(student, tmp_path):
    colours = ("red", "green", "blue")
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    made = Demonstration(student, None, DemoImages(str(tmp_path)))
    encode_images(made.models[made.name], made.processors[made.name], str(tmp_path), tmp_path / "store")
    stored = Demonstration(student, None, DemoImages(str(tmp_path)), str(tmp_path / "store"))
    assert stored.search(QUESTION) == made.search(QUESTION)
    assert len(FeatureStore(tmp_path / "store")) == len(colours)


def test_a_store_without_its_images_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures to show; give its images too\."):
        Demonstration(student, None, None, "some.store")


def test_a_store_of_other_images_is_refused(student, tmp_path):
    shown = Demonstration(student)
    model, processor = shown.models[shown.name], shown.processors[shown.name]
    encode_images(model, processor, {"a": Image.new("RGB", (32, 32))}, tmp_path)
    with pytest.raises(ValueError, match="There is no image 'a' among those given"):
        Demonstration(student, None, generated_scenes(2), str(tmp_path))


def test_a_retrieval_head_searches_by_cosine(save_checkpoint):
    model = save_checkpoint("retrieval", modeling.DualEncoderForImageTextRetrieval, projection_dim=4)
    shown = Demonstration(model, None, generated_scenes(4))
    assert (shown.searches, shown.ranks_answers, shown.answers(shown.name)) == (True, False, False)
    found = shown.search("a red circle", top_k=2)
    assert len(found) == 2
    assert all(hit.caption.startswith("cosine ") for hit in found)


def test_a_fusion_encoder_is_asked_and_does_not_search(teacher, image):
    shown = Demonstration(teacher, None, generated_scenes(2))
    assert not shown.searches
    assert list(shown.ask(image, QUESTION).milliseconds) == ["model: teacher, nothing stored"]


def test_a_model_that_writes_captions_writes_one(save_checkpoint, image):
    shown = Demonstration(save_checkpoint("captions", modeling.FusionEncoderForCaptioning))
    answered = shown.ask(image, "a red circle")
    assert answered.words == ["a", "red", "circle"]
    assert shown.writes_captions
    assert isinstance(answered.caption, str)
    assert answered.answers == {}


def test_a_model_of_two_images_is_refused(save_checkpoint, labels):
    model = save_checkpoint("pairs", modeling.DualEncoderForImagesAndTextClassification, num_images=2, **labels)
    with pytest.raises(ValueError, match="reads regions, or several images together; take a model of one image"):
        Demonstration(model)


@pytest.mark.parametrize(
    "picture, text, sentence",
    [
        (None, QUESTION, "There is no image yet; choose one below, or upload one."),
        (Image.new("RGB", (8, 8)), "  ", "There is no question yet; write one."),
        (Image.new("RGB", (8, 8)), None, "There is no question yet; write one."),
        (
            Image.new("RGB", (8, 8)),
            "x" * 1001,
            "The question has 1,001 characters, more than 1,000; write a shorter one.",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(shown, picture, text, sentence):
    with pytest.raises(ValueError, match=rf"^{re.escape(sentence)}$"):
        shown.ask(picture, text)


def test_an_answer_that_the_model_does_not_have_is_said(shown):
    with pytest.raises(ValueError, match="'purple' is none of the model's 5"):
        shown.search(QUESTION, "purple")


def huge_png(width, height):
    """A PNG whose header declares so many pixels, and which holds none."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b""))]
    written = [struct.pack(">I", len(of)) + name + of + struct.pack(">I", zlib.crc32(name + of)) for name, of in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"no image", "the bytes are not an image of a known format"),
        (huge_png(6000, 5000), f"declares 6000 x 5000 = 30,000,000 pixels, more than the {MOST_PIXELS:,}"),
        (huge_png(60000, 50000), f"far more than the {MOST_PIXELS:,} pixels"),
        (huge_png(60, 50), "the image is truncated or damaged"),
    ],
    ids=["no image", "huge", "bomb", "truncated"],
)
def test_an_upload_that_cannot_be_used_is_said_without_a_path(tmp_path, content, reason):
    (tmp_path / "upload.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"^This image cannot be used: .*{re.escape(reason)}") as caught:
        read_upload(str(tmp_path / "upload.png"))
    assert str(tmp_path) not in str(caught.value)


def test_an_upload_is_decoded_as_each_models_processor_asks(student, teacher, tmp_path):
    Image.effect_noise((960, 640), 90).convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    shutil.copytree(student, tmp_path / "margin")
    processor = load_processor(tmp_path / "margin")
    processor.jpeg_margin = 1
    processor.save_pretrained(tmp_path / "margin")
    shown = Demonstration(str(tmp_path / "margin"), teacher)
    answered = shown.ask(read_upload(str(tmp_path / "photo.jpg")), QUESTION)

    own = "student: margin"
    for name, size in ((own, processor.jpeg_size), ("teacher: teacher", None)):
        image, model = decode_image(tmp_path / "photo.jpg", 0, jpeg_size=size), shown.models[name]
        expected = DualVisualQuestionAnsweringPipeline(model, shown.processors[name], device="cpu")(image, QUESTION)
        answers = {row["answer"]: row["score"] for row in expected[:3]}
        assert answered.answers[name] == pytest.approx(answers, abs=1e-6)
        _, maps = attention_maps(model, shown.processors[name], image, QUESTION)
        np.testing.assert_allclose(answered.maps[name], maps, atol=1e-6)
    whole = attention_maps(shown.models[own], processor, decode_image(tmp_path / "photo.jpg", 0), QUESTION)[1]
    assert np.abs(whole - answered.maps[own]).max() > 1e-6


def test_ten_threads_ask_at_once_and_each_gets_its_own_answer(shown):
    pictures = [Image.new("RGB", (32, 32), (25 * index, 40, 200)) for index in range(10)]
    alone = [shown.ask(picture, QUESTION) for picture in pictures]
    start = threading.Barrier(10)

    def ask(picture):
        start.wait()
        return shown.ask(picture, QUESTION)

    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(ask, pictures))
    for one, other in zip(alone, together, strict=True):
        assert one.answers == other.answers
        assert all(np.array_equal(one.maps[name], other.maps[name]) for name in one.maps)


def test_the_newest_quickstart_that_learnt_something_is_shown(tmp_path):
    assert command.newest_quickstart(tmp_path) is None
    for name in ("quickstart-default-seed0", "quickstart-smoke-seed0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{}")
    (tmp_path / "quickstart-thorough-seed0").mkdir()  # not finished
    assert command.newest_quickstart(tmp_path) == tmp_path / "quickstart-default-seed0"


def test_without_gradio_it_says_how_to_install_it(monkeypatch, shown, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'dual-distill\[demo\]'"):
        launch(shown)
    assert main(["demo", "no/such/model"]) == 2
    assert "pip install 'dual-distill[demo]'" in capsys.readouterr().err
