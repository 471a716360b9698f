"""The DiDE objective on random states, and on the outputs of real encoders."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import ViltConfig, ViltForQuestionAnswering

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.objectives import (
    DiDEObjective,
    attention_distillation_loss,
    relation_scores,
    soft_answer_loss,
    soft_label_loss,
)

TEXT, IMAGE = 4, 5


def states(rows=3, heads=2, width=4, layers=1, grad=False):
    return tuple(torch.randn(rows, heads, TEXT + IMAGE, width, requires_grad=grad) for _ in range(layers))


def outputs(rows=3, images=1, heads=2, width=4, layers=1, labels=5, mask=None, grad=False):
    mask = torch.ones(rows, images, IMAGE).bool() if mask is None else mask
    shape = {"rows": rows * images, "heads": heads, "width": width, "layers": layers, "grad": grad}
    logits = torch.randn(rows, labels, requires_grad=grad)
    return SimpleNamespace(
        logits=logits, loss=None, query_states=states(**shape), key_states=states(**shape), image_mask=mask
    )


@pytest.fixture
def masks():
    text, image = torch.rand(3, TEXT) < 0.6, torch.rand(3, 1, IMAGE) < 0.6
    text[:, 0] = image[:, :, 0] = True
    return {"attention_mask": text.long()}, image


def cross_modal_scores(queries, keys, tokens, relation_heads=None):
    """Text-to-image and image-to-text, cut out of the scores of the whole sequence."""
    joint = relation_scores(queries, keys, relation_heads)
    return joint[:, :, :tokens, tokens:], joint[:, :, tokens:, :tokens]


def blocks_loss(student, teacher, layer, text_mask, image_mask, relation_heads=None):
    """Both directions of one layer, by the functions that have their own tests."""
    one = cross_modal_scores(student.query_states[layer], student.key_states[layer], TEXT, relation_heads)
    other = cross_modal_scores(teacher.query_states[layer], teacher.key_states[layer], TEXT, relation_heads)
    return (
        attention_distillation_loss(one[0], other[0], image_mask, text_mask),
        attention_distillation_loss(one[1], other[1], text_mask, image_mask),
    )


def test_attention_is_the_sum_of_both_directions(masks):
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    text_to_image, image_to_text = blocks_loss(student, teacher, 0, batch["attention_mask"].bool(), image[:, 0])
    losses = DiDEObjective()(student, teacher, batch)
    assert min(text_to_image, image_to_text) > 0.01
    torch.testing.assert_close(losses["attention_loss"], text_to_image + image_to_text)


def test_closed_form_of_both_directions():
    """Every teacher query looks at one key, the student at all alike: ln of the image keys + ln of the text keys."""
    keys = torch.zeros(1, 1, TEXT + IMAGE, 2)
    keys[:, :, [1, TEXT + 2], 0] = 200.0
    queries = torch.zeros(1, 1, TEXT + IMAGE, 2)
    queries[..., 0] = 1.0
    mask = torch.ones(1, 1, IMAGE).bool()
    teacher = SimpleNamespace(query_states=(queries,), key_states=(keys,), logits=torch.zeros(1, 2))
    zeros = (torch.zeros_like(keys),)
    student = SimpleNamespace(query_states=zeros, key_states=zeros, logits=torch.zeros(1, 2), image_mask=mask)
    losses = DiDEObjective()(student, teacher, {"attention_mask": torch.ones(1, TEXT)})
    assert losses["attention_loss"].item() == pytest.approx(math.log(IMAGE) + math.log(TEXT), abs=1e-5)
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0]])}
    student.image_mask = torch.tensor([[[True, True, True, False, False]]])
    assert DiDEObjective()(student, teacher, batch)["attention_loss"].item() == pytest.approx(2 * math.log(3), abs=1e-5)


def test_two_images_of_a_row_are_summed(masks):
    batch, _ = masks
    image = torch.rand(3, 2, IMAGE) < 0.6
    image[:, :, 0] = True
    student, teacher = outputs(images=2, mask=image), outputs(images=2, mask=image)
    total = 0.0
    for slot in range(2):
        one, other = (
            SimpleNamespace(query_states=(side.query_states[0][slot::2],), key_states=(side.key_states[0][slot::2],))
            for side in (student, teacher)
        )
        total = total + sum(blocks_loss(one, other, 0, batch["attention_mask"].bool(), image[:, slot]))
    torch.testing.assert_close(DiDEObjective()(student, teacher, batch)["attention_loss"], total)


def test_mapped_layers_are_averaged(masks):
    batch, image = masks
    student, teacher = outputs(mask=image, layers=3), outputs(mask=image, layers=3)
    expected = sum(
        sum(blocks_loss(student, teacher, layer, batch["attention_mask"].bool(), image[:, 0])) for layer in range(3)
    )
    objective = DiDEObjective(layer_map={0: 1, 1: 3, -1: -1})
    assert (objective.student_layers, objective.teacher_layers) == ([0, 1, -1], [1, 3, -1])
    torch.testing.assert_close(objective(student, teacher, batch)["attention_loss"], expected / 3)


def test_last_to_last_is_the_default():
    objective = DiDEObjective()
    assert (objective.student_layers, objective.teacher_layers) == ([-1], [-1])


def test_relation_heads_compare_other_widths_and_head_counts(masks):
    batch, image = masks
    student, teacher = outputs(mask=image, heads=3, width=4), outputs(mask=image, heads=2, width=9)
    with pytest.raises(ValueError, match="need relation heads"):
        DiDEObjective()(student, teacher, batch)
    found = DiDEObjective(relation_heads=6)(student, teacher, batch)["attention_loss"]
    expected = sum(blocks_loss(student, teacher, 0, batch["attention_mask"].bool(), image[:, 0], relation_heads=6))
    torch.testing.assert_close(found, expected)


def test_each_side_is_scaled_by_its_own_head_width():
    """The release scales the teacher by the student's width; then a wider teacher with the same scores would differ."""
    student = outputs(heads=2, width=4)
    teacher = SimpleNamespace(**vars(student))
    factor = 2**0.25  # queries and keys twice as wide, zeros appended: the same scores after the root of 8 instead of 4
    teacher.query_states, teacher.key_states = (
        (torch.cat([side[0], torch.zeros_like(side[0])], dim=-1) * factor,)
        for side in (student.query_states, student.key_states)
    )
    losses = DiDEObjective()(student, teacher, {"attention_mask": torch.ones(3, TEXT)})
    assert losses["attention_loss"].item() == pytest.approx(0, abs=1e-6)


