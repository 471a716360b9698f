"""Prepacked linear layers give what plain ones give, and whatever is not plain answering computes as before."""

import copy
import io

import pytest
import torch
from torch import nn

from dual_distill.inference import prepack_linear_layers, prepacking
from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "_LEAST_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(prepacking, "_LEAST_GAIN", 0)


@pytest.fixture
def dual() -> DualEncoderForQuestionAnswering:
    torch.manual_seed(0)
    config = DualEncoderConfig(text_config={"vocab_size": 50, **TOWER}, vision_config={**IMAGE, **TOWER}, num_labels=7)
    return DualEncoderForQuestionAnswering(config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(1, 50, (3, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4]),
        "pixel_values": torch.randn(3, 1, 3, 32, 32),
        "pixel_mask": torch.ones(3, 1, 32, 32, dtype=torch.long),
    }


def test_layers_stay_where_the_processor_gains_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(4, 4)
    gain = prepacking._gain()
    assert 0.05 < gain < 50
    monkeypatch.setattr(prepacking, "_LEAST_GAIN", gain * 1.01)
    assert prepack_linear_layers(layer) == 0
    assert type(layer) is nn.Linear
    monkeypatch.setattr(prepacking, "_LEAST_GAIN", gain * 0.99)
    assert prepack_linear_layers(layer) == 1
    assert type(layer) is prepacking.PrepackedLinear


def test_timing_leaves_the_random_numbers_as_they_were() -> None:
    prepacking._gain.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    prepacking._gain()
    assert torch.equal(torch.rand(3), expected)


@torch.inference_mode()
def test_logits_of_both_encoders_are_equal(
    dual: DualEncoderForQuestionAnswering, batch: dict[str, torch.Tensor]
) -> None:
    fusion = FusionEncoderForQuestionAnswering(
        FusionEncoderConfig(vocab_size=50, **TOWER, **IMAGE, num_labels=7)
    ).eval()
    for model in (dual, fusion):
        before = model(**batch).logits
        assert prepack_linear_layers(model) == sum(isinstance(module, nn.Linear) for module in model.modules())
        torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 17, 300])
@torch.inference_mode()
def test_halves_add_up_to_the_whole(dual: DualEncoderForQuestionAnswering, rows: int) -> None:
    texts, images = torch.randn(rows, 32), torch.randn(rows, 1, 32)
    whole = dual(text_pooler_output=texts, image_pooler_output=images).logits
    prepack_linear_layers(dual)
    halves = dual.logits_of_projections(dual.project_text(texts), dual.project_images(images))
    torch.testing.assert_close(halves, whole, atol=1e-5, rtol=1e-5)


def test_changed_weights_are_packed_anew(batch: dict[str, torch.Tensor], dual: DualEncoderForQuestionAnswering) -> None:
    """A model that is trained after it answered: each of the ways in which weights change."""
    prepack_linear_layers(dual)
    weights = dual.state_dict()
    second, third = ({name: torch.randn_like(tensor) for name, tensor in weights.items()} for _ in range(2))

    def step() -> None:
        dual(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
        torch.optim.SGD(dual.parameters(), lr=1.0).step()

    for change in (step, lambda: dual.load_state_dict(second), lambda: dual.load_state_dict(third, assign=True)):
        with torch.inference_mode():
            before = dual(**batch).logits
        change()
        with torch.no_grad():
            packed = dual(**batch).logits
        plain = dual(**batch).logits.detach()  # gradients are on: torch's own layers
        assert (packed - before).abs().max() > 1e-2
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_plain_layers(
    batch: dict[str, torch.Tensor], dual: DualEncoderForQuestionAnswering
) -> None:
    plain = copy.deepcopy(dual)
    prepack_linear_layers(dual)
    with torch.inference_mode():
        dual(**batch)
    for model in (plain, dual):
        model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), dual.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_copies_and_files_are_whole(
    batch: dict[str, torch.Tensor], dual: DualEncoderForQuestionAnswering, tmp_path
) -> None:
    before = {name: tensor.clone() for name, tensor in dual.state_dict().items()}
    prepack_linear_layers(dual)
    with torch.inference_mode():
        logits = dual(**batch).logits
    copied = copy.deepcopy(dual)
    with torch.no_grad():
        assert torch.equal(copied(**batch).logits, logits)
        next(iter(copied.classifier.parameters())).add_(1)
    with torch.inference_mode():
        assert torch.equal(dual(**batch).logits, logits), "a copy shares nothing"
        assert not torch.equal(copied(**batch).logits, logits)
    assert dual.state_dict().keys() == before.keys()
    dual.save_pretrained(tmp_path)
    again = DualEncoderForQuestionAnswering.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    torch.save(dual, io.BytesIO())  # what torch's own tools do with a module


@torch.inference_mode()
def test_another_dtype_takes_the_plain_way(
    batch: dict[str, torch.Tensor], dual: DualEncoderForQuestionAnswering
) -> None:
    plain = copy.deepcopy(dual)
    prepack_linear_layers(dual)
    dual(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dual(**batch).logits, plain(**batch).logits)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert torch.equal(dual.bfloat16()(**batch).logits, plain.bfloat16()(**batch).logits)


def test_no_layer_is_touched_in_another_dtype(dual: DualEncoderForQuestionAnswering) -> None:
    assert prepack_linear_layers(dual.bfloat16()) == 0


@torch.inference_mode()
def test_small_products_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(prepacking, "_LEAST_GAIN", 0)  # on a processor that gains nothing too
    layer = nn.Linear(512, 256)
    plain = copy.deepcopy(layer)
    prepack_linear_layers(layer)
    assert torch.equal(layer(torch.ones(7, 512)), plain(torch.ones(7, 512)))
    assert "_packed" not in vars(layer)
    features = torch.randn(2, 4, 512)  # 8 x 512 x 256 = 2^20
    torch.testing.assert_close(layer(features), plain(features), atol=1e-5, rtol=1e-5)
    assert "_packed" in vars(layer)
    assert torch.equal(layer(input=features), layer(features))
