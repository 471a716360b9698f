"""Towers that are not ours: each is built, saved, loaded, padded, recorded and taught."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForVisualQuestionAnswering
from worlds.tiny_teachers import save_teacher

from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
)
from dual_distill.objectives import DiDEObjective

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_PIXELS = {**_SHAPE, "image_size": 32, "patch_size": 8}
_WORDS = {**_SHAPE, "vocab_size": 60, "max_position_embeddings": 24, "pad_token_id": 0}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "siglip": {"model_type": "siglip_vision_model", **_PIXELS},
    "siglip2": {"model_type": "siglip2_vision_model", **_SHAPE, "num_patches": 16, "patch_size": 8},
    "clip": {"model_type": "clip_vision_model", **_PIXELS},
    "dinov2": {"model_type": "dinov2", **_PIXELS},
    "dinov3": {"model_type": "dinov3_vit", **_PIXELS, "num_register_tokens": 2},
    "vit": {"model_type": "vit", **_PIXELS},
    "convnextv2": {
        **{"model_type": "convnextv2", "hidden_sizes": [8, 16, 24, 40], "depths": [1, 1, 1, 1]},
        **{"image_size": 32, "patch_size": 1},
    },
    "resnet": {
        **{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        **{"layer_type": "basic"},
    },
    "efficientnet": {
        **{"model_type": "efficientnet", "image_size": 32, "width_coefficient": 1.0, "depth_coefficient": 1.0},
        **{"kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [2, 2]},
        **{"num_block_repeats": [1, 2], "expand_ratios": [1, 2], "hidden_dim": 1280},
    },
}
TEXT = {
    "bert": {"model_type": "bert", **_WORDS},
    "roberta": {"model_type": "roberta", **_WORDS, "pad_token_id": 1},
    "xlm-roberta": {"model_type": "xlm-roberta", **_WORDS, "pad_token_id": 1},
    "modernbert": {"model_type": "modernbert", **_WORDS, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {
        **{"model_type": "distilbert", "vocab_size": 60, "max_position_embeddings": 24},
        **{"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    },
    "llama": {"model_type": "llama", **_WORDS, **_SPECIAL, "num_key_value_heads": 2},
    "clip": {"model_type": "clip_text_model", **_WORDS, **_SPECIAL},
}
_USUAL = [("vit", "bert"), ("siglip2", "llama"), ("convnextv2", "modernbert")]
_RARE = [(vision, "bert") for vision in VISION] + [("vit", text) for text in TEXT]
EVERY_PAIR = [
    *_USUAL,
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in dict.fromkeys(_RARE) if pair not in _USUAL),
]
every_pair = pytest.mark.parametrize(("vision", "text"), EVERY_PAIR)
RECORD = {"output_query_states": [-1], "output_key_states": [-1], "join_states": False}


def tiny(
    vision: str | dict,
    text: str | dict,
    cls: type = DualEncoderForQuestionAnswering,
    attn_implementation: str = "sdpa",
    **fields: object,
):
    """A tiny model with noise on every parameter, in eval mode; the same weights in each call."""
    towers = {
        "vision_config": VISION[vision] if isinstance(vision, str) else vision,
        "text_config": TEXT[text] if isinstance(text, str) else text,
    }
    torch.manual_seed(0)
    model = cls._from_config(
        DualEncoderConfig(**towers, **{"num_labels": 3, **fields}), attn_implementation=attn_implementation
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Two texts, of 7 and 4 tokens, and images of one size."""
    draw = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(5, 60, (2, 7), generator=draw), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    pixels = torch.randn(2, 3, 32, 32, generator=draw)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


@every_pair
def test_saved_and_loaded_is_equal(vision, text, inputs, tmp_path):
    model = tiny(vision, text)
    model.save_pretrained(tmp_path)
    for auto in (DualEncoderForQuestionAnswering, AutoModelForVisualQuestionAnswering):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)

    # The names in the file are those that Trainer looks for when it resumes.
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=not model.all_tied_weights_keys)


@every_pair
def test_alone_and_padded_at_either_side_is_equal(vision, text, inputs):
    model, ids, pixels = tiny(vision, text), inputs["input_ids"], inputs["pixel_values"]
    together = model(**inputs).logits
    alone = [
        model(input_ids=ids[row : row + 1, :length], pixel_values=pixels[row : row + 1]).logits
        for row, length in enumerate((7, 4))
    ]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)

    left = {"input_ids": ids.clone(), "attention_mask": inputs["attention_mask"].clone(), "pixel_values": pixels}
    left["input_ids"][1], left["attention_mask"][1] = ids[1].roll(3), inputs["attention_mask"][1].roll(3)
    torch.testing.assert_close(model(**left).logits, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["mpnet", "longformer", "luke", "data2vec-text", "esm", "ibert", "markuplm", "mra"])
