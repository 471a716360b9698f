"""The DistillVLM objective on random states: its terms are the functions that have tests of their own."""

import math
from types import SimpleNamespace

import pytest
import torch

from dual_distill.objectives import (
    DistillVLMObjective,
    attention_matrix_loss,
    attention_probs,
    hidden_state_mse_loss,
    joint_pattern,
    noise_contrastive_loss,
    soft_answer_loss,
    soft_label_loss,
)
from dual_distill.objectives.losses.tokens import pool_tokens

TEXT, REGIONS = 5, 3
TOKENS = TEXT + REGIONS


def outputs(width=6, rows=3, heads=2, layers=1, depth=2, labels=4, grad=False, mask=None):
    def draw(*shape):
        return torch.randn(*shape, requires_grad=grad)

    return SimpleNamespace(
        logits=draw(rows, labels),
        loss=None,
        query_states=tuple(draw(rows, heads, TOKENS, 4) for _ in range(layers)),
        key_states=tuple(draw(rows, heads, TOKENS, 4) for _ in range(layers)),
        hidden_states=tuple(draw(rows, TOKENS, width) for _ in range(depth + 1)),
        image_mask=torch.ones(rows, 1, REGIONS).bool() if mask is None else mask,
    )


@pytest.fixture
def batch():
    return {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])}


@pytest.fixture
def image_mask():
    return torch.tensor([[[True, True, False]], [[True, True, True]], [[True, False, False]]])


def objective(**fields):
    return DistillVLMObjective(**{"student_size": 6, "teacher_size": 8, "queue_size": 20, **fields})


def real_tokens(batch, image_mask):
    return torch.cat([batch["attention_mask"].bool(), image_mask[:, 0]], 1)


