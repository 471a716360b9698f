"""Training with the teacher's outputs on disk: the run of a teacher that is asked, without asking it twice."""

import pytest
import torch

from dual_distill.trainer import DistillationTrainingArguments


def train(build, **fields):
    trainer = build(num_train_epochs=3, save_strategy="no", **fields)
    asked = []
    trainer.teacher.register_forward_hook(lambda module, inputs, outputs: asked.append(len(outputs.logits)))
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], sum(asked)


def test_a_cached_run_asks_each_row_once_and_learns_the_same(build, tmp_path):
    _, expected, all_asked = train(build)
    folder = str(tmp_path / "cache")
    trainer, found, asked = train(build, cache_teacher="attention", teacher_cache_dir=folder)
    # Two rows more are asked about before the first step; of a cache nothing is asked twice.
    assert (all_asked, asked, len(trainer.teacher_cache)) == (62, 20, 20)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=1e-3)
    _, again, asked = train(build, cache_teacher="attention", teacher_cache_dir=folder)
    assert asked == 0
    assert again == found


def test_another_teacher_is_refused(build, make_teacher, tmp_path):
    folder = str(tmp_path / "cache")
    build(cache_teacher="attention", teacher_cache_dir=folder)
    with pytest.raises(ValueError, match=r"was begun with other settings \(teacher: "):
        build(cache_teacher="attention", teacher_cache_dir=folder, teacher=make_teacher(9))


def test_layers_that_are_changed_between_two_runs_are_other_ones_in_the_cache_too(build, tmp_path):
    plain, trainer = build(max_steps=1), build(max_steps=1, cache_teacher="attention")
    for one in (plain, trainer):
        one.train()
        one.args.layer_map = {-1: 0}
    with pytest.raises(ValueError, match=r"was begun with other settings \(layers: \[-1\] there, \[0\] now"):
        trainer.train()
    trainer.args.teacher_cache_dir = str(tmp_path / "other")
    for one in (plain, trainer):
        one.train()
    found, expected = (one.state.log_history[0]["attention_loss"] for one in (trainer, plain))
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(trainer.teacher_cache) == 8


def test_what_is_checked_does_not_depend_on_what_is_known(build, tmp_path):
    """Processes gather what they check, and one may have to ask where another has all of its rows."""
    noted = []
    for _ in range(2):
        trainer = build(cache_teacher="attention", teacher_cache_dir=str(tmp_path / "cache"))
        trainer.compute_loss(trainer.model, trainer.data_collator(trainer.train_dataset[:4]))
        trainer.teacher_cache.flush()
        noted.append(list(trainer._not_finite))
    assert noted[0] == noted[1]


def test_logits_alone_are_refused_with_attention(tmp_path):
    with pytest.raises(ValueError, match=r"cache_teacher is 'logits' but attention_weight 1\.0"):
        DistillationTrainingArguments(output_dir=str(tmp_path), cache_teacher="logits", use_cpu=True)
    with pytest.raises(ValueError, match="cache_teacher is 'answers'; give logits or attention"):
        DistillationTrainingArguments(output_dir=str(tmp_path), cache_teacher="answers", use_cpu=True)


@pytest.mark.parametrize("images", [1, 2])
def test_states_apart_are_the_joined_ones(make_student, make_rows, collator, images):
    student = make_student(num_images=images).eval()
    batch = collator(make_rows(3, images))
    wanted = {"output_query_states": [0, 1], "output_key_states": [0, 1]}
    with torch.no_grad():
        joined, apart = (student(**batch, **wanted, join_states=join) for join in (True, False))
    for name in ("query_states", "key_states"):
        for one, pair in zip(joined[name], apart[name], strict=True):
            assert torch.equal(one, torch.cat(pair, dim=2))