def test_positions_behind_that_of_padding_are_the_towers_own(text, inputs):
    widths = {"entity_vocab_size": 5, "entity_emb_size": 8} if text == "luke" else {}
    model = tiny("vit", {"model_type": text, **_WORDS, "pad_token_id": 1, **widths}).dual_encoder.text_model
    ids, mask = inputs["input_ids"].clone(), inputs["attention_mask"]
    ids[1, 4:] = 1
    together = model(ids, mask).last_hidden_state
    for row, length in enumerate((7, 4)):
        alone = model.model(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-5, rtol=1e-5)
    config = DualEncoderConfig(text_config=model.model.config, vision_config=VISION["vit"])
    # MRA's table has two rows more than it says.
    assert config.max_position_embeddings == (24 if text == "mra" else 22)
    # ESM's configuration names no padding token of its own.
    without = DualEncoderConfig(
        text_config={"model_type": "esm", **_WORDS, "pad_token_id": None}, vision_config=VISION["vit"]
    )
    assert without.max_position_embeddings == 24


def test_heads_whose_width_varies_over_the_layers_are_not_compared(inputs):
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8, "global_head_dim": 16}
    small = {"vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8, "num_key_value_heads": 2}
    model = tiny("vit", {"model_type": "gemma4_text", **_WORDS, **_SPECIAL, **kinds, **small}, text_pooling="last")
    assert model.config.attention_shapes == [None, (4, 8)]
    assert model.config.records_tokens
    assert model(**inputs, **RECORD).query_states[0][0].shape == (2, 1, 7, 32)


def test_a_tower_whose_attention_is_not_seen_says_so(inputs):
    model = tiny("vit", {"model_type": "mpnet", **_WORDS, "pad_token_id": 1})
    assert model(**inputs).logits.shape == (2, 3)
    with pytest.raises(ValueError, match=r"a MPNetModel has attention of its own kind.*; set attention_weight to 0"):
        model(**inputs, **RECORD)


@every_pair
def test_recorded_is_what_eager_attention_computes(vision, text, inputs):
    model, eager = tiny(vision, text), tiny(vision, text, attn_implementation="eager")
    recorded, computed = model(**inputs, **RECORD), eager(**inputs, output_attentions=True)
    if model.config.records_tokens:
        of_text, of_image = recorded.query_states[0]
        assert of_text.shape == (2, 1, 7, 32)
        assert of_image.shape == (2, 1, 16, 32)
        return

    for side, output in enumerate((computed.text_model_output, computed.vision_model_output)):
        queries, keys = recorded.query_states[0][side], recorded.key_states[0][side]
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        real = torch.ones(scores.shape[0], scores.shape[-1]).bool()
        if side == 0:
            real = inputs["attention_mask"].bool()
            if model.config.text_pooling == "last" or text == "clip":
                scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        probs = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)
        difference = (probs - output.attentions[-1]).abs() * real[:, None, :, None]
        assert difference.max() < 1e-5
    assert model.dual_encoder.vision_model.model.config._attn_implementation == "sdpa"


