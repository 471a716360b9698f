"""Three ONNX graphs against torch, and the example that answers from them in a process without torch."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, ViltImageProcessorPil, pipeline

from dual_distill.data import train_tokenizer
from dual_distill.inference import ANSWERING_TASK, export_onnx
from dual_distill.inference.export import _round_weights, compare_with_torch, graphs_of
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
)

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra [onnx])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra [onnx])")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra [onnx])")

EXAMPLE = Path(__file__).parents[2] / "examples" / "answer_from_onnx.py"
QUESTIONS = ["is there a red circle?", "how many?"]


def processor_of(size=16):
    tokenizer = train_tokenizer([*QUESTIONS, "xylophones"], vocab_size=60)
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": size}, size_divisor=8), tokenizer)


def model_of(cls, processor, **fields) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    answers = ("yes", "no", "red", "blue", "two")
    model = cls(
        DualEncoderConfig(
            text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 20, **shape},
            vision_config={"image_size": [16, 24], "patch_size": 8, **shape},
            id2label=dict(enumerate(answers)),
            label2id={name: place for place, name in enumerate(answers)},
            **fields,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def exported_layers(tmp_path_factory):
    """Likewise, with interaction layers."""
    processor = processor_of()
    model = model_of(DualEncoderForQuestionAnswering, processor, interaction_layers=2)
    out = tmp_path_factory.mktemp("export") / "onnx"
    return model, processor, out, export_onnx(model, processor, out)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Model, processor and the folder that was exported of them."""
    processor = processor_of()
    model = model_of(DualEncoderForQuestionAnswering, processor, problem_type="multi_label_classification")
    out = tmp_path_factory.mktemp("export") / "new" / "onnx"
    return model, processor, out, export_onnx(model, processor, out)


def test_the_report_and_the_folder(exported):
    _, _, out, report = exported
    assert report.largest_difference < 1e-4
    assert report.largest_value > 0.1
    assert report.architecture == "DualEncoderForQuestionAnswering"
    written = {path.name for path in out.iterdir()}
    assert {"text_tower.onnx", "image_tower.onnx", "head.onnx", "export.json", "tokenizer.json"} <= written
    assert report.files["head"] == (out / "head.onnx").stat().st_size
    about = json.loads((out / "export.json").read_text(encoding="utf-8"))
    assert about["answers"] == ["yes", "no", "red", "blue", "two"]
    assert (about["probabilities"], about["num_images"], about["max_text_tokens"]) == ("sigmoid", 1, 20)
    assert [path for path in out.parent.iterdir() if path != out] == []


def batch_of(model, rows, tokens, grid):
    return {
        "input_ids": torch.randint(1, 60, (rows, tokens)).clamp(max=model.config.vocab_size - 1),
        "attention_mask": (torch.arange(tokens)[None] < torch.randint(1, tokens + 1, (rows, 1))).long(),
        "pixel_values": torch.randn(rows, 1, 3, 8 * grid[0], 8 * grid[1]),
        "pixel_mask": torch.ones(rows, 1, 8 * grid[0], 8 * grid[1], dtype=torch.bool),
    }


@pytest.mark.parametrize("rows, tokens, grid", [(1, 1, (1, 1)), (5, 20, (5, 2)), (2, 9, (1, 6))], ids=str)
def test_any_batch_length_and_image_size(exported, rows, tokens, grid):
    model, _, out, _ = exported
    batch = batch_of(model, rows, tokens, grid)
    batch["pixel_mask"][-1, :, 8:] = 0
    run = {
        name: onnxruntime.InferenceSession(str(out / f"{name}.onnx"), providers=["CPUExecutionProvider"]).run
        for name in ("text_tower", "image_tower", "head")
    }
    [text] = run["text_tower"](None, {name: batch[name].numpy() for name in ("input_ids", "attention_mask")})
    [image] = run["image_tower"](None, {name: batch[name].numpy() for name in ("pixel_values", "pixel_mask")})
    [logits] = run["head"](None, {"text_pooler_output": text, "image_pooler_output": image})
    with torch.no_grad():
        expected = model(**batch)
    for found, wanted in (
        (text, expected.text_pooler_output),
        (image, expected.image_pooler_output),
        (logits, expected.logits),
    ):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("rows, tokens, grid", [(1, 1, (1, 1)), (5, 20, (5, 2)), (2, 9, (1, 6))], ids=str)
