"""N images a row, stored vectors, and features alone."""

import pytest
import torch
from torch import nn

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderModel,
)

# The modality rows that tell image 1 from image 2: the fusion encoder's row 0 is text.
TWO_SLOTS = [(FusionEncoderModel, {"modality_type_vocab_size": 3}), (DualEncoderModel, {"modality_type_vocab_size": 2})]


@pytest.fixture
def pairs(make_rows, collate):
    return collate(make_rows((7, 3), (((2, 3), (1, 1)), ((1, 2), (4, 2)))))


def image(batch, slot):
    return {**batch, "pixel_values": batch["pixel_values"][:, slot], "pixel_mask": batch["pixel_mask"][:, slot]}


def slots_of(model):
    tower = model.vision_model if isinstance(model, DualEncoderModel) else model
    return tower.embeddings.token_type_embeddings


@pytest.mark.parametrize("cls, fields", TWO_SLOTS)
def test_images_that_share_a_slot_are_pairs_run_one_by_one(cls, fields, build, pairs):
    model = build(cls)
    together = model(**pairs).pooler_output
    assert together.shape == (2, 2, 16)
    for slot in range(2):
        torch.testing.assert_close(
            together[:, slot], model(**image(pairs, slot)).pooler_output[:, 0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("cls, fields", TWO_SLOTS)
def test_each_image_takes_the_row_of_its_slot(cls, fields, build, pairs):
    model = build(cls, **fields)
    table = slots_of(model)
    together = model(**pairs).pooler_output
    first = table.num_embeddings - 2
    torch.testing.assert_close(together[:, 0], model(**image(pairs, 0)).pooler_output[:, 0], atol=1e-5, rtol=0)
    wrong = model(**image(pairs, 1)).pooler_output[:, 0]
    assert (together[:, 1] - wrong).abs().max() > 1e-3
    with torch.no_grad():
        table.weight[first] = table.weight[first + 1]
    torch.testing.assert_close(together[:, 1], model(**image(pairs, 1)).pooler_output[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls, fields", TWO_SLOTS)
def test_images_beyond_the_table_share_its_last_row(cls, fields, build, pairs):
    model = build(cls, **fields)
    three = {**pairs, **{n: torch.cat([pairs[n], pairs[n][:, 1:]], dim=1) for n in ("pixel_values", "pixel_mask")}}
    output = model(**three).pooler_output
    torch.testing.assert_close(output[:, 2], output[:, 1], atol=1e-5, rtol=0)
    assert (output[:, 0] - output[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("cls", [FusionEncoderModel, DualEncoderModel])
def test_one_image_with_or_without_its_own_dimension(cls, build, batch):
    model = build(cls)
    torch.testing.assert_close(model(**image(batch, 0)).pooler_output, model(**batch).pooler_output)
    flat_mask = {**batch, "pixel_mask": batch["pixel_mask"][:, 0]}
    torch.testing.assert_close(model(**flat_mask).pooler_output, model(**batch).pooler_output)


@pytest.mark.parametrize("num_images", [1, 2])
def test_stored_vectors_give_the_same_logits(num_images, build, pairs):
    model = build(DualEncoderForImagesAndTextClassification, num_images=num_images, modality_type_vocab_size=2)
    batch = pairs if num_images == 2 else image(pairs, 0)
    expected = model(**batch).logits
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
    text_pooler_output = model.get_text_features(**text).pooler_output
    image_pooler_output = model.get_image_features(**images).pooler_output
    for given in (
        {"text_pooler_output": text_pooler_output, "image_pooler_output": image_pooler_output},
        {"text_pooler_output": text_pooler_output, **images},
        {"image_pooler_output": image_pooler_output, **text},
    ):
        output = model(**given)
        torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=0)
        assert (output.image_mask is None) == ("image_pooler_output" in given)
    labelled = model(
        text_pooler_output=text_pooler_output, image_pooler_output=image_pooler_output, labels=torch.tensor([0, 1])
    ).loss
    torch.testing.assert_close(labelled, nn.functional.cross_entropy(expected, torch.tensor([0, 1])))


def test_projected_vectors_give_the_same_logits_and_one_row_serves_all(build, pairs):
    model = build(DualEncoderForImagesAndTextClassification, num_images=2, modality_type_vocab_size=2)
    whole = model(**pairs)
    assert (whole.text_embeds.shape, whole.image_embeds.shape) == ((2, 32), (2, 2, 32))
    stored = model(text_embeds=whole.text_embeds, image_embeds=whole.image_embeds)
    assert torch.equal(stored.logits, whole.logits)
    assert stored.text_pooler_output is None
    text = {name: pairs[name] for name in ("input_ids", "attention_mask")}
    for given in ({"image_embeds": whole.image_embeds[:1]}, {"image_pooler_output": whole.image_pooler_output[:1]}):
        logits = model(**text, **given).logits
        torch.testing.assert_close(logits[:1], whole.logits[:1], atol=1e-5, rtol=0)
        assert logits.shape == whole.logits.shape


@pytest.mark.parametrize("cls", [DualEncoderModel, DualEncoderForQuestionAnswering])
def test_shapes_of_features(cls, build, pairs):
    model = build(cls)
    text = model.get_text_features(pairs["input_ids"], pairs["attention_mask"])
    assert (text.pooler_output.shape, text.last_hidden_state.shape) == ((2, 16), (2, 7, 16))
    many = model.get_image_features(pairs["pixel_values"], pairs["pixel_mask"])
    assert (many.pooler_output.shape, many.last_hidden_state.shape) == ((2, 2, 16), (4, 1 + 12, 16))
    one = model.get_image_features(pairs["pixel_values"][:, 0], pairs["pixel_mask"][:, 0])
    assert one.pooler_output.shape == (2, 16)
    torch.testing.assert_close(one.pooler_output, many.pooler_output[:, 0], atol=1e-5, rtol=0)
    assert model.get_image_features(pairs["pixel_values"]).pooler_output.shape == (2, 2, 16)


def test_hidden_states_of_the_towers_on_request(build, batch):
    model = build(DualEncoderModel)
    output = model(**batch, output_hidden_states=True)
    assert len(output.text_model_output.hidden_states) == len(output.vision_model_output.hidden_states) == 3
    assert len(model.get_text_features(batch["input_ids"], output_hidden_states=True).hidden_states) == 3


def test_text_and_image_towers_do_not_see_each_other(build, batch):
    model = build(DualEncoderModel)
    before = model(**batch)
    other_text = model(**{**batch, "input_ids": batch["input_ids"].flip(0)})
    other_image = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)})
    assert torch.equal(before.image_pooler_output, other_text.image_pooler_output)
    assert torch.equal(before.text_pooler_output, other_image.text_pooler_output)
    assert not torch.equal(before.pooler_output, other_text.pooler_output)
    assert not torch.equal(before.pooler_output, other_image.pooler_output)


def test_refusals(build, batch):
    model = build(DualEncoderModel)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
    vectors, wide = torch.zeros(3, 16), torch.zeros(3, 32)
    for given, message in (
        (text, "give one of pixel_values, image_pooler_output, image_embeds, image_token_embeds; got none"),
        (images, "give one of input_ids, text_pooler_output, text_embeds, text_token_embeds; got none of them"),
        ({**batch, "text_pooler_output": vectors}, "got input_ids and text_pooler_output"),
        ({**batch, "image_pooler_output": vectors}, "got pixel_values and image_pooler_output"),
        (
            {**text, "image_embeds": vectors},
            "image_embeds is 16 wide, not 32; .* image_embeds its projection by project_images",
        ),
        (
            {**images, "text_embeds": vectors},
            "text_embeds is 16 wide, not 32; text_pooler_output takes what get_text_features pools",
        ),
        (
            {**text, "image_pooler_output": wide},
            r"image_pooler_output is 32 wide, not 16; .*get_image_features pools \(16 wide\)",
        ),
        ({**images, "text_pooler_output": wide}, "text_pooler_output is 32 wide"),
        (
            {**text, "image_pooler_output": vectors, "output_query_states": True},
            "stored vectors have no queries and keys",
        ),
        (
            {**images, "text_pooler_output": vectors, "output_key_states": [0]},
            "stored vectors have no queries and keys",
        ),
        ({**text, "image_pooler_output": vectors[:2]}, "there are 3 texts and 2 rows of images"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**given)


def test_a_frozen_tower_drops_nothing(build, pairs):
    model = build(DualEncoderModel, hidden_dropout_prob=0.5)
    model.text_model.requires_grad_(False)
    first, second = (model.train()(**pairs) for _ in range(2))
    assert torch.equal(first.text_pooler_output, second.text_pooler_output)
    assert torch.equal(first.text_pooler_output, model.eval()(**pairs).text_pooler_output)

    # One that learns is in training mode as before.
    assert not torch.equal(first.image_pooler_output, second.image_pooler_output)
    model.text_model.requires_grad_(True)
    assert model.train().text_model.training

    # Nor is one frozen whose weights are held elsewhere, in FSDP's flat parameter.
    for module in model.text_model.modules():
        module._parameters.clear()
    assert model.train().text_model.training
