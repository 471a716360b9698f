"""`dual-distill convert`: what it prints and writes, and its refusals in one sentence."""

import base64
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForVisualQuestionAnswering,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
)

from dual_distill.cli.options import run_command
from dual_distill.modeling import FusionEncoderForQuestionAnswering
from dual_distill.regions import read_region_tsv
from dual_distill.teachers import load_model
from dual_distill.teachers.vilt import VILT_CLASSES

run = partial(run_command, "convert")


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
    run([str(vilt), "--output-dir", str(out), "--json"])
    printed = capsys.readouterr().out
    [line] = printed.splitlines()
    report = json.loads(line)
    assert report["architecture"] == "FusionEncoderForQuestionAnswering"
    assert report["labels"] == 3
    assert report["largest_difference"] < 1e-5
    assert AutoModelForVisualQuestionAnswering.from_pretrained(out).config.id2label == {0: "yes", 1: "no", 2: "red"}


def test_a_table_for_reading(vilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(vilt), "--output-dir", str(vilt.parent / "ours"), "--head", "bare"])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["written", "loads as", "parameters", "labels", "largest difference of pooler_output"]
    assert lines["loads as"].strip() == "FusionEncoderModel"
    assert lines["labels"].strip() == "none"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a tiny BERT of 90 positions and a masked-word head."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=90,
    )
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it"]
    BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one picture with one region, whose features are 7 wide."""
    numbers = [torch.tensor([[0.0, 0, 30, 25]]), torch.randn(1, 7)]
    encoded = [base64.b64encode(part.numpy().tobytes()).decode() for part in numbers]
    (tmp_path / "features.tsv").write_text("\t".join(["7", "60", "50", "1", *encoded]) + "\n")
    read_region_tsv(str(tmp_path / "features.tsv"), str(tmp_path / "store"), made_by="hand")
    return tmp_path / "store"


def test_a_bert_starts_a_captioning_model_over_the_regions_of_a_store(
    bert: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name in ("one", "other"):
        torch.manual_seed(len(name))
        words = [str(bert), "--output-dir", str(bert.parent / name), "--regions", str(store)]
        run([*words, "--head", "captioning", "--json"])
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["architecture"] == "FusionEncoderForCaptioning"
    assert (reports[0]["output"], reports[0]["labels"]) == ("last_hidden_state", 0)
    assert reports[0]["largest_difference"] < 1e-5 < reports[0]["largest_value"]
    assert all(".region_embeddings." in name for name in reports[0]["new"])
    assert sorted(reports[0]["left_out"]) == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    one, other = (load_model(bert.parent / name).model for name in ("one", "other"))
    assert (one.config.region_feature_size, one.config.norm_first, one.config.visual_inputs) == (7, False, "regions")
    assert one.config.max_position_embeddings == 70
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())
    # For questions the head is drawn for the answers of the data.
    answering = FusionEncoderForQuestionAnswering
    answers = load_model(bert.parent / "one", None, answering, new_head=True, label_names=["yes", "no"]).model
    assert answers.config.id2label == {0: "yes", 1: "no"}
    run([str(bert), "--output-dir", str(bert.parent / "bare"), "--regions", str(store), "--max-positions", "50"])
    printed = capsys.readouterr().out
    lines = dict(line.split("  ", 1) for line in printed.splitlines())
    assert lines["loads as"].strip() == "FusionEncoderModel"
    assert "embeddings.region_embeddings.projection.weight" in lines["newly initialized, to be trained"]
    assert load_model(bert.parent / "bare").model.config.max_position_embeddings == 50


def test_refusals_of_starts(vilt: Path, bert: Path, store: Path) -> None:
    out, regions = str(bert.parent / "new"), ["--regions", str(store)]
    for words, message in (
        ([str(vilt), out, *regions], "holds a model of type 'vilt'; give one of type 'bert'"),
        ([str(bert), out], "type 'bert'.*for a bert: `dual-distill convert`"),
        (
            [str(bert), out, *regions, "--head", "question_answering"],
            "a BERT has no labels for FusionEncoderForQuestionAnswering",
        ),
        ([str(vilt), out, "--max-positions", "9"], "--max-positions is about a start over regions"),
        ([str(bert), str(bert), *regions], "is there already and not an empty folder"),
        ([str(store), out, *regions], r"has no config\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            run([words[0], "--output-dir", *words[1:]])
    assert not Path(out).exists()


def test_help_names_classes_revisions_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: dual-distill convert")
    for word in (*VILT_CLASSES, "--revision refs/pr/N", "dual-distill convert dandelin/vilt-b32-finetuned-vqa"):
        assert word in printed


def test_refusals(vilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: run([str(vilt), "--output-dir", str(vilt)]), "is there already and not an empty folder"),
        (
            lambda: run([str(vilt.parent / "no"), "--output-dir", "out"]),
            "is not a folder here and could not be fetched from the Hub",
        ),
        (
            lambda: run([str(vilt), "--output-dir", str(vilt.parent / "new"), "--head", "masked_lm"]),
            "was saved as ViltForQuestionAnswering, not as FusionEncoderForMaskedLM",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(SystemExit, match="2"):
        run([str(vilt), "--output-dir", "out", "--head", "captions"])
    assert "invalid choice: 'captions'" in capsys.readouterr().err
