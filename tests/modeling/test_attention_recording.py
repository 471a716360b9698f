"""What is recorded makes the model's own attention, whatever computes it, and leaves no trace."""

import threading

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ViltConfig,
    ViltModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dual_distill.modeling import record_attention

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
IDS, MASK = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LAST = "encoder.layer.1.attention.self"


def bert(implementation="sdpa", **fields):
    return BertModel(BertConfig(**SHAPE, attn_implementation=implementation, **fields)).eval()


def probs(attention, mask):
    scores = attention.queries @ attention.repeated_keys.transpose(-1, -2) * attention.scaling
    return scores.masked_fill(~mask.bool(), -torch.inf).softmax(-1)


def eager_attentions(model, **inputs):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    return attentions


@pytest.mark.parametrize("implementation", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_recorded_is_the_attention_of_the_model(implementation):
    model, inputs = bert(implementation), {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        with record_attention(model, [LAST]) as recorded:
            outputs = model(**inputs).last_hidden_state
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    assert list(recorded) == [LAST]
    assert recorded[LAST].name == LAST
    attention = eager_attentions(model, **inputs)[1]
    torch.testing.assert_close(probs(recorded[LAST], MASK[:, None, None]), attention, atol=1e-5, rtol=0)


def test_a_flash_kernel_is_found_by_the_name_in_the_config_of_its_module():
    names = []

    def kernel(module, *arguments, **options):
        names.append(module.config._attn_implementation)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *arguments, **options)

    AttentionInterface.register("flash_attention_of_mine", kernel)
    AttentionMaskInterface.register("flash_attention_of_mine", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model = bert()
    model.config._attn_implementation_internal = "flash_attention_of_mine"  # the setter asks for a kernel
    with torch.no_grad(), record_attention(model, [LAST]) as recorded:
        model(input_ids=IDS)
    assert names == ["flash_attention_of_mine"] * 2
    assert recorded[LAST].queries.shape == (2, 4, 4, 8)


def test_keys_of_grouped_heads_are_repeated_after_the_rotary_embedding():
    model = LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2)).eval()
    with torch.no_grad(), record_attention(model, ["layers.0.self_attn"]) as recorded:
        model(input_ids=IDS)
    attention = recorded["layers.0.self_attn"]
    assert attention.queries.shape == (2, 4, 4, 8)
    assert attention.keys.shape == (2, 2, 4, 8)
    causal = torch.ones(4, 4).tril()
    torch.testing.assert_close(probs(attention, causal), eager_attentions(model, input_ids=IDS)[0], atol=1e-5, rtol=0)


def test_a_model_without_the_interface_is_hooked():
    model = ViltModel(ViltConfig(**SHAPE, image_size=8, patch_size=4, max_image_length=-1)).eval()
    inputs = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": torch.randn(2, 3, 8, 8)}
    with torch.no_grad(), record_attention(model, ["encoder.layer.1.attention.attention"]) as recorded:
        attention = model(**inputs, output_attentions=True).attentions[1]
    [found] = recorded.values()
    mask = torch.cat([MASK, torch.ones(2, 5).long()], 1)[:, None, None]
    torch.testing.assert_close(probs(found, mask), attention, atol=1e-5, rtol=0)
    assert found.mask is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_all_is_as_before_also_after_an_exception():
    model = bert()
    configs = [module.config for module in model.modules() if hasattr(module, "config")]

    def fail():
        assert model.get_submodule(LAST).config is not model.config
        assert model.config._attn_implementation == "sdpa"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), record_attention(model, [LAST]):
        fail()
    assert [module.config for module in model.modules() if hasattr(module, "config")] == configs
    assert model.get_submodule(LAST).config is model.config


def test_two_blocks_record_one_model():
    model, first = bert(), "encoder.layer.0.attention.self"
    with torch.no_grad(), record_attention(model, [LAST]) as outer:
        with record_attention(model, [first, LAST]) as inner:
            model(input_ids=IDS)
        assert outer[LAST].queries is inner[LAST].queries
        model(input_ids=IDS[:1])
    assert list(inner) == [first, LAST]
    assert len(outer[LAST].queries) == 1
    assert len(inner[LAST].queries) == 2


def test_each_thread_records_what_it_runs():
    model, found = bert(), {}
    together = threading.Barrier(3)

    def record(rows):
        with torch.no_grad(), record_attention(model, [LAST]) as recorded:
            for _ in range(10):
                together.wait(timeout=30)
                model(input_ids=IDS[:rows].repeat(1, rows))
        found[rows] = recorded[LAST].queries.shape

    threads = [threading.Thread(target=record, args=(rows,)) for rows in (1, 2)]
    [thread.start() for thread in threads]
    for _ in range(10):
        together.wait(timeout=30)
        model(input_ids=IDS[:1].repeat(1, 5))  # not recorded
    [thread.join(timeout=60) for thread in threads]
    assert found == {1: (1, 4, 4, 8), 2: (2, 4, 8, 8)}
    assert model.get_submodule(LAST).config is model.config


def test_activation_checkpointing_records_once_and_gradients_reach_the_queries():
    model, calls = bert(), []
    model.activation_checkpointing_enable()
    model.train()
    query = model.get_submodule(LAST).query
    query.register_forward_hook(lambda *_: calls.append(1))
    with record_attention(model, [LAST]) as recorded:
        outputs = model(input_ids=IDS, attention_mask=MASK)
        kept = recorded[LAST]
        (outputs.last_hidden_state.sum() + kept.queries.square().sum()).backward()
    assert len(calls) == 2  # the second run of a checkpointed layer
    assert recorded[LAST] is kept
    assert query.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_compiled_model_records_and_is_compiled_again_without():
    model = bert()
    compiled = torch.compile(model)
    with torch.no_grad():
        expected = compiled(input_ids=IDS).last_hidden_state
        with record_attention(model, [LAST]) as recorded:
            compiled(input_ids=IDS)
            first = recorded[LAST].queries
            compiled(input_ids=IDS.flip(0))
        torch.testing.assert_close(recorded[LAST].queries, first.flip(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(compiled(input_ids=IDS).last_hidden_state, expected, atol=1e-6, rtol=0)
    attention = eager_attentions(model, input_ids=IDS.flip(0))[1]
    torch.testing.assert_close(probs(recorded[LAST], torch.ones(1)), attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name, message",
    [
        ("encoder.layer.9", "BertModel has no module encoder.layer.9; give names of attention modules."),
        ("embeddings.LayerNorm", r"embeddings.LayerNorm \(LayerNorm\) cannot be recorded: it does not use"),
    ],
)
def test_a_module_that_cannot_be_recorded_is_refused(name, message):
    with pytest.raises(ValueError, match=message), record_attention(bert(), [name]):
        pass
