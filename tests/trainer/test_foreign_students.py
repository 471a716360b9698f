"""Students whose towers are models of transformers: taught, frozen, resumed, saved with what makes their attention."""

import pytest
import torch

from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering
from dual_distill.objectives import DiDEObjective

_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_BERT = {"model_type": "bert", **_SHAPE, **_DROPOUT, "vocab_size": 60, "max_position_embeddings": 12}
_VIT = {"model_type": "vit", **_SHAPE, **_DROPOUT, "image_size": [8, 12], "patch_size": 4}
# Wider, and of other heads than the text: what is compared are projections of the tokens.
_WIDE = {**_VIT, "hidden_size": 24, "num_attention_heads": 2}


def student(vision: dict = _VIT) -> DualEncoderForQuestionAnswering:
    torch.manual_seed(3)
    config = DualEncoderConfig(text_config=dict(_BERT), vision_config=dict(vision), num_labels=5)
    return DualEncoderForQuestionAnswering._from_config(config, attn_implementation="sdpa")


@pytest.fixture
def rows(make_rows) -> list[dict]:
    """Images of one size."""
    rows = make_rows()
    for row in rows:
        row["image"] = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(int(row["ids"].sum())))
    return rows


@pytest.mark.parametrize("vision", [_VIT, _WIDE])
def test_resumed_equals_uninterrupted(vision, build, rows, tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    whole = build(student(vision), rows=rows, **fields)
    whole.train()

    resumed = build(student(vision), output_dir=tmp_path / "other", rows=rows, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for part in ("model", "distillation_objective"):
        expected, found = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert bool(whole.distillation_objective.state_dict()) == (vision is _WIDE)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_frozen_tower_stays_as_it_is(tower, build, rows):
    learner = student(_WIDE)
    before = {name: weight.clone() for name, weight in learner.state_dict().items()}
    build(learner, rows=rows, max_steps=2, **{f"freeze_{tower}_tower": True}).train()
    changed = {name for name, weight in learner.state_dict().items() if not torch.equal(weight, before[name])}
    assert not any(name.startswith(f"dual_encoder.{tower}_model.model.") for name in changed)
    assert "dual_encoder.vision_model.projection.weight" in changed
    other = "vision" if tower == "text" else "text"
    assert any(name.startswith(f"dual_encoder.{other}_model.model.") for name in changed)


def test_attention_of_two_frozen_towers_is_refused(build, rows):
    frozen = {"freeze_text_tower": True, "freeze_vision_tower": True}
    with pytest.raises(ValueError, match="both towers are frozen, so their attention learns nothing"):
        build(student(), rows=rows, **frozen)
    # Projections learn.
    build(student(_WIDE), rows=rows, **frozen)


def test_a_fusion_encoder_has_no_tower_to_freeze(build, make_teacher):
    with pytest.raises(ValueError, match="freeze_text_tower is set, but a FusionEncoderModel has no towers"):
        build(make_teacher(), None, freeze_text_tower=True)


def test_projections_are_kept_where_asked(build, rows, tmp_path):
    record = {"output_query_states": [-1], "output_key_states": [-1], "join_states": False}
    batch = {"input_ids": rows[0]["ids"][None], "pixel_values": rows[0]["image"][None]}
    for kept in (False, True):
        learner = student(_WIDE)
        trainer = build(
            learner, rows=rows, max_steps=2, keep_attention_projections=kept, output_dir=tmp_path / str(kept)
        )
        trainer.train()
        trainer.save_model()
        saved = DualEncoderForQuestionAnswering.from_pretrained(tmp_path / str(kept)).eval()
        assert saved.config.projected_heads == (4 if kept else 0)
        assert learner.config.projected_heads == 0

    # The very queries that the objective compared.
    [(of_text, _)] = saved(**batch, **record).query_states
    tokens = learner.eval()(**batch, **record).query_states[0][0]
    compared = trainer.distillation_objective._projected("text_query", tokens)
    torch.testing.assert_close(of_text, compared)
    torch.testing.assert_close(saved(**batch).logits, learner(**batch).logits)


def test_projections_compare_a_student_of_half_precision_too(build, rows):
    fields = {"rows": rows, "eval_rows": rows[:6], "max_steps": 1, "soft_label_weight": 0.0}
    whole, half = build(student(_WIDE), **fields), build(student(_WIDE), bf16_full_eval=True, **fields)
    for trainer in (whole, half):
        trainer.train()
    expected, found = (trainer.evaluate()["eval_attention_loss"] for trainer in (whole, half))
    assert found == pytest.approx(expected, rel=0.05)


def test_an_objective_without_projections_is_refused_where_towers_do_not_fit(build, rows):
    with pytest.raises(ValueError, match=r"towers do not fit each other; call objective\.add_projections"):
        build(student(_WIDE), rows=rows, objective=DiDEObjective())
    objective = DiDEObjective().add_projections(16, heads=4)
    trainer = build(student(_WIDE), rows=rows, objective=objective, max_steps=1)
    trainer.train()


def test_lora_on_one_tower_leaves_the_rest_as_it_is(build, rows):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    learner = student()
    targets = r"dual_encoder\.text_model\.model\..*\.(query|value)"
    adapted = peft.get_peft_model(learner, peft.LoraConfig(r=2, target_modules=targets))
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    build(adapted, rows=rows, max_steps=2).train()
    changed = {name for name, weight in adapted.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("text_model" in name and "lora_" in name for name in changed)