def test_every_term_is_its_function_and_the_loss_their_weighted_sum(batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    student.loss = torch.tensor(0.7)
    compared = objective(
        attention_weight=2.0, hidden_weight=0.5, soft_label_weight=0.25, label_weight=3.0, temperature=2.0
    )
    found = compared(student, teacher, batch)
    pattern, real = joint_pattern(batch["attention_mask"], image_mask), real_tokens(batch, image_mask)
    probs = [attention_probs(one.query_states[0], one.key_states[0], pattern) for one in (student, teacher)]
    expected = {
        "attention_loss": attention_matrix_loss(*probs, pattern),
        "hidden_loss": torch.tensor(0.0),  # the queue is empty yet
        "soft_label_loss": soft_label_loss(student.logits, teacher.logits, 2.0),
        "label_loss": student.loss,
    }
    total = 2.0 * expected["attention_loss"] + 0.25 * expected["soft_label_loss"] + 3.0 * 0.7
    assert list(found) == [*expected, "loss"]
    for name, value in (expected | {"loss": total}).items():
        torch.testing.assert_close(found[name], value, msg=name)
    compared.finish_step()
    projected = compared.projections[0](student.hidden_states[-1])
    negatives = compared.queues[0].negatives()
    assert len(negatives) == int(real.sum())
    again = compared(student, teacher, batch)["hidden_loss"]
    torch.testing.assert_close(
        again, noise_contrastive_loss(projected, teacher.hidden_states[-1], negatives, real, 0.07)
    )
    assert again > 0.1


def test_queue_takes_the_real_tokens_of_the_teacher_in_training_alone(batch, image_mask):
    compared, teacher = objective(), outputs(width=8)
    compared.eval()(outputs(mask=image_mask), teacher, batch)
    compared.finish_step()
    assert len(compared.queues[0]) == 0
    compared.train()(outputs(mask=image_mask), teacher, batch)
    compared.finish_step()
    expected = torch.nn.functional.normalize(teacher.hidden_states[-1][real_tokens(batch, image_mask)], dim=-1)
    torch.testing.assert_close(compared.queues[0].tokens_in_order(), expected)


def test_equal_negatives_give_ln_of_one_plus_their_number(batch, image_mask):
    teacher = outputs(width=8)
    teacher.hidden_states = tuple(torch.ones_like(states) for states in teacher.hidden_states)
    compared = objective(attention_weight=0, soft_label_weight=0)
    for filled in (0, 16, 20, 20):  # 16 real tokens a batch, a queue of 20
        found = compared(outputs(mask=image_mask), teacher, batch)["hidden_loss"]
        assert found.item() == pytest.approx(math.log(1 + filled), abs=1e-5)
        compared.finish_step()


@pytest.mark.parametrize("pooled", [False, True])
def test_squared_difference_token_by_token_and_pooled(pooled, batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    compared = objective(hidden_loss="mse", hidden_layers={0: 1, -1: -2}, pooled=pooled)
    assert not list(compared.queues)
    found = compared(student, teacher, batch)["hidden_loss"]
    real, expected = real_tokens(batch, image_mask), 0.0
    for index, (ours, theirs) in enumerate(((1, 2), (2, 1))):  # layer 0 is the state behind the embeddings
        one, other = student.hidden_states[ours], teacher.hidden_states[theirs]
        if pooled:
            one, other = pool_tokens(one, real), pool_tokens(other, real)
        mask = torch.ones(3, 1).bool() if pooled else real
        expected = expected + hidden_state_mse_loss(compared.projections[index](one), other, mask) / 2
    torch.testing.assert_close(found, expected)


def test_pooled_tokens_enter_the_queue_one_a_row(batch, image_mask):
    compared = objective(pooled=True)
    compared(outputs(mask=image_mask), outputs(width=8), batch)
    compared.finish_step()
    assert len(compared.queues[0]) == 3


def test_soft_labels_of_answers_and_of_masked_words(batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    alone = {"attention_weight": 0, "hidden_weight": 0}
    found = objective(**alone, multi_label=True)(student, teacher, batch)["loss"]
    torch.testing.assert_close(found, soft_answer_loss(student.logits, teacher.logits))
    student.logits, teacher.logits = torch.randn(3, TEXT, 9), torch.randn(3, TEXT, 9)
    with pytest.raises(ValueError, match="the batch has no labels; mask words"):
        objective(**alone)(student, teacher, batch)
    labels = torch.full((3, TEXT), -100)
    labels[0, 2] = labels[2, 1] = labels[2, 0] = 4
    found = objective(**alone)(student, teacher, batch | {"labels": labels})["loss"]
    masked = labels != -100
    torch.testing.assert_close(found, soft_label_loss(student.logits[masked], teacher.logits[masked]))


def test_no_gradient_reaches_the_teacher(batch, image_mask):
    student, teacher = outputs(mask=image_mask, grad=True), outputs(width=8, grad=True)
    compared = objective()
    compared(student, teacher, batch)
    compared.finish_step()
    compared(student, teacher, batch)["loss"].backward()
    for tensor in (teacher.logits, *teacher.query_states, *teacher.key_states, *teacher.hidden_states):
        assert tensor.grad is None
    for tensor in (student.logits, student.query_states[0], student.key_states[0], student.hidden_states[-1]):
        assert tensor.grad.abs().sum() > 0
    assert compared.projections[0].weight.grad.abs().sum() > 0


def test_a_caption_pattern_decides_which_pairs_and_tokens_count(batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    real = real_tokens(batch, image_mask)
    pattern = torch.ones(TOKENS, TOKENS).tril().bool() & real[:, :, None] & real[:, None, :]
    student.attention_pattern = pattern
    found = objective()(student, teacher, batch)["attention_loss"]
    probs = [attention_probs(one.query_states[0], one.key_states[0], pattern) for one in (student, teacher)]
    torch.testing.assert_close(found, attention_matrix_loss(*probs, pattern))


def test_a_foreign_teachers_probabilities_are_those_of_its_queries_and_keys(batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    expected = objective(hidden_weight=0)(student, teacher, batch)["attention_loss"]
    pattern = joint_pattern(batch["attention_mask"], image_mask)
    probs = attention_probs(teacher.query_states[0], teacher.key_states[0], pattern)
    padded = probs.masked_fill(~pattern[:, None], 0.3)  # what a model does at padding is its own affair
    foreign = SimpleNamespace(logits=teacher.logits, attentions=(torch.zeros_like(probs), padded))
    torch.testing.assert_close(objective(hidden_weight=0)(student, foreign, batch)["attention_loss"], expected)
    with pytest.raises(ValueError, match="relation_heads is 2, but the teacher returns attention probabilities"):
        objective(hidden_weight=0, relation_heads=2)(student, foreign, batch)


def test_what_is_asked_for():
    takes = {"output_query_states", "output_key_states"}
    layers = {"output_query_states": [-1], "output_key_states": [-1]}
    assert objective().student_requests(takes) == layers | {"output_hidden_states": True}
    assert objective().teacher_requests({}) == {"output_attentions": True, "output_hidden_states": True}
    assert objective(hidden_loss="none").teacher_requests(takes) == layers
    assert objective(attention_weight=0).student_requests(takes) == {"output_hidden_states": True}
    assert not objective(hidden_loss="none").state_dict()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_loss": "l1"}, "hidden_loss is 'l1'; give one of nce, mse, none"),
        ({"attention_weight": -1.0}, "the weights are .*give numbers >= 0"),
        ({"attention_weight": 0, "soft_label_weight": 0, "hidden_loss": "none"}, "at least one above 0"),
        ({"nce_temperature": 0.0}, "nce_temperature is 0.0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"relation_heads": 0}, "relation_heads is 0"),
        ({"hidden_layers": {}}, "hidden_layers is empty"),
        ({"layer_map": {}}, "layer_map is empty"),
    ],
)
def test_ranges_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        objective(**fields)


def test_what_a_model_did_not_return_is_named(batch, image_mask):
    student, teacher = outputs(mask=image_mask), outputs(width=8)
    with pytest.raises(ValueError, match="the teacher returned no hidden_states"):
        objective()(student, SimpleNamespace(**vars(teacher) | {"hidden_states": None}), batch)
    with pytest.raises(ValueError, match=r"the student recorded queries of 0 layers .*output_query_states"):
        objective()(SimpleNamespace(**vars(student) | {"query_states": None}), teacher, batch)
    short = SimpleNamespace(**vars(teacher) | {"query_states": (teacher.query_states[0][:, :, 1:],)})
    with pytest.raises(ValueError, match="the teacher has recorded states of 7 tokens, the student's batch has 8"):
        objective()(student, short, batch)
    short = SimpleNamespace(**vars(teacher) | {"hidden_states": (teacher.hidden_states[0][:, 1:],)})
    with pytest.raises(ValueError, match="the teacher has hidden states of 7 tokens, the student's batch has 8"):
        objective()(student, short, batch)
    with pytest.raises(ValueError, match="label_weight is above 0, but the batch has no labels"):
        objective(label_weight=1.0)(student, teacher, batch)
