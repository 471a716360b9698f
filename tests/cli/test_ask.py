"""`dual-distill ask` as a user meets it: rankings and answers from a store, and one sentence for each mistake."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViltImageProcessorPil

from dual_distill.cli.options import run_command
from dual_distill.data import train_tokenizer
from dual_distill.inference import encode_images, encode_texts
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering

run = partial(run_command, "ask")
run_encode = partial(run_command, "encode")
run_predict = partial(run_command, "predict")

QUESTIONS = ["is it red?", "what is it?"]
ANSWERS = {0: "yes", 1: "no", 2: "red"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, a store of three images, and one of texts."""
    tokenizer = train_tokenizer(QUESTIONS)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = DualEncoderConfig(
        text_config={"vocab_size": len(tokenizer), **shape},
        vision_config={"image_size": 16, "patch_size": 8, **shape},
        id2label=ANSWERS,
        label2id={name: index for index, name in ANSWERS.items()},
    )
    model = DualEncoderForQuestionAnswering(config)
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for colour in ("red", "blue", "white"):
        Image.new("RGB", (20, 16), colour).save(tmp_path / "images" / f"{colour}.png")
    encode_images(model, processor, tmp_path / "images", tmp_path / "store")
    encode_texts(model, processor, QUESTIONS[:1], tmp_path / "texts")
    return tmp_path


@pytest.fixture
def asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def asked(*words: str, call: Callable = run) -> dict:
        capsys.readouterr()
        call([str(folder / "model"), *words, "--json", "--device", "cpu"])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return asked


def test_every_image_is_ranked(folder: Path, asked: Callable) -> None:
    words = [str(folder / "store"), *QUESTIONS, "--answer", "yes", "--top-k", "2"]
    result = asked(*words)
    assert (result["stored_images"], [ranking["matches"] for ranking in result["rankings"]]) == (3, [3, 3])
    for ranking in result["rankings"]:
        scores = [ranked["score"] for ranked in ranking["images"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert {ranked["answer"] for ranked in ranking["images"]} == {"yes"}
    with_texts = asked(*words, "--text-store", str(folder / "texts"))
    for one, other in zip(result["rankings"], with_texts["rankings"], strict=True):
        assert [ranked["image"] for ranked in one["images"]] == [ranked["image"] for ranked in other["images"]]
    assert asked(*words, "--threshold", "1")["rankings"][0] == {"question": QUESTIONS[0], "matches": 0, "images": []}


def test_the_answers_are_those_of_predict(folder: Path, asked: Callable) -> None:
    names = ["red.png", "blue.png"]
    predicted = asked(
        *QUESTIONS, *(word for name in names for word in ("--image", str(folder / "images" / name))), call=run_predict
    )["predictions"]
    answers = asked(str(folder / "store"), *QUESTIONS, *(word for name in names for word in ("--image", name)))[
        "answers"
    ]
    pairs = folder / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"image": row["image"], "question": row["question"]}) + "\n" for row in answers)
    )
    assert asked(str(folder / "store"), "--pairs", str(pairs))["answers"] == answers
    for row, expected in zip(answers, predicted, strict=True):
        assert (row["question"], [f"{folder}/images/{row['image']}"]) == (expected["question"], expected["images"])
        for one, other in zip(row["answers"], expected["answers"], strict=True):
            assert one["answer"] == other["answer"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    [likely] = asked(str(folder / "store"), QUESTIONS[0], "--image", "red.png", "--threshold", "0.34")["answers"]
    assert all(answer["score"] >= 0.34 for answer in likely["answers"])
    assert len(likely["answers"]) < 3


def test_the_tables_are_for_reading(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder / "model"), str(folder / "store"), QUESTIONS[0], "--top-k", "1", "--device", "cpu"]
    run(words)
    title, line = capsys.readouterr().out.splitlines()
    assert title == "is it red?  (3 of 3 images)"
    image, share, sign, answer = line.split()
    assert (folder / "images" / image).is_file()
    assert (sign, answer in ANSWERS.values(), 100 / 3 <= float(share) <= 100) == ("%", True, True)
    run([*words, "--image", "red.png"])
    title, line = capsys.readouterr().out.splitlines()
    assert title == "red.png: is it red?"
    assert line.split()[0] in ANSWERS.values()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "Give questions or --pairs PATH, one of the two"),
        (["is it red?", "--pairs", "x"], "Give questions or --pairs PATH, one of the two"),
        (["is it red?", "--answer", "yes", "--image", "red.png"], "--answer ranks all images"),
        (["--pairs", "x", "--image", "red.png"], "--image is given, but --pairs names its images itself"),
        (["--pairs", "nowhere.jsonl"], "There is no file 'nowhere.jsonl'"),
        (["is it red?", "--image", "green.png"], "lacks 1 of the images asked for: 'green.png'"),
        (["is it red?", "--image", "red.png", "--threshold", "7"], "threshold is 7.0, but a probability lies between"),
        (["is it red?", "--answer", "green"], r"'green' is none of the model's 3 \(yes, no, red\)"),
    ],
)
def test_mistakes_by_their_sentences(words: list[str], message: str, folder: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run([str(folder / "model"), str(folder / "store"), *words, "--device", "cpu"])


def test_pairs_that_are_none(folder: Path) -> None:
    pairs = folder / "pairs.jsonl"
    for text, message in (
        ('{"image": "red.png"}\n', r"line 1: image or question is missing; write {\"image\": ID, "),
        ("\n[1]\n", r"line 2: the line is \[1\], but expected is an object"),
        ("\n", "holds no pairs"),
    ):
        pairs.write_text(text)
        with pytest.raises(ValueError, match=message):
            run([str(folder / "model"), str(folder / "store"), "--pairs", str(pairs)])


def test_a_model_with_interaction_layers_is_asked_from_stored_tokens(folder: Path, asked: Callable) -> None:
    config = DualEncoderConfig.from_pretrained(folder / "model")
    config.interaction_layers = 1
    DualEncoderForQuestionAnswering(config).save_pretrained(folder / "model")
    store = str(folder / "tokens")
    report = asked("--images", str(folder / "images"), "--output-dir", store, "--dtype", "float32", call=run_encode)
    assert report["bytes_per_row"] > 5 * 8 * 4  # tokens of a vector of 8 numbers
    image = folder / "images" / "red.png"
    [predicted, _] = asked(*QUESTIONS, "--image", str(image), call=run_predict)["predictions"]
    [answered] = asked(store, QUESTIONS[0], "--image", "red.png")["answers"]
    for found, expected in zip(answered["answers"], predicted["answers"], strict=True):
        assert (found["answer"], found["score"]) == (expected["answer"], pytest.approx(expected["score"], abs=1e-5))
    assert asked(store, *QUESTIONS)["stored_images"] == 3
