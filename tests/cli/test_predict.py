"""`dual-distill predict` as a user meets it: answers in a table, as JSON, and one sentence for each mistake."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil

from dual_distill.cli.evaluate import writing_options
from dual_distill.cli.options import run_command
from dual_distill.cli.predict import describe
from dual_distill.data import decode_image, train_tokenizer
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
)
from dual_distill.teachers import load_config
from dual_distill.trainer import captions_of_images

run = partial(run_command, "predict")

ANSWERS = {0: "yes", 1: "no", 2: "red"}


def save(folder: Path, cls: type, **fields: object) -> str:
    tokenizer = train_tokenizer(["is it red?", "what is it?", "both are red."])
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = DualEncoderConfig(
        text_config={"vocab_size": len(tokenizer), **shape},
        vision_config={"image_size": 16, "patch_size": 8, **shape},
        id2label=ANSWERS,
        label2id={name: index for index, name in ANSWERS.items()},
        **fields,
    )
    cls(config).save_pretrained(folder)
    DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model", DualEncoderForQuestionAnswering)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"{colour}.png") for colour in ("red", "blue", "white")]
    for file in files:
        Image.new("RGB", (20, 16), Path(file).stem).save(file)
    return files


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict]]:
    def answered(*words: str) -> list[dict]:
        capsys.readouterr()
        run([*words, "--json", "--device", "cpu"])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)["predictions"]

    return answered


def test_every_question_is_asked_about_every_image(model: str, images: list[str], answered: Callable) -> None:
    found = answered(model, "--image", images[0], "--image", images[1], "is it red?", "what is it?")
    assert [(row["images"], row["question"]) for row in found] == [
        ([images[0]], "is it red?"),
        ([images[0]], "what is it?"),
        ([images[1]], "is it red?"),
        ([images[1]], "what is it?"),
    ]
    for row in found:
        assert {answer["answer"] for answer in row["answers"]} == set(ANSWERS.values())
        assert sum(answer["score"] for answer in row["answers"]) == pytest.approx(1)
    assert found[0]["answers"] != found[2]["answers"]


def test_questions_stand_where_they_like_and_batches_change_nothing(
    model: str, images: list[str], answered: Callable
) -> None:
    after = answered(model, "--image", images[0], "is it red?", "what is it?", "--top-k", "2")
    before = answered(model, "is it red?", "--top-k", "2", "what is it?", "--image", images[0], "--batch-size", "1")
    for one, other in zip(after, before, strict=True):
        assert [answer["answer"] for answer in one["answers"]] == [answer["answer"] for answer in other["answers"]]
        assert [answer["score"] for answer in one["answers"]] == pytest.approx(
            [answer["score"] for answer in other["answers"]], abs=1e-5
        )
        assert len(one["answers"]) == 2


def test_images_that_are_read_together(tmp_path: Path, images: list[str], answered: Callable) -> None:
    pair = save(tmp_path / "pair", DualEncoderForImagesAndTextClassification, num_images=2)
    found = answered(pair, "--image", images[0], "--image", images[1], "both are red.", "--top-k", "1")
    assert [row["images"] for row in found] == [images[:2]]
    with pytest.raises(ValueError, match=r"there are 3 images, but .*pair reads 2 together; give --image 2 times"):
        run([pair, *(word for image in images for word in ("--image", image)), "both are red."])


def test_a_vilt_checkpoint_is_converted_on_the_way_in(
    model: str, tmp_path: Path, images: list[str], answered: Callable
) -> None:
    folder = tmp_path / "vilt"
    tokenizer = DualDistillProcessor.from_pretrained(model).tokenizer
    config = ViltConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label=ANSWERS,
        label2id={name: index for index, name in ANSWERS.items()},
    )
    vilt = ViltForQuestionAnswering(config).eval()
    vilt.save_pretrained(folder)
    ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    [found] = answered(str(folder), "--image", images[0], "is it red?")
    inputs = DualDistillProcessor.from_pretrained(model)(images=Image.open(images[0]), text="is it red?")
    with torch.no_grad():
        inputs["pixel_values"], inputs["pixel_mask"] = inputs["pixel_values"][:, 0], inputs["pixel_mask"][:, 0]
        logits = vilt(**inputs).logits[0]
    # Which of the two is the converted config's to say: a ViLT that was trained on soft scores has one sigmoid an
    # answer.
    is_multi_label = load_config(folder).problem_type == "multi_label_classification"
    expected = logits.sigmoid() if is_multi_label else logits.softmax(-1)
    scores = {answer["answer"]: answer["score"] for answer in found["answers"]}
    assert [scores[ANSWERS[index]] for index in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_table_is_for_reading(model: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run([model, "--image", images[0], "is it red?", "--top-k", "1", "--device", "cpu"])
    title, line = capsys.readouterr().out.splitlines()
    assert title == f"{images[0]}: is it red?"
    answer, share, sign = line.split()
    assert answer in ANSWERS.values()
    assert 100 / 3 <= float(share) <= 100
    assert sign == "%"


def test_a_checkpoint_without_answers_is_refused(tmp_path: Path, images: list[str]) -> None:
    body = save(tmp_path / "body", DualEncoderModel)
    with pytest.raises(ValueError, match="DualEncoderModel gives no answers"):
        run([body, "--image", images[0], "is it red?"])
    with pytest.raises(ValueError, match="nowhere"):
        run([str(tmp_path / "nowhere"), "--image", images[0], "is it red?"])


def test_captions_are_written_as_the_model_was_saved_to_write_unless_told_otherwise() -> None:
    told = argparse.Namespace(num_beams=None, max_new_tokens=None)
    assert writing_options(told) == {}
    told.num_beams = 5
    assert writing_options(told) == {"num_beams": 5}
    told.max_new_tokens = 0
    with pytest.raises(ValueError, match="--max-new-tokens is 0, but must be at least 1"):
        writing_options(told)


def test_a_jpeg_is_described_as_the_processor_decodes_it(tmp_path: Path, answered: Callable) -> None:
    tokenizer = train_tokenizer(["is it red?", "what is it?", "both are red."])
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)
    processor.jpeg_margin = 1
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    pixels = {"image_size": 16, "patch_size": 8, "initializer_range": 1.0}
    captioner = FusionEncoderForCaptioning(FusionEncoderConfig(vocab_size=len(tokenizer), **shape, **pixels)).eval()
    captioner.use_tokens_of(tokenizer)
    for one in (captioner, processor):
        one.save_pretrained(tmp_path / "captioner")

    files = [tmp_path / f"{number}.jpg" for number in range(6)]
    for file in files:
        pixels = torch.randint(0, 256, (128 * 160 * 3,), dtype=torch.uint8)
        Image.frombytes("RGB", (160, 128), bytes(pixels.tolist())).save(file, quality=95)
    words = [word for file in files for word in ("--image", str(file))]
    found = [row["caption"] for row in answered(str(tmp_path / "captioner"), *words)]
    shrunk, whole = (
        captions_of_images(captioner, processor, [decode_image(file, 0, jpeg_size=size) for file in files])
        for size in (processor.jpeg_size, None)
    )
    assert found == shrunk != whole


def test_mistakes_by_their_sentences(
    model: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"\(image 'nowhere.png'\): the file cannot be read"):
        run([model, "--image", "nowhere.png", "is it red?"])
    with pytest.raises(ValueError, match="Question 0 of a request is ''"):
        run([model, "--image", images[0], ""])
    with pytest.raises(ValueError, match="top_k is 0"):
        run([model, "--image", images[0], "is it red?", "--top-k", "0"])
    with pytest.raises(ValueError, match="answers questions, but there is none; write one or more"):
        run([model, "--image", images[0]])
    with pytest.raises(ValueError, match=r"--regions, --num-tags is given, but .* reads pixels; leave it out"):
        run([model, "--image", images[0], "is it red?", "--regions", "store", "--num-tags", "7"])
    told = argparse.Namespace(questions=[], top_k=5, model="runs/captioner")
    with pytest.raises(ValueError, match="--top-k is given, but 'runs/captioner' writes captions; leave it out"):
        describe(told, *[None] * 3)
    for words, message in (([model, "is it red?"], "required: --image"), ([model, "--image"], "expected one argument")):
        with pytest.raises(SystemExit, match="2"):
            run(words)
        assert message in capsys.readouterr().err
