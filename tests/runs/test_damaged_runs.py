"""A run whose files were damaged: the newest whole checkpoint is taken, and what was passed over is named."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from dual_distill import sealed
from dual_distill.data import load_task
from dual_distill.hub_cards import read_run
from dual_distill.inference import answer_questions
from dual_distill.modeling import DualDistillProcessor, FusionEncoderForQuestionAnswering
from dual_distill.runs import DataArguments, ModelArguments, make_run, train
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainingArguments, newest_whole

SHAPE = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 12, "resize": "fixed"},
    **{"image_height": 36, "image_width": 36, "max_text_length": 24},
}
LOADED = ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def data():
    return load_task("scenes", num_scenes={"train": 12, "validation": 2, "test": 2})


@pytest.fixture(scope="module")
def make(data):
    def make(folder, **fields):
        usual = {"max_steps": 3, "save_steps": 1, "use_cpu": True, "logging_steps": 1, "disable_tqdm": True}
        training = DistillationTrainingArguments(str(folder), **{**usual, **fields})
        arguments = ModelArguments(architecture="fusion_encoder", hidden_dropout_prob=0.1, **SHAPE)
        return make_run(arguments, DataArguments(task="scenes", max_train_rows=30), training, data=data)

    return make


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(make(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    content[len(content) // 3] ^= 64
    file.write_bytes(content if how == "flip" else content[: len(content) // 2])


def checkpoint_files(folder):
    return sorted(path.name for path in (folder / "checkpoint-3").iterdir())


def test_a_checkpoint_holds_all_that_a_resume_needs(finished):
    needed = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json", "sealed.json", *LOADED}
    assert needed <= {*checkpoint_files(finished)}
    assert {*sealed.read_seal(finished / "checkpoint-3")} == {*checkpoint_files(finished)} - {"sealed.json"}
    assert not [path for path in finished.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_the_newest_whole_checkpoint_is_taken(run, caplog, how):
    for name in checkpoint_files(run):
        caplog.clear()
        shutil.copytree(run / "checkpoint-3", run / "kept")
        damage(run / "checkpoint-3" / name, how)
        assert newest_whole(run) == str(run / "checkpoint-2")
        assert "passed over checkpoint-3: " in caplog.text
        assert name in caplog.text
        shutil.rmtree(run / "checkpoint-3")
        (run / "kept").rename(run / "checkpoint-3")
    assert newest_whole(run) == str(run / "checkpoint-3")


def test_a_damaged_run_goes_on_from_there_to_the_same_weights(make, finished, run, caplog):
    damage(run / "checkpoint-3" / "optimizer.pt", "cut")
    damage(run / "model.safetensors", "flip")
    train(make(run))
    assert "model.safetensors' is damaged" in caplog.text
    assert "resuming from checkpoint-2" in caplog.text
    for name in ("model.safetensors", "checkpoint-3/model.safetensors", "tokenizer.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    sealed.verify(run)
    sealed.verify(run / "checkpoint-3")


def test_what_a_kill_behind_the_last_write_left_goes_with_the_next_start(make, run):
    (run / f".{run.name}.unfinished" / run.name).mkdir(parents=True)
    train(make(run))
    assert not [path for path in run.glob(".*") if path.name != ".lock"]


def test_a_run_that_was_stopped_behind_its_last_step_takes_no_further(make, finished, run):
    for name in ("model.safetensors", "trainer_state.json", "run.json", "sealed.json"):
        (run / name).unlink()
    train(make(run))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert read_run(run).steps == 3


@pytest.mark.parametrize("stopped", ["between its steps", "behind its last step"])
def test_a_checkpoint_whose_removal_was_cut_short_goes_and_no_whole_one_in_its_place(make, run, stopped):
    for name in ("model.safetensors", "trainer_state.json", "run.json", "sealed.json"):
        (run / name).unlink()
    if stopped == "between its steps":
        shutil.rmtree(run / "checkpoint-3")
    (run / "checkpoint-1" / "optimizer.pt").unlink()
    (run / ".checkpoint-2.unfinished" / "checkpoint-2").mkdir(parents=True)
    os.utime(run / "checkpoint-2", (0, 0))
    train(make(run, save_total_limit=2))
    assert sorted(path.name for path in run.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_that_is_named_is_refused_where_it_is_damaged(make, run):
    (run / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2/scheduler.pt' is missing"):
        make(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    (run / "checkpoint-2" / "sealed.json").unlink()
    with pytest.raises(ValueError, match=r"has no scheduler.pt; resume from a checkpoint that was saved whole"):
        make(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_checkpoints_of_an_earlier_version_are_not_thrown_away(make, run):
    for folder in (run, *run.glob("checkpoint-*")):
        (folder / "sealed.json").unlink()
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1' was written by an earlier version.*resume_from_checkpoint"):
        train(make(run))
    trainer = make(run, resume_from_checkpoint=str(run / "checkpoint-3"))
    train(trainer)
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("name", LOADED)
def test_no_reader_takes_a_damaged_model(run, name):
    for how in ("flip", "delete"):
        content = (run / name).read_bytes()
        damage(run / name, how)
        reader = FusionEncoderForQuestionAnswering if name in LOADED[:2] else DualDistillProcessor
        for read in (load_model, ask, reader.from_pretrained):
            with pytest.raises(ValueError, match=re.escape(name)):
                read(run)
        (run / name).write_bytes(content)
    load_model(run)


def ask(folder):
    return answer_questions(folder, "no.png", "what?")


def test_a_processor_without_words_is_refused(run):
    for name in ("sealed.json", "tokenizer.json"):
        (run / name).unlink()
    for read in (DualDistillProcessor.from_pretrained, load_model):
        with pytest.raises(ValueError, match=r"no words but its 5 special tokens: tokenizer\.json"):
            read(run)


def test_a_model_that_is_saved_anew_is_no_damage(run):
    model, processor = load_model(run)
    model.save_pretrained(run)
    processor.save_pretrained(run)
    again = load_model(run).model.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())


def test_the_tokenizer_is_restored_and_never_rebuilt(make, run, monkeypatch):
    shutil.rmtree(run / "checkpoint-3")
    for name in ("model.safetensors", "sealed.json"):
        (run / name).unlink()
    (run / "checkpoint-1" / "tokenizer.json").write_text("{}")
    before = (run / "checkpoint-2" / "tokenizer.json").read_bytes()
    monkeypatch.setattr("dual_distill.runs.build.train_tokenizer", None)
    train(make(run))
    assert (run / "tokenizer.json").read_bytes() == before


def test_weights_alone_are_nothing_to_resume_from(make, tmp_path):
    trainer = make(tmp_path, max_steps=2, save_only_model=True)
    trainer.train()
    with pytest.raises(ValueError, match=r"checkpoint-2' has no optimizer\.pt; resume from a checkpoint that"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_other_labels_are_refused(make, run, data):
    labels = json.loads((run / "checkpoint-3" / "config.json").read_text())["id2label"]
    trainer = make(run)
    trainer.model.config.id2label = dict(enumerate(reversed(labels.values())))
    with pytest.raises(ValueError, match=rf"labels: {len(labels)} there, {len(labels)} now, or in another order"):
        train(trainer)


def test_a_full_disk_leaves_the_checkpoint_before(make, finished, tmp_path, monkeypatch):
    def full(handle, sync=os.fsync):
        file = Path(f"/proc/self/fd/{handle}").readlink()
        if (file.parent.name, file.name) == ("checkpoint-2", "optimizer.pt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(make(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "checkpoint-1"]
    train(make(tmp_path / "run"))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
