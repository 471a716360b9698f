"""`dual-distill ask` on the stores of a retrieval head, as a user meets it."""

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
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForImageTextRetrieval

run = partial(run_command, "ask")
run_encode = partial(run_command, "encode")

TEXTS = ["a red picture", "a blue picture", "nothing at all"]
COLOURS = ("red", "blue", "white")


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A model, and stores of three images and three texts."""
    tokenizer = train_tokenizer(TEXTS)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = DualEncoderConfig(
        text_config={"vocab_size": len(tokenizer), **shape},
        vision_config={"image_size": 16, "patch_size": 8, **shape},
        projection_dim=4,
    )
    model = DualEncoderForImageTextRetrieval(config)
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (20, 16), colour).save(tmp_path / "images" / f"{colour}.png")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    for option, name in (("--images", "images"), ("--texts", "texts.txt")):
        run_encode(
            [
                str(tmp_path / "model"),
                option,
                str(tmp_path / name),
                "--output-dir",
                str(tmp_path / f"{name}.store"),
                "--json",
            ]
        )
    return tmp_path


@pytest.fixture
def asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def asked(*words: str) -> dict:
        capsys.readouterr()
        run([str(folder / "model"), *words, "--json", "--device", "cpu"])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return asked


def test_images_for_texts_and_texts_for_images(folder: Path, asked: Callable) -> None:
    images, texts = str(folder / "images.store"), str(folder / "texts.txt.store")
    found = asked(images, *TEXTS, "--top-k", "2")
    assert (found["stored_images"], found["index"]) == (3, None)
    assert [ranking["question"] for ranking in found["rankings"]] == TEXTS
    assert [(ranking["matches"], len(ranking["images"])) for ranking in found["rankings"]] == [(3, 2)] * 3
    of_every_pair = {
        (row["image"], text): row["score"]
        for text in TEXTS
        for row in asked(images, text, "--text-store", texts)["rankings"][0]["images"]
    }
    by_file = asked(texts, "--image", str(folder / "images" / "red.png"))
    by_id = asked(images, "--image", "red.png", "--text-store", texts)
    for result in (by_file, by_id):
        [ranking] = result["rankings"]
        assert result["stored_texts"] == ranking["matches"] == 3
        for row in ranking["texts"]:
            assert row["score"] == pytest.approx(of_every_pair["red.png", row["text"]], abs=1e-5)


def test_the_table_shows_cosines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run([str(folder / "model"), str(folder / "images.store"), TEXTS[0], "--threshold", "-1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red picture  (3 of 3 images)"
    assert {line.split()[-1] for line in lines[1:]} == {"red.png", "blue.png", "white.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give texts to search images by, or --image"),
        (["red", "--image", "red.png"], "Give texts to search images by, or --image"),
        (["red", "--answer", "yes"], "--answer is about answers"),
        (["--pairs", "pairs.jsonl"], "--pairs is about answers"),
        (["--image", "red.png"], "--image searches texts; give --text-store PATH"),
        (["red", "--index", "annoy"], "index is 'annoy', but expected is 'faiss'"),
    ],
)
def test_each_error_by_its_message(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([str(folder / "model"), str(folder / "images.store"), *words])


def test_layers_order_the_nearest_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stored with their tokens, the two nearest images are read with the text; a store without is refused."""
    model = DualEncoderForImageTextRetrieval.from_pretrained(folder / "model")
    layered = DualEncoderForImageTextRetrieval(DualEncoderConfig(**{**model.config.to_dict(), "interaction_layers": 1}))
    processor = DualDistillProcessor.from_pretrained(folder / "model")
    for saved in (layered, processor):
        saved.save_pretrained(folder / "layered")
    store = ["--images", str(folder / "images"), "--output-dir", str(folder / "tokens.store"), "--tokens"]
    run_encode([str(folder / "layered"), *store, "--json"])

    capsys.readouterr()
    words = [str(folder / "layered"), str(folder / "tokens.store"), TEXTS[0], "--rerank-top", "2", "--device", "cpu"]
    run([*words, "--json"])
    hits = json.loads(capsys.readouterr().out)["rankings"][0]["images"]
    assert ["match" in hit for hit in hits] == [True, True, False]
    with torch.no_grad():
        fits = [
            layered.eval()
            .match_scores(**processor(images=Image.open(folder / "images" / hit["image"]), text=TEXTS[0]))
            .sigmoid()
            .item()
            for hit in hits[:2]
        ]
    assert [hit["match"] for hit in hits[:2]] == pytest.approx(fits, abs=1e-5)
    assert fits == sorted(fits, reverse=True)
    run(words)
    assert " %  " in capsys.readouterr().out
    with pytest.raises(ValueError, match="give a store of images with tokens"):
        run([str(folder / "model"), str(folder / "images.store"), TEXTS[0], "--rerank-top", "2", "--device", "cpu"])
