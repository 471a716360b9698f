"""`dual-distill convert`: what it prints and writes, and its refusals in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForVisualQuestionAnswering,
    BertTokenizer,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
)

from dual_distill.cli.convert import run


@pytest.fixture
def vilt(tmp_path: Path) -> Path:
    """A folder with a tiny ViLT of three answers, as a user has it."""
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=20,
        max_position_embeddings=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label={0: "yes", 1: "no", 2: "red"},
        label2id={"yes": 0, "no": 1, "red": 2},
    )
    folder = tmp_path / "vilt"
    ViltForQuestionAnswering(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it"]
    image_processor = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    ViltProcessor(image_processor, BertTokenizer({word: i for i, word in enumerate(words)})).save_pretrained(folder)
    return folder


def test_one_json_line_and_a_checkpoint_with_its_answers(vilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = vilt.parent / "ours"
    run([str(vilt), str(out), "--json"])
    printed = capsys.readouterr().out
    [line] = printed.splitlines()
    report = json.loads(line)
    assert report["architecture"] == "FusionEncoderForQuestionAnswering"
    assert report["labels"] == 3
    assert report["largest_difference"] < 1e-5
    assert AutoModelForVisualQuestionAnswering.from_pretrained(out).config.id2label == {0: "yes", 1: "no", 2: "red"}


def test_a_table_for_reading(vilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(vilt), str(vilt.parent / "ours"), "--head", "bare"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["written", "loads as", "parameters", "labels", "largest difference of pooler_output"]
    assert lines["loads as"].strip() == "FusionEncoderModel"
    assert lines["labels"].strip() == "none"


def test_help_names_classes_revisions_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: dual-distill convert")
    for word in ("ViltForQuestionAnswering", "--revision refs/pr/N", "dual-distill convert dandelin/vilt-b32-finetuned-vqa"):
        assert word in printed


def test_refusals(vilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: run([str(vilt), str(vilt)]), "is there already and not an empty folder"),
        (lambda: run([str(vilt.parent / "no"), "out"]), "is no folder here and could not be fetched from the Hub"),
        (lambda: run([str(vilt), str(vilt.parent / "new"), "--head", "masked_lm"]), "was saved with the head"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(SystemExit, match="2"):
        run([str(vilt), "out", "--head", "captions"])
    assert "invalid choice: 'captions'" in capsys.readouterr().err
