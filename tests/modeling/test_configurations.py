"""Configurations keep what they are told, and refuse what cannot be built."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, ModernBertConfig

from dual_distill.modeling import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig, FusionEncoderConfig

KINDS = [FusionEncoderConfig, DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_equal(kind, config, tmp_path):
    fields = {"recorded_layers": [0, -1], "hidden_dropout_prob": 0.1, "num_images": 2, "modality_type_vocab_size": 3}
    before = config(kind, **fields)
    before.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == before.to_dict() == kind(**before.to_dict()).to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path)) is kind


def test_answers_are_kept_in_order(config, tmp_path):
    names = {0: "yes", 1: "no", 2: "two"}
    before = DualEncoderConfig(id2label=names, label2id={name: index for index, name in names.items()})
    before.save_pretrained(tmp_path)
    after = DualEncoderConfig.from_pretrained(tmp_path)
    assert (after.id2label, after.num_labels) == (names, 3)


def test_a_tower_is_read_from_the_configuration_of_a_dual_encoder(config, tmp_path):
    config(DualEncoderConfig, image_size=[8, 20], num_hidden_layers=3).save_pretrained(tmp_path)
    vision, text = DualEncoderVisionConfig.from_pretrained(tmp_path), DualEncoderTextConfig.from_pretrained(tmp_path)
    assert (vision.patch_grid, vision.num_hidden_layers, text.vocab_size) == ((2, 5), 3, 60)


def test_default_shape_is_vilt_b_32():
    fusion, dual = FusionEncoderConfig(), DualEncoderConfig()
    for tower in (fusion, dual.text_config, dual.vision_config):
        shape = (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads, tower.intermediate_size)
        assert shape == (768, 12, 12, 3072)
    assert fusion.patch_grid == dual.patch_grid == dual.vision_config.patch_grid == (12, 12)
    assert (dual.hidden_size, dual.num_attention_heads, dual.vocab_size) == (768, 12, 30522)


@pytest.mark.parametrize("size, grid", [(64, (8, 8)), ([16, 64], (2, 8)), ((64, 8), (8, 1))])
@pytest.mark.parametrize("kind", [FusionEncoderConfig, DualEncoderVisionConfig])
def test_patch_grid_is_rows_then_columns(kind, size, grid):
    assert kind(image_size=size, patch_size=8).patch_grid == grid


@pytest.mark.parametrize("kind", [FusionEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig])
def test_a_width_that_the_heads_do_not_divide_is_refused(kind):
    with pytest.raises(
        StrictDataclassClassValidationError, match="hidden_size 30 is no multiple of num_attention_heads 4"
    ):
        kind(hidden_size=30, num_attention_heads=4)


@pytest.mark.parametrize("size", [30, [32, 30], [8], [8, 8, 8], 0, [0, 8]])
@pytest.mark.parametrize("kind", [FusionEncoderConfig, DualEncoderVisionConfig])
def test_a_size_that_patches_do_not_divide_is_refused(kind, size):
    with pytest.raises(StrictDataclassClassValidationError, match="does not divide into patches of 8 pixels"):
        kind(image_size=size, patch_size=8)


@pytest.mark.parametrize("name, values", [("hidden_size", (96, 48)), ("num_attention_heads", (4, 2))])
def test_unequal_towers_are_refused(name, values):
    towers = [{"hidden_size": 96, "num_attention_heads": 4} | {name: value} for value in values]
    with pytest.raises(
        StrictDataclassClassValidationError, match=f"the text tower has {name} {values[0]}, the image tower {values[1]}"
    ):
        DualEncoderConfig(text_config=towers[0], vision_config=towers[1])


def test_towers_of_unequal_depth_are_accepted():
    config = DualEncoderConfig(text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 5})
    assert (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers) == (2, 5)


@pytest.mark.parametrize("field, value", [("hidden_size", "wide"), ("qkv_bias", 3), ("recorded_layers", -1)])
def test_a_field_of_another_type_is_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        FusionEncoderConfig(**{field: value})


@pytest.mark.parametrize("kind", [FusionEncoderConfig, DualEncoderConfig])
def test_a_checkpoint_with_the_former_names_of_the_weights_is_read(kind, config, tmp_path):
    config(kind).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    former = {"matching_weight": 0.5, "masked_word_weight": 0}
    for name in ("itc_weight", "itm_weight", "mlm_weight"):
        written.pop(name, None)
    if kind is DualEncoderConfig:
        former["contrastive_weight"] = 2.0
    file.write_text(json.dumps(written | former))
    read = kind.from_pretrained(tmp_path)
    assert (read.itm_weight, read.mlm_weight, getattr(read, "itc_weight", 2.0)) == (0.5, 0, 2.0)
    assert not set(former) & set(read.to_dict())


@pytest.mark.parametrize("tower", [{"model_type": "modernbert", "hidden_size": 768}, ModernBertConfig()])
def test_a_tower_of_another_type_is_of_that_type(tower, tmp_path):
    config = DualEncoderConfig(text_config=tower)
    assert type(config.text_config) is ModernBertConfig
    assert config.max_position_embeddings == 8192
    # What equals the defaults of our own tower is kept all the same.
    config.save_pretrained(tmp_path)
    assert DualEncoderConfig.from_pretrained(tmp_path).text_config.to_dict() == config.text_config.to_dict()


@pytest.mark.parametrize("model_type", ["siglip_text_model", "no_such_model"])
def test_a_tower_that_no_auto_model_loads_is_refused(model_type):
    with pytest.raises(ValueError, match=f"text_config is a {model_type}, but AutoModel has no model of that type"):
        DualEncoderConfig(text_config={"model_type": model_type})


def test_of_a_configuration_with_two_towers_one_is_taken():
    config = DualEncoderConfig(
        text_config={"model_type": "clip", "text_config": {"hidden_size": 64}}, vision_config={"model_type": "siglip"}
    )
    types = config.text_config.model_type, config.vision_config.model_type
    assert types == ("clip_text_model", "siglip_vision_model")
    assert config.hidden_size == 64
