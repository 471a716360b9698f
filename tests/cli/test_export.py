"""`dual-distill export`: what it prints and what it refuses; the graphs have their tests in tests/inference."""

import json
from functools import partial

import pytest
from transformers import ViltImageProcessorPil

from dual_distill.cli.export import table
from dual_distill.cli.options import run_command
from dual_distill.data import train_tokenizer
from dual_distill.inference import ExportReport
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

run = partial(run_command, "export")

TOKENIZER = train_tokenizer(["what is it?"], vocab_size=40)
REPORT = ExportReport(
    "runs/onnx", "DualEncoderForQuestionAnswering", {"text_tower": 2_500_000, "head": 1_000}, 3e-7, 1.25
)


def fusion_config():
    return FusionEncoderConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )


@pytest.fixture
def folder_of(tmp_path):
    """Saves a model and a processor, and says where."""

    def save(model):
        model.save_pretrained(tmp_path / "model")
        image_processor = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
        DualDistillProcessor(image_processor, TOKENIZER).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_the_table_says_what_was_written():
    assert table(REPORT).splitlines() == [
        "written                      runs/onnx",
        "architecture                 DualEncoderForQuestionAnswering",
        "text_tower                   2.5 MB",
        "head                         0.0 MB",
        "largest difference to torch  3.00e-07 (largest value 1.25)",
    ]


@pytest.mark.slow
def test_one_json_line(tmp_path, folder_of, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra [onnx])")
    model = DualEncoderForQuestionAnswering.from_fusion_encoder(FusionEncoderForQuestionAnswering(fusion_config()))
    run([str(folder_of(model)), "--output-dir", str(tmp_path / "out"), "--json"])
    [line] = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert sorted(report["files"]) == ["head", "image_tower", "text_tower"]
    assert report["largest_difference"] < 1e-4


def test_a_fusion_encoder_is_refused_in_a_sentence(tmp_path, folder_of):
    folder = folder_of(FusionEncoderForQuestionAnswering(fusion_config()))
    with pytest.raises(
        ValueError, match="FusionEncoderForQuestionAnswering cannot be exported as towers and a head; give Dual"
    ):
        run([str(folder), "--output-dir", str(tmp_path / "out")])


def test_help_names_the_files_and_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    printed = capsys.readouterr().out
    for words in ("text_tower.onnx", "examples/answer_from_onnx.py", "dual-distill[onnx]"):
        assert words in printed