def test_zero_at_equality_and_gradient_to_the_student_only(masks):
    batch, image = masks
    student = outputs(mask=image, grad=True)
    losses = DiDEObjective()(student, student, batch)
    assert losses["loss"].item() == pytest.approx(0, abs=1e-5)
    teacher = outputs(mask=image, grad=True)
    DiDEObjective()(student, teacher, batch)["loss"].backward()
    assert all(t.grad is None for t in (teacher.logits, *teacher.query_states, *teacher.key_states))
    assert all(t.grad.any() for t in (student.logits, *student.query_states, *student.key_states))


def test_terms_and_weights(masks):
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    student.loss = torch.tensor(0.7)
    losses = DiDEObjective(attention_weight=2.0, soft_label_weight=0.5, label_weight=3.0, temperature=2.0)(
        student, teacher, batch
    )
    assert set(losses) == {"attention_loss", "soft_label_loss", "label_loss", "loss"}
    torch.testing.assert_close(losses["soft_label_loss"], soft_label_loss(student.logits, teacher.logits, 2.0))
    torch.testing.assert_close(losses["label_loss"], torch.tensor(0.7))
    expected = 2 * losses["attention_loss"] + 0.5 * losses["soft_label_loss"] + 3 * losses["label_loss"]
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("kept", ["attention", "soft_label", "label"])
def test_a_weight_of_zero_leaves_its_term_out(kept, masks):
    """Not computed at all: the outputs that it needs may be missing."""
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    student.loss = torch.tensor(0.7)
    if kept != "attention":
        student.query_states = student.key_states = teacher.query_states = teacher.key_states = None
    if kept != "soft_label":
        teacher.logits = None
    objective = DiDEObjective(
        **{f"{name}_weight": float(name == kept) for name in ("attention", "soft_label", "label")}
    )
    assert objective.student_layers == objective.teacher_layers == ([-1] if kept == "attention" else [])
    losses = objective(student, teacher, batch)
    assert set(losses) == {f"{kept}_loss", "loss"}
    torch.testing.assert_close(losses["loss"], losses[f"{kept}_loss"])


