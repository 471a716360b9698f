"""Regions in place of patches, before and behind layer norms: padding, places, every head, and what is refused."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertTokenizer, ViltImageProcessorPil
from transformers.models.bert.modeling_bert import BertModel

from dual_distill.modeling import (
    DualDistillProcessor,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from dual_distill.modeling.modeling_layers import TransformerLayer

HEADS = [
    FusionEncoderForQuestionAnswering,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
]
REGIONS = {"visual_inputs": "regions", "region_feature_size": 6, "max_regions": 5}
in_both_orders = pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])


def boxes_of(*shape):
    corner, side = torch.rand(*shape, 2) * 0.5, torch.rand(*shape, 2) * 0.5
    return torch.cat([corner, corner + side, side], dim=-1)


def make_rows(counts=(3, 1, 4), lengths=(7, 3, 5), tags=(2, 3, 1)):
    """Rows of words, tags and regions: `(ids, segments, features, boxes)`."""
    rows = []
    for count, length, num_tags in zip(counts, lengths, tags, strict=True):
        segments = torch.tensor([0] * length + [1] * num_tags)
        rows.append((torch.randint(1, 60, segments.shape), segments, torch.randn(count, 6), boxes_of(count)))
    return rows


def collate(rows, num_tokens=0, num_regions=0):
    """Rows to one batch; what pads them is noise, and NaN among the features."""
    num_tokens = max(num_tokens, *(len(row[0]) for row in rows), 1)
    num_regions = max(num_regions, *(len(row[2]) for row in rows), 1)
    batch = {
        "input_ids": torch.randint(1, 60, (len(rows), num_tokens)),
        "attention_mask": torch.zeros(len(rows), num_tokens, dtype=torch.long),
        "token_type_ids": torch.randint(0, 2, (len(rows), num_tokens)),
        "region_features": torch.full((len(rows), num_regions, 6), math.nan),
        "region_boxes": torch.randn(len(rows), num_regions, 6) * 9,
        "region_mask": torch.zeros(len(rows), num_regions, dtype=torch.bool),
    }
    for i, (ids, segments, features, boxes) in enumerate(rows):
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["token_type_ids"][i, : len(ids)] = segments
        batch["region_features"][i, : len(features)] = features
        batch["region_boxes"][i, : len(boxes)] = boxes
        batch["region_mask"][i, : len(boxes)] = True
    return batch


@in_both_orders
def test_the_sequence_is_text_then_regions(norm_first, build):
    model = build(FusionEncoderModel, **REGIONS, norm_first=norm_first)
    batch = collate(make_rows())
    output = model(**batch, output_query_states=True, output_key_states=True, output_hidden_states=True)
    tokens = batch["input_ids"].shape[1] + 4
    assert output.last_hidden_state.shape == (3, tokens, 16)
    assert output.pooler_output.shape == (3, 1, 16)
    assert torch.equal(output.image_mask, batch["region_mask"][:, None])
    assert output.query_states[0].shape == output.key_states[0].shape == (3, 4, tokens, 4)
    assert [states.shape for states in output.hidden_states] == [(3, tokens, 16)] * 3
    assert output.attention_pattern is None


@in_both_orders
@pytest.mark.parametrize("cls", HEADS)
def test_alone_in_a_batch_and_with_more_padding(cls, norm_first, build):
    model = build(cls, **REGIONS, norm_first=norm_first)
    rows = make_rows()
    together = collate(rows)
    expected = model(**together)
    padded = collate(rows, num_tokens=12, num_regions=9)
    more = model(**padded)
    assert expected.pooler_output.std(0).mean() > 1e-2
    for i, row in enumerate(rows):
        alone = model(**collate([row]))
        for found, j in ((more, i), (alone, 0)):
            torch.testing.assert_close(found.pooler_output[j], expected.pooler_output[i], atol=1e-5, rtol=0)
            real = len(row[0]) if cls is FusionEncoderForMaskedLM else None
            torch.testing.assert_close(found.logits[j][:real], expected.logits[i][:real], atol=1e-5, rtol=0)


def test_regions_are_a_set_but_their_boxes_and_features_count(build):
    model = build(FusionEncoderModel, **REGIONS)
    batch = collate(make_rows((4,), (5,), (2,)))
    pooled = model(**batch).pooler_output
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {**batch, **{name: batch[name][:, order] for name in ("region_features", "region_boxes", "region_mask")}}
    torch.testing.assert_close(model(**shuffled).pooler_output, pooled, atol=1e-5, rtol=0)
    for name in ("region_features", "region_boxes"):
        other = model(**{**batch, name: batch[name].flip(1)}).pooler_output
        assert (other - pooled).abs().max() > 1e-3, name


@in_both_orders
def test_eager_is_sdpa(norm_first, build):
    batch = collate(make_rows())
    one, other = (
        build(FusionEncoderForQuestionAnswering, attn_implementation=attention, **REGIONS, norm_first=norm_first)(
            **batch
        )
        for attention in ("eager", "sdpa")
    )
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=0)


@in_both_orders
@pytest.mark.parametrize("cls", [FusionEncoderModel, FusionEncoderForQuestionAnswering])
def test_saved_and_loaded_is_equal(cls, norm_first, build, tmp_path):
    before = build(cls, **REGIONS, norm_first=norm_first, region_boxes_id="detector-a", region_features_id="backbone-b")
    before.save_pretrained(tmp_path)
    after, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert (after.config.region_boxes_id, after.config.region_features_id) == ("detector-a", "backbone-b")
    batch = collate(make_rows())
    torch.testing.assert_close(after(**batch).pooler_output, before(**batch).pooler_output, atol=1e-6, rtol=0)


def test_a_checkpoint_of_one_order_of_norms_does_not_load_into_the_other_in_silence(build, tmp_path):
    build(FusionEncoderModel, **REGIONS).save_pretrained(tmp_path)
    _, report = FusionEncoderModel.from_pretrained(tmp_path, norm_first=False, output_loading_info=True)
    assert "encoder.layer.0.layernorm_output.weight" in report["missing_keys"]


@in_both_orders
def test_gradients_reach_every_parameter_with_and_without_checkpointing(norm_first, build):
    batch = collate(make_rows())
    grads = []
    for checkpointing in (False, True):
        model = build(FusionEncoderForQuestionAnswering, **REGIONS, norm_first=norm_first).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(grad is not None and grad.isfinite().all() for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4)


def test_several_images_a_row(build):
    batch = collate(make_rows((3, 1), (5, 4), (2, 2)))
    pairs = {name: torch.stack([batch[name], batch[name].flip(0)], 1) for name in batch if name.startswith("region")}
    text = {name: batch[name] for name in batch if not name.startswith("region")}
    model = build(FusionEncoderForImageTextRetrieval, **REGIONS)
    logits = model(**text, **pairs).logits
    for place in range(2):
        one = {name: tensor[:, place] for name, tensor in pairs.items()}
        torch.testing.assert_close(model(**text, **one).logits[:, 0], logits[:, place], atol=1e-5, rtol=0)
    both = build(FusionEncoderForImagesAndTextClassification, **REGIONS, num_images=2)(**text, **pairs)
    assert both.logits.shape == (2, 2)
    assert both.image_mask.shape == (2, 2, 3)
    with pytest.raises(ValueError, match="the rows have 2 images, but masked words are completed with one"):
        build(FusionEncoderForMaskedLM, **REGIONS)(**text, **pairs)
    with pytest.raises(
        ValueError, match="input_ids has 1 rows, region_features 2; give one text for each row of images"
    ):
        model(**{name: tensor[:1] for name, tensor in text.items()}, **pairs)


BASE = {"visual_inputs": "regions", "norm_first": False, "max_position_embeddings": 512}
MINILM = {**BASE, "hidden_size": 384, "intermediate_size": 1536}


def test_presets_have_the_shapes_of_minivlm_and_oscar():
    small, base = FusionEncoderConfig(**MINILM), FusionEncoderConfig(**BASE)
    for config, width, mlp in ((small, 384, 1536), (base, 768, 3072)):
        assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (12, 12, width)
        assert (config.intermediate_size, config.norm_first, config.visual_inputs) == (mlp, False, "regions")
        assert (config.max_regions, config.max_position_embeddings) == (50, 512)
    with torch.device("meta"):
        model = FusionEncoderModel(small)
    assert not any("token_type_embeddings" in name and "text" not in name for name, _ in model.named_parameters())
    # Counted by hand: words, positions, segments; regions; 12 layers; pooler; each norm 2 x 384.
    text = (30522 + 512 + 2) * 384 + 768
    layer = 4 * (384 * 384 + 384) + 384 * 1536 + 1536 + 1536 * 384 + 384 + 2 * 768
    expected = text + (2054 * 384 + 384 + 768) + 12 * layer + 384 * 384 + 384
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# BERT


def as_ours(name):
    """The module docstring of `modeling_fusion_encoder`, as code: a parameter's name in BERT -> ours."""
    name = name.replace("attention.output.LayerNorm", "layernorm_attention").replace(
        "output.LayerNorm", "layernorm_output"
    )
    name = name.replace("attention.self.", "attention.attention.")
    return name.replace("embeddings.", "embeddings.text_embeddings.", 1) if name.startswith("embeddings.") else name


