"""What a call can be asked for: tuples, hidden states and attentions of every class, and how many tokens it counts."""

import pytest
import torch

import dual_distill.modeling as modeling
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

DUAL = [
    "DualEncoderModel",
    "DualEncoderForQuestionAnswering",
    "DualEncoderForImagesAndTextClassification",
    "DualEncoderForImageTextRetrieval",
    "DualEncoderForPreTraining",
]
FUSION = [
    "FusionEncoderModel",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForImageTextRetrieval",
    "FusionEncoderForMaskedLM",
    "FusionEncoderForCaptioning",
    "FusionEncoderForPreTraining",
]


@pytest.fixture
def inputs(batch, pair_batch):
    return lambda name: pair_batch() if name.endswith("PreTraining") else batch


def flat(value):
    """The tensors of an output or tuple, however nested, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if hasattr(value, "values") else value if isinstance(value, tuple) else ()
    return [tensor for part in parts for tensor in flat(part)]


@pytest.mark.parametrize("asked", ["by the call", "by the configuration"])
@pytest.mark.parametrize("name", DUAL + FUSION)
@torch.no_grad()
def test_a_tuple_holds_what_the_dictionary_holds(name, asked, build, inputs):
    model, batch = build(getattr(modeling, name)), inputs(name)
    expected = flat(model(**batch))
    if asked == "by the configuration":
        model.config.return_dict = False
    found = model(**batch, **({"return_dict": False} if asked == "by the call" else {}))
    assert isinstance(found, tuple)
    assert len(flat(found)) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(flat(found), expected, strict=True))
    assert isinstance(model(**batch, return_dict=True), dict)


@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_one_side_alone_as_a_tuple(name, build, batch):
    model = build(getattr(modeling, name))
    for encode, side in ((model.get_text_features, "input_ids"), (model.get_image_features, "pixel_values")):
        output, found = encode(batch[side]), encode(batch[side], return_dict=False)
        assert isinstance(found, tuple)
        assert torch.equal(found[1], output.pooler_output)


@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_a_dual_encoder_gives_the_hidden_states_and_attentions_of_its_towers(name, build, inputs):
    model, batch = build(getattr(modeling, name), attn_implementation="eager"), inputs(name)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    body = getattr(model, "dual_encoder", model)
    alone = body.text_model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    for tower in (output.text_model_output, output.vision_model_output):
        assert len(tower.hidden_states) == 3  # the embeddings, then two layers
        assert len(tower.attentions) == 2
        torch.testing.assert_close(tower.attentions[0].sum(-1), torch.ones(tower.attentions[0].shape[:-1]))
    assert all(
        torch.equal(one, other)
        for one, other in zip(output.text_model_output.hidden_states, alone.hidden_states, strict=True)
    )
    if name != "DualEncoderModel":  # without need a model with a head keeps no tokens
        assert model(**batch).text_model_output is None


@pytest.mark.parametrize("name", DUAL + FUSION)
def test_tokens_are_those_of_the_text(name, build, inputs):
    model = build(getattr(modeling, name))
    assert model.main_input_name == "input_ids"
    assert inputs(name)[model.main_input_name].dtype == torch.int64


def test_a_run_counts_the_tokens_of_its_texts(build, batch, tmp_path):
    rows = [{key: tensor[i] for key, tensor in batch.items()} | {"labels": torch.tensor(0)} for i in range(3)]
    counting = {"include_num_input_tokens_seen": "all", "save_strategy": "no"}
    arguments = DistillationTrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=3, **counting)
    trainer = DistillationTrainer(build(modeling.DualEncoderForQuestionAnswering), arguments, train_dataset=rows)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 2 * batch["input_ids"].numel()


@pytest.mark.parametrize("name", ["DualEncoderModel", "FusionEncoderModel"])
def test_a_width_of_the_towers_is_set_on_top(name, build):
    config = build(getattr(modeling, name)).config
    for field in ("vocab_size", "hidden_size", "num_attention_heads"):
        setattr(config, field, 8)
        assert getattr(config, field) == 8
    if name.startswith("Dual"):
        assert (config.text_config.vocab_size, config.vision_config.hidden_size) == (8, 8)
