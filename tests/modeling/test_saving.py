"""What is saved is what is loaded: every tensor, every logit, with safetensors alone."""

import json

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, ViltImageProcessorPil

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    DualEncoderTextModel,
    DualEncoderVisionModel,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)

HEADED = [
    FusionEncoderForQuestionAnswering,
    FusionEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderForImagesAndTextClassification,
]
WHOLE = [FusionEncoderModel, DualEncoderModel, *HEADED]
TOWERS = [DualEncoderTextModel, DualEncoderVisionModel]


def inputs_of(cls, batch):
    names = {
        DualEncoderTextModel: ("input_ids", "attention_mask"),
        DualEncoderVisionModel: ("pixel_values", "pixel_mask"),
    }
    return {name: batch[name] for name in names.get(cls, batch)}


def assert_equal_models(before, after):
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.dtype == other[name].dtype, name


@pytest.mark.parametrize("cls", [*WHOLE, *TOWERS])
def test_saved_and_loaded_is_bit_equal(cls, build, batch, tmp_path):
    before = build(cls, num_labels=5, image_size=[8, 16], recorded_layers=[0])
    before.save_pretrained(tmp_path)
    after, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_models(before, after)
    assert not after.training
    one, other = before(**inputs_of(cls, batch)), after(**inputs_of(cls, batch))
    assert torch.equal(one.pooler_output, other.pooler_output)
    if cls in HEADED:
        assert torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("cls", WHOLE)
def test_a_folder_holds_safetensors_and_json_only(cls, build, tmp_path):
    build(cls).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("cls", [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering])
def test_sharded_checkpoints_load(cls, build, tmp_path):
    before = build(cls)
    before.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_models(before, cls.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering])
def test_dtype_survives(cls, dtype, build, tmp_path):
    before = build(cls).to(dtype)
    before.save_pretrained(tmp_path)
    assert_equal_models(before, cls.from_pretrained(tmp_path))
    assert cls.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "headed, bare, name",
    [
        (FusionEncoderForQuestionAnswering, FusionEncoderModel, "fusion_encoder"),
        (DualEncoderForImagesAndTextClassification, DualEncoderModel, "dual_encoder"),
    ],
)
def test_the_bare_model_loads_from_a_headed_one_and_back(headed, bare, name, build, tmp_path):
    before = build(headed)
    before.save_pretrained(tmp_path / "headed")
    inner, report = bare.from_pretrained(tmp_path / "headed", output_loading_info=True)
    assert not report["missing_keys"]
    assert_equal_models(getattr(before, name), inner)
    inner.save_pretrained(tmp_path / "bare")
    again, report = headed.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"classifier"}
    assert_equal_models(inner, getattr(again, name))
    assert all(parameter.isfinite().all() for parameter in again.parameters())


@pytest.mark.parametrize("cls, name", [(DualEncoderTextModel, "text_model"), (DualEncoderVisionModel, "vision_model")])
def test_a_tower_loads_from_the_folder_of_a_dual_encoder(cls, name, build, tmp_path):
    before = build(DualEncoderModel)
    before.save_pretrained(tmp_path)
    after, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert_equal_models(getattr(before, name), after)


@pytest.mark.parametrize("cls", [FusionEncoderModel, DualEncoderModel])
def test_freshly_drawn_weights_have_the_configured_spread(cls, config):
    torch.manual_seed(0)
    model = cls(config(cls.config_class, hidden_size=64, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name.lower() or name.endswith("interaction.1.weight"):
            assert (parameter == 1).all(), name
        else:
            assert 0.025 < parameter.std().item() < 0.075 or parameter.numel() < 200, name
            assert parameter.std().item() > 0.02, name


@pytest.mark.parametrize("cls", [FusionEncoderModel, DualEncoderModel])
def test_embeddings_may_be_drawn_wider_than_the_rest(cls, config):
    torch.manual_seed(0)
    fields = {"hidden_size": 64, "initializer_range": 0.02, "embedding_initializer_range": 0.5}
    for name, parameter in cls(config(cls.config_class, **fields)).named_parameters():
        if (
            "embeddings" in name
            and "patch_embeddings" not in name
            and "LayerNorm" not in name
            and parameter.numel() > 200
        ):
            assert 0.4 < parameter.std().item() < 0.6, name
        elif parameter.dim() > 1 and parameter.numel() > 200:
            assert 0.01 < parameter.std().item() < 0.03, name


LOAD = """
import json, sys, torch, dual_distill
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor
from transformers import AutoModelForVisualQuestionAnswering
from PIL import Image
found = []
for folder, auto in zip(sys.argv[1:], [AutoModelForVisualQuestionAnswering, AutoModelForSequenceClassification] * 2):
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor(text=["what is it?"], images=[Image.new("RGB", (12, 8), "red")])
    loaded = [AutoConfig.from_pretrained(folder), processor, auto.from_pretrained(folder),
              AutoModel.from_pretrained(folder)]
    with torch.no_grad():
        outputs = loaded[2](**batch).logits.flatten().tolist(), loaded[3](**batch).pooler_output.flatten().tolist()
    found.append([[type(part).__name__ for part in loaded], *outputs])
print(json.dumps(found))
"""


@pytest.fixture
def processor():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]
    return DualDistillProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        BertTokenizer({word: index for index, word in enumerate(words)}, model_max_length=12),
    )


def test_auto_classes_load_in_a_fresh_process(build, processor, tmp_path, run_fresh):
    models = [build(cls, num_labels=3) for cls in HEADED]
    folders = [tmp_path / type(model).__name__ for model in models]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    printed = run_fresh(LOAD, *folders)
    batch = processor(text=["what is it?"], images=[Image.new("RGB", (12, 8), "red")])
    for model, found in zip(models, json.loads(printed.splitlines()[-1]), strict=True):
        names, logits, pooled = found
        kind = "FusionEncoder" if "Fusion" in type(model).__name__ else "DualEncoder"
        assert names == [f"{kind}Config", "DualDistillProcessor", type(model).__name__, f"{kind}Model"]
        output = model(**batch)
        torch.testing.assert_close(torch.tensor(logits), output.logits.flatten(), atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.tensor(pooled), output.pooler_output.flatten(), atol=1e-6, rtol=0)
