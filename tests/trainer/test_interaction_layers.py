"""A student with interaction layers is distilled like any other: terms fall, weights move, a resumed run is equal."""

import pytest
import torch

from dual_distill.modeling import DualEncoderForQuestionAnswering


def student(make_teacher):
    torch.manual_seed(4)
    return DualEncoderForQuestionAnswering.from_fusion_encoder(make_teacher(seed=3), interaction_layers=1)


def test_it_trains_evaluates_and_resumes(build, make_teacher, make_rows):
    fields = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "optim": "adamw_torch", "learning_rate": 3e-3}
    rows = make_rows(20)
    trainer = build(student(make_teacher), make_teacher(), rows=rows, eval_rows=rows, **fields)
    before, start = trainer.evaluate(), {name: one.clone() for name, one in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_soft_label_loss"] < before["eval_soft_label_loss"]
    trained = trainer.model.state_dict()
    still = {name for name, one in trained.items() if torch.equal(one, start[name])}
    assert not any("interaction" in name for name in still), still

    again = build(student(make_teacher), make_teacher(), rows=rows, eval_rows=rows, **fields)
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-3")
    for name, one in again.model.state_dict().items():
        assert torch.equal(one, trained[name]), name


def test_terms_of_the_interaction_are_weighed_beside_the_others(build, make_teacher, make_rows):
    weights = {"interaction_attention": 3.0, "interaction_hidden": 4.0}
    fields = {f"{name}_weight": weight for name, weight in weights.items()}
    found = build(student(make_teacher), make_teacher(), eval_rows=make_rows(9), **fields).evaluate()
    weights |= {"attention": 1.0, "soft_label": 1.0}
    terms = sum(weight * found[f"eval_{name}_loss"] for name, weight in weights.items())
    assert found["eval_loss"] == pytest.approx(terms, rel=1e-5)


@pytest.mark.parametrize("name", ["interaction_attention", "interaction_hidden"])
def test_each_term_of_the_interaction_alone_falls(name, build, make_teacher, make_rows):
    rows = make_rows(20)
    fields = {"attention_weight": 0.0, "soft_label_weight": 0.0, f"{name}_weight": 1.0, "max_steps": 15}
    fields |= {"optim": "adamw_torch"}
    trainer = build(student(make_teacher), make_teacher(), rows=rows, eval_rows=rows, learning_rate=1e-2, **fields)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


@pytest.mark.parametrize("name", ["interaction_attention_weight", "interaction_hidden_weight"])
def test_interaction_terms_are_refused_without_layers_before_the_first_step(name, build, make_teacher, make_student):
    with pytest.raises(ValueError, match=f"{name} is 1.0, but the student has no interaction layers; give it some"):
        build(make_student(), make_teacher(), **{name: 1.0})


def test_a_cache_keeps_the_interactions_attention_and_no_states(build, make_teacher, make_rows):
    rows = make_rows(12)
    kept = {"cache_teacher": "attention", "interaction_attention_weight": 1.0, "max_steps": 6}
    losses = [
        build(student(make_teacher), make_teacher(), rows=rows, **fields).train().training_loss
        for fields in (kept, kept | {"cache_teacher": None})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="a cache keeps no hidden states, but interaction_hidden_weight"):
        build(student(make_teacher), make_teacher(), rows=rows, **kept, interaction_hidden_weight=1.0)
    kept |= {"cache_teacher": "logits", "attention_weight": 0.0}
    with pytest.raises(ValueError, match="cache_teacher is 'logits' but interaction_attention_weight"):
        build(student(make_teacher), make_teacher(), rows=rows, **kept)
