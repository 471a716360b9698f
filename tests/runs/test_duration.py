"""The estimate before the first step: what it counts, and when it speaks."""

import logging

import pytest
import torch

from dual_distill.data import load_task
from dual_distill.runs import DataArguments, ModelArguments, make_run
from dual_distill.runs.duration import _forward_work, _speed, estimate_seconds, warn_if_long
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_text_length": 24}
SHAPE |= {"image_height": 36, "image_width": 36, "patch_size": 12, "resize": "fixed"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("duration")
    data = load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2})

    def make(steps: int, **fields: object) -> DistillationTrainer:
        training = DistillationTrainingArguments(str(folder / "out"), max_steps=steps, use_cpu=True)
        return make_run(ModelArguments(**SHAPE, **fields), DataArguments(task="scenes"), training, data=data)

    return make


def test_work_is_two_flops_for_each_weight_that_a_token_meets(run) -> None:
    fusion, dual = (run(1, architecture=f"{kind}_encoder").model for kind in ("fusion", "dual"))
    tokens = 24 + 9
    assert _forward_work(fusion) == 2 * tokens * fusion.num_parameters(exclude_embeddings=True)
    assert _forward_work(dual) == tokens * dual.num_parameters(exclude_embeddings=True)


def test_seconds_grow_with_rows_and_with_a_teacher(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dual_distill.runs.duration._speed", lambda width, arguments: 1e9)
    trainer = run(1)
    model, args = trainer.model, trainer.args
    one = estimate_seconds(100, model, None, args)
    assert one == pytest.approx(3.0 * 100 * 3 * _forward_work(model) / 1e9)
    assert estimate_seconds(200, model, None, args) == pytest.approx(2 * one)
    assert estimate_seconds(100, model, model, args) == pytest.approx(one * 4 / 3)


def test_the_speed_of_a_layer_does_not_depend_on_what_memory_held() -> None:
    arguments = DistillationTrainingArguments(use_cpu=True)
    state = torch.get_rng_state()
    clean = _speed(96, arguments)
    for _ in range(3):
        # Numbers below the normal ones, which a processor multiplies a hundred times more slowly.
        dirt = torch.full((4 * 96, 96), 1e-42)
        del dirt
        assert _speed(96, arguments) > clean / 20
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_of_more_than_an_hour_says_so_with_parameters_and_origin(run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="dual_distill.runs.duration"):
        warn_if_long(run(3))
        assert not caplog.records
        trainer = run(1_000_000_000)
        warn_if_long(trainer)
    [said] = [record.getMessage() for record in caplog.records]
    millions = f"{trainer.model.num_parameters() / 1e6:,.1f} M parameters"
    assert "hours on cpu, by a rough estimate: 1,000,000,000 steps of 8 rows" in said
    assert f"DualEncoderForQuestionAnswering of {millions}, from no checkpoint" in said
