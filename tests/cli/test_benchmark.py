"""`dual-distill benchmark`: any checkpoint, in one process, as a table or one JSON line."""

import json
from functools import partial

import pytest
from transformers import ViltImageProcessorPil

from dual_distill.cli.options import run_command
from dual_distill.data import train_tokenizer
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

run = partial(run_command, "benchmark")

TOKENIZER = train_tokenizer(["what is it?"], vocab_size=40)
QUICK = ["--repeats", "2", "--warmup", "0", "--batch-sizes", "1", "2"]


@pytest.fixture
def folders(tmp_path):
    """A fusion encoder and a dual encoder of its shape, saved."""
    config = FusionEncoderConfig(
        vocab_size=len(TOKENIZER),
        max_position_embeddings=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    fusion = FusionEncoderForQuestionAnswering(config)
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), TOKENIZER)
    for name, model in (("fusion", fusion), ("dual", DualEncoderForQuestionAnswering.from_fusion_encoder(fusion))):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    return str(tmp_path / "fusion"), str(tmp_path / "dual")


def test_one_json_line_with_command_and_surroundings(folders, capsys, monkeypatch):
    monkeypatch.setattr("dual_distill.inference.prepacking._LEAST_GAIN", 0)  # whatever this processor gains
    fusion, dual = folders
    run(
        [
            dual,
            "--against",
            fusion,
            *QUICK,
            "--text-tokens",
            "6",
            "--real-tokens",
            "4",
            "--image-size",
            "8",
            "24",
            "--json",
        ]
    )
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["command"].startswith(f"dual-distill benchmark {dual} --against {fusion}")
    assert {"device", "cores", "threads", "versions"} <= set(result)
    assert result["prepacked_layers"] > 0
    assert (result["dtype"], result["image_size"], result["dual_encoders"]) == ("float32", [8, 24], [dual])
    assert [(row["batch_size"], row["way"]) for row in result["rows"]] == [
        (size, way)
        for size in (1, 2)
        for way in ("fusion_encoder", "dual_encoder", "image_stored", "both_stored", "both_projected")
    ]
    assert {(row["text_tokens"], row["real_tokens"]) for row in result["rows"]} == {(6, 4)}


def test_a_fusion_encoder_alone_is_held_against_the_dual_encoder_of_its_shape(folders, capsys):
    run([folders[0], *QUICK])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 5
    assert lines[1].split()[:3] == ["batch", "tokens", "way"]
    assert "16 x 16 px" in lines[0]
    assert lines[3].endswith("dual encoder of its shape")
    assert lines[2].split()[:3] == ["1", "10/10", "fusion_encoder"]


def test_a_dual_encoder_alone_is_compared_with_itself_and_bad_shapes_are_refused(folders, capsys):
    run([folders[1], *QUICK, "--dtype", "bfloat16", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["against"], result["dtype"]) == (None, "bfloat16")
    assert result["rows"][0]["times_faster"] == 1.0
    with pytest.raises(ValueError, match="11 real of 11 text tokens were asked for; the model takes 1 to 10"):
        run([folders[1], *QUICK, "--text-tokens", "11"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--real-tokens", "0"], "0 real of 10 text tokens were asked for"),
        (["--text-tokens", "0"], "0 real of 0 text tokens were asked for"),
        (["--batch-sizes", "0"], "batch_size is 0, but must be at least 1"),
        (["--threads", "0"], "--threads is 0; give 1 or more"),
        (["--warmup", "-1"], "warmup is -1; give 0 or more"),
    ],
)
def test_a_number_that_is_none_to_time_is_refused(folders, words, message):
    with pytest.raises(ValueError, match=message):
        run([folders[1], *QUICK, *words])


def test_layers_of_torch_itself_are_timed_on_request(folders, capsys):
    run([folders[1], *QUICK, "--no-prepacking", "--json"])
    assert json.loads(capsys.readouterr().out)["prepacked_layers"] == 0
    run([folders[1], *QUICK, "--no-prepacking"])
    assert "linear layers of torch" in capsys.readouterr().out.splitlines()[0]
