"""Retrieval and masked words: what their logits and losses are, and that neither padding nor saving changes them."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from dual_distill.modeling import FusionEncoderForImageTextRetrieval, FusionEncoderForMaskedLM, FusionEncoderModel

CLASSES = [FusionEncoderForImageTextRetrieval, FusionEncoderForMaskedLM]
WORDS = "fusion_encoder.embeddings.text_embeddings.word_embeddings.weight"


def real_logits(output, batch, row):
    """The logits of one row that mean something: of real tokens, or of its images."""
    logits = output.logits[row]
    return logits[: batch["attention_mask"][row].sum()] if logits.dim() == 2 else logits


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cls", CLASSES)
def test_alone_in_a_batch_and_with_more_padding(cls, train, build, make_rows, collate):
    model = build(cls).train(train)
    rows = make_rows()
    together = collate(rows)
    expected = model(**together)
    assert expected.logits[:, 0].std(0).min() > 1e-2
    padded = collate(rows, num_tokens=12, grid=(5, 4))
    more = model(**padded)
    for i, row in enumerate(rows):
        single = collate([row])
        alone = model(**single)
        for found, batch, j in ((more, padded, i), (alone, single, 0)):
            torch.testing.assert_close(
                real_logits(found, batch, j), real_logits(expected, together, i), atol=1e-5, rtol=0
            )
            torch.testing.assert_close(found.pooler_output[j], expected.pooler_output[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_eager_is_sdpa_and_states_are_recorded(cls, build, batch):
    one, other = (
        build(cls, attn_implementation=attention)(**batch, output_query_states=True, output_key_states=True)
        for attention in ("eager", "sdpa")
    )
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=0)
    tokens = batch["input_ids"].shape[1] + one.image_mask.shape[-1]
    assert one.query_states[0].shape == other.key_states[0].shape == (3, 4, tokens, 4)


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_is_equal(cls, build, batch, tmp_path):
    before = build(cls)
    before.save_pretrained(tmp_path)
    after, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # A product with a single output column rounds with the alignment of its memory, which a mapped file changes.
    torch.testing.assert_close(before(**batch).logits, after(**batch).logits, atol=1e-6, rtol=0)


def test_the_decoder_is_tied_before_and_after_saving(build, tmp_path):
    model = build(FusionEncoderForMaskedLM)
    model.save_pretrained(tmp_path)
    for each in (model, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert type(each) is FusionEncoderForMaskedLM
        assert each.mlm_score.decoder.weight is each.get_input_embeddings().weight
        assert WORDS in dict(each.named_parameters())
        assert "mlm_score.decoder.weight" not in dict(each.named_parameters())
        assert each.mlm_score.decoder.bias.shape == (60,)


def test_more_words_resize_embeddings_and_decoder(build, batch):
    model = build(FusionEncoderForMaskedLM)
    model.resize_token_embeddings(64)
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
    assert model(**batch).logits.shape[-1] == 64


def test_word_logits_written_out(build, batch):
    model = build(FusionEncoderForMaskedLM)
    body = model.fusion_encoder(**batch)
    text = body.last_hidden_state[:, : batch["input_ids"].shape[1]]
    transform = model.mlm_score.transform
    hidden = transform.LayerNorm(torch.nn.functional.gelu(transform.dense(text)))
    expected = hidden @ model.get_input_embeddings().weight.T + model.mlm_score.decoder.bias
    torch.testing.assert_close(model(**batch).logits, expected)


def test_word_loss_is_the_mean_over_masked_words(build, batch):
    model = build(FusionEncoderForMaskedLM)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 1], labels[0, 3], labels[2, 0] = 7, 11, 59
    output = model(**batch, labels=labels)
    log_probs = output.logits.log_softmax(-1)
    expected = -(log_probs[0, 1, 7] + log_probs[0, 3, 11] + log_probs[2, 0, 59]) / 3
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    grads = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    silent = {name for name, _ in model.named_parameters()} - grads
    # The pooler is not on the way, and softmax ignores what a bias of the keys adds to all scores.
    assert all("pooler" in name or name.endswith("key.bias") for name in silent), silent
    nothing = model(**batch, labels=torch.full_like(labels, -100)).loss
    assert nothing.item() == 0


def test_word_loss_refuses_other_shapes_and_more_images(build, batch, make_rows, collate):
    model = build(FusionEncoderForMaskedLM)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), the text \(3, 7\)"):
        model(**batch, labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="the rows have 2 images, but masked words are completed with one"):
        model(**collate(make_rows((3,), (((1, 1), (2, 2)),))))


def test_images_of_a_row_are_scored_apart_and_without_their_place(build, make_rows, collate):
    model = build(FusionEncoderForImageTextRetrieval, modality_type_vocab_size=4)
    rows = make_rows((7, 3), (((2, 3), (1, 1), (3, 1)), ((1, 2), (4, 2), (2, 2))))
    output = model(**collate(rows))
    assert output.logits.shape == (2, 3)
    assert output.pooler_output.shape == (2, 3, 16)
    assert output.image_mask.shape[:2] == (2, 3)
    for i, (ids, images) in enumerate(rows):
        for j, image in enumerate(images):
            alone = model(**collate([(ids, [image])])).logits
            torch.testing.assert_close(output.logits[i, j], alone[0, 0], atol=1e-5, rtol=0)
    backwards = model(**collate([(ids, images[::-1]) for ids, images in rows]))
    torch.testing.assert_close(backwards.logits, output.logits.flip(1), atol=1e-5, rtol=0)


def test_a_score_is_the_head_on_the_bare_models_vector(build, batch):
    model = build(FusionEncoderForImageTextRetrieval)
    pooled = model.fusion_encoder(**batch).pooler_output
    torch.testing.assert_close(model(**batch).logits, pooled @ model.rank_output.weight[0] + model.rank_output.bias)


def test_retrieval_losses(build, make_rows, collate):
    model = build(FusionEncoderForImageTextRetrieval)
    batch = collate(make_rows((7, 3), (((2, 3), (1, 1)), ((1, 2), (4, 2)))))
    places = model(**batch, labels=torch.tensor([1, 0]))
    expected = -(places.logits[0].log_softmax(-1)[1] + places.logits[1].log_softmax(-1)[0]) / 2
    torch.testing.assert_close(places.loss, expected)
    fits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    signs = 2 * fits - 1
    expected = -torch.nn.functional.logsigmoid(signs * places.logits).sum() / 2
    torch.testing.assert_close(model(**batch, labels=fits).loss, expected)


def test_retrieval_refuses_labels_that_say_nothing_and_rows_that_do_not_fit(build, batch):
    model = build(FusionEncoderForImageTextRetrieval)
    with pytest.raises(ValueError, match="but the rows have one image each; give two or more"):
        model(**batch, labels=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="give one text for each row of images"):
        model(**{**batch, "input_ids": batch["input_ids"][:2]})
    with pytest.raises(ValueError, match="give pixel_values"):
        model(input_ids=batch["input_ids"])


@pytest.mark.parametrize("cls", CLASSES)
def test_flat_pixels_and_no_masks(cls, build, make_rows, collate):
    model = build(cls)
    batch = collate(make_rows((5, 5), (((3, 2),), ((3, 2),))))
    flat = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:, 0])
    torch.testing.assert_close(flat.logits, model(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_bare_model_loads_from_it(cls, build, tmp_path):
    before = build(cls)
    before.save_pretrained(tmp_path)
    after, report = FusionEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, before.fusion_encoder.state_dict()[name])
