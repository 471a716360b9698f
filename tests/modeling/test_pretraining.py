"""Both models for pre-training: each term written out, what is switched off, and what must change nothing."""

import math

import pytest
import torch
from transformers import AutoModelForPreTraining

from dual_distill.modeling import (
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForPreTraining,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)

CLASSES = [FusionEncoderForPreTraining, DualEncoderForPreTraining]
BODIES = {FusionEncoderForPreTraining: "fusion_encoder", DualEncoderForPreTraining: "dual_encoder"}
TEXT = ("input_ids", "attention_mask")
IMAGES = ("pixel_values", "pixel_mask")
TERMS = {FusionEncoderForPreTraining: ("itm", "mlm"), DualEncoderForPreTraining: ("itc", "itm", "mlm")}
WITH_DUPLICATES = ((1, 1, 2, 3, 4, 2), (11, 12, 13, 13, 14, 13))


def body_of(model):
    return getattr(model, BODIES[type(model)])


def some(batch, *names):
    return {name: batch[name] for name in names}


def assert_equal_gradients(one, other, atol=1e-6):
    theirs = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=atol, rtol=1e-4, msg=name)


def reaches_all(model):
    """Whether every parameter has a gradient that is not 0, but for key biases, which softmax ignores."""
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert all(name.endswith("key.bias") for name in silent), silent


@pytest.mark.parametrize("cls", CLASSES)
def test_a_blind_head_gives_ln_2(cls, build, pair_batch):
    model = build(cls)
    with torch.no_grad():
        model.itm_score.fc.weight.zero_()
        model.itm_score.fc.bias.fill_(0.3)
    assert model(**pair_batch(*WITH_DUPLICATES)).itm_loss.item() == pytest.approx(math.log(2), rel=1e-6)


