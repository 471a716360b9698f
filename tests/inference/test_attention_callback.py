"""Pictures while a model learns: they change nothing of it, and trackers get them beside the terms of the loss."""

import copy
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerState, ViltImageProcessorPil

from dual_distill.data import decode_image, train_tokenizer
from dual_distill.inference import AttentionMapsCallback, attention_maps, draw_attention_picture
from dual_distill.modeling import DualDistillProcessor, DualEncoderForQuestionAnswering
from dual_distill.trainer import DistillationTrainer

tiny = runpy.run_path(str(Path(__file__).parents[1] / "trainer" / "conftest.py"))


def train(folder: Path, rows: int = 0, **fields: Any) -> DistillationTrainer:
    """Four steps of distillation, with pictures of so many rows every second."""
    tokenizer = train_tokenizer(["is there a red circle?"], vocab_size=60)
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4), tokenizer)
    teacher, student = tiny["tiny_teacher"](), tiny["tiny_student"]()
    asked = [(Image.linear_gradient("L").resize((12, 8)), "is there a red circle?")] * rows
    callbacks = [AttentionMapsCallback(processor, asked, 2, (teacher, processor))] if rows else []
    trainer = DistillationTrainer(
        student,
        tiny["tiny_arguments"](folder, max_steps=4, soft_label_weight=1.0, attention_weight=1.0, **fields),
        teacher=teacher,
        data_collator=tiny["tiny_collator"],
        train_dataset=tiny["tiny_rows"](20),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def test_pictures_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    seen, plain = train(tmp_path / "seen", rows=2), train(tmp_path / "plain")
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, seen.model.state_dict()[name])
    assert seen.model.training == plain.model.training
    names = sorted(file.name for file in (tmp_path / "seen" / "attention").iterdir())
    assert names == [f"{row}-step-{step:06}.png" for row in (0, 1) for step in (0, 2, 4)]
    first, last = (Image.open(tmp_path / "seen" / "attention" / names[index]).tobytes() for index in (0, 2))
    assert first != last  # the student's row has changed


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_steps is 0, but must be at least 1"):
        AttentionMapsCallback(None, [(Image.new("RGB", (8, 8)), "red")], every_steps=0)
    callback = AttentionMapsCallback(None, [(Image.new("RGB", (8, 8)), "red")], every_steps=1)
    arguments = tiny["tiny_arguments"](tmp_path)
    arguments.deepspeed = "zero.json"
    with pytest.raises(ValueError, match="holds no whole model here"):
        callback.on_train_begin(arguments, None, None)


def test_a_jpeg_is_looked_at_as_each_processor_decodes_it(answering_model, answering_processor, jpeg, tmp_path) -> None:
    model, text = answering_model(DualEncoderForQuestionAnswering), "is there a red circle?"
    answering_processor.jpeg_margin = 1
    whole, shrunk = (decode_image(jpeg, 0, jpeg_size=size) for size in (None, answering_processor.jpeg_size))
    assert whole.size > shrunk.size
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    seen, of_whole, expected = (
        attention_maps(model, answering_processor, image, text)[1] for image in (tmp_path / "photo.jpg", whole, shrunk)
    )
    np.testing.assert_array_equal(seen, expected)
    assert np.abs(of_whole - expected).max() > 1e-4

    # A teacher decodes as its own processor asks, and all of it is drawn.
    plain = copy.deepcopy(answering_processor)
    plain.jpeg_margin = None
    callback = AttentionMapsCallback(answering_processor, [(tmp_path / "photo.jpg", text)], 1, (model, plain))
    (tmp_path / "photo.jpg").unlink()
    words = text.replace("?", " ?").split()
    drawn = draw_attention_picture(whole, words, {"teacher": of_whole, "student": expected}, question=text)
    state = TrainerState(is_world_process_zero=True)
    callback.on_step_end(tiny["tiny_arguments"](tmp_path), state, None, model=model)
    assert Image.open(tmp_path / "attention" / "0-step-000000.png").tobytes() == drawn.tobytes()


@pytest.mark.slow
def test_trackers_offline_get_each_term_of_the_loss_and_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    pytest.importorskip("wandb")
    # In a process of its own: they read their folders when they are imported.
    code = f"""
import runpy
from pathlib import Path
test = runpy.run_path({str(Path(__file__))!r})
test["train"](Path({str(tmp_path / "run")!r}), rows=1, report_to=["trackio", "wandb"], project="tiny", run_name="one")
"""
    folders = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_DIR": str(tmp_path), "WANDB_MODE": "offline"}
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **folders, **offline}, check=False)
    assert done.returncode == 0

    read = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("tiny", "one"), default=str))
"""
    words = [sys.executable, "-c", read]
    found = subprocess.run(words, env={**os.environ, **folders}, capture_output=True, text=True, check=True).stdout
    rows = json.loads(found.splitlines()[-1])
    terms = {name for row in rows for name in row}
    assert {"train/loss", "train/soft_label_loss", "train/attention_loss"} <= terms
    pictures = [row["attention/0"] for row in rows if "attention/0" in row]
    assert len(pictures) == 3
    assert len([*(tmp_path / "trackio").rglob("*.png")]) == 3

    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert len([*run.rglob("media/images/attention/*.png")]) == 3
    [record] = run.glob("*.wandb")
    for term in (b"train/soft_label_loss", b"train/attention_loss"):
        assert term in record.read_bytes()
