"""Every kind of attention gives the same, and recorded queries and keys give the model's own probabilities."""

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)

HEADED = [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering]
BARE = [FusionEncoderModel, DualEncoderModel]
FLOOR = torch.finfo(torch.float32).min


def probabilities(queries, keys, mask):
    """softmax(Q K^T / sqrt(D)) over the real keys."""
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    return scores.masked_fill(~mask[:, None, None, :], FLOOR).softmax(-1)


def joint_mask(batch, output):
    images = output.image_mask.shape[1]
    text = batch["attention_mask"].bool().repeat_interleave(images, dim=0)
    return torch.cat([text, output.image_mask.flatten(0, 1)], dim=1)


@pytest.mark.parametrize("cls", HEADED)
def test_eager_is_sdpa(cls, build, batch):
    outputs = [
        build(cls, attn_implementation=attention)(**batch, output_query_states=[0, 1], output_key_states=[0, 1])
        for attention in ("eager", "sdpa")
    ]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=0)
    for name in ("query_states", "key_states"):
        for one, other in zip(outputs[0][name], outputs[1][name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cls", HEADED)
def test_flex_is_sdpa(cls, build, batch):
    """With 16 wide heads: flex_attention takes no narrower ones."""
    fields = {"hidden_size": 32, "num_attention_heads": 2}
    expected = build(cls, **fields)(**batch).logits
    try:
        with torch.no_grad():
            found = build(cls, attn_implementation="flex_attention", **fields)(**batch).logits
    except Exception as error:  # whatever this torch lacks on a CPU: compiler, instructions, kernel
        pytest.skip(f"flex_attention does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", HEADED)
def test_the_kind_of_attention_reaches_both_towers(cls, build):
    model = build(cls, attn_implementation="eager")
    kinds = {module.config._attn_implementation for module in model.modules() if hasattr(module, "is_causal")}
    assert kinds == {"eager"}


@pytest.mark.parametrize("num_images", [1, 2])
def test_recorded_states_give_the_fusion_encoders_attention(num_images, build, make_rows, collate):
    grids = (((2, 3), (1, 1))[:num_images], ((1, 2), (4, 2))[:num_images])
    batch = collate(make_rows((7, 3), grids))
    layers = [0, 1, 2]
    recorded = build(FusionEncoderModel, num_hidden_layers=3)(
        **batch, output_query_states=layers, output_key_states=layers
    )
    attentions = build(FusionEncoderModel, num_hidden_layers=3, attn_implementation="eager")(
        **batch, output_attentions=True
    ).attentions
    assert len(attentions) == 3
    mask = joint_mask(batch, recorded)
    for queries, keys, attention in zip(recorded.query_states, recorded.key_states, attentions, strict=True):
        assert attention.std() > 1e-2
        torch.testing.assert_close(probabilities(queries, keys, mask), attention, atol=1e-5, rtol=0)


def test_recorded_states_give_each_towers_attention(build, batch):
    layers = [0, 1]
    recorded = build(DualEncoderModel)(**batch, output_query_states=layers, output_key_states=layers)
    output = build(DualEncoderModel, attn_implementation="eager")(**batch, output_attentions=True)
    length = batch["input_ids"].shape[1]
    text_mask, image_mask = batch["attention_mask"].bool(), recorded.image_mask[:, 0]
    for layer in layers:
        queries, keys = recorded.query_states[layer], recorded.key_states[layer]
        text = probabilities(queries[:, :, :length], keys[:, :, :length], text_mask)
        image = probabilities(queries[:, :, length:], keys[:, :, length:], image_mask)
        torch.testing.assert_close(text, output.text_model_output.attentions[layer], atol=1e-5, rtol=0)
        torch.testing.assert_close(image, output.vision_model_output.attentions[layer], atol=1e-5, rtol=0)


def test_a_dual_encoders_text_states_are_repeated_for_every_image(build, make_rows, collate):
    model = build(DualEncoderModel)
    batch = collate(make_rows((7, 3), (((2, 3), (1, 1)), ((1, 2), (4, 2)))))
    output = model(**batch, output_query_states=True, output_key_states=True)
    length = batch["input_ids"].shape[1]
    for name in ("query_states", "key_states"):
        text, images = output.text_model_output[name][0], output.vision_model_output[name][0]
        pairs = output[name][0].unflatten(0, (2, 2))
        for row in range(2):
            for slot in range(2):
                assert torch.equal(pairs[row, slot, :, :length], text[row])
                assert torch.equal(pairs[row, slot, :, length:], images[2 * row + slot])


@pytest.mark.parametrize("cls", [*BARE, *HEADED])
def test_the_layers_asked_for_come_in_the_order_asked_for(cls, build, batch):
    model = build(cls, num_hidden_layers=3, recorded_layers=[0, -1])
    every = model(**batch, output_query_states=[0, 1, 2], output_key_states=[0, 1, 2])
    for asked, meant in (([2, 0], [2, 0]), ([-1, -3], [2, 0]), ([1, 1, -2], [1, 1, 1]), (True, [0, 2]), ((1,), [1])):
        output = model(**batch, output_query_states=asked, output_key_states=asked)
        for name in ("query_states", "key_states"):
            assert len(output[name]) == len(meant)
            assert all(torch.equal(output[name][i], every[name][layer]) for i, layer in enumerate(meant))
    assert not torch.equal(every.query_states[0], every.query_states[2])


@pytest.mark.parametrize("cls", [*BARE, *HEADED])
def test_only_what_is_asked_for_is_returned(cls, build, batch):
    model = build(cls)
    for nothing in (None, False, []):
        output = model(**batch, output_query_states=nothing, output_key_states=nothing)
        assert output.query_states is None
        assert output.key_states is None
    queries = model(**batch, output_query_states=True)
    assert (len(queries.query_states), queries.key_states) == (1, None)
    keys = model(**batch, output_key_states=[0])
    assert (keys.query_states, len(keys.key_states)) == (None, 1)
    assert queries.query_states[0].shape == keys.key_states[0].shape == (3, 4, 7 + 1 + 9, 4)


@pytest.mark.parametrize("cls", [*BARE, *HEADED])
def test_refusals(cls, build, batch):
    model = build(cls)
    for layer in (2, -3):
        with pytest.raises(ValueError, match=f"layer {layer} was asked for, but the model has 2 layers"):
            model(**batch, output_query_states=[layer])
    with pytest.raises(ValueError, match="name the same, in one order"):
        model(**batch, output_query_states=[0, 1], output_key_states=[1, 0])


@pytest.mark.parametrize("cls", [*BARE, *HEADED])
def test_the_gradient_of_recorded_states_reaches_their_layer_and_those_below(cls, build, batch):
    for name in ("query", "key"):
        model = build(cls, num_hidden_layers=3).train()
        model(**batch, **{f"output_{name}_states": [1]})[f"{name}_states"][0].square().sum().backward()
        layers = {key: p.grad for key, p in model.named_parameters() if "encoder.layer." in key and p.dim() == 2}
        for key, gradient in layers.items():
            reached = "layer.0." in key or f"layer.1.attention.attention.{name}." in key
            assert (gradient is not None and bool(gradient.any())) == reached, key


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}, None], ids=str)
@pytest.mark.parametrize("cls", HEADED)
def test_activation_checkpointing_changes_nothing(cls, options, build, batch):
    results = []
    for checkpointing in (False, True):
        model = build(cls, num_labels=5).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable(options)
        output = model(**batch, output_query_states=[0, -1], output_key_states=[0, -1])
        loss = output.logits.square().sum()
        for queries, keys in zip(output.query_states, output.key_states, strict=True):
            loss = loss + (queries @ keys.transpose(-1, -2)).square().mean()
        loss.backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (one, gradients), (other, checkpointed) = results
    torch.testing.assert_close(one.logits, other.logits)
    for name in ("query_states", "key_states"):
        torch.testing.assert_close(one[name], other[name])
    for name, gradient in gradients.items():
        assert gradient is not None, name
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("cls", HEADED)
def test_bfloat16_is_finite_and_close(cls, build, batch):
    exact, model = build(cls, num_labels=5), build(cls, num_labels=5).to(torch.bfloat16).train()
    output = model(**batch, labels=torch.tensor([0, 1, 4]), output_query_states=True, output_key_states=True)
    assert output.logits.dtype == output.query_states[0].dtype == torch.bfloat16
    expected = exact(**batch).logits
    error = (output.logits.float() - expected).abs().max() / expected.abs().max()
    assert error < 0.1, error
    (output.loss + output.query_states[0].float().square().mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("cls", HEADED)
def test_bfloat16_autocast_is_finite_and_close(cls, build, batch):
    model = build(cls, num_labels=5)
    expected = model(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).logits
    assert (found.float() - expected).abs().max() / expected.abs().max() < 0.1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cls", HEADED)
def test_compiles_as_one_graph(cls, masked, build, make_rows, collate):
    model = build(cls, num_labels=5)
    batch = collate(make_rows((5, 3), (((2, 3),), ((2, 3),))))
    if masked:
        batch["pixel_mask"][1, :, 4:] = 0
    else:
        del batch["pixel_mask"]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    asked = {"output_query_states": [0, -1], "output_key_states": [0, -1]}
    found, expected = compiled(**batch, **asked), model(**batch, **asked)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    for name in ("query_states", "key_states"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", HEADED)
def test_compiled_gradients_are_the_same(cls, build, batch):
    torch._dynamo.reset()
    gradients = []
    for compiling in (False, True):
        model = build(cls, num_labels=5).train()
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiling else model
        output = forward(**batch, output_query_states=[-1], output_key_states=[-1])
        (output.logits.square().sum() + (output.query_states[0] * output.key_states[0]).sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("cls", [*BARE, *HEADED])
def test_return_dict_false_gives_the_same_as_a_tuple(cls, build, batch):
    model = build(cls)
    expected = model(**batch)
    for found in (model(**batch, return_dict=False), type(expected)(**expected).to_tuple()):
        assert isinstance(found, tuple)
        assert not any(isinstance(value, dict) for value in found)
        assert torch.equal(found[0], expected[0])
