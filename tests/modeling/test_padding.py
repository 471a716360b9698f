"""A row gives the same alone, among others, and with more padding: texts and images of any length and size."""

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)

CLASSES = [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering]
OVER_IMAGES = [FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification]


def assert_rows_equal(output, expected, row=None):
    """Logits and every pooled vector, to 1e-5; `row`: that row of `output` against the only one of `expected`."""
    for name in ("logits", "pooler_output", "text_pooler_output", "image_pooler_output", "text_embeds", "image_embeds"):
        one, other = output.get(name), expected.get(name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one if row is None else one[row : row + 1], other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cls", CLASSES)
def test_alone_in_a_batch_and_with_more_padding(cls, train, attention, build, make_rows, collate):
    model = build(cls, num_labels=5, attn_implementation=attention).train(train)
    rows = make_rows()
    together = model(**collate(rows))
    assert together.logits.std(0).min() > 1e-2  # rows differ, or equality would say nothing
    assert_rows_equal(model(**collate(rows, num_tokens=12, grid=(5, 4))), together)
    for i, row in enumerate(rows):
        assert_rows_equal(together, model(**collate([row])), i)
        assert_rows_equal(together, model(**collate([row], num_tokens=11, grid=(4, 5))), i)


@pytest.mark.parametrize("layers", [0, 1], ids=["", "interaction"])
@pytest.mark.parametrize("cls", [*CLASSES, *OVER_IMAGES])
def test_padding_before_the_text_is_padding_too(cls, layers, build, make_rows, collate):
    """As tokenizers with `padding_side="left"` make it: a text counts and is pooled from its own first token."""
    fields = {"interaction_layers": layers} if layers and cls.__name__.startswith("Dual") else {}
    images = 2 if cls in OVER_IMAGES else 1
    model = build(cls, num_images=images, num_labels=5, **fields)
    rows = make_rows((7, 3), (((2, 3), (1, 1))[:images], ((1, 2), (4, 2))[:images]))
    behind = collate(rows)
    before = dict(behind)
    for name in ("input_ids", "attention_mask"):
        real = behind["attention_mask"].sum(1).tolist()
        before[name] = torch.stack([row.roll(-length) for row, length in zip(behind[name], real, strict=True)])
    assert before["attention_mask"][1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert_rows_equal(model(**before), model(**behind))
    for index, row in enumerate(rows):
        assert_rows_equal(model(**before), model(**collate([row])), index)


@pytest.mark.parametrize("cls", OVER_IMAGES)
def test_two_images_of_unequal_sizes_a_row(cls, build, make_rows, collate):
    model = build(cls, num_images=2)
    rows = make_rows((7, 3), (((2, 3), (1, 1)), ((1, 2), (4, 2))))
    together = model(**collate(rows))
    for i, row in enumerate(rows):
        assert_rows_equal(together, model(**collate([row])), i)
        assert_rows_equal(together, model(**collate([row], num_tokens=10, grid=(5, 5))), i)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_mask_means_that_all_is_real(cls, build, make_rows, collate):
    model = build(cls)
    batch = collate(make_rows((5, 5), (((3, 2),), ((3, 2),))))
    assert batch["attention_mask"].all()
    assert batch["pixel_mask"].all()
    whole = model(**batch)
    assert_rows_equal(model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]), whole)
    for name in ("attention_mask", "pixel_mask"):
        assert_rows_equal(model(**{key: value for key, value in batch.items() if key != name}), whole)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_mask_matters(cls, build, make_rows, collate):
    """The masks of a padded batch are not decoration: without them the answer is another."""
    model = build(cls)
    batch = collate(make_rows())
    whole = model(**batch).logits
    for name in ("attention_mask", "pixel_mask"):
        logits = model(**{key: value for key, value in batch.items() if key != name}).logits
        assert (logits - whole).abs().max() > 1e-3


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_do_not_depend_on_padding(cls, build, make_rows, collate):
    rows, gradients = make_rows(), []
    for batch in (collate(rows), collate(rows, num_tokens=12, grid=(5, 4))):
        model = build(cls, num_labels=5).train()
        model(**batch, labels=torch.tensor([0, 3, 1])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("cls", CLASSES)
def test_image_mask_marks_cls_and_the_real_patches(cls, build, make_rows, collate):
    rows = make_rows()
    mask = build(cls)(**collate(rows)).image_mask
    assert mask.shape == (3, 1, 1 + 9)
    assert mask.dtype == torch.bool
    for i, (_, [image]) in enumerate(rows):
        expected = torch.zeros(3, 3, dtype=torch.bool)
        expected[: image.shape[1] // 4, : image.shape[2] // 4] = True
        assert torch.equal(mask[i, 0], torch.cat([torch.ones(1, dtype=torch.bool), expected.flatten()]))


@pytest.mark.parametrize("cls", CLASSES)
def test_patches_keep_raster_order(cls, build):
    """Moving one coloured patch over the image moves exactly that token before the encoder sees it."""
    model = build(cls)
    tower = model.fusion_encoder if hasattr(model, "fusion_encoder") else model.dual_encoder.vision_model
    blank, _ = tower.embeddings.embed_images(torch.zeros(1, 3, 8, 12), None)
    for row in range(2):
        for column in range(3):
            pixels = torch.zeros(1, 3, 8, 12)
            pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
            tokens, _ = tower.embeddings.embed_images(pixels, None)
            changed = (tokens != blank).any(-1)[0].nonzero().flatten().tolist()
            assert changed == [1 + 3 * row + column]


@pytest.mark.parametrize("cls", CLASSES)
def test_evaluation_draws_no_random_number(cls, build, batch):
    model = build(cls, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    before = torch.get_rng_state()
    one, other = model(**batch), model(**batch)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model.train()(**batch).logits, one.logits)


@pytest.mark.parametrize("cls", CLASSES)
def test_refusals(cls, build, batch):
    model = build(cls)
    pixels, mask = batch["pixel_values"], batch["pixel_mask"]
    for name, value, message in (
        ("pixel_values", pixels[:, :, :2], "pixel_values has 2 channels, the model takes 3"),
        ("pixel_values", pixels[..., :-1], "12 x 11 pixels, which does not divide into patches of 4"),
        ("pixel_values", pixels[0, 0], r"pixel_values has shape \(3, 12, 12\); give \(B, N, 3, H, W\)"),
        ("pixel_mask", mask[..., :-1], r"pixel_mask has shape \(3, 12, 11\)"),
        ("input_ids", torch.ones(3, 13, dtype=torch.long), "the text has 13 tokens, the model takes at most 12"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**{**batch, name: value})
    with pytest.raises(ValueError, match="give one text for each row of images"):
        model(input_ids=batch["input_ids"][:2], pixel_values=pixels)


def test_refusal_of_a_fusion_encoder_without_images(build, batch):
    with pytest.raises(ValueError, match="reads text and image together; give pixel_values"):
        build(FusionEncoderForQuestionAnswering)(input_ids=batch["input_ids"])


@pytest.mark.parametrize("cls", [*CLASSES, *OVER_IMAGES])
def test_refusal_of_another_number_of_images(cls, build, make_rows, collate):
    model = build(cls, num_images=2 if cls in OVER_IMAGES else 1)
    batch = collate(make_rows((3,), (((1, 1),) * 3,)))
    with pytest.raises(ValueError, match=f"the rows have 3 images, the head was built for {model.num_images}"):
        model(**batch)
