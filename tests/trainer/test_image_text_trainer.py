"""Training on a stream of pairs: each row once an epoch, and a run that was cut off goes on as if it had not been."""

import io
import runpy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, ViltImageProcessorPil

from dual_distill.data import load_image_text_stream, train_tokenizer
from dual_distill.modeling import DualDistillProcessor
from dual_distill.trainer.image_text_trainers import PreTrainingTrainer

TINY_PAIRS = runpy.run_path(str(Path(__file__).with_name("tiny_pairs.py")))
dual, fusion, pair_arguments, image_text_collator, pair_rows = (
    TINY_PAIRS[name] for name in ("dual", "fusion", "pair_arguments", "image_text_collator", "pair_rows")
)
ROWS = pair_rows(16)


class Collator:
    """The caption is the number of a row; notes which rows came."""

    def __init__(self):
        self.seen = []

    def __call__(self, rows):
        numbers = [int(row["caption"]) for row in rows]
        self.seen += numbers
        return image_text_collator([ROWS[number] for number in numbers])


class CutOff(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            control.should_training_stop = True


@pytest.fixture
def stream(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    for part in range(4):
        table = {"image": [buffer.getvalue()] * 4, "caption": [str(4 * part + row) for row in range(4)]}
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    return lambda: load_image_text_stream(
        [{"path": str(tmp_path / "*.parquet"), "kind": "parquet"}], seed=3, shuffle_buffer=5
    )


def build(folder, stream, *callbacks, dropout=0.0, **fields):
    torch.manual_seed(0)
    fields = {"per_device_train_batch_size": 4, "max_steps": 8, "save_strategy": "steps", "save_steps": 3, **fields}
    return PreTrainingTrainer(
        dual(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout),
        pair_arguments(folder, **fields),
        teacher=fusion(),
        train_dataset=stream(),
        data_collator=Collator(),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_dropout_that_was_cut_off_ends_as_the_whole_one(stream, tmp_path, workers):
    options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
    whole = build(tmp_path / "whole", stream, dropout=0.1, **options)
    whole.train()
    build(tmp_path / "cut", stream, CutOff(), dropout=0.1, **options).train()
    resumed = build(tmp_path / "cut", stream, dropout=0.1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_run_that_was_cut_off_goes_on_at_its_row(stream, tmp_path):
    whole = build(tmp_path / "whole", stream)
    whole.train()
    seen = whole.data_collator.seen
    assert sorted(seen[:16]) == sorted(seen[16:32]) == list(range(16))
    assert seen[:16] != seen[16:32]

    cut = build(tmp_path / "cut", stream, CutOff())
    cut.train()
    assert cut.state.global_step == 3
    # In a folder of its own, which does not hold what it goes on from.
    resumed = build(tmp_path / "elsewhere", stream)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert cut.data_collator.seen[:12] + resumed.data_collator.seen[:20] == seen[:32]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_stream_needs_a_number_of_steps(stream, tmp_path):
    with pytest.raises(ValueError, match="max_steps is -1, but a stream of pairs has no end"):
        build(tmp_path, stream, max_steps=-1)


def test_a_stream_is_grouped_by_shape_where_its_images_have_several(stream, tmp_path):
    processor = DualDistillProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4), train_tokenizer(["a dog"])
    )
    for grouped, rows in ((True, 4), (False, 0)):
        trainer = build(tmp_path, stream, group_by_shape=grouped)
        trainer.data_collator.processor = processor
        assert trainer.get_train_dataloader().stream.group == rows


def test_the_temperature_is_not_decayed(tmp_path, stream):
    trainer = build(tmp_path, stream)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "logit_scale" in dict(trainer.model.named_parameters())
    assert "logit_scale" not in decayed
    assert "text_projection.weight" in decayed
