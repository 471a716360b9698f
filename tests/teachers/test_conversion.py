"""A ViLT's folder in, ours out: what is written loads the ordinary way, and nothing is written whose outputs differ."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderModel,
)
from dual_distill.teachers import convert_folder, largest_difference, random_batch
from dual_distill.teachers.vilt import VILT_CLASSES

LOADED_BY = {
    "ViltModel": AutoModel,
    "ViltForQuestionAnswering": AutoModelForVisualQuestionAnswering,
    "ViltForImagesAndTextClassification": AutoModelForSequenceClassification,
    "ViltForImageAndTextRetrieval": FusionEncoderForImageTextRetrieval,
    "ViltForMaskedLM": AutoModelForMaskedLM,
}


@pytest.mark.parametrize("name", VILT_CLASSES)
def test_what_is_written_loads_the_ordinary_way_and_agrees(name, save_vilt, tmp_path):
    vilt, folder = save_vilt(name)
    out = tmp_path / "new" / "ours"
    report = convert_folder(folder, out)
    model, processor = LOADED_BY[name].from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert (type(model).__name__, type(processor)) == (report.architecture, DualDistillProcessor)
    assert largest_difference(vilt, model, random_batch(model.config))["largest_difference"] < 1e-5
    assert report.output == ("pooler_output" if name == "ViltModel" else "logits")
    assert 0 <= report.largest_difference < 1e-5 < 1e-2 < report.largest_value
    assert report.parameters == vilt.num_parameters()
    assert report.labels == (len(vilt.config.id2label) if hasattr(vilt, "classifier") else 0)
    assert (report.source, report.out) == (str(folder), str(out))
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}
    assert [path.name for path in out.parent.iterdir()] == ["ours"]  # nothing is left beside it
    assert json.loads(json.dumps(asdict(report)))["labels"] == report.labels


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ViltForImagesAndTextClassification", {"num_images": 1, "modality_type_vocab_size": 2}),
        ("ViltForQuestionAnswering", {"image_size": 14}),  # patches of 4: ViLT leaves two pixels out
    ],
)
def test_heads_and_sizes_that_only_vilt_has(name, fields, save_vilt, tmp_path):
    vilt, folder = save_vilt(name, **fields)
    report = convert_folder(folder, tmp_path / "ours")
    model = LOADED_BY[name].from_pretrained(tmp_path / "ours")
    assert largest_difference(vilt, model, random_batch(model.config))["largest_difference"] < 1e-5
    assert report.output == "logits"
    student = DualEncoderForImagesAndTextClassification.from_fusion_encoder(model) if "num_images" in fields else None
    assert student is None or torch.equal(student.classifier[0].weight, model.classifier[0].weight)


def test_a_pooler_that_the_original_lacks_is_reported(save_vilt, tmp_path):
    _, folder = save_vilt("ViltModel")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    report = convert_folder(folder, tmp_path / "ours")
    assert report.new == ("pooler.dense.weight", "pooler.dense.bias")
    assert report.largest_difference < 1e-5


def test_a_masked_word_model_of_transformers_4(save_vilt, tmp_path):
    vilt, folder = save_vilt("ViltForMaskedLM")
    weights = load_file(folder / "model.safetensors")
    weights["mlm_score.bias"] = weights.pop("mlm_score.decoder.bias")
    weights["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(12)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    convert_folder(folder, tmp_path / "ours")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert largest_difference(vilt, model, random_batch(model.config))["largest_difference"] < 1e-5


def test_the_head_can_be_left_out(save_vilt, tmp_path):
    _, folder = save_vilt("ViltForQuestionAnswering")
    report = convert_folder(folder, tmp_path / "ours", model_class=FusionEncoderModel)
    assert (report.architecture, report.labels, report.output) == ("FusionEncoderModel", 0, "pooler_output")


def test_an_empty_folder_is_filled_and_another_refused(save_vilt, tmp_path):
    _, folder = save_vilt("ViltModel")
    out = tmp_path / "ours"
    out.mkdir()
    convert_folder(folder, out)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ValueError, match="is there already and not an empty folder; name a new one"):
        convert_folder(folder, out)
    assert sorted(path.name for path in out.iterdir()) == before
    with pytest.raises(ValueError, match="holds a dual_distill_fusion_encoder, which needs no conversion"):
        convert_folder(out, tmp_path / "again")


def test_values_that_are_not_finite_are_refused_and_nothing_is_written(save_vilt, tmp_path):
    _, folder = save_vilt("ViltForQuestionAnswering")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.3.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has 1 weights that are not finite \(the first is classifier\.3\.bias\)"):
        convert_folder(folder, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["vilt"]
