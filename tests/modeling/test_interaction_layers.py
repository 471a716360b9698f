"""Interaction layers: text tokens read image tokens, in closed form, stored, alone, padded, shared and saved."""

import pytest
import torch
from torch import nn

from dual_distill.modeling import (
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForQuestionAnswering,
)

HEADED = [DualEncoderForQuestionAnswering, DualEncoderForImagesAndTextClassification]
TEXT, IMAGES = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")


def some(batch, *names):
    return {name: batch[name] for name in names}


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture
def interacting(build, config):
    """A tiny dual encoder of a class with interaction layers, noise on every parameter."""

    def interacting(cls, layers=2, attention="sdpa", **fields):
        torch.manual_seed(1)
        made = config(DualEncoderConfig, **fields)
        made.interaction_layers = layers
        made.num_images = fields.get("num_images", 1)
        model = cls._from_config(made, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return interacting


def closed_form(layer, text, image, heads):
    """One text `(T, C)` reads one image `(L, C)`, no padding, written out head by head."""
    own, attention = layer.attention, layer.attention.attention
    text_normed, image_normed = layer.layernorm_before(text), layer.layernorm_image(image)
    read = torch.cat([text_normed, image_normed])
    width = text.shape[-1] // heads
    context = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        query, key, value = (
            each[:, part] for each in (attention.query(text_normed), attention.key(read), attention.value(read))
        )
        context.append((query @ key.T / width**0.5).softmax(-1) @ value)
    text = text + own.output.dense(torch.cat(context, dim=-1))
    inner = nn.functional.gelu(layer.intermediate.dense(layer.layernorm_after(text)))
    return text + layer.output.dense(inner)


def test_layers_are_their_closed_form(interacting, make_rows, collate):
    model = interacting(DualEncoderModel)
    batch = collate(make_rows((6,), (((2, 3),),)))
    output = model(**batch, output_hidden_states=True)
    text = output.text_model_output.last_hidden_state[0]
    image = output.vision_model_output.last_hidden_state[0]
    for index, layer in enumerate(model.interaction_model.layer):
        text = closed_form(layer, text, image, heads=4)
        close(output.interaction_model_output.hidden_states[index + 1][0], text)
    read = model.interaction_model.layernorm(text)
    pooled = torch.tanh(model.text_model.pooler.dense(read[0]))
    close(output.text_pooler_output[0, 0], pooled)
    pair = torch.cat([pooled, output.image_pooler_output[0, 0]])
    close(output.pooler_output[0, 0], model.interaction(pair))


@pytest.mark.parametrize("cls", HEADED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_alone_in_a_batch_and_with_more_padding(cls, attention, interacting, make_rows, collate):
    model = interacting(cls, attention=attention, num_labels=5)
    rows = make_rows()
    together = model(**collate(rows)).logits
    assert together.std(0).min() > 1e-2
    close(model(**collate(rows, num_tokens=12, grid=(5, 4))).logits, together)
    for index, row in enumerate(rows):
        close(model(**collate([row])).logits, together[index : index + 1])


def test_eager_is_sdpa_and_gives_the_weights_of_its_queries_and_keys(interacting, batch):
    sdpa = interacting(DualEncoderModel)(**batch)
    eager = interacting(DualEncoderModel, attention="eager")(
        **batch, output_attentions=True, output_interaction_states=True
    )
    close(eager.pooler_output, sdpa.pooler_output)
    assert sdpa.interaction_model_output.query_states is None
    read = eager.interaction_model_output
    mask = torch.cat([eager.image_mask[:, 0], batch["attention_mask"].bool()], dim=1)
    assert len(read.attentions) == len(read.query_states) == 2
    for queries, (text_keys, image_keys), attention in zip(
        read.query_states, read.key_states, read.attentions, strict=True
    ):
        scores = queries @ torch.cat([image_keys, text_keys], dim=2).transpose(2, 3) / queries.shape[-1] ** 0.5
        close(attention, scores.masked_fill(~mask[:, None, None], -1e9).softmax(-1))


@pytest.mark.parametrize("num_images", [1, 2])
def test_stored_tokens_and_stored_keys_and_values_give_what_pixels_give(num_images, interacting, make_rows, collate):
    model = interacting(DualEncoderForImagesAndTextClassification, num_images=num_images, modality_type_vocab_size=2)
    grids = (((2, 3), (1, 1))[:num_images], ((1, 2), (4, 2))[:num_images])
    batch = collate(make_rows((7, 3), grids))
    expected = model(**batch).logits
    images = model.get_image_features(**some(batch, *IMAGES), output_token_states=True)
    assert images.image_token_embeds.shape[:2] == images.image_token_mask.shape[:2] == (2, num_images)
    mask = {"image_token_mask": images.image_token_mask}
    states = {"image_token_states": images.image_token_states}
    projected = model.project_images(images.pooler_output)
    for given in (
        {"image_token_embeds": images.image_token_embeds},
        {**states, "image_pooler_output": images.pooler_output},
        {**states, "image_embeds": projected},
    ):
        close(model(**some(batch, *TEXT), **given, **mask).logits, expected)


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_image_serves_many_texts(num_images, attention, interacting, make_rows, collate):
    model = interacting(
        DualEncoderForImagesAndTextClassification,
        attention=attention,
        num_images=num_images,
        modality_type_vocab_size=2,
    )
    grids = (((2, 3), (1, 1))[:num_images],) * 3
    batch = collate(make_rows((7, 3, 5), grids))
    images = model.get_image_features(batch["pixel_values"][:1], batch["pixel_mask"][:1], output_token_states=True)
    mask = {"image_token_mask": images.image_token_mask}
    for given in (
        {"image_token_embeds": images.image_token_embeds},
        {"image_token_states": images.image_token_states, "image_pooler_output": images.pooler_output},
    ):
        shared = model(**some(batch, *TEXT), **given, **mask).logits
        copied = {name: tensor.repeat(3, *[1] * (tensor.dim() - 1)) for name, tensor in {**given, **mask}.items()}
        close(shared, model(**some(batch, *TEXT), **copied).logits)
    one_text = {name: tensor[:1] for name, tensor in some(batch, *TEXT).items()}
    texts = {name: tensor.expand(3, -1) for name, tensor in one_text.items()}
    close(model(**one_text, **some(batch, *IMAGES)).logits, model(**texts, **some(batch, *IMAGES)).logits)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the most numbers that any operation allocates anew."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.numbers = max(self.numbers, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_an_image_is_not_copied_for_each_text(interacting):
    model = interacting(DualEncoderForQuestionAnswering)
    texts, length = 16, 400
    tokens = torch.randn(1, 1, length, 16)
    with torch.no_grad(), LargestTensor() as largest:
        model(input_ids=torch.ones(texts, 2, dtype=torch.long), image_token_embeds=tokens)
    # Scores are texts x heads x queries x tokens; a copy of the image would be texts x tokens x width, twice as much.
    scores = texts * 4 * 2 * (length + 2)
    assert largest.numbers <= scores < texts * length * 16


@pytest.mark.parametrize("cls", [*HEADED, DualEncoderForPreTraining, DualEncoderForImageTextRetrieval])
def test_saved_and_loaded_is_bit_equal_and_an_old_checkpoint_has_none(cls, interacting, build, tmp_path):
    before = interacting(cls)
    before.save_pretrained(tmp_path / "new")
    after, report = cls.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name

    plain = build(cls)
    assert not any("interaction_model" in name for name in plain.state_dict())
    plain.save_pretrained(tmp_path / "old")
    old, report = cls.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert not any(report.values()), report
    assert old.dual_encoder.interaction_model is None


@pytest.mark.parametrize("cls", HEADED)
@pytest.mark.parametrize("options", [None, {"use_reentrant": True}])
def test_checkpointing_changes_no_gradient_and_every_parameter_has_one(cls, options, interacting, batch):
    gradients = []
    for checkpointing in (False, True):
        model = interacting(cls).train()
        if checkpointing:
            model.gradient_checkpointing_enable(options)
        output = model(**batch, labels=torch.tensor([0, 1, 0]), output_interaction_states=True)
        keys = sum(key.square().sum() for pair in output_states(model, batch) for key in pair)
        (output.loss + 1e-3 * keys).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        close(gradients[1][name], gradient)


def output_states(model, batch):
    """Keys of the interaction layers of the body, a pair (text, image) a layer."""
    return model.dual_encoder(**batch, output_interaction_states=True).interaction_model_output.key_states


@pytest.mark.parametrize("cls", HEADED)
def test_a_head_hands_out_what_the_layers_recorded(cls, interacting, batch):
    model = interacting(cls, attention="eager")
    read = model(**batch, output_interaction_states=True, output_attentions=True).interaction_model_output
    body = model.dual_encoder(**batch, output_interaction_states=True).interaction_model_output
    assert len(read.query_states) == len(read.attentions) == 2
    for one, other in zip(read.query_states, body.query_states, strict=True):
        assert torch.equal(one, other)
    for (text, image), (other_text, other_image) in zip(read.key_states, body.key_states, strict=True):
        assert torch.equal(text, other_text)
        assert torch.equal(image, other_image)


def test_compiles_as_one_graph(interacting, batch):
    model = interacting(DualEncoderForQuestionAnswering)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        close(compiled(**batch).logits, model(**batch).logits)


def test_bfloat16_runs(interacting, batch):
    model = interacting(DualEncoderForQuestionAnswering).to(torch.bfloat16)
    images = model.get_image_features(batch["pixel_values"][:1].bfloat16(), batch["pixel_mask"][:1])
    shared = model(
        **some(batch, *TEXT), image_token_embeds=images.image_token_embeds, image_token_mask=images.image_token_mask
    )
    assert shared.logits.dtype == torch.bfloat16
    assert shared.logits.isfinite().all()


def test_pre_training_tells_pairs_and_words_through_the_layers(interacting, pair_batch):
    model = interacting(DualEncoderForPreTraining)
    batch = pair_batch()
    output = model(**batch)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    body = model.dual_encoder
    images = body.get_image_features(batch["pixel_values"], batch["pixel_mask"])
    for row, (image, text) in enumerate(
        zip(output.negative_image_rows.tolist(), output.negative_text_rows.tolist(), strict=True)
    ):
        for place, (text_row, image_row) in enumerate(((row, row), (row, image), (text, row))):
            pair = body(
                input_ids=batch["input_ids"][text_row][None],
                attention_mask=batch["attention_mask"][text_row][None],
                image_token_embeds=images.image_token_embeds[image_row][None],
                image_token_mask=images.image_token_mask[image_row][None],
            )
            close(output.itm_logits[place * 4 + row], model.itm_score(pair.pooler_output[0, 0]))


def test_layers_start_from_a_teachers(build):
    teacher = build(FusionEncoderForQuestionAnswering, num_labels=5)
    start = DualEncoderForQuestionAnswering.from_fusion_encoder
    student = start(teacher, interaction_layers=1, interaction_from=[-1])
    [layer], source = student.dual_encoder.interaction_model.layer, teacher.fusion_encoder.encoder.layer[-1]
    assert all(torch.equal(tensor, layer.state_dict()[name]) for name, tensor in source.state_dict().items())
    assert torch.equal(layer.layernorm_image.weight, source.layernorm_before.weight)
    norm = student.dual_encoder.interaction_model.layernorm
    assert torch.equal(norm.weight, teacher.fusion_encoder.layernorm.weight)
    assert student.config.interaction_layers == 1
    random = start(teacher, interaction_layers=1).dual_encoder.interaction_model.layer[0]
    assert not torch.equal(random.attention.attention.query.weight, source.attention.attention.query.weight)
    with pytest.raises(ValueError, match="interaction_from names 1 layers, interaction_layers is 2"):
        start(teacher, interaction_layers=2, interaction_from=[-1])


def test_refusals(interacting, build, batch):
    model, plain = interacting(DualEncoderForQuestionAnswering), build(DualEncoderForQuestionAnswering)
    vectors, text, images = torch.zeros(3, 16), some(batch, *TEXT), some(batch, *IMAGES)
    states = model.get_image_features(**images, output_token_states=True).image_token_states
    for refused, given, message in (
        (model, {**text, "image_pooler_output": vectors}, "interaction layers, which read an image's tokens"),
        (
            model,
            {**images, "text_pooler_output": vectors},
            "interaction layers, in which a text's tokens read the image",
        ),
        (model, {**text, **images, "image_token_states": states}, "image_token_states beside image_pooler_output"),
        (plain, {**text, "image_pooler_output": vectors, "image_token_states": states}, "this model has none"),
        (plain, {**text, "image_token_embeds": torch.zeros(3, 1, 13, 8)}, "image_token_embeds is 8 wide"),
    ):
        with pytest.raises(ValueError, match=message):
            refused(**given)
    with pytest.raises(ValueError, match="output_token_states asks for keys and values"):
        plain.get_image_features(**images, output_token_states=True)
    with pytest.raises(ValueError, match="call it with those"):
        model.logits_of_projections(torch.zeros(1, 32), torch.zeros(1, 1, 32))
    with pytest.raises(Exception, match="interaction_layers is -1; it must be at least 0"):
        DualEncoderConfig(interaction_layers=-1)


def test_tokens_are_a_stored_form_without_layers_too(build, batch):
    model = build(DualEncoderForQuestionAnswering)
    images = model.get_image_features(**some(batch, *IMAGES))
    close(model(**some(batch, *TEXT), image_token_embeds=images.image_token_embeds).logits, model(**batch).logits)
