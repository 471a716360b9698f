"""The dual encoder as a retrieval model: cosines written out, CLIP's interface, transformers' stock pipeline."""

import math

import pytest
import torch
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, BertTokenizer, ViltImageProcessorPil, pipeline

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderModel,
)

TEXT = ("input_ids", "attention_mask")
IMAGES = ("pixel_values", "pixel_mask")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "picture", "of", "."]


@pytest.fixture
def pairs(pair_batch):
    """A batch of texts and images without what only pre-training reads."""

    def pairs(*ids):
        return {name: value for name, value in pair_batch(*ids).items() if not name.startswith("masked")}

    return pairs


def some(batch, *names):
    return {name: batch[name] for name in names}


def test_logits_are_cosines_of_projections_times_the_factor(build, pairs):
    model, batch = build(DualEncoderForImageTextRetrieval), pairs((1, 2, 3, 4))
    more_texts = some(pairs((1, 2, 3, 4, 5, 6)), *TEXT)
    output = model(**more_texts, **some(batch, *IMAGES))
    assert output.logits_per_image.shape == (4, 6)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert output.loss is None
    body = model.dual_encoder
    pooled = body.text_model(**more_texts).pooler_output, body.vision_model(**some(batch, *IMAGES)).pooler_output
    assert torch.equal(output.text_pooler_output, pooled[0])
    assert torch.equal(output.image_pooler_output, pooled[1])
    texts, images = pooled[0] @ model.text_projection.weight.T, pooled[1] @ model.image_projection.weight.T
    for i in range(4):
        for j in range(6):
            cosine = torch.nn.functional.cosine_similarity(images[i], texts[j], dim=0)
            expected = cosine.item() * math.exp(model.logit_scale.item())
            assert output.logits_per_image[i, j].item() == pytest.approx(expected, abs=1e-4)


def test_features_are_projected_and_not_yet_of_length_1(build, pairs):
    model, batch = build(DualEncoderForImageTextRetrieval), pairs()
    output = model(**some(batch, *TEXT, *IMAGES))
    texts = model.get_text_features(**some(batch, *TEXT)).pooler_output
    images = model.get_image_features(**some(batch, *IMAGES)).pooler_output
    assert texts.shape == (4, 256)
    assert images.shape == (4, 1, 256)
    assert (texts.norm(dim=-1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(torch.nn.functional.normalize(texts, dim=-1), output.text_embeds)
    torch.testing.assert_close(torch.nn.functional.normalize(images[:, 0], dim=-1), output.image_embeds)
    flat = model.get_image_features(batch["pixel_values"][:, 0], batch["pixel_mask"][:, 0]).pooler_output
    torch.testing.assert_close(flat, images[:, 0])


def test_the_loss_leaves_out_false_negatives(build, pairs):
    model, batch = build(DualEncoderForImageTextRetrieval), pairs((1, 1, 2, 3), (11, 12, 13, 14))
    output = model(**batch)
    logits, total = output.logits_per_text, 0.0
    for i in range(4):
        others = [j for j in range(4) if j == i or {i, j} != {0, 1}]
        total += logits[i, others].logsumexp(0) + logits[others, i].logsumexp(0) - 2 * logits[i, i]
    torch.testing.assert_close(output.loss, total / 8)
    unlike = model(**some(batch, *TEXT, *IMAGES), return_loss=True)
    own = torch.arange(4)
    expected = torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)
    torch.testing.assert_close(unlike.loss, expected / 2)


def test_equal_pairs_give_ln_b_and_one_pair_nothing(build, pairs):
    model = build(DualEncoderForImageTextRetrieval)
    equal = some(pairs((1, 1, 1), (11, 11, 11)), *TEXT, *IMAGES)
    assert model(**equal, return_loss=True).loss.item() == pytest.approx(math.log(3), rel=1e-5)
    loss = model(**pairs((1,)), return_loss=True).loss
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_gradient_reaches_all_but_the_interaction(build, pairs):
    model = build(DualEncoderForImageTextRetrieval)
    model(**pairs()).loss.backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert all(name.startswith("dual_encoder.interaction") or name.endswith("key.bias") for name in silent), silent


def test_states_are_the_bodys(build, pairs):
    model, batch = build(DualEncoderForImageTextRetrieval), some(pairs(), *TEXT, *IMAGES)
    asked = {"output_query_states": [0, 1], "output_key_states": [0, 1]}
    output, body = model(**batch, **asked), model.dual_encoder(**batch, **asked)
    for name in ("query_states", "key_states"):
        assert all(torch.equal(one, other) for one, other in zip(output[name], body[name], strict=True))
    assert torch.equal(output.image_mask, body.image_mask)
    apart = model(**batch, output_key_states=True, join_states=False)
    assert apart.query_states is None
    assert torch.equal(torch.cat(apart.key_states[0], dim=2), output.key_states[1])


@pytest.mark.parametrize("train", [False, True])
def test_activation_checkpointing_gives_the_same_loss_and_gradients(train, build, pairs):
    one, other = (build(DualEncoderForImageTextRetrieval).train(train) for _ in range(2))
    other.activation_checkpointing_enable()
    for model in (one, other):
        model(**pairs((1, 2, 3))).loss.backward()
    for name, parameter in one.named_parameters():
        if not name.startswith("dual_encoder.interaction"):
            torch.testing.assert_close(parameter.grad, dict(other.named_parameters())[name].grad, msg=name)


def test_saved_and_loaded_is_equal_and_pretraining_loads_from_it(build, pairs, tmp_path):
    before = build(DualEncoderForImageTextRetrieval)
    before.save_pretrained(tmp_path)
    after, report = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(after) is DualEncoderForImageTextRetrieval
    assert not any(report.values()), report
    assert all(torch.equal(after.state_dict()[name], weight) for name, weight in before.state_dict().items())
    torch.testing.assert_close(after(**pairs()).loss, before(**pairs()).loss)
    more, report = DualEncoderForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"itm_score", "mlm_score"}
    assert torch.equal(more.logit_scale, before.logit_scale)