@every_pair
def test_twenty_distilled_steps_lower_the_attention_loss(vision, text, inputs):
    model, objective = tiny(vision, text).train(), DiDEObjective(soft_label_weight=0)
    if model.config.records_tokens:
        objective.add_projections(width=32, heads=4)
    num_image_tokens = model(**inputs).image_mask.shape[-1]
    draw = torch.Generator().manual_seed(2)
    to_image = 2 * torch.randn(2, 4, 7, num_image_tokens, generator=draw)
    to_text = 2 * torch.randn(2, 4, num_image_tokens, 7, generator=draw)
    teacher = SimpleNamespace(cross_modal_scores=[(to_image, to_text)])

    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=3e-3)
    losses = []
    for _ in range(20):
        output = model(**inputs, **objective.student_requests({"join_states"}))
        loss = objective(output, teacher, inputs)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_flexible_grids_are_in_raster_order_and_alone_as_in_a_batch(inputs):
    model = tiny("siglip2", "bert", vision_pooling="mean")
    pixels, mask = torch.randn(2, 3, 32, 40), torch.ones(2, 32, 40, dtype=torch.long)
    # Two columns of the one image are real, two rows of the other.
    mask[0, :, 16:] = mask[1, 16:] = 0
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    together = model(**words, pixel_values=pixels, pixel_mask=mask, **RECORD)
    grid = together.image_mask[:, 0].unflatten(1, (4, 5))
    assert torch.equal(grid, mask[:, ::8, ::8].bool())

    for row, image in enumerate((pixels[:1, :, :, :16], pixels[1:, :, :16])):
        one = {name: tensor[row : row + 1] for name, tensor in words.items()}
        alone = model(**one, pixel_values=image, **RECORD)
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
        queries = together.query_states[0][1][row][:, together.image_mask[row, 0]]
        torch.testing.assert_close(alone.query_states[0][1][0], queries, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_images", [1, 2])
def test_interaction_layers_behind_towers_of_unequal_width(num_images, inputs):
    wide = {**VISION["siglip"], "hidden_size": 48, "num_attention_heads": 6}
    fields = {"interaction_layers": 1, "num_images": num_images}
    model = tiny(wide, "llama", DualEncoderForImagesAndTextClassification, **fields)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pixels = torch.randn(2, num_images, 3, 32, 32)
    logits = model(**words, pixel_values=pixels).logits

    stored = model.get_image_features(pixels, output_token_states=True)
    tokens = model(**words, image_token_embeds=stored.image_token_embeds).logits
    states = {"image_token_states": stored.image_token_states, "image_pooler_output": stored.pooler_output}
    torch.testing.assert_close(tokens, logits)
    torch.testing.assert_close(model(**words, **states).logits, logits)


def test_what_its_tower_pools_itself_cannot_be_pooled_of_stored_tokens(inputs):
    model = tiny("siglip", "bert", interaction_layers=1, vision_pooling="tower")
    tokens = model.get_image_features(inputs["pixel_values"]).image_token_embeds
    with pytest.raises(ValueError, match="SiglipVisionModel pools nothing here itself"):
        model(input_ids=inputs["input_ids"], image_token_embeds=tokens)


def test_pretraining_ties_the_words_of_any_text_tower(inputs, tmp_path):
    model = tiny("siglip", "modernbert", DualEncoderForPreTraining)
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded, info = DualEncoderForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.mlm_score.decoder.weight is loaded.get_input_embeddings().weight

    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 2] = 7
    ids = {"image_ids": torch.arange(2), "caption_ids": torch.arange(2)}
    masked = {"masked_input_ids": inputs["input_ids"], "masked_labels": labels}
    assert model.train()(**inputs, **masked, **ids).loss.isfinite()


def test_layers_of_towers_are_not_split_over_devices():
    assert {"BertLayer", "ViTLayer"} <= set(tiny("vit", "bert")._no_split_modules)


@pytest.mark.slow
def test_compiled_is_equal(inputs):
    model = tiny("vit", "bert")
    compiled = torch.compile(model, backend="eager")
    for asked in ({}, RECORD):
        found, expected = compiled(**inputs, **asked), model(**inputs, **asked)
        torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.query_states, expected.query_states)


def test_texts_and_images_are_ranked(inputs):
    model = tiny("clip", "clip", DualEncoderForImageTextRetrieval)
    assert model(**inputs).logits_per_text.shape == (2, 2)


def test_checkpointed_layers_give_the_same_gradients(inputs):
    model = tiny("vit", "llama").train()
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.activation_checkpointing_enable()
        output = model(**inputs, **RECORD)
        states = [side for layer in output.query_states + output.key_states for side in layer]
        (output.logits.sum() + sum(each.square().sum() for each in states)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "vit",
            "a vit, which names no max_position_embeddings, so that its longest text is not known; give an encoder",
        ),
        ("bloom", "a bloom, which names no max_position_embeddings"),
        ("bart", "a bart, which has a decoder; give an encoder, such as BERT, or a causal model, such as Llama"),
        ("t5", "a t5, which has a decoder"),
    ],
)
def test_a_text_tower_that_reads_no_text_as_it_stands_is_refused(text, sentence):
    with pytest.raises(ValueError, match=f"text_config is {sentence}"):
        tiny("vit", {"model_type": text})


@pytest.mark.parametrize("vision", ["mobilenet_v1", "mobilenet_v2", "mobilevitv2", "cvt"])
def test_an_image_tower_whose_width_is_not_said_is_refused(vision):
    with pytest.raises(ValueError, match=f"vision_config is a {vision}, which names no hidden_size, so that the width"):
        tiny({"model_type": vision}, "bert")


