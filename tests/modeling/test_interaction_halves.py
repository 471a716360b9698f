"""The first linear map of the shallow interaction, cut in two: the same logits, each half computed once."""

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
)


def test_the_halves_add_up_to_the_whole_map(build):
    model = build(DualEncoderModel)
    texts, images = torch.randn(5, 16), torch.randn(5, 16)
    whole = model.interaction[0](torch.cat([texts, images], dim=-1))
    torch.testing.assert_close(model.project_text(texts) + model.project_images(images), whole, atol=1e-5, rtol=0)


def test_the_bias_is_counted_once(build):
    model = build(DualEncoderModel)
    nothing = torch.zeros(1, 16)
    torch.testing.assert_close(model.project_text(nothing)[0], model.interaction[0].bias)
    assert model.project_images(nothing).count_nonzero() == 0


def test_every_text_meets_every_image(build):
    model = build(DualEncoderModel)
    texts, images = torch.randn(2, 16), torch.randn(3, 16)
    fused = model.fuse_projections(model.project_text(texts)[:, None], model.project_images(images)[None])
    assert fused.shape == (2, 3, 16)
    for i in range(2):
        for j in range(3):
            expected = model.interaction(torch.cat([texts[i], images[j]]))
            torch.testing.assert_close(fused[i, j], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "cls, num_images",
    [
        (DualEncoderForQuestionAnswering, 1),
        (DualEncoderForImagesAndTextClassification, 1),
        (DualEncoderForImagesAndTextClassification, 2),
    ],
)
def test_logits_equal_those_of_forward(cls, num_images, build, batch):
    model = build(cls, num_images=num_images, num_labels=5)
    rows = {**batch, **{name: torch.cat([batch[name]] * num_images, dim=1) for name in ("pixel_values", "pixel_mask")}}
    with torch.no_grad():
        output = model(**rows)
        logits = model.logits_of_projections(
            model.project_text(output.text_pooler_output), model.project_images(output.image_pooler_output)
        )
        torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=0)
        one = model.logits_of_projections(
            model.project_text(output.text_pooler_output[:1]), model.project_images(output.image_pooler_output)
        )
        expected = model(
            text_pooler_output=output.text_pooler_output[:1].expand(3, -1),
            image_pooler_output=output.image_pooler_output,
        ).logits
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)
