"""Rows that know their number and the epoch: what augmentation needs to be the same after a resume as without one.

Two facts about the libraries around it shape this file. Workers of a data loader are other processes that may outlive
an epoch, so the epoch lies in shared memory. And accelerate's loader hands `set_epoch` on to the data set only where
its sampler does not take it: in a run of one process it does, but not in a run of several, nor in the rest of an epoch
after a resume (`SkipBatchSampler`). `RowEpochCallback` says it in all three.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

INDEX_COLUMN = "__index__"
EPOCH_COLUMN = "__epoch__"


class IndexedDataset(Dataset):
    """A map-style data set whose rows hold `__index__`, their number in it, and `__epoch__`.

    Args:
        dataset: rows as dicts, with `column_names` and `__getitems__`, such as a `datasets.Dataset`.

    Raises:
        ValueError: the data has a column of one of the two names.

    Example:
        >>> import datasets
        >>> rows = IndexedDataset(datasets.Dataset.from_dict({"question": ["what?", "where?"]}))
        >>> rows.set_epoch(3)
        >>> rows[1]
        {'question': 'where?', '__index__': 1, '__epoch__': 3}
        >>> len(rows), rows.column_names
        (2, ['question'])
    """

    def __init__(self, dataset: Any) -> None:
        for column in (INDEX_COLUMN, EPOCH_COLUMN):
            if column in dataset.column_names:
                raise ValueError(f"The data has a column {column!r}, which IndexedDataset would overwrite; rename it.")
        self.dataset = dataset
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def column_names(self) -> list[str]:
        """Names of the data's own columns."""
        return list(self.dataset.column_names)

    @property
    def epoch(self) -> int:
        """The epoch of the next rows, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next rows, in the workers of a data loader too.

        Args:
            epoch: from 0.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Fetch many rows at once, as data loaders do."""
        numbers, epoch = [int(index) for index in indices], self.epoch
        rows = zip(self.dataset.__getitems__(numbers), numbers, strict=True)
        return [{**row, INDEX_COLUMN: number % len(self), EPOCH_COLUMN: epoch} for row, number in rows]


class RowEpochCallback(TrainerCallback):
    """Tells training data and sampler which epoch begins, before Trainer asks for its first batch, resumed or not.

    Training data that is no `IndexedDataset` is left alone, and a sampler that draws nothing by epoch.

    Args:
        sampler: what draws the rows by epoch; None: something that is told elsewhere.

    Example:
        >>> from types import SimpleNamespace
        >>> import datasets
        >>> rows = IndexedDataset(datasets.Dataset.from_dict({"question": ["what?"]}))
        >>> RowEpochCallback().on_epoch_begin(None, SimpleNamespace(epoch=1.5), None, SimpleNamespace(dataset=rows))
        >>> rows.epoch
        1
    """

    def __init__(self, sampler: Any = None) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Set the epoch; a resumed run begins within one, at a fraction."""
        if isinstance(train_dataloader.dataset, IndexedDataset):
            train_dataloader.dataset.set_epoch(int(state.epoch))
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch))
