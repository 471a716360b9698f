"""A run repeated: finished, gone on with, or refused because its settings are others."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dual_distill.data import load_task
from dual_distill.hub_cards import Measurement, Preflight, origin_of, read_run, write_card, write_run
from dual_distill.runs import DataArguments, ModelArguments, make_run, train
from dual_distill.trainer import DistillationTrainingArguments

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_height": 36,
    "image_width": 36,
    "patch_size": 12,
    "resize": "fixed",
    "max_text_length": 24,
}


@pytest.fixture(scope="module")
def data():
    return load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2})


@pytest.fixture
def run(data, tmp_path):
    def make(data=data, **fields):
        usual = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "logging_steps": 1, "disable_tqdm": True}
        training = DistillationTrainingArguments(str(tmp_path / "run"), **{**usual, **fields})
        arguments = ModelArguments(architecture="fusion_encoder", **SHAPE)
        return make_run(arguments, DataArguments(task="scenes", max_train_rows=30), training, data=data)

    train(make())
    return make, tmp_path / "run"


def test_a_finished_run_is_finished(run, caplog):
    make, folder = run
    weights, record = load_file(folder / "model.safetensors"), read_run(folder)
    trainer = make()
    metrics = train(trainer)
    assert "is finished, 2 steps; nothing is trained" in caplog.text
    assert metrics["train_runtime"] > 0
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    for found in (load_file(folder / "model.safetensors"), trainer.model.state_dict()):
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert read_run(folder) == record


def test_other_settings_are_refused_with_both_values(run):
    make, folder = run
    record = (folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"learning_rate: 0.0001 there, 0.05 now\); give resume .* overwrite"):
        train(make(learning_rate=0.05))
    with pytest.raises(ValueError, match=r"max_steps: 2 there, 3 now; seed: 42 there, 1 now"):
        train(make(max_steps=3, seed=1))
    trainer = make()
    trainer.model.save_pretrained(folder.parent / "start")
    trainer.describe_run(start=origin_of(folder.parent / "start"))
    with pytest.raises(ValueError, match=r"start: None there, start \(sha256:[0-9a-f]{12}\) now"):
        train(trainer)
    assert (folder / "run.json").read_bytes() == record
    train(make(logging_steps=5, eval_strategy="steps", eval_steps=1))


def test_a_checkpoint_is_the_same_in_another_folder(run, tmp_path):
    make, _ = run
    begin = make(seed=1)
    places = [tmp_path / "there", tmp_path / "moved"]
    for place in places:
        begin.model.save_pretrained(place)
    begin.describe_run(start=origin_of(places[0]))
    train(begin, overwrite=True)
    again = make(seed=1)
    again.describe_run(start=origin_of(places[1]))
    assert train(again)["train_runtime"] > 0
    begin.model.base_model.get_input_embeddings().weight.data += 1
    begin.model.save_pretrained(places[1])
    again.describe_run(start=origin_of(places[1]))
    with pytest.raises(ValueError, match=r"\(start: there \(sha256:\w{12}\) there, moved \(sha256:\w{12}\) now\)"):
        train(again)


def test_other_rows_are_refused_finished_or_stopped(run, tmp_path):
    make, folder = run
    other = load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2}, seed=5)
    again = load_task("scenes", num_scenes={"train": 12, "validation": 3, "test": 2})
    others = r"settings \(data: 30 rows \[\w{12}\] there, 30 rows \[\w{12}\] now\); give resume"
    train(make(data=again))
    with pytest.raises(ValueError, match=others):
        train(make(data=other))

    # A record of before says nothing of its rows, and is gone on with.
    record = json.loads((folder / "run.json").read_text())
    assert record["data"].pop("identity").startswith("30 rows [")
    del record["sha256"]
    (folder / "run.json").write_text(json.dumps(record))
    train(make(data=other))

    for name in ("run.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=others):
        train(make(data=other))
    train(make(data=other), overwrite=True)


def test_no_run_goes_on_with_a_model_of_another_shape(run):
    make, _ = run
    trainer = make()
    other = type(trainer.model.config).from_dict({**trainer.model.config.to_dict(), "hidden_size": 32})
    trainer.model = type(trainer.model)(other)
    with pytest.raises(ValueError, match=r"\(hidden_size: 16 there, 32 now.*; ask for the same shape, overwrite"):
        train(trainer, resume=True)


def test_it_goes_on_or_begins_anew_when_told_to(run, caplog):
    make, folder = run
    trainer = make(max_steps=3)
    train(trainer, resume=True)
    assert "resuming from checkpoint-2" in caplog.text
    assert (trainer.state.global_step, read_run(folder).steps) == (3, 3)
    changed = ["at step 2: max_steps: 2 there, 3 now"]
    assert read_run(folder).changed == changed
    train(make(max_steps=4), resume=True)
    changed.append("at step 3: max_steps: 3 there, 4 now")
    assert read_run(folder).changed == changed
    assert "| changed on the way | at step 2: max_steps: 2 there, 3 now; at step 3" in write_card(folder).read_text()
    train(make(max_steps=1, learning_rate=0.5), overwrite=True)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1"]
    assert read_run(folder).settings["learning_rate"] == 0.5


def test_a_run_that_was_stopped_goes_on_unasked(run, caplog):
    make, folder = run
    whole = load_file(folder / "model.safetensors")
    for name in ("run.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "checkpoint-2").rename(folder / "elsewhere")
    train(make())
    assert "resuming from checkpoint-1" in caplog.text
    torch.testing.assert_close(load_file(folder / "model.safetensors"), whole, atol=1e-6, rtol=0)


def test_larger_batches_that_leave_no_step_to_train_are_refused(run):
    """Thirty rows are two batches of 15, and one of 30: the run ended after the first half, as if it were finished."""
    make, folder = run
    train(make(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=15), overwrite=True)
    for name in ("run.json", "trainer_state.json", "model.safetensors"):
        (folder / name).unlink()
    for step in (1, 2, 4):
        shutil.rmtree(folder / f"checkpoint-{step}")
    larger = {"max_steps": -1, "per_device_train_batch_size": 30}
    sentence = r"checkpoint-3' is at step 3, but with these settings the run has 2 \(.*batch_size: 15 there, 30 now\)"
    with pytest.raises(ValueError, match=sentence):
        train(make(num_train_epochs=2, **larger), resume=True)
    trainer = make(num_train_epochs=4, **larger)
    train(trainer, resume=True)
    assert trainer.state.global_step == 4


def test_a_finished_run_that_is_saved_again_keeps_its_record(run):
    make, folder = run
    record = replace(read_run(folder), preflight=Preflight(rows=5, teacher=0.5, student=0.25, standard_error=0.2))
    write_run(folder, replace(record, measurements=(Measurement("accuracy", 0.5, "test", "by hand", rows=7),)))
    trainer = make(seed=1)
    train(trainer, resume=True)  # nothing is trained, so nothing of it is of another seed
    found = trainer.evaluate()
    trainer.create_model_card(dataset="my scenes")
    again = read_run(folder)
    assert {(one.metric, one.split): one.value for one in again.measurements} == {
        ("accuracy", "test"): 0.5,
        ("accuracy", "validation"): found["eval_accuracy"],
        ("loss", "validation"): found["eval_loss"],
    }
    assert replace(again, measurements=(), data=record.data) == record
    assert (again.data.name, again.data.rows) == ("my scenes", record.data.rows)
    trainer.train()
    assert trainer.run_record().seed == 1


def test_a_finished_run_without_checkpoints_is_not_begun_anew_for_more_steps(run):
    make, folder = run
    train(make(save_strategy="no"), overwrite=True)
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a finished run and no whole checkpoint to go on from; overwrite"):
        train(make(save_strategy="no", max_steps=3), resume=True)
    assert (folder / "model.safetensors").read_bytes() == weights
