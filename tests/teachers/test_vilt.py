"""Every class of ViLT and its conversion give the same, to 1e-5; what a fusion encoder cannot do is refused."""

import pytest
import torch
from transformers import ViltConfig, ViltForTokenClassification

from dual_distill.modeling import (
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.teachers import convert_vilt, largest_difference, random_batch
from dual_distill.teachers.checkpoint import split_head
from dual_distill.teachers.vilt import VILT_CLASSES, convert_vilt_config

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
}
CLOSE = {"atol": 1e-5, "rtol": 0}


def one_image(batch):
    """The batch as transformers' ViLT reads it where a row has one image."""
    return {**batch, **{name: batch[name][:, 0] for name in ("pixel_values", "pixel_mask")}}


@pytest.fixture(params=[(3, 3), (5, 2), (1, 4)], ids=str)
def grid(request):
    """Patches of the largest image: those of the position table, and two others that it is resized to."""
    return request.param


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in VILT_CLASSES if name != "ViltModel"])
def test_logits_agree_for_mixed_images_and_texts(name, attention, grid, make_vilt):
    vilt = make_vilt(name)
    ours = convert_vilt(vilt, attention)
    assert type(ours) is VILT_CLASSES[name]
    assert ours.config._attn_implementation == attention
    assert not ours.training
    batch = random_batch(ours.config, num_rows=4, num_tokens=9, grid=grid)
    expected = vilt(**(batch if ours.config.num_images == 2 else one_image(batch))).logits
    assert expected.std(0).min() > 1e-2  # rows differ, or equality would say nothing
    torch.testing.assert_close(ours(**batch).logits, expected, **CLOSE)
    found = largest_difference(vilt, ours, batch)
    assert found["output"] == "logits"
    assert found["largest_difference"] < 1e-5
    assert found["largest_value"] == pytest.approx(expected.abs().max().item(), rel=1e-5)


@pytest.mark.parametrize("name", VILT_CLASSES)
def test_pooled_vectors_agree_in_every_slot(name, grid, make_vilt):
    vilt = make_vilt(name)
    ours = convert_vilt(vilt)
    body = getattr(vilt, "vilt", vilt)
    batch = random_batch(ours.config, num_rows=4, num_tokens=9, grid=grid)
    found = ours(**batch).pooler_output
    assert found.shape[1] == (2 if "Images" in name else 1)
    for slot in range(found.shape[1]):
        flat = {**batch, **{key: batch[key][:, slot] for key in ("pixel_values", "pixel_mask")}}
        expected = body(**flat, image_token_type_idx=slot + 1).pooler_output
        torch.testing.assert_close(found[:, slot], expected, **CLOSE)


def test_without_masks_and_with_segments(make_vilt):
    vilt = make_vilt("ViltForQuestionAnswering")
    batch = random_batch(convert_vilt_config(vilt.config))
    segments = torch.randint(0, 2, batch["input_ids"].shape)
    pair = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"][:, 0], "token_type_ids": segments}
    torch.testing.assert_close(convert_vilt(vilt)(**pair).logits, vilt(**pair).logits, **CLOSE)


def test_losses_agree(make_vilt):
    """ViLT's own: answers' binary cross-entropy, and the mean over masked words."""
    vilt = make_vilt("ViltForQuestionAnswering")
    batch = random_batch(convert_vilt_config(vilt.config))
    scores = torch.rand(3, 4)
    torch.testing.assert_close(
        convert_vilt(vilt)(**batch, labels=scores).loss, vilt(**one_image(batch), labels=scores).loss, **CLOSE
    )
    vilt = make_vilt("ViltForMaskedLM")
    words = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.7, -100)
    torch.testing.assert_close(
        convert_vilt(vilt)(**batch, labels=words).loss, vilt(**one_image(batch), labels=words).loss, **CLOSE
    )


@pytest.mark.parametrize("name", VILT_CLASSES)
def test_the_conversion_has_every_weight_and_its_own_memory(name, make_vilt):
    vilt = make_vilt(name)
    ours = convert_vilt(vilt)
    prefix = "" if name == "ViltModel" else "fusion_encoder."
    renamed = {key.replace("vilt.", prefix): weight for key, weight in vilt.state_dict().items()}
    assert renamed.keys() == ours.state_dict().keys()
    assert all(torch.equal(renamed[key], weight) for key, weight in ours.state_dict().items())
    assert ours.num_parameters() == vilt.num_parameters()
    before = {key: weight.clone() for key, weight in ours.state_dict().items()}
    with torch.no_grad():
        for parameter in vilt.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], weight) for key, weight in ours.state_dict().items())


def test_dtype_is_kept_and_a_shuffled_patch_order_does_not_matter(make_vilt):
    vilt = make_vilt("ViltForQuestionAnswering").to(torch.bfloat16)
    assert convert_vilt(vilt).dtype == torch.bfloat16
    vilt = make_vilt("ViltForQuestionAnswering")
    batch = random_batch(convert_vilt_config(vilt.config), grid=(5, 5))
    first, second = (vilt(**one_image(batch)).logits for _ in range(2))
    torch.testing.assert_close(first, second, **CLOSE)


def test_the_masked_word_decoder_stays_tied(make_vilt):
    ours = convert_vilt(make_vilt("ViltForMaskedLM"))
    assert ours.mlm_score.decoder.weight is ours.get_input_embeddings().weight
    assert ours.mlm_score.decoder.bias.any()