def test_the_temperature_starts_where_the_configuration_says(build, tmp_path):
    build(DualEncoderModel, logit_scale_init=1.5, projection_dim=8).save_pretrained(tmp_path)
    model = DualEncoderForImageTextRetrieval.from_pretrained(tmp_path)
    assert model.logit_scale.tolist() == [1.5]
    assert model.text_projection.weight.shape == (8, 16)
    assert 0.01 < model.image_projection.weight.std() < 0.03


@pytest.fixture
def processor():
    """Images of 8 px and more, a dozen words."""
    return DualDistillProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        BertTokenizer({word: index for index, word in enumerate(WORDS)}, model_max_length=12),
    )


def test_the_stock_pipeline_gives_the_probabilities_of_doing_it_by_hand(build, processor, tmp_path):
    model = build(DualEncoderForImageTextRetrieval)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    image, names = Image.linear_gradient("L").convert("RGB").resize((16, 8)), ["red", "blue", "red blue"]
    found = classify(image, candidate_labels=names, hypothesis_template="a picture of {}.")
    assert type(classify.model) is DualEncoderForImageTextRetrieval
    texts = processor(text=[f"a picture of {name}." for name in names])
    with torch.no_grad():
        expected = model(**texts, **processor(images=image)).logits_per_image[0].softmax(-1)
    assert expected.std() > 1e-3
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(names, expected.tolist(), strict=True)), abs=1e-6
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pixel_values": None}, "pixel_values is missing; give both, or encode one side by get_text_features"),
        ({"input_ids": None}, "input_ids is missing; give both"),
        ({"caption_ids": None}, "image_ids was given without caption_ids; give both"),
        ({"pixel_values": torch.zeros(4, 2, 3, 8, 8)}, "the rows have 2 images, but images are ranked one by one"),
        (
            {"pixel_values": torch.zeros(3, 3, 8, 8), "pixel_mask": None},
            "there are 4 texts and 3 images; a loss and states need pairs",
        ),
    ],
)
def test_refusals(change, message, build, pairs):
    with pytest.raises(ValueError, match=message):
        build(DualEncoderForImageTextRetrieval)(**{**pairs(), **change})


def test_a_projection_without_width_is_refused(build):
    with pytest.raises(Exception, match="projection_dim is 0; it must be at least 1"):
        build(DualEncoderForImageTextRetrieval, projection_dim=0)