_NARROW = {"embedding_size": 16}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # One mixes all places, one convolves, one reads the word behind a text's last.
        ({"model_type": "fnet", **_WORDS}, "a FNetModel reads padding: .* by .* of the largest; give a model that"),
        ({"model_type": "convbert", **_WORDS, **_NARROW}, "a ConvBertModel reads padding"),
        (
            {"model_type": "mobilebert", **_WORDS, **_NARROW, "intra_bottleneck_size": 16, "true_hidden_size": 16},
            "a MobileBertModel reads padding",
        ),
        ({"model_type": "bros", **_WORDS}, "a BrosModel does not run on input_ids alone: .*specify bbox"),
        ({"model_type": "clip_vision_model", **_PIXELS, "max_position_embeddings": 9}, "CLIPVisionModel reads no inp"),
    ],
)
def test_a_text_tower_that_reads_padding_or_more_than_text_is_refused_when_it_is_built(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        DualEncoderForQuestionAnswering(DualEncoderConfig(text_config=text, vision_config=VISION["vit"]))


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        # Its detection tokens stand behind those of the patches.
        (
            {"model_type": "yolos", **_PIXELS, "image_size": [32, 32], "num_detection_tokens": 5},
            "a YolosModel has its tokens in another order: patch 3 of 4 x 4 is token 4 of 22",
        ),
        (
            {"model_type": "focalnet", "image_size": 64, "embed_dim": 8, "depths": [1] * 4, "hidden_sizes": [8] * 4},
            "a FocalNetModel gives vectors of width 64 where its configuration says 8",
        ),
        ({"model_type": "pixtral", **_PIXELS, "head_dim": 8}, "a PixtralVisionModel makes one row of tokens of two im"),
        (TEXT["bert"], "a BertModel reads no pixel_values; give a model such as ViT"),
        ({"model_type": "vivit", **_PIXELS}, "a VivitModel does not run on pixel_values alone"),
    ],
)
def test_an_image_tower_whose_tokens_are_not_its_patches_is_refused_when_it_is_built(vision, sentence):
    towers = {"text_config": TEXT["bert"], "vision_config": vision, "vision_pooling": "mean"}
    with pytest.raises(ValueError, match=sentence):
        DualEncoderForQuestionAnswering(DualEncoderConfig(**towers))


def test_trying_a_tower_leaves_no_trace():
    towers = {"vision_config": VISION["resnet"], "text_config": TEXT["bert"]}
    torch.manual_seed(0)
    model = DualEncoderForQuestionAnswering(DualEncoderConfig(**towers))
    drawn = torch.rand(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dual_distill.modeling.modeling_foreign_towers.ForeignTower.can_be_tried", lambda tower: False)
        torch.manual_seed(0)
        untried = DualEncoderForQuestionAnswering(DualEncoderConfig(**towers))
    assert torch.equal(torch.rand(1), drawn)
    assert all(part.training for part in model.modules())
    # Running means among them.
    assert all(torch.equal(value, untried.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_a_tower_pools_of_its_first_token_is_no_padding(inputs):
    model = tiny("vit", "bert", text_pooling="tower").dual_encoder.text_model
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    right = model(ids, mask, output_hidden_states=True)
    left = model(ids.roll(3, 1), mask.roll(3, 1), output_hidden_states=True)
    alone = model.model(input_ids=ids[1:, :4]).pooler_output
    for padded in (right, left):
        torch.testing.assert_close(padded.pooler_output[1:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left.last_hidden_state[1, 3:], right.last_hidden_state[1, :4])
    torch.testing.assert_close(left.hidden_states[-1][1, 3:], right.hidden_states[-1][1, :4])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"vision_pooling": "cls"}, "SiglipVisionModel has no CLS token"),
        ({"text_pooling": "tower"}, "ModernBertModel pools nothing here itself"),
    ],
)
def test_a_pooling_that_a_tower_has_not_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny("siglip", "modernbert", **fields)


def test_padded_images_are_refused_where_padding_would_be_read(inputs):
    mask = torch.ones(2, 32, 32)
    mask[1, 16:] = 0
    with pytest.raises(ValueError, match="ViTModel would read the padding"):
        tiny("vit", "bert")(**inputs, pixel_mask=mask)
    with pytest.raises(ValueError, match="30 x 32 pixels do not divide into patches of 8"):
        tiny("vit", "bert")(**inputs | {"pixel_values": inputs["pixel_values"][:, :, :30]})


