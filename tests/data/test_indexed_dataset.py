"""Every row knows its number and its epoch: alone, in batches, in worker processes, in Trainer, after a resume."""

from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from dual_distill.data.indexed_dataset import IndexedDataset, RowEpochCallback


@pytest.fixture
def rows() -> IndexedDataset:
    return IndexedDataset(datasets.Dataset.from_dict({"number": list(range(8))}))


def pairs(batch: list[dict]) -> list[tuple[int, int]]:
    return [(row["__epoch__"], row["__index__"]) for row in batch]


def test_rows_alone_and_together(rows: IndexedDataset) -> None:
    assert rows[3] == {"number": 3, "__index__": 3, "__epoch__": 0}
    assert rows[-1] == {"number": 7, "__index__": 7, "__epoch__": 0}
    rows.set_epoch(2)
    assert rows.__getitems__([5, 0]) == [
        {"number": 5, "__index__": 5, "__epoch__": 2},
        {"number": 0, "__index__": 0, "__epoch__": 2},
    ]
    assert (len(rows), rows.column_names, rows.epoch) == (8, ["number"], 2)
    with pytest.raises(IndexError):
        rows[8]


def test_numbers_are_those_of_the_wrapped_selection(rows: IndexedDataset) -> None:
    selection = IndexedDataset(rows.dataset.select([6, 2]))
    assert [(row["number"], row["__index__"]) for row in selection] == [(6, 0), (2, 1)]


def test_a_column_of_that_name_is_refused() -> None:
    with pytest.raises(ValueError, match="The data has a column '__epoch__', which IndexedDataset would overwrite"):
        IndexedDataset(datasets.Dataset.from_dict({"__epoch__": [1]}))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch_that_is_set(rows: IndexedDataset, start_method: str) -> None:
    loader = DataLoader(
        rows,
        batch_size=3,
        num_workers=1,
        persistent_workers=True,
        collate_fn=list,
        multiprocessing_context=start_method,
    )
    for epoch in (0, 1, 5):
        rows.set_epoch(epoch)
        assert [pair for batch in loader for pair in pairs(batch)] == [(epoch, index) for index in range(8)]


class OneNumber(nn.Module):
    """The smallest thing that Trainer trains; notes the keys of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int]] = []

    def forward(self, keys: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen += [tuple(key) for key in keys.tolist()]
        return {"loss": (self.weight - 1) ** 2}


def train(rows: IndexedDataset, folder: Path, resume: str | None = None, **arguments: object) -> list[tuple[int, int]]:
    rows.set_epoch(77)  # what an earlier use may have left behind
    model = OneNumber()
    trainer = Trainer(
        model,
        TrainingArguments(
            folder,
            per_device_train_batch_size=2,
            num_train_epochs=3,
            save_steps=5,
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=rows,
        data_collator=lambda batch: {"keys": torch.tensor(pairs(batch))},
        callbacks=[RowEpochCallback()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


def test_a_run_resumed_within_an_epoch_sees_the_keys_that_an_unbroken_run_sees(
    rows: IndexedDataset, tmp_path: Path
) -> None:
    """Three epochs of four steps; the checkpoint after step 5 lies within the second epoch."""
    unbroken = train(rows, tmp_path)
    assert [epoch for epoch, _ in unbroken] == [0] * 8 + [1] * 8 + [2] * 8
    for epoch in range(3):
        assert sorted(unbroken[8 * epoch : 8 * epoch + 8]) == [(epoch, index) for index in range(8)]
    resumed = train(rows, tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert resumed == unbroken[10:]