def test_multi_label_compares_answers_one_by_one(masks):
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    losses = DiDEObjective(multi_label=True, temperature=1.5)(student, teacher, batch)
    torch.testing.assert_close(losses["soft_label_loss"], soft_answer_loss(student.logits, teacher.logits, 1.5))


def test_padding_of_any_content_changes_nothing(masks):
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    expected = DiDEObjective()(student, teacher, batch)["attention_loss"]
    padding = torch.cat([batch["attention_mask"] == 0, ~image[:, 0]], dim=1)[:, None, :, None]
    for side in (student, teacher):
        for name in ("query_states", "key_states"):
            tensor = getattr(side, name)[0]
            setattr(side, name, (torch.where(padding, torch.randn_like(tensor) * 1e6, tensor),))
    torch.testing.assert_close(DiDEObjective()(student, teacher, batch)["attention_loss"], expected)


def test_padded_queries_count_where_they_are_asked_for(masks):
    """The release's mean: over all queries, of states (in chunks) as of probabilities."""
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)
    keys = [image[:, 0], batch["attention_mask"].bool()]
    expected = 0.0
    for direction, key_mask in enumerate(keys):
        both = [
            cross_modal_scores(side.query_states[0], side.key_states[0], TEXT)[direction] for side in (student, teacher)
        ]
        student_probs, teacher_probs = (
            scores.masked_fill(~key_mask[:, None, None], -1e9).softmax(-1) for scores in both
        )
        divergence = teacher_probs * (teacher_probs.clamp(min=1e-30).log() - student_probs.clamp(min=1e-30).log())
        expected += divergence.sum(-1).mean()
    objective = DiDEObjective(count_padded_queries=True)
    found = objective(student, teacher, batch)["attention_loss"]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, DiDEObjective()(student, teacher, batch)["attention_loss"])

    scores = objective.teacher_scores(teacher, batch["attention_mask"], TEXT + IMAGE)
    given = SimpleNamespace(logits=teacher.logits, cross_modal_scores=scores)
    torch.testing.assert_close(objective(student, given, batch)["attention_loss"], expected)


def test_refusals_of_settings():
    for weights in ({"attention_weight": -1.0}, {"soft_label_weight": -0.1}, {"label_weight": -1.0}):
        with pytest.raises(ValueError, match=r"the weights are .*; give numbers >= 0, at least one above 0"):
            DiDEObjective(**weights)
    with pytest.raises(ValueError, match="the weights are"):
        DiDEObjective(attention_weight=0.0, soft_label_weight=0.0)
    with pytest.raises(ValueError, match=r"temperature is 0.0; give a number above 0"):
        DiDEObjective(temperature=0.0)
    with pytest.raises(ValueError, match="layer_map is empty"):
        DiDEObjective(layer_map={})


@pytest.mark.parametrize("weight", ["attention_weight", "soft_label_weight", "label_weight", "temperature"])
def test_not_a_number_is_refused(weight):
    with pytest.raises(ValueError, match="nan"):
        DiDEObjective(**{weight: math.nan})


