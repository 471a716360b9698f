"""What a trainer pushes, by `hub_strategy`: one commit each, with the card of its run, and never training_args.bin."""

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from safetensors.torch import load_file

from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments

REPO = "me/student"
MODEL = {"README.md", "run.json", "config.json", "model.safetensors"}
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@pytest.fixture
def make_trainer(hub, make_model, save_model, tmp_path: Path):
    processor = save_model(make_model("dual"), tmp_path / "unused")
    texts = ["what is in the image?"] * 8
    batch = processor(text=texts, images=[Image.new("RGB", (16, 16), (30 * i,) * 3) for i in range(8)])
    rows = [{**{name: batch[name][i] for name in batch}, "labels": torch.tensor(i % 4)} for i in range(8)]

    def make(**fields):
        arguments = DistillationTrainingArguments(
            **{
                "output_dir": str(tmp_path / "out"),
                "push_to_hub": True,
                "hub_model_id": REPO,
                "max_steps": 4,
                "save_steps": 2,
                **fields,
            },
            use_cpu=True,
            per_device_train_batch_size=4,
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        return DistillationTrainer(
            make_model("dual"),
            arguments,
            teacher=make_model("fusion"),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=lambda chosen: {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]},
            processing_class=processor,
        )

    return make


def titles(hub) -> list[str]:
    return hub.repos[REPO].titles[1:]  # without the first, empty commit


def test_no_constructor_opens_a_socket_and_the_end_is_one_commit_with_the_card(hub, make_trainer) -> None:
    trainer = make_trainer(hub_strategy="end")
    assert not hub.requests
    trainer.train()
    assert not hub.requests
    trainer.evaluate()
    report = trainer.push_to_hub(dataset="Shop", tags="clerk", license="mit")
    files = hub.repos[REPO].files()
    assert set(files) == set(report.files) == MODEL | PROCESSOR
    assert titles(hub) == ["End of training"]
    data = ModelCard(files["README.md"].decode()).data
    assert data.license == "mit"
    assert {"clerk", "distillation"} <= set(data.tags)
    assert "| loss | validation | 8 |" in files["README.md"].decode()
    assert "Shop, 8 train rows" in files["README.md"].decode()


def test_saving_pushes_as_transformers_does(hub, make_trainer) -> None:
    trainer = make_trainer(hub_strategy="end", save_strategy="no")
    trainer.train()
    trainer.save_model()
    assert titles(hub) == ["Model save"]
    assert set(hub.repos[REPO].files()) == MODEL | PROCESSOR


def test_every_save_pushes_the_checkpoint_s_model(hub, make_trainer, tmp_path: Path) -> None:
    make_trainer(hub_strategy="every_save", hub_always_push=True).train()
    assert titles(hub) == ["Training in progress, step 2", "Training in progress, step 4"]
    files = hub.repos[REPO].files()
    assert set(files) == MODEL | PROCESSOR
    assert files["model.safetensors"] == (tmp_path / "out" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert json.loads(files["run.json"])["steps"] == 4


@pytest.mark.parametrize(
    "strategy, folders", [("checkpoint", ["last-checkpoint"]), ("all_checkpoints", ["checkpoint-2", "checkpoint-4"])]
)
def test_a_run_is_resumed_from_what_was_pushed(
    strategy: str, folders: list[str], hub, make_trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    whole = make_trainer(
        hub_strategy=strategy, hub_always_push=True, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2
    )
    whole.train()
    assert len(titles(hub)) == 2
    files = hub.repos[REPO].files()
    states = {f"{folder}/{name}" for folder in folders for name in (MODEL - {"README.md"}) | PROCESSOR | STATE}
    assert set(files) == MODEL | PROCESSOR | states
    assert not any("training_args" in name for names in hub.repos[REPO].commits.values() for name in names)
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert json.loads(files[f"{folders[-1]}/trainer_state.json"])["best_model_checkpoint"].startswith("checkpoint-")

    # Two of four steps from the pushed checkpoint end where the whole run ended.
    if strategy == "all_checkpoints":
        folder = Path(snapshot_download(REPO), "checkpoint-2")
        resumed = make_trainer(push_to_hub=False, output_dir=str(tmp_path / "again"))
        resumed.train(resume_from_checkpoint=str(folder))
        ended = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
        assert all(torch.equal(tensor, ended[name]) for name, tensor in resumed.model.state_dict().items())


def test_files_of_an_earlier_step_are_deleted_with_the_same_commit(hub, make_trainer) -> None:
    trainer = make_trainer(hub_strategy="checkpoint", hub_always_push=True)
    trainer.push_to_hub(commit_message="First")
    repo = hub.repos[REPO]
    repo.commit("main", {**repo.files(), "last-checkpoint/rng_state_7.pth": b"of eight processes"}, "by hand")
    trainer.train()
    assert "last-checkpoint/rng_state_7.pth" not in repo.files()
    assert "last-checkpoint/optimizer.pt" in repo.files()


def test_a_failing_push_is_a_warning_and_training_goes_on(hub, make_trainer, caplog: pytest.LogCaptureFixture) -> None:
    hub.fail_at("commit", 403)
    trainer = make_trainer(hub_strategy="every_save", save_total_limit=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    assert "a checkpoint was not pushed, training goes on: push to 'me/student'" in caplog.text
    assert "your token may not write there" in caplog.text
    hub.recover()
    trainer.push_to_hub()
    assert titles(hub) == ["End of training"]


def test_a_push_in_the_background_is_a_future(hub, make_trainer) -> None:
    trainer = make_trainer(push_to_hub=False)
    job = trainer.push_to_hub(blocking=False, private=True, revision="seed-2")
    assert set(job.result(timeout=60).files) == MODEL | PROCESSOR
    assert hub.repos[REPO].private
    assert set(hub.repos[REPO].files("seed-2")) == MODEL | PROCESSOR