def test_equal_pairs_give_ln_b(build, pair_batch):
    batch = pair_batch((1, 1, 1, 1), (11, 11, 11, 11))
    batch["image_ids"] = batch["caption_ids"] = torch.arange(4)
    output = build(DualEncoderForPreTraining)(**batch)
    assert output.itc_loss.item() == pytest.approx(math.log(4), rel=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_matching_logits_written_out(cls, build, pair_batch):
    model, batch = build(cls), pair_batch(*WITH_DUPLICATES)
    output = model(**batch)

    def scored(text_rows, image_rows):
        pairs = {name: batch[name][text_rows] for name in TEXT} | {name: batch[name][image_rows] for name in IMAGES}
        return model.itm_score.fc(body_of(model)(**pairs).pooler_output[:, 0])

    own, drawn = torch.arange(6), output.negative_image_rows
    expected = [scored(own, own), scored(own, drawn)]
    labels = [1] * 6 + [0] * 6
    if cls is DualEncoderForPreTraining:
        expected.append(scored(output.negative_text_rows, own))
        labels += [0] * 6
    torch.testing.assert_close(output.itm_logits, torch.cat(expected), atol=1e-5, rtol=0)
    assert output.itm_labels.tolist() == labels
    loss = torch.nn.functional.cross_entropy(output.itm_logits, torch.tensor(labels))
    torch.testing.assert_close(output.itm_loss, loss)
    # A drawn image is another one, and under another caption.
    for name in ("image_ids", "caption_ids"):
        assert (batch[name][drawn] != batch[name]).all()


def test_contrastive_features_written_out(build, pair_batch):
    model, batch = build(DualEncoderForPreTraining), pair_batch()
    output, body = model(**batch), model.dual_encoder(**some(batch, *TEXT, *IMAGES))
    assert torch.equal(output.text_pooler_output, body.text_pooler_output)
    assert torch.equal(output.image_pooler_output, body.image_pooler_output)
    texts, images = (
        body.text_pooler_output @ model.text_projection.weight.T,
        body.image_pooler_output[:, 0] @ model.image_projection.weight.T,
    )
    texts, images = (each / each.norm(dim=-1, keepdim=True) for each in (texts, images))
    torch.testing.assert_close(output.text_embeds, texts)
    torch.testing.assert_close(output.image_embeds, images)
    logits = texts @ images.T * model.logit_scale.exp()
    own = torch.arange(4)
    expected = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(output.itc_loss, expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_masked_words_written_out(cls, build, pair_batch):
    model, batch = build(cls), pair_batch()
    output = model(**batch)
    transform = model.mlm_score.transform
    total, count = 0.0, 0
    for i in range(4):
        text = {"input_ids": batch["masked_input_ids"][[i]], "attention_mask": batch["attention_mask"][[i]]}
        images = {name: batch[name][[i]] for name in IMAGES}
        if cls is DualEncoderForPreTraining:
            tokens = model.dual_encoder.text_model(**text).last_hidden_state[0]
            image = model.dual_encoder.vision_model(**images).pooler_output
        else:
            tokens = model.fusion_encoder(**text, **images).last_hidden_state[0]
        for place, label in enumerate(batch["masked_labels"][i].tolist()):
            if label == -100:
                continue
            seen = tokens[place]
            if cls is DualEncoderForPreTraining:
                seen = model.dual_encoder.interaction(torch.cat([seen, image[0]]))
            hidden = transform.LayerNorm(torch.nn.functional.gelu(transform.dense(seen)))
            logits = hidden @ model.get_input_embeddings().weight.T + model.mlm_score.decoder.bias
            torch.testing.assert_close(output.mlm_logits[i, place], logits, atol=1e-5, rtol=1e-5)
            total -= logits.log_softmax(-1)[label].item()
            count += 1
    assert count == 5  # captions 11, 12, 13 and 14 have 2, 0, 1 and 2 masked words
    assert output.mlm_loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_loss_is_the_weighted_sum_and_reaches_every_parameter(cls, build, pair_batch):
    weights = {"itm_weight": 0.5, "mlm_weight": 3.0}
    if cls is DualEncoderForPreTraining:
        weights["itc_weight"] = 2.0
    model = build(cls, **weights)
    output = model(**pair_batch(*WITH_DUPLICATES))
    expected = sum(weight * output[name.replace("weight", "loss")] for name, weight in weights.items())
    torch.testing.assert_close(output.loss, expected)
    assert torch.equal(output.to_tuple()[0], output.loss)  # where Trainer looks for it
    output.loss.backward()
    reaches_all(model)


@pytest.mark.parametrize("cls, term", [(cls, term) for cls, terms in TERMS.items() for term in terms])
def test_a_weight_of_0_leaves_a_term_out_and_the_others_as_they_are(cls, term, build, pair_batch):
    batch = pair_batch(*WITH_DUPLICATES)
    every, fewer = build(cls)(**batch), build(cls, **{f"{term}_weight": 0})(**batch)
    assert getattr(fewer, f"{term}_loss") is None
    others = [other for other in TERMS[cls] if other != term]
    for other in others:
        if (term, other) != ("itc", "itm"):  # whose negatives are then drawn uniformly
            torch.testing.assert_close(fewer[f"{other}_loss"], every[f"{other}_loss"])
    torch.testing.assert_close(fewer.loss, sum(fewer[f"{other}_loss"] for other in others))
    absent = {"itm": "itm_logits", "mlm": "mlm_logits", "itc": "text_embeds"}
    assert getattr(fewer, absent[term]) is None


@pytest.mark.parametrize("cls", CLASSES)
def test_pairs_alone_are_scored_and_nothing_is_drawn(cls, build, pair_batch):
    model, batch = build(cls), pair_batch()
    every, pairs = model(**batch), model(**some(batch, *TEXT, *IMAGES))
    torch.testing.assert_close(pairs.itm_logits, every.itm_logits[:4])
    given = {name for name, value in pairs.items() if value is not None}
    assert not {"loss", "itm_labels", "negative_image_rows", "mlm_logits", "itc_loss"} & given
    words = model(**some(batch, *TEXT, *IMAGES, "masked_input_ids"))
    torch.testing.assert_close(words.mlm_logits, every.mlm_logits)
    assert words.mlm_loss is None


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("image_ids", [(1,), (2, 2)], ids=["one row", "one image twice"])
def test_without_an_allowed_negative(cls, image_ids, build, pair_batch):
    model, batch = build(cls), pair_batch(image_ids, [11 + i for i in range(len(image_ids))])
    output = model(**batch)
    rows = len(image_ids)
    assert output.negative_image_rows.tolist() == [-1] * rows
    assert set(output.itm_labels[rows:].tolist()) == {-100}
    expected = torch.nn.functional.cross_entropy(output.itm_logits[:rows], torch.ones(rows, dtype=torch.long))
    torch.testing.assert_close(output.itm_loss, expected)
    assert output.loss.isfinite()
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if cls is DualEncoderForPreTraining:
        assert output.itc_loss.item() == pytest.approx(0, abs=1e-6)
        assert output.negative_text_rows.tolist() == [-1] * rows


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_masked_gives_no_loss_and_no_nan(cls, build, pair_batch):
    model, batch = build(cls), pair_batch()
    batch["masked_labels"] = torch.full_like(batch["masked_labels"], -100)
    output = model(**batch)
    assert output.mlm_loss.item() == 0
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("cls", CLASSES)
def test_neither_padding_nor_the_order_of_rows_changes_a_term(cls, build, pair_batch):
    model, batch = build(cls), pair_batch(*WITH_DUPLICATES)
    expected = model(**batch)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    others = {
        "more padding": model(**pair_batch(*WITH_DUPLICATES, num_tokens=12)),
        "another order": model(**{name: value[order] for name, value in batch.items()}),
    }
    for case, found in others.items():
        for term in TERMS[cls]:
            torch.testing.assert_close(
                found[f"{term}_loss"], expected[f"{term}_loss"], atol=1e-5, rtol=1e-5, msg=f"{term}: {case}"
            )


@pytest.mark.parametrize("cls", CLASSES)
def test_activation_checkpointing_gives_the_same_gradients(cls, build, pair_batch):
    batch = pair_batch(*WITH_DUPLICATES)
    one, other = build(cls).train(), build(cls).train()
    other.activation_checkpointing_enable()
    for model in (one, other):
        output = model(**batch, output_query_states=True, output_key_states=True)
        states = sum(state.square().mean() for state in (*output.query_states, *output.key_states))
        (output.loss + states).backward()
    assert_equal_gradients(one, other)


@pytest.mark.parametrize("cls", CLASSES)
def test_bfloat16_autocast_is_finite_and_near(cls, build, pair_batch):
    model, batch = build(cls), pair_batch(*WITH_DUPLICATES)
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    for term in TERMS[cls]:
        found = output[f"{term}_loss"]
        assert found.dtype == torch.float32
        if torch.equal(output.negative_image_rows, expected.negative_image_rows) or term == "mlm":
            assert found.item() == pytest.approx(expected[f"{term}_loss"].item(), rel=0.1, abs=0.05), term
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("cls", CLASSES)
def test_states_are_those_of_the_matched_pairs_with_their_whole_text(cls, build, pair_batch):
    model, batch = build(cls), pair_batch()
    output = model(**batch, output_query_states=[0, -1], output_key_states=[0, -1])
    body = body_of(model)(**some(batch, *TEXT, *IMAGES), output_query_states=[0, -1], output_key_states=[0, -1])
    for name in ("query_states", "key_states"):
        assert len(output[name]) == 2
        for found, expected in zip(output[name], body[name], strict=True):
            assert torch.equal(found, expected)
    assert torch.equal(output.image_mask, body.image_mask)
    if cls is DualEncoderForPreTraining:
        apart = model(**batch, output_query_states=True, join_states=False).query_states[0]
        assert torch.equal(torch.cat(apart, dim=2), output.query_states[1])


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_is_equal(cls, build, pair_batch, tmp_path):
    before = build(cls)
    before.save_pretrained(tmp_path)
    after, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(after) is cls
    assert not any(report.values()), report
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    batch = pair_batch()
    torch.testing.assert_close(before(**batch).loss, after(**batch).loss, atol=1e-6, rtol=0)
    for model in (before, after):
        assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
        assert "mlm_score.decoder.weight" not in dict(model.named_parameters())
    before.resize_token_embeddings(64)
    assert before(**batch).mlm_logits.shape[-1] == 64


@pytest.mark.parametrize("cls, bare", [(CLASSES[0], FusionEncoderModel), (CLASSES[1], DualEncoderModel)])
def test_heads_are_drawn_where_the_bare_model_has_none(cls, bare, build, tmp_path):
    build(bare).save_pretrained(tmp_path)
    model, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not [name for name in report["missing_keys"] if name.startswith(BODIES[cls])]
    assert 0.005 < model.itm_score.fc.weight.std() < 0.04
    if cls is DualEncoderForPreTraining:
        assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_dual_encoder_takes_both_heads_of_the_fusion_encoder(build):
    fusion = build(FusionEncoderForPreTraining)
    dual = DualEncoderForPreTraining.from_fusion_encoder(fusion)
    theirs = fusion.state_dict()
    copied = [name for name in dual.state_dict() if name.startswith(("itm_score", "mlm_score"))]
    assert len(copied) == 8
    assert all(torch.equal(dual.state_dict()[name], theirs[name]) for name in copied)
    assert dual.mlm_score.decoder.weight is dual.get_input_embeddings().weight
    assert dual.mlm_score.decoder.weight is not fusion.mlm_score.decoder.weight
    assert dual.text_projection.weight.std() > 0
    assert dual.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_retrieval_takes_towers_from_any_head_and_others_their_own_only(build):
    for source in (FusionEncoderForPreTraining, FusionEncoderForImageTextRetrieval, FusionEncoderModel):
        fusion = build(source)
        dual = DualEncoderForImageTextRetrieval.from_fusion_encoder(fusion).dual_encoder
        body = getattr(fusion, "fusion_encoder", fusion)
        assert torch.equal(dual.text_model.pooler.dense.weight, body.pooler.dense.weight)
    fusion = build(FusionEncoderForPreTraining)
    with pytest.raises(ValueError, match=r"has weights \[\] in its classifier"):
        DualEncoderForQuestionAnswering.from_fusion_encoder(fusion)
    with pytest.raises(ValueError, match=r"has weights \[\] in its itm_score"):
        DualEncoderForPreTraining.from_fusion_encoder(build(FusionEncoderForQuestionAnswering))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "missing, message",
    [
        ("image_ids", "caption_ids was given without image_ids; give both"),
        ("caption_ids", "image_ids was given without caption_ids; give both"),
        ("masked_input_ids", "masked_labels was given without masked_input_ids"),
    ],
)
def test_half_of_what_belongs_together_is_refused(cls, missing, message, build, pair_batch):
    batch = pair_batch()
    del batch[missing]
    with pytest.raises(ValueError, match=message):
        build(cls)(**batch)


@pytest.mark.parametrize("cls", CLASSES)
def test_more_images_a_row_and_labels_of_another_length_are_refused(cls, build, pair_batch):
    model, batch = build(cls), pair_batch()
    with pytest.raises(ValueError, match="the rows have 2 images, but a caption has one"):
        model(**{**batch, "pixel_values": batch["pixel_values"].repeat(1, 2, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"labels have shape \(4, 2\), the text \(4, 7\)"):
        model(**{**batch, "masked_labels": batch["masked_labels"][:, :2]})


@pytest.mark.parametrize("field, value", [("itm_weight", -1.0), ("mlm_weight", float("nan"))])
@pytest.mark.parametrize("cls", CLASSES)
def test_weights_that_mean_nothing_are_refused(cls, field, value, build):
    with pytest.raises(Exception, match=f"{field} is {value}; give a number >= 0"):
        build(cls, **{field: value})