def test_refusals_of_outputs(masks):
    batch, image = masks
    student, teacher = outputs(mask=image), outputs(mask=image)

    def refused(message, objective=None, **changes):
        one = SimpleNamespace(**{**vars(student), **changes.get("student", {})})
        other = SimpleNamespace(**{**vars(teacher), **changes.get("teacher", {})})
        with pytest.raises(ValueError, match=message):
            (objective or DiDEObjective())(one, other, batch)

    no_states = {"query_states": None, "key_states": None}
    refused("the student recorded queries of 0 layers and keys of 0", student=no_states)
    refused("the student recorded queries of 1 layers and keys of 0", student={"key_states": None})
    refused("the student recorded queries of 1 layers", DiDEObjective(layer_map={0: 0, 1: 1}))
    refused("the teacher returned neither query_states nor attentions", teacher=no_states)
    refused("the teacher returned neither query_states nor attentions", teacher=no_states | {"attentions": ()})
    short = {name: (getattr(teacher, name)[0][:, :, :-1],) for name in ("query_states", "key_states")}
    refused("the teacher has recorded states of 8 tokens, the student's batch has 9", teacher=short)
    refused("the student has recorded states of 8 tokens, the student's batch has 9", student=short)
    probs = torch.full((3, 2, 8, 8), 1 / 8)
    refused(
        "the teacher has attention of 8 tokens, the student's batch has 9", teacher=no_states | {"attentions": (probs,)}
    )
    wide = no_states | {"attentions": (torch.full((3, 2, 9, 9), 1 / 9),)}
    refused(
        "relation_heads is 2, but the teacher returns attention probabilities",
        DiDEObjective(relation_heads=2),
        teacher=wide,
    )
    refused("label_weight is above 0, but the batch has no labels", DiDEObjective(label_weight=1.0))
    refused(r"student_logits has shape \(3, 4\)", student={"logits": student.logits[:, :4]})


TINY = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def real_batch(images=1):
    batch = {
        "input_ids": torch.randint(1, 60, (3, 7)),
        "attention_mask": (torch.arange(7)[None] < torch.tensor([[7], [3], [5]])).long(),
        "pixel_values": torch.randn(3, images, 3, 12, 12),
        "pixel_mask": torch.ones(3, images, 12, 12, dtype=torch.long),
    }
    batch["pixel_mask"][0, :, 8:] = batch["pixel_mask"][1, -1, :, 4:] = 0
    return batch


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("layer_map", [None, {0: 1, 1: 2}, {-1: 0}], ids=str)
def test_attention_probabilities_give_the_same_loss_as_queries_and_keys(images, layer_map):
    """The route of a foreign teacher: the blocks cut out of the eager joint attention, rescaled."""
    teacher = noisy(FusionEncoderForImagesAndTextClassification(FusionEncoderConfig(**TINY, num_images=images)))
    student = noisy(DualEncoderForImagesAndTextClassification.from_fusion_encoder(teacher))
    objective, batch = DiDEObjective(layer_map=layer_map), real_batch(images)
    student_outputs = student(
        **batch, output_query_states=objective.student_layers, output_key_states=objective.student_layers
    )
    recorded = teacher(
        **batch, output_query_states=objective.teacher_layers, output_key_states=objective.teacher_layers
    )
    expected = objective(student_outputs, recorded, batch)
    teacher.set_attn_implementation("eager")
    found = objective(student_outputs, teacher(**batch, output_attentions=True), batch)
    assert expected["attention_loss"] > 0.05
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_transformers_vilt_teaches_where_it_has_one_patch():
    """Its patches come in random order, which one patch an image cannot show; then it is the fusion encoder."""
    fields = {**TINY, "image_size": 4}
    teacher = noisy(ViltForQuestionAnswering(ViltConfig(**fields)))
    ours = FusionEncoderForQuestionAnswering(FusionEncoderConfig(**fields)).eval()
    ours.fusion_encoder.load_state_dict(teacher.vilt.state_dict())
    ours.classifier.load_state_dict(teacher.classifier.state_dict())
    student = noisy(DualEncoderForQuestionAnswering.from_fusion_encoder(ours))
    batch = real_batch() | {"pixel_values": torch.randn(3, 1, 3, 4, 4), "pixel_mask": torch.ones(3, 1, 4, 4).long()}
    asked = {"output_query_states": [-1], "output_key_states": [-1]}
    student_outputs = student(**batch, **asked)
    flat = {"pixel_values": batch["pixel_values"][:, 0], "pixel_mask": batch["pixel_mask"][:, 0]}
    expected = DiDEObjective()(student_outputs, ours(**batch, **asked), batch)
    found = DiDEObjective()(student_outputs, teacher(**{**batch, **flat}, output_attentions=True), batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_a_batch_of_real_encoders_is_the_mean_of_its_rows():
    teacher = noisy(FusionEncoderForQuestionAnswering(FusionEncoderConfig(**TINY)))
    student = noisy(DualEncoderForQuestionAnswering.from_fusion_encoder(teacher))
    asked = {"output_query_states": [-1], "output_key_states": [-1]}
    batch = real_batch()

    def losses(batch):
        return DiDEObjective()(student(**batch, **asked), teacher(**batch, **asked), batch)

    together = losses(batch)
    alone = []
    for i in range(3):
        row = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        length = row["attention_mask"].sum()
        row |= {name: row[name][:, :length] for name in ("input_ids", "attention_mask")}
        alone.append(losses(row))
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([row[name] for row in alone]).mean(), atol=1e-5, rtol=0)


