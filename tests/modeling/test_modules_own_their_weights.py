"""Every weight is read through its module: offloaded, quantised and adapted models give what the plain model gives.

What replaces a module (an accelerate hook, a layer with packed weights, an adapter) is only asked for its `forward`.
"""

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import TorchAoConfig

import dual_distill.modeling as modeling

REGIONS = {"visual_inputs": "regions", "region_feature_size": 6}
PAIRS = ["DualEncoderForPreTraining", "FusionEncoderForPreTraining"]
CASES = [
    ("DualEncoderModel", {}),
    ("DualEncoderModel", {"interaction_layers": 1}),
    ("DualEncoderForQuestionAnswering", {}),
    ("DualEncoderForQuestionAnswering", {"interaction_layers": 1}),
    ("DualEncoderForImagesAndTextClassification", {}),
    ("DualEncoderForImageTextRetrieval", {}),
    ("DualEncoderForPreTraining", {}),
    ("FusionEncoderModel", {}),
    ("FusionEncoderModel", REGIONS),
    ("FusionEncoderForQuestionAnswering", {}),
    ("FusionEncoderForImagesAndTextClassification", {}),
    ("FusionEncoderForImageTextRetrieval", {}),
    ("FusionEncoderForMaskedLM", {}),
    ("FusionEncoderForCaptioning", {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}),
    ("FusionEncoderForPreTraining", {}),
]
every_class = pytest.mark.parametrize("name, fields", CASES, ids=lambda part: part if isinstance(part, str) else None)


class Opaque(nn.Module):
    """A layer that gives its product and shows nothing else, as a quantised one may."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.call = [layer]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.call[0](features)


def made_opaque(model: nn.Module) -> nn.Module:
    """The model with every layer that has a matrix of its own replaced."""
    for parent in [module for module in model.modules() if not isinstance(module, Opaque)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.Linear, nn.Embedding, nn.Conv2d)):
                setattr(parent, name, Opaque(child))
    return model


@pytest.fixture
def inputs(batch, pair_batch):
    """What a class reads: pairs in pre-training, regions where it has some, else rows of a text and an image."""

    def inputs(name, fields):
        if name in PAIRS:
            return pair_batch()
        if fields == REGIONS:
            rows, boxes = batch["input_ids"].shape[0], torch.rand(3, 4, 6)
            return {"input_ids": batch["input_ids"], "region_features": torch.randn(rows, 4, 6), "region_boxes": boxes}
        return batch

    return inputs


def numbers(output) -> list[torch.Tensor]:
    """Everything that an output holds, in its order."""
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


@every_class
@torch.no_grad()
def test_layers_that_show_no_weights(name, fields, build, inputs):
    model, batch = build(getattr(modeling, name), **fields), inputs(name, fields)
    expected = numbers(model(**batch))
    for found, wanted in zip(numbers(made_opaque(model)(**batch)), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@every_class
@torch.no_grad()
def test_weights_that_are_fetched_when_their_module_is_called(name, fields, build, inputs):
    model, batch = build(getattr(modeling, name), **fields), inputs(name, fields)
    expected = numbers(model(**batch))
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for found, wanted in zip(numbers(model(**batch)), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:The following device_map keys")
@every_class
@torch.no_grad()
def test_device_map_auto_with_half_of_the_weights_on_the_disk(name, fields, build, inputs, tmp_path):
    model, batch = build(getattr(modeling, name), **fields), inputs(name, fields)
    model.save_pretrained(tmp_path)
    half = sum(parameter.nbytes for parameter in model.parameters()) // 2
    options = {"max_memory": {"cpu": half}, "offload_folder": tmp_path / "offload"}
    spread = type(model).from_pretrained(tmp_path, device_map="auto", **options).eval()
    assert "disk" in spread.hf_device_map.values()
    for found, wanted in zip(numbers(spread(**batch)), numbers(model(**batch)), strict=True):
        # Weights from the disk lie elsewhere in memory, which may change the last bit of a product.
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@every_class
@torch.no_grad()
def test_a_quantiser_gives_what_its_rounded_weights_give(name, fields, build, inputs):
    """Dynamic quantisation of torch to float16: every matrix is packed, and exact but for rounding to 16 bits."""
    model, batch = build(getattr(modeling, name), **fields), inputs(name, fields)
    rounded = copy.deepcopy(model)
    layers = [layer for layer in rounded.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.weight.copy_(layer.weight.half().float())
    packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.float16)
    assert sum("quantized" in type(layer).__module__ for layer in packed.modules()) >= len(layers)
    for found, wanted in zip(numbers(packed(**batch)), numbers(rounded(**batch)), strict=True):
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=5e-3)


@every_class
@torch.no_grad()
def test_int8_weights_of_torchao(name, fields, build, inputs, tmp_path):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model, batch = build(getattr(modeling, name), **fields), inputs(name, fields)
    model.save_pretrained(tmp_path)
    quantiser = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    packed = type(model).from_pretrained(tmp_path, quantization_config=quantiser).eval()
    int8 = {name: weight for name, weight in packed.named_parameters() if type(weight) is not nn.Parameter}
    assert len(int8) > 10
    model.load_state_dict({**model.state_dict(), **{name: weight.dequantize() for name, weight in int8.items()}})
    for found, wanted in zip(numbers(packed(**batch)), numbers(model(**batch)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("interaction_layers", [0, 1])
@torch.no_grad()
def test_one_side_alone_and_the_halves_of_the_interaction(interaction_layers, build, batch):
    model = build(modeling.DualEncoderForQuestionAnswering, interaction_layers=interaction_layers)
    texts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    images = {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}

    def sides():
        text, image = model.get_text_features(**texts).pooler_output, model.get_image_features(**images).pooler_output
        found = [text, image, model.project_text(text), model.project_images(image)]
        if interaction_layers:
            return [*found, model.get_image_features(**images, output_token_states=True).image_token_states]
        return [*found, model.logits_of_projections(*found[2:])]

    expected = sides()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(torch.equal(found, wanted) for found, wanted in zip(sides(), expected, strict=True))

    model = build(modeling.DualEncoderForQuestionAnswering, interaction_layers=interaction_layers)
    made_opaque(model)
    for found, wanted in zip(sides(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_a_caption_is_written_with_weights_that_are_fetched(build, batch):
    fields = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
    model = build(modeling.FusionEncoderForCaptioning, **fields)
    image = {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"]}
    expected = model.generate(**image, num_beams=2, max_new_tokens=5)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert torch.equal(model.generate(**image, num_beams=2, max_new_tokens=5), expected)


@pytest.mark.parametrize("name", ["DualEncoderForQuestionAnswering", "FusionEncoderForQuestionAnswering"])
def test_adapters_on_every_layer(name, build, batch):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = build(getattr(modeling, name))
    layers = [path for path, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Embedding, nn.Conv2d))]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)).eval()
    found = adapted(**batch).logits
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**batch).logits, found, atol=1e-3)

    # An adapted interaction is the same whole and in halves, and the same once its adapters are merged.
    inside = adapted.base_model.model
    if name.startswith("Dual"):
        text = inside.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        image = inside.get_image_features(batch["pixel_values"], batch["pixel_mask"]).pooler_output
        halves = inside.logits_of_projections(inside.project_text(text), inside.project_images(image))
        torch.testing.assert_close(halves, found, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(adapted.merge_and_unload()(**batch).logits, found, atol=1e-3, rtol=1e-4)