def test_labels_and_answers_keep_their_order(make_vilt):
    config = convert_vilt(make_vilt("ViltForQuestionAnswering")).config
    assert config.id2label == {0: "yes", 1: "no", 2: "two", 3: "red"}
    assert config.label2id == {"yes": 0, "no": 1, "two": 2, "red": 3}
    assert config.num_labels == 4


def test_every_field_of_the_shape_is_taken():
    fields = {
        **SHAPE,
        "type_vocab_size": 3,
        "modality_type_vocab_size": 4,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.2,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-3,
        "num_channels": 1,
        "qkv_bias": False,
        "pad_token_id": 5,
    }
    converted = convert_vilt_config(ViltConfig(**fields))
    assert {name: getattr(converted, name) for name in fields} == fields
    assert converted.tie_word_embeddings
    assert convert_vilt_config(ViltConfig()).pad_token_id == FusionEncoderConfig().pad_token_id


def test_unusual_shapes_are_computed_with(make_vilt):
    fields = {"hidden_act": "relu", "qkv_bias": False, "num_channels": 1, "layer_norm_eps": 0.1, "patch_size": 2}
    vilt = make_vilt("ViltForQuestionAnswering", **fields)
    ours = convert_vilt(vilt)
    batch = random_batch(ours.config, grid=(4, 7))
    torch.testing.assert_close(ours(**batch).logits, vilt(**one_image(batch)).logits, **CLOSE)


def test_sizes_as_lists():
    converted = convert_vilt_config(ViltConfig(image_size=[64, 96], patch_size=[32, 32]))
    assert (converted.patch_size, converted.patch_grid) == (32, (2, 3))
    with pytest.raises(ValueError, match=r"patch_size is \[32, 16\], but a fusion encoder has square patches"):
        convert_vilt_config(ViltConfig(patch_size=[32, 16]))


@pytest.mark.parametrize("length", [-1, 228, 300])
def test_a_patch_limit_that_drops_nothing_is_taken(length):
    """A shorter side of 384 px allows a longer one of 639: 12 x 19 patches of 32 px."""
    assert convert_vilt_config(ViltConfig(max_image_length=length)).patch_grid == (12, 12)


@pytest.mark.parametrize("length", [0, 100, 227])
def test_a_patch_limit_that_drops_patches_is_refused(length):
    with pytest.raises(ValueError, match=f"max_image_length is {length}, .* where an image can have 228.* to -1"):
        convert_vilt_config(ViltConfig(max_image_length=length))


def test_a_patch_limit_that_is_not_reached_changes_nothing(make_vilt):
    """12 px allow a longer side of 19, so 3 x 4 patches of 4 px; with a limit of 12 ViLT reads all of them."""
    vilt = make_vilt("ViltForQuestionAnswering", max_image_length=12)
    ours = convert_vilt(vilt)
    batch = random_batch(ours.config, grid=(3, 4))
    torch.testing.assert_close(ours(**batch).logits, vilt(**one_image(batch)).logits, **CLOSE)


def test_classification_without_a_number_of_images_is_refused():
    with pytest.raises(ValueError, match="num_images is -1, but this head reads a fixed number of images"):
        convert_vilt_config(ViltConfig(), FusionEncoderForImagesAndTextClassification)
    assert convert_vilt_config(ViltConfig(), FusionEncoderForQuestionAnswering).num_images == 1


def test_three_images_a_row(make_vilt):
    vilt = make_vilt("ViltForImagesAndTextClassification", num_images=3, modality_type_vocab_size=4)
    ours = convert_vilt(vilt)
    batch = random_batch(ours.config)
    torch.testing.assert_close(ours(**batch).logits, vilt(**batch).logits, **CLOSE)


def test_weights_as_transformers_4_saved_them(make_vilt):
    """With constant buffers, and with the decoder's bias under its old name or under both."""
    vilt = make_vilt("ViltForMaskedLM")
    weights = vilt.state_dict()
    body, head = split_head(weights, "vilt")
    assert len(body) + len(head) == len(weights)
    old = dict(weights)
    old["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(12)[None]
    old["vilt.embeddings.text_embeddings.token_type_ids"] = torch.zeros(1, 12, dtype=torch.long)
    old["mlm_score.bias"] = old["mlm_score.decoder.bias"]
    assert [part.keys() for part in split_head(old, "vilt")] == [body.keys(), head.keys()]
    del old["mlm_score.decoder.bias"]
    assert torch.equal(split_head(old, "vilt")[1]["mlm_score.decoder.bias"], head["mlm_score.decoder.bias"])
    old["mlm_score.decoder.bias"] = old["mlm_score.bias"] + 1
    with pytest.raises(ValueError, match=r"mlm_score.bias and mlm_score.decoder.bias with different values"):
        split_head(old, "vilt")


def test_another_class_is_refused():
    with pytest.raises(ValueError, match="ViltForTokenClassification cannot be converted; give one of ViltModel, "):
        convert_vilt(ViltForTokenClassification(ViltConfig(**SHAPE)))


def test_a_random_batch_has_unequal_rows_and_touches_no_other_random_number():
    before = torch.get_rng_state()
    batch = random_batch(FusionEncoderConfig(image_size=12, patch_size=4, num_images=2), num_rows=3, num_tokens=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert batch["attention_mask"].sum(1).tolist() == [9, 4, 3]
    grids = batch["pixel_mask"][..., ::4, ::4]
    assert grids.amax(3).sum(2).tolist() == [[3, 3], [2, 2], [1, 1]]
    assert grids.amax(2).sum(2).tolist() == [[3, 3], [3, 2], [2, 2]]