def test_an_own_size_that_patches_do_not_divide_is_read_as_the_model_reads_it(inputs):
    """As of SigLIP so400m, 384 pixels in patches of 14: what fills no patch is left out at the right and below."""
    model = tiny({**VISION["siglip"], "image_size": 30}, "bert", interaction_layers=1)
    tower, pixels = model.dual_encoder.vision_model, torch.randn(2, 3, 30, 30)
    output = model(**inputs | {"pixel_values": pixels})
    assert output.image_mask.shape == (2, 1, 3 * 3)
    expected = tower.projection(tower.model(pixel_values=pixels).last_hidden_state)
    torch.testing.assert_close(tower(pixels).last_hidden_state, expected)


def test_a_position_table_that_is_no_square_is_not_stretched(inputs):
    model = tiny({**VISION["vit"], "image_size": [16, 40]}, "bert")
    model(**inputs | {"pixel_values": torch.randn(2, 3, 16, 40)})
    with pytest.raises(
        ValueError, match="16 x 16 pixels for a ViTModel of 16 x 40, whose positions are stretched from"
    ):
        model(**inputs | {"pixel_values": torch.randn(2, 3, 16, 16)})


def test_a_convolution_without_a_size_of_its_own_has_the_grid_of_usual_images():
    assert tiny("resnet", "bert").config.patch_grid == (28, 28)


def test_images_of_another_size_than_the_position_table(inputs):
    output = tiny("vit", "bert")(**inputs | {"pixel_values": torch.randn(2, 3, 16, 40)})
    assert output.image_mask.shape == (2, 1, 1 + 2 * 5)


@pytest.fixture
def saved(tmp_path) -> Callable[[str, str], tuple[str, str]]:
    """Folders of an image model and of a text model, as AutoModel saves them."""

    def save(vision: str, text: str) -> tuple[str, str]:
        model = tiny(vision, text)
        for name, tower in (("vision", model.dual_encoder.vision_model), ("text", model.dual_encoder.text_model)):
            tower.model.save_pretrained(tmp_path / name)
        return str(tmp_path / "vision"), str(tmp_path / "text")

    return save


@every_pair
def test_from_vision_text_pretrained_takes_both_models(vision, text, saved, inputs):
    names = saved(vision, text)
    model = DualEncoderForQuestionAnswering.from_vision_text_pretrained(*names, num_labels=5)
    assert model.training
    assert model.dtype == torch.float32
    assert model.config.num_labels == 5
    own = AutoModel.from_pretrained(names[1]).state_dict()
    taken = model.dual_encoder.text_model.model.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in taken.items())
    assert taken
    assert model.eval()(**inputs).logits.shape == (2, 5)


def test_a_checkpoint_without_the_towers_weights_is_refused(saved, tmp_path):
    vision, text = saved("vit", "bert")
    build = DualEncoderForQuestionAnswering.from_vision_text_pretrained

    # A pooler may be new, as that of a published classifier is.
    weights = load_file(f"{vision}/model.safetensors")
    save_file({name: it for name, it in weights.items() if "pooler" not in name}, f"{vision}/model.safetensors")
    build(vision, text)
    weights = load_file(f"{text}/model.safetensors")
    save_file({name: it for name, it in weights.items() if "layer.1." not in name}, f"{text}/model.safetensors")
    with pytest.raises(ValueError, match=r"text' lacks 16 weights of a BertModel, such as encoder.layer.1.attention"):
        build(vision, text)
    # Both towers of a model that writes are inside it, under names of its own.
    both = str(save_teacher("smolvlm", tmp_path / "smolvlm"))
    for pair in ((both, text), (vision, both)):
        with pytest.raises(ValueError, match=r"smolvlm' lacks \d+ weights of a (Smol|Llama)"):
            build(*pair, vision_pooling="mean")

    # No pickle is read.
    torch.save(weights, f"{text}/pytorch_model.bin")
    Path(text, "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        build(vision, text)


def test_a_frozen_tower_keeps_its_running_means_and_drops_nothing(inputs):
    model = tiny("efficientnet", "bert")
    for tower in (model.dual_encoder.vision_model, model.dual_encoder.text_model):
        tower.model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    expected = model.eval()(**inputs).logits
    torch.testing.assert_close(model.train()(**inputs).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    # One that learns is in training mode as before.
    model.dual_encoder.vision_model.model.requires_grad_(True)
    assert model.train().dual_encoder.vision_model.model.training


def test_a_convolution_whose_cells_are_not_where_they_are_thought_is_refused():
    halved_once_more = {**VISION["resnet"], "downsample_in_first_stage": True}
    with pytest.raises(ValueError, match="a ResNetModel gives 1 x 2 cells where 2 x 3 are expected"):
        tiny(halved_once_more, "bert")