def test_interaction_layers_are_in_the_questions_graph(exported_layers, rows, tokens, grid):
    model, _, out, report = exported_layers
    assert list(report.files) == ["image_tower", "question"]
    assert {path.name for path in out.glob("*.onnx")} == {"image_tower.onnx", "question.onnx"}
    text = {
        "input_ids": torch.randint(1, 60, (rows, tokens)).clamp(max=model.config.vocab_size - 1),
        "attention_mask": (torch.arange(tokens)[None] < torch.randint(1, tokens + 1, (rows, 1))).long(),
    }
    pixels = {
        "pixel_values": torch.randn(rows, 1, 3, 8 * grid[0], 8 * grid[1]),
        "pixel_mask": torch.ones(rows, 1, 8 * grid[0], 8 * grid[1], dtype=torch.bool),
    }
    pixels["pixel_mask"][-1, :, 8:] = 0
    image_tower, question = (
        onnxruntime.InferenceSession(str(out / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("image_tower", "question")
    )
    images = image_tower.run(None, {name: tensor.numpy() for name, tensor in pixels.items()})
    stored = dict(zip(("image_token_embeds", "image_token_mask"), images, strict=True))
    [logits] = question.run(None, {name: tensor.numpy() for name, tensor in text.items()} | stored)
    with torch.no_grad():
        expected = model.get_image_features(**pixels)
        np.testing.assert_allclose(stored["image_token_embeds"], expected.image_token_embeds.numpy(), atol=1e-4)
        np.testing.assert_array_equal(stored["image_token_mask"], expected.image_token_mask.numpy())
        np.testing.assert_allclose(logits, model(**text, **pixels).logits.numpy(), atol=1e-4)


PRECISIONS = pytest.mark.parametrize("precision, most", [("float16", 0.02), ("int8", 0.3)])


@PRECISIONS
@pytest.mark.parametrize("which", ["exported", "exported_layers"])
def test_graphs_that_are_rounded_run_and_answer_nearly_the_same(precision, most, which, request, tmp_path):
    model, _, out, _ = request.getfixturevalue(which)
    for name in graphs_of(model):
        shutil.copyfile(out / f"{name}.onnx", tmp_path / f"{name}.onnx")
        _round_weights(tmp_path / f"{name}.onnx", precision)
    found = compare_with_torch(model, tmp_path)
    assert 1e-6 < found["largest_difference"] < most * found["largest_value"]


@pytest.mark.slow
@PRECISIONS
@pytest.mark.parametrize("layers", [0, 2])
def test_rounded_weights_are_near(precision, most, layers, exported, exported_layers, tmp_path):
    model, processor, *_ = exported_layers if layers else exported
    report = export_onnx(model, processor, tmp_path / "rounded", precision)
    assert report.precision == precision
    assert 0 < report.largest_difference < most * report.largest_value
    graph = onnx.load(tmp_path / "rounded" / "image_tower.onnx").graph
    kinds = [one.data_type for one in graph.initializer if len(one.dims) == 2]
    kind = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert kinds.count(kind) >= 12  # six matrices a layer
    assert {path.suffix for path in (tmp_path / "rounded").glob("*tower*")} == {".onnx"}
    about = json.loads((tmp_path / "rounded" / "export.json").read_text(encoding="utf-8"))
    assert (about["precision"], about["checked"]["largest_difference"]) == (precision, report.largest_difference)


@pytest.mark.parametrize("rows, tokens, grid", [(1, 1, (1, 1)), (5, 20, (5, 2)), (2, 9, (1, 6))], ids=str)
def test_openvino_runs_the_graphs_at_any_shape(exported_layers, rows, tokens, grid):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed (extra [openvino])")
    model, _, out, _ = exported_layers
    batch = batch_of(model, rows, tokens, grid)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    core = openvino.Core()
    for name in ("image_tower", "question"):
        # Its default rounds to the processor's bfloat16 where there is one.
        graph = core.compile_model(str(out / f"{name}.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = graph({put.any_name: arrays[put.any_name] for put in graph.inputs})
        arrays |= {put.any_name: found[put] for put in graph.outputs}
    with torch.no_grad():
        np.testing.assert_allclose(arrays["logits"], model(**batch).logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("which", ["exported", "exported_layers"])
def test_the_example_answers_as_the_pipeline_does_without_torch(which, request, tmp_path):
    model, processor, out, _ = request.getfixturevalue(which)
    picture = tmp_path / "picture.png"
    noise = torch.randint(0, 256, (30, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    Image.fromarray(noise.numpy()).save(picture)
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'transformers', 'dual_distill'): sys.modules[name] = None\n"
        f"sys.argv = [{str(EXAMPLE)!r}, {str(out)!r}, *{QUESTIONS!r}, '--image', {str(picture)!r}, '--json', "
        f"'--top-k', '5']\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    answer = pipeline(ANSWERING_TASK, model=model, processor=processor, device="cpu")
    expected = answer({"image": str(picture), "question": QUESTIONS}, top_k=5)
    for found, wanted in zip(json.loads(finished.stdout), expected, strict=True):
        assert [entry["answer"] for entry in found["answers"]] == [entry["answer"] for entry in wanted]
        scores = ([entry["score"] for entry in entries] for entries in (found["answers"], wanted))
        np.testing.assert_allclose(*scores, atol=1e-4)


def test_the_example_prepares_any_image_as_the_processor_does():
    processor, answerer_class = processor_of(), runpy.run_path(str(EXAMPLE))["Answerer"]
    answerer = object.__new__(answerer_class)
    answerer.images = json.loads(json.dumps(processor.image_processor.to_dict()))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 4), dtype=np.uint8), "RGBA")
    for mode in ("RGB", "RGBA", "LA", "L", "P", "CMYK"):
        given = image.convert(mode) if mode in ("RGB", "RGBA", "LA", "L") else image.convert("RGB").convert(mode)
        np.testing.assert_allclose(answerer.prepare(given), processor.prepare_image(given), atol=1e-5, err_msg=mode)


@pytest.mark.slow
def test_two_images_a_row(tmp_path):
    processor = processor_of()
    model = model_of(DualEncoderForImagesAndTextClassification, processor, num_images=2)
    report = export_onnx(model, processor, tmp_path / "onnx")
    assert report.largest_difference < 1e-4
    about = json.loads((tmp_path / "onnx" / "export.json").read_text(encoding="utf-8"))
    assert (about["probabilities"], about["num_images"]) == ("softmax", 2)


def test_refusals(exported, tmp_path, monkeypatch):
    model, processor, out, _ = exported
    with pytest.raises(ValueError, match="DualEncoderModel cannot be exported as towers and a head"):
        export_onnx(model_of(DualEncoderModel, processor), processor, tmp_path / "new")
    with pytest.raises(ValueError, match="is there already and not an empty folder"):
        export_onnx(model, processor, out)
    half = model_of(DualEncoderForQuestionAnswering, processor).half()
    with pytest.raises(ValueError, match=r"the model is torch.float16; load it with dtype=torch.float32"):
        export_onnx(half, processor, tmp_path / "new")
    monkeypatch.setattr("dual_distill.inference.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime is not installed.*dual-distill\[onnx\]"):
        export_onnx(model, processor, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_comparison_sees_another_model(exported):
    """A last bias moved by 1 moves every logit by 1 and no vector."""
    model, _, out, _ = exported
    with torch.no_grad():
        model.classifier[-1].bias.add_(1.0)
        try:
            assert compare_with_torch(model, out)["largest_difference"] == pytest.approx(1.0, abs=1e-5)
        finally:
            model.classifier[-1].bias.sub_(1.0)