@pytest.fixture
def bert():
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=12, attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_a_layer_with_norms_behind_is_berts(bert, config):
    ours = TransformerLayer(config(FusionEncoderConfig, norm_first=False))
    theirs = bert.encoder.layer[0]
    ours.load_state_dict({as_ours(name): tensor for name, tensor in theirs.state_dict().items()})
    hidden = torch.randn(3, 5, 16)
    mask = torch.zeros(3, 1, 1, 5)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    expected = theirs(hidden, attention_mask=mask)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours.eval()(hidden, mask)[0], expected, atol=1e-5, rtol=0)


def test_a_whole_bert_fits_and_gives_the_same_states(bert, build):
    model = build(FusionEncoderModel, **REGIONS, norm_first=False)
    missing, unexpected = model.load_state_dict(
        {as_ours(name): part for name, part in bert.state_dict().items()}, strict=False
    )
    assert {name.rsplit(".", 1)[0] for name in missing} == {
        "embeddings.region_embeddings.projection",
        "embeddings.region_embeddings.LayerNorm",
    }
    assert [name for name in unexpected if "position_ids" not in name] == []
    batch = collate(make_rows((3,), (5,), (2,)))
    output = model(**batch)
    words = bert.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    part = model.embeddings.region_embeddings
    regions = (
        torch.cat([batch["region_features"], batch["region_boxes"]], -1) @ part.projection.weight.T
        + part.projection.bias
    )
    hidden = torch.cat(
        [words, nn.functional.layer_norm(regions, (16,), part.LayerNorm.weight, part.LayerNorm.bias, 1e-12)], 1
    )
    for layer in bert.encoder.layer:
        hidden = layer(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(output.last_hidden_state, hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output[:, 0], bert.pooler(hidden), atol=1e-5, rtol=0)


def test_the_processor_lets_regions_pass():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it"]
    processor = DualDistillProcessor(ViltImageProcessorPil(), BertTokenizer({word: i for i, word in enumerate(words)}))
    regions = {name: tensor for name, tensor in collate(make_rows()).items() if name.startswith("region")}
    batch = processor(text=["is it", "it", "is"], regions=regions)
    assert batch["input_ids"].shape == (3, 4)
    assert all(batch[name] is tensor for name, tensor in regions.items())
    with pytest.raises(ValueError, match="there are 2 texts and 3 rows of regions"):
        processor(text=["is it", "it"], regions=regions)
    with pytest.raises(ValueError, match="give images or regions, got both"):
        processor(images=[1], regions=regions)


# Bad input


def spoilt(name, value):
    batch = collate(make_rows((3, 2), (5, 4), (2, 2)))
    batch[name][1, 1] = value
    return batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (spoilt("region_features", math.nan), "region_features of image 1 of the batch hold NaN"),
        (spoilt("region_features", math.inf), "region_features of image 1 of the batch hold NaN"),
        (spoilt("region_boxes", 1.01), r"region_boxes of image 1 of the batch reach outside \[0, 1\]"),
        (spoilt("region_boxes", -0.01), r"region_boxes of image 1 of the batch reach outside \[0, 1\]"),
        (spoilt("region_boxes", math.nan), r"region_boxes of image 1 of the batch reach outside \[0, 1\]"),
        (collate(make_rows((3, 0), (5, 4), (2, 2))), "region_mask of image 1 of the batch has no region"),
        (collate(make_rows((3, 6), (5, 4), (2, 2))), "image 1 of the batch has 6 regions, the model takes at most 5"),
    ],
)
def test_regions_that_are_refused(batch, message, build):
    with pytest.raises(ValueError, match=message):
        build(FusionEncoderModel, **REGIONS)(**batch)


