"""`dual-distill encode` as a user meets it: a store, a report, and one sentence for each mistake."""

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
from dual_distill.inference import FeatureStore
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, DualEncoderForQuestionAnswering

run = partial(run_command, "encode")


@pytest.fixture
def model(tmp_path: Path) -> str:
    tokenizer = train_tokenizer(["is it red?", "what is it?"])
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = DualEncoderConfig(
        text_config={"vocab_size": len(tokenizer), **shape}, vision_config={"image_size": 16, "patch_size": 8, **shape}
    )
    folder = tmp_path / "model"
    DualEncoderForQuestionAnswering(config).save_pretrained(folder)
    DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "blue", "white"):
        Image.new("RGB", (20, 16), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def encoded(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def encoded(*words: str) -> dict:
        capsys.readouterr()
        run([*map(str, words), "--json", "--device", "cpu"])
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return encoded


def test_a_folder_becomes_a_store(model: str, images: Path, tmp_path: Path, encoded: Callable) -> None:
    (images / "broken.jpg").write_bytes(b"nothing")
    report = encoded(model, "--images", images, "--output-dir", tmp_path / "store", "--dtype", "float16", "--projected")
    assert (report["rows"], report["encoded"], report["missing_shards"]) == (3, 3, 0)
    assert list(report["unreadable"]) == ["broken.jpg"]
    store = FeatureStore(tmp_path / "store")
    assert store.ids() == ["blue.png", "red.png", "white.png"]
    assert (store["red.png"].dtype, store.manifest.projected) == (torch.float16, True)
    assert store.manifest.model["name"] == model
    again = encoded(model, "--images", images, "--output-dir", tmp_path / "store")
    assert (again["rows"], again["encoded"]) == (3, 0)


def test_texts_of_a_file(model: str, tmp_path: Path, encoded: Callable) -> None:
    (tmp_path / "texts.txt").write_text("is it red?\nwhat is it?\n")
    assert encoded(model, "--texts", tmp_path / "texts.txt", "--output-dir", tmp_path / "store")["kind"] == "text"
    assert FeatureStore(tmp_path / "store").ids() == ["is it red?", "what is it?"]


def test_the_summary_is_for_reading(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.jpg").write_bytes(b"nothing")
    run([model, "--images", str(images), "--output-dir", str(tmp_path / "store"), "--device", "cpu"])
    captured = capsys.readouterr()
    first, second, third = captured.out.splitlines()
    assert first.startswith(f"{tmp_path / 'store'}: 3 images, ")
    assert " bytes each, 3 of them encoded now, " in first
    assert first.endswith(" images/s")
    assert second == "1 cannot be read and are left out:"
    assert third.startswith("  row broken.jpg (image '")
    assert "4/4" in captured.err  # the bar


def test_mistakes_by_their_sentences(
    model: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--output-dir", str(tmp_path / "store"), "--device", "cpu"]
    with pytest.raises(FileNotFoundError, match=r"There is no folder '\./nowhere' of images"):
        run([model, "--images", "./nowhere", *store])
    with pytest.raises(ValueError, match="--strict is about images, but --texts is given"):
        run([model, "--texts", "x.txt", "--strict", *store])
    with pytest.raises(ValueError, match="--image-column, --num-workers is about images, but --texts is given"):
        run([model, "--texts", "x.txt", "--image-column", "image", "--num-workers", "0", *store])
    with pytest.raises(ValueError, match="id_column is 'sku', but a folder of images has neither columns nor splits"):
        run([model, "--images", str(images), "--id-column", "sku", *store])
    (images / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"row broken.jpg .* Without strict, it is listed"):
        run([model, "--images", str(images), "--strict", *store])
    for words, message in (
        ([model, *store], "one of the arguments --images --texts is required"),
        ([model], "--output-dir"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(words)
        assert message in capsys.readouterr().err
