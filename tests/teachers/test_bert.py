"""A BERT's text side in a fusion encoder over regions computes what the BERT does; what is new is said."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertModel, BertTokenizer, RobertaConfig

from dual_distill.modeling import FusionEncoderForCaptioning, FusionEncoderForQuestionAnswering
from dual_distill.teachers.bert import convert_bert_config, convert_bert_state_dict, start_from_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?", "red", "blue", "dog"]
FIELDS = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
REGIONS = {"region_feature_size": 6, "max_regions": 5}


@pytest.fixture
def make_bert():
    """A BERT of a class of transformers, in eval mode, with noise on every parameter."""

    def make(cls=BertModel, **fields):
        model = cls(BertConfig(**{**FIELDS, **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    return make


@pytest.fixture
def save_bert(make_bert, tmp_path):
    def save(cls=BertModel, **fields):
        model = make_bert(cls, **fields)
        model.save_pretrained(tmp_path / "bert")
        BertTokenizer({word: index for index, word in enumerate(WORDS)}).save_pretrained(tmp_path / "bert")
        return model, tmp_path / "bert"

    return save


@pytest.fixture
def batch():
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 5:] = mask[2, 2:] = 0
    corners = torch.rand(3, 4, 2) / 2
    sizes = torch.rand(3, 4, 2) / 2
    return {
        "input_ids": torch.randint(5, len(WORDS), (3, 7)) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1, 1]] * 3),
        "region_features": torch.randn(3, 4, 6),
        "region_boxes": torch.cat([corners, corners + sizes, sizes], dim=2),
        "region_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool(),
    }


def attention_mask_of(mask):
    return (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min


@torch.no_grad()
def test_words_alone_come_out_as_the_bert_has_them(save_bert, batch) -> None:
    bert, folder = save_bert()
    model = start_from_bert(folder, **REGIONS).model
    expected = bert(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    words = model.embeddings.text_embeddings(batch["input_ids"], batch["token_type_ids"])
    found, _ = model.encoder(words, attention_mask_of(batch["attention_mask"]))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected.last_hidden_state[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.pooler(found), expected.pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_words_with_regions_are_the_berts_layers_over_both(save_bert, batch) -> None:
    bert, folder = save_bert()
    model = start_from_bert(folder, **REGIONS).model
    text, regions, region_mask = model.embeddings(
        batch["input_ids"],
        batch["token_type_ids"],
        *(batch[name] for name in ("region_features", "region_boxes", "region_mask")),
    )
    mask = torch.cat([batch["attention_mask"], region_mask[:, 0].long()], dim=1)
    expected = bert.encoder(
        torch.cat([text, regions[:, 0]], dim=1), attention_mask=attention_mask_of(mask)
    ).last_hidden_state
    output = model(**batch)
    torch.testing.assert_close(output.last_hidden_state[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooler_output[:, 0], bert.pooler(expected), atol=1e-5, rtol=1e-5)


def test_a_saved_bert_starts_a_captioner_and_says_what_is_new(save_bert, batch, caplog) -> None:
    bert, folder = save_bert(BertForPreTraining)
    with caplog.at_level(logging.WARNING, logger="dual_distill.teachers"):
        start = start_from_bert(folder, FusionEncoderForCaptioning, **REGIONS)
    assert type(start.model).__name__ == "FusionEncoderForCaptioning"
    assert start.new == (
        "fusion_encoder.embeddings.region_embeddings.projection.weight",
        "fusion_encoder.embeddings.region_embeddings.projection.bias",
        "fusion_encoder.embeddings.region_embeddings.LayerNorm.weight",
        "fusion_encoder.embeddings.region_embeddings.LayerNorm.bias",
    )
    assert start.left_out == ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    assert (
        "newly initialized, must be trained: fusion_encoder.embeddings.region_embeddings.projection.weight"
        in caplog.text
    )
    assert "left out, since the model does not have them: cls.seq_relationship.bias" in caplog.text
    hidden = torch.randn(2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(start.model.mlm_score(hidden), bert.cls.predictions(hidden), atol=1e-5, rtol=1e-5)
    words = start.model.fusion_encoder.embeddings.text_embeddings.word_embeddings.weight
    assert start.model.mlm_score.decoder.weight is words
    text = start.processor.encode_text(["what is it?"])
    assert text["input_ids"].tolist() == [AutoTokenizer.from_pretrained(folder)("what is it?")["input_ids"]]
    start.model.save_pretrained(folder.parent / "ours")
    start.processor.save_pretrained(folder.parent / "ours")
    again = type(start.model).from_pretrained(folder.parent / "ours", dtype=torch.float32)
    regions = {name: batch[name] for name in batch if name.startswith("region")}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")} | regions
    with torch.no_grad():
        ours, theirs = (model.eval().fusion_encoder(**inputs).last_hidden_state for model in (start.model, again))
    assert torch.equal(ours, theirs)


def test_a_head_with_answers_is_new(save_bert) -> None:
    _, folder = save_bert()
    labels = {"id2label": {0: "yes", 1: "no", 2: "red"}, "label2id": {"yes": 0, "no": 1, "red": 2}}
    start = start_from_bert(folder, FusionEncoderForQuestionAnswering, **REGIONS, **labels)
    assert start.model.classifier[-1].out_features == 3
    assert all(name.startswith(("classifier.", "fusion_encoder.embeddings.region_embeddings.")) for name in start.new)
    assert start.left_out == ()


def test_a_shorter_position_table_is_cut(save_bert) -> None:
    bert, folder = save_bert()
    model = start_from_bert(folder, **REGIONS, max_position_embeddings=12).model
    table = model.embeddings.text_embeddings.position_embeddings.weight
    assert torch.equal(table, bert.embeddings.position_embeddings.weight[:12])


def test_old_names_of_layer_norms_and_a_missing_pooler(save_bert) -> None:
    bert, folder = save_bert()
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in bert.state_dict().items()
        if not name.startswith("pooler")
    } | {"bert.embeddings.position_ids": torch.arange(20)[None]}
    save_file(old, folder / "model.safetensors")
    model, _, new, left_out = start_from_bert(folder, **REGIONS)
    assert {name.split(".")[0] for name in new} == {"embeddings", "pooler"}
    assert left_out == ()
    assert torch.equal(model.encoder.layer[2].layernorm_output.weight, bert.encoder.layer[2].output.LayerNorm.weight)


def test_a_bert_that_lacks_a_layer_is_refused(save_bert) -> None:
    _, folder = save_bert()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if ".layer.2." not in name}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"bert does not fit FusionEncoderModel \(Missing key.* \"encoder\.layer\.2\."):
        start_from_bert(folder, **REGIONS)


def test_what_is_no_bert_is_refused(save_bert, tmp_path) -> None:
    RobertaConfig(**FIELDS).save_pretrained(tmp_path / "roberta")
    with pytest.raises(ValueError, match="holds a model of type 'roberta'; give one of type 'bert'"):
        start_from_bert(tmp_path / "roberta")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        start_from_bert(tmp_path / "empty")


def test_a_field_that_contradicts_the_bert_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size is 32, but the BERT has 16"):
        convert_bert_config(BertConfig(**FIELDS), hidden_size=32)
    with pytest.raises(ValueError, match="max_position_embeddings is 40, but the BERT has 20"):
        convert_bert_config(BertConfig(**FIELDS), max_position_embeddings=40)
    with pytest.raises(ValueError, match="this BERT is a decoder"):
        convert_bert_config(BertConfig(**FIELDS, is_decoder=True))


def test_a_repeated_weight_is_no_loss_and_another_one_is_named() -> None:
    words = torch.randn(3, 2)
    weights = {"bert.embeddings.word_embeddings.weight": words, "cls.predictions.decoder.weight": words.clone()}
    assert convert_bert_state_dict(weights)[1] == []
    weights["cls.predictions.decoder.weight"] = words + 1
    assert convert_bert_state_dict(weights)[1] == ["cls.predictions.decoder.weight"]