def split_states(side):
    """The same states as two towers hand them out: a pair of text and image a layer."""
    apart = {
        name: tuple((states[:, :, :TEXT], states[:, :, TEXT:]) for states in getattr(side, name))
        for name in ("query_states", "key_states")
    }
    return SimpleNamespace(**{**vars(side), **apart})


def test_states_of_two_towers_need_not_be_laid_side_by_side(masks):
    batch, image = masks
    student, teacher = outputs(mask=image, layers=2), outputs(mask=image, layers=2)
    objective = DiDEObjective(layer_map={0: 0, 1: 1})
    expected = objective(student, teacher, batch)["attention_loss"]
    assert torch.equal(objective(split_states(student), teacher, batch)["attention_loss"], expected)
    assert torch.equal(objective(student, split_states(teacher), batch)["attention_loss"], expected)
    with pytest.raises(ValueError, match="the student has recorded states of 9 tokens, the student's batch has 8"):
        objective(split_states(student), teacher, {"attention_mask": batch["attention_mask"][:, 1:]})


@pytest.mark.parametrize("relation_heads", [None, 4])
def test_scores_given_back_by_a_cache_give_the_same_loss(masks, relation_heads):
    batch, image = masks
    student, teacher = outputs(mask=image, layers=2), outputs(mask=image, layers=2)
    objective = DiDEObjective(layer_map={0: 0, 1: 1}, relation_heads=relation_heads)
    expected = objective(student, teacher, batch)["attention_loss"]
    scores = objective.teacher_scores(teacher, batch["attention_mask"], TEXT + IMAGE)
    assert [tuple(block.shape) for block in scores[1]] == [
        (3, relation_heads or 2, TEXT, IMAGE),
        (3, relation_heads or 2, IMAGE, TEXT),
    ]
    found = objective(student, SimpleNamespace(logits=teacher.logits, cross_modal_scores=scores), batch)
    torch.testing.assert_close(found["attention_loss"], expected, atol=1e-5, rtol=0)


def interacting(student, layers=1, hidden=6, grad=False):
    """The student's outputs with those of interaction layers: queries of text, keys of text and image, last states."""
    pairs, _, _, width = student.query_states[0].shape
    heads = student.query_states[0].shape[1]
    queries = tuple(torch.randn(pairs, heads, TEXT, width, requires_grad=grad) for _ in range(layers))
    keys = tuple(
        (torch.randn(pairs, heads, TEXT, width), torch.randn(pairs, heads, IMAGE, width, requires_grad=grad))
        for _ in range(layers)
    )
    states = torch.randn(pairs, TEXT, hidden, requires_grad=grad)
    student.interaction_model_output = SimpleNamespace(query_states=queries, key_states=keys, last_hidden_state=states)
    return student


@pytest.mark.parametrize("images", [1, 2])
def test_the_last_interaction_layer_looks_where_the_teachers_text_looks(images):
    mask = torch.rand(3, images, IMAGE) < 0.6
    mask[:, :, 0] = True
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])}
    student, teacher = interacting(outputs(images=images, mask=mask), layers=2), outputs(images=images, mask=mask)
    own, (_, keys) = (getattr(student.interaction_model_output, name)[-1] for name in ("query_states", "key_states"))
    to_image, _ = cross_modal_scores(teacher.query_states[0], teacher.key_states[0], TEXT)
    text = batch["attention_mask"].bool().repeat_interleave(images, 0)
    expected = attention_distillation_loss(own @ keys.transpose(-1, -2) / 2, to_image, mask.flatten(0, 1), text)

    objective = DiDEObjective(attention_weight=0.0, soft_label_weight=0.0, interaction_attention_weight=0.5)
    losses = objective(student, teacher, batch)
    assert set(losses) == {"interaction_attention_loss", "loss"}
    torch.testing.assert_close(losses["interaction_attention_loss"], images * expected)
    torch.testing.assert_close(losses["loss"], 0.5 * images * expected)
    assert (objective.student_layers, objective.teacher_layers) == ([], [-1])
    assert objective.student_requests({"join_states"}) == {"output_interaction_states": True}

    # What a cache gives back, and a teacher's probabilities, are the same blocks.
    scores = objective.teacher_scores(teacher, batch["attention_mask"], TEXT + IMAGE)
    cached = SimpleNamespace(cross_modal_scores=scores, logits=teacher.logits)
    torch.testing.assert_close(objective(student, cached, batch)["loss"], losses["loss"])


