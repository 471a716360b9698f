"""Heads and sizes as method.md section 1 gives them."""

import pytest
import torch
from torch import nn

from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from dual_distill.modeling.modeling_heads import SplitLinear

QUESTION = [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering]
IMAGES = [FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification]


def shape_of(head):
    """Layer types, and the widths of the linear ones."""
    kinds = [type(layer) for layer in head]
    return kinds, [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]


HEAD = [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]


@pytest.mark.parametrize("cls", QUESTION)
def test_answer_head(cls, build):
    model = build(cls, num_labels=9)
    assert shape_of(model.classifier) == (HEAD, [(16, 32), (32, 9)])
    assert model.classifier[1].normalized_shape == (32,)


@pytest.mark.parametrize("cls", IMAGES)
@pytest.mark.parametrize(
    "num_images, widths", [(1, [(16, 32), (32, 3)]), (2, [(32, 32), (32, 3)]), (3, [(48, 48), (48, 3)])]
)
def test_head_over_images(cls, num_images, widths, build):
    model = build(cls, num_images=num_images, num_labels=3)
    assert shape_of(model.classifier) == (HEAD, widths)


def test_shallow_interaction(build):
    model = build(DualEncoderModel)
    assert shape_of(model.interaction) == ([SplitLinear, *HEAD[1:]], [(32, 32), (32, 16)])


def test_the_interaction_reads_text_first(build, batch):
    model = build(DualEncoderModel)
    output = model(**batch)
    pairs = torch.cat([output.text_pooler_output, output.image_pooler_output[:, 0]], dim=-1)
    torch.testing.assert_close(output.pooler_output[:, 0], model.interaction(pairs))


@pytest.mark.parametrize("cls", [*QUESTION, *IMAGES])
def test_logits_are_the_head_on_the_fused_vectors(cls, build, batch):
    model = build(cls, num_labels=5)
    output = model(**batch)
    torch.testing.assert_close(output.logits, model.classifier(output.pooler_output[:, 0]))


@pytest.mark.parametrize("cls", IMAGES)
def test_two_images_are_fused_apart_and_laid_side_by_side(cls, build, batch):
    model = build(cls, num_images=2)
    two = {**batch, **{name: torch.cat([batch[name]] * 2, dim=1) for name in ("pixel_values", "pixel_mask")}}
    output = model(**two)
    torch.testing.assert_close(output.logits, model.classifier(output.pooler_output.flatten(1)))


def counts(cls, config):
    with torch.device("meta"):
        model = cls(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for parameter in model.classifier.parameters()) if hasattr(model, "classifier") else 0
    return total, head


def test_size_of_the_teacher():
    """ViLT-B/32 without a head: 111.6 M."""
    total, _ = counts(FusionEncoderModel, FusionEncoderConfig())
    assert round(total / 1e6, 1) == 111.6


def test_size_of_the_student():
    """Two towers, two poolers and the interaction are 200.8 M; the head of 3,129 answers adds 6.0 M."""
    width, inner, layers, patches, answers = 768, 3072, 12, 144, 3129
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    tower = layers * layer + 2 * width + width * width + width  # layers, final norm, pooler
    text = (30522 + 40 + 2 + 1) * width + 2 * width
    image = 3 * 32 * 32 * width + width + (patches + 1) * width + width + width  # patches, positions, CLS, modality
    interaction = 4 * width * width + 2 * width + 4 * width + 2 * width * width + width
    head = 2 * width * width + 2 * width + 4 * width + 2 * width * answers + answers
    total, measured_head = counts(DualEncoderForQuestionAnswering, DualEncoderConfig(num_labels=answers))
    assert measured_head == head
    assert total == 2 * tower + text + image + interaction + head
    bare, _ = counts(DualEncoderModel, DualEncoderConfig())
    assert bare == total - head
    assert round(bare / 1e6, 1) == 200.8
    assert round(total / 1e6, 1) == 206.8