def test_shapes_that_are_refused(build):
    model = build(FusionEncoderModel, **REGIONS)
    batch = collate(make_rows())
    for name, tensor, message in (
        ("region_features", torch.zeros(3, 4, 7), "region_features are 7 wide, the model was built for 6"),
        ("region_boxes", torch.zeros(3, 4, 4), r"region_boxes \(3, 1, 4, 4\).*give one box of 6 numbers"),
        ("region_boxes", torch.zeros(3, 2, 6), "give one box of 6 numbers and one mask entry a region"),
        ("region_mask", torch.ones(3, 2), "give one box of 6 numbers and one mask entry a region"),
        ("region_mask", torch.ones(3), r"region_mask \(3,\); give one box of 6 numbers"),
        ("region_boxes", None, "give region_features and region_boxes, not region_features"),
        ("pixel_values", torch.zeros(3, 3, 8, 12), "and region_boxes, not pixel_values and region_features"),
        ("input_ids", torch.ones(2, 9, dtype=torch.long), "input_ids has 2 rows, region_features 3"),
    ):
        spare = {"token_type_ids": None, "attention_mask": None} if name == "input_ids" else {}
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **spare, name: tensor})
    with pytest.raises(ValueError, match="give pixel_values, not region_features and region_boxes"):
        build(FusionEncoderModel)(**batch)
    with pytest.raises(Exception, match='visual_inputs is \'voxels\'; choose "patches" or "regions"'):
        FusionEncoderConfig(visual_inputs="voxels")