def test_hidden_states_behind_the_interaction_in_closed_form():
    """Equal up to scale and shift: 0; opposite: 4; uncorrelated: 2; padding and the image's tokens do not count."""
    one = torch.tensor([1.0, -1.0, 1.0, -1.0])
    other = torch.tensor([1.0, 1.0, -1.0, -1.0])
    mask = torch.ones(2, 1, IMAGE).bool()
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    student = interacting(outputs(rows=2, mask=mask), hidden=4)
    student.interaction_model_output.last_hidden_state = one.expand(2, TEXT, 4)
    taught = torch.randn(2, TEXT + IMAGE, 4)
    taught[0, :TEXT] = torch.stack([3 * one + 5, -one, 7 * other, other - 2])
    taught[1, :2] = one
    teacher = SimpleNamespace(hidden_states=(torch.randn(2, TEXT + IMAGE, 4), taught))

    objective = DiDEObjective(0.0, 0.0, interaction_hidden_weight=0.5, student_size=4, teacher_size=4)
    losses = objective(student, teacher, batch)
    assert losses["interaction_hidden_loss"].item() == pytest.approx(((0 + 4 + 2 + 2) / 4 + 0) / 2, abs=1e-4)
    assert losses["loss"].item() == pytest.approx(0.5, abs=1e-4)
    assert objective.teacher_requests({"output_query_states"}) == {"output_hidden_states": True}


def test_a_narrower_interaction_is_compared_through_a_map_that_learns(masks):
    batch, image = masks
    student, teacher = interacting(outputs(mask=image), hidden=6, grad=True), outputs(mask=image)
    teacher.hidden_states = (torch.randn(3, TEXT + IMAGE, 10, requires_grad=True),)
    objective = DiDEObjective(0.0, 0.0, interaction_hidden_weight=1.0, student_size=6, teacher_size=10)
    objective(student, teacher, batch)["loss"].backward()
    assert student.interaction_model_output.last_hidden_state.grad.abs().sum() > 0
    assert teacher.hidden_states[0].grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
    assert len(list(objective.parameters())) == 2


def test_the_deepest_mapped_layer_teaches_the_interaction_however_the_map_is_written():
    batch = {"attention_mask": torch.ones(3, TEXT, dtype=torch.long)}
    student, teacher = interacting(outputs(layers=2), layers=1), outputs(layers=2)
    found = []
    for layer_map in ({0: 0, -1: -1}, {-1: -1, 0: 0}, {0: 0, 1: 1}, {1: 1, 0: 0}, {-1: -1, -2: -2}):
        shown = [1 if layer in (1, -1) else 0 for layer in layer_map.values()]
        ordered = SimpleNamespace(**vars(teacher))
        ordered.query_states = tuple(teacher.query_states[index] for index in shown)
        ordered.key_states = tuple(teacher.key_states[index] for index in shown)
        objective = DiDEObjective(0.0, 0.0, interaction_attention_weight=1.0, layer_map=layer_map)
        found.append(objective(student, ordered, batch)["loss"])
    assert all(torch.equal(loss, found[0]) for loss in found)


@pytest.mark.parametrize("weight", ["interaction_attention_weight", "interaction_hidden_weight"])
def test_interaction_terms_of_a_student_without_such_layers_are_refused(weight, masks):
    batch, image = masks
    with pytest.raises(ValueError, match="the student has no interaction layers to compare"):
        DiDEObjective(**{weight: 1.0})(outputs(mask=image), outputs(mask=image), batch)
