"""A Trainer whose losses have names, and weigh every row alike: in micro-batches, in evaluations, over processes.

Unusual here:

* Each term is averaged over the rows since the last log and gathered across processes, in training and evaluation.
* A short last micro-batch of an epoch counts for the rows that it has, so that six rows at once and as four and two
  give the same update.
* Photographs of like shape share a batch, in training by the draw of an epoch. Where that reorders the rows of an
  evaluation, `compute_metrics` and `predict` are given them in the order of the data all the same.
* The last batch of an evaluation in several processes is filled up with rows that were seen before: they do not count.
  Where rows are compared, every process computes that whole batch without them, as one alone would, and needs memory
  for the rows of all (no gradients): a smaller `per_device_eval_batch_size` where that is too much.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sized
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.data_loader import get_sampler
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import RandomSampler
from transformers import EvalPrediction
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput

from dual_distill.data import RowEpochCallback, ShapeGroupedSampler, ShapeKey, grouped_order, shape_keys
from dual_distill.modeling import as_one_process, gather_rows

from .recording import RecordingTrainer

Batch = Mapping[str, torch.Tensor]
Losses = tuple[Batch, dict[str, torch.Tensor]]
"""The loss and its terms, and what an evaluation gathers."""
_ROWS = "rows"  # beside the sums of the terms: of how many rows


class RowMeansTrainer(RecordingTrainer):
    """A `Trainer` of losses by name, which `_losses` computes of a batch as means over its rows.

    Args:
        **kwargs: as for `transformers.Trainer`.
    """

    # The loss is a mean over the rows of one micro-batch, so Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga: bool | None = False
    compute_metrics: Any
    label_names: Any
    can_return_loss: Any
    compares_rows: ClassVar[bool] = False
    """Whether a term compares the rows of all processes, each of which must then have equally many."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._terms: dict[str, Any] = {}
        self._mean_rows = 0.0
        self._row_epochs = RowEpochCallback()
        self.add_callback(self._row_epochs)
        self._keys_of: dict[int, tuple[Any, list[ShapeKey] | None]] = {}
        self._has_real_rows, self._is_evaluating = True, False
        if self.compute_loss_func is not None:
            self.loss_is_scaled_for_ga = None  # such a function divides by the items of all micro-batches

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        keys = self._shape_keys(rows) if isinstance(sampler, RandomSampler) else None
        if keys is None:
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        grouped = ShapeGroupedSampler(keys, self._train_batch_size * self.args.world_size, seed)
        # A loader that resumes within an epoch does not tell it.
        self._row_epochs.sampler = grouped
        return grouped

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Where rows are compared, which ones share a batch is part of what is measured.
        told = self.args
        is_whole = told.eval_do_concat_batches and not (told.batch_eval_metrics or told.dataloader_drop_last)
        keys = self._shape_keys(eval_dataset) if is_whole and not self.compares_rows else None
        return super()._get_eval_sampler(eval_dataset) if keys is None else grouped_order(keys, len(keys))

    def _shape_keys(self, rows: Any) -> list[ShapeKey] | None:
        """Return what the rows are grouped by; the headers of a data set's images are read once."""
        if not self.args.group_by_shape:
            return None
        if id(rows) not in self._keys_of:
            self._keys_of[id(rows)] = rows, shape_keys(self.data_collator, rows)  # held, so that the id stays its own
        return self._keys_of[id(rows)][1]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `RecordingTrainer` does; what an earlier run did not log is no part of this one's terms.

        Raises:
            ValueError: all rows are left out, as they fill no batch.
        """
        rows, batch = self.train_dataset, self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and isinstance(rows, Sized) and len(rows) < batch:
            few = f"the {len(rows)} rows to train on, which fill no batch of {batch}"
            raise ValueError(f"dataloader_drop_last leaves out {few}; set it to false, or give smaller batches.")
        self._terms = {}
        return super().train(*args, **kwargs)

    @abstractmethod
    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss and its terms, and what an evaluation gathers."""

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss, a mean over the rows, and what an evaluation gathers if `return_outputs`.

        Of a micro-batch in training, it is weighed by its rows: a short last one of an epoch counts for what it holds.
        """
        if self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        losses, outputs = self._losses(model, inputs)
        for name, value in losses.items():
            self.note_finite(name, value)

        rows = find_batch_size(inputs)
        counted = rows if self._has_real_rows else 0
        for name, value in {**losses, _ROWS: torch.ones(())}.items():
            if name != "loss":
                # Stays on the device: reading it here would wait for it in every step.
                self._terms[name] = self._terms.get(name, 0.0) + value.detach().float() * counted
        loss = losses["loss"] * (rows / self._mean_rows) if model.training and self._mean_rows else losses["loss"]
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Take the micro-batches of a step, and note how many rows they have in the mean."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._mean_rows = sum(map(find_batch_size, batches)) / max(len(batches), 1)
        return batches, num_items

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as `Trainer` does, without the rows that fill the last batch of several processes up.

        In an evaluation, a loss that needs no labels is measured of rows without them too.
        """
        if self._is_evaluating and not self._needs_labels() and any(inputs.get(it) is None for it in self.label_names):
            before = self.label_names, self.can_return_loss
            self.label_names, self.can_return_loss = [], True
            try:
                return *self.prediction_step(model, inputs, *args, **kwargs)[:2], None
            finally:
                self.label_names, self.can_return_loss = before

        rows, state = find_batch_size(inputs), self.accelerator.gradient_state
        left, first = (state.remainder if state.end_of_dataloader else 0), self.args.process_index * rows
        if not 0 < left < rows * self.args.world_size:
            return super().prediction_step(model, inputs, *args, **kwargs)

        # A process without real rows computes one that counts nothing; what is gathered has the size of all others.
        if self.compares_rows:
            self._has_real_rows = first == 0
            own = {name: _of_all(name, value)[:left] for name, value in inputs.items()}
            with as_one_process():
                loss, *outputs = super().prediction_step(model, own, *args, **kwargs)
        else:
            self._has_real_rows = left > first
            own = {name: value[: max(left - first, 1)] for name, value in inputs.items()}
            loss, *outputs = super().prediction_step(model, own, *args, **kwargs)
            first = 0
        self._has_real_rows = True
        return loss, *(_filled(output, first, rows) for output in outputs)

    def _needs_labels(self) -> bool:
        return True

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `RecordingTrainer` does."""
        self._is_evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._is_evaluating = False

    def _take_terms(self) -> dict[str, float]:
        """Return the mean of each term since the last call, over all processes, and start anew."""
        sums, self._terms = self._terms, {}
        if len(sums) < 2:
            return {}
        totals = torch.stack([value.to(self.args.device) for value in sums.values()])
        means = dict(zip(sums, self.accelerator.reduce(totals, reduction="sum").tolist(), strict=True))
        rows = means.pop(_ROWS)
        return {name: value / rows for name, value in means.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss terms beside the loss they make up."""
        if "loss" in logs:
            logs = {**logs, **self._take_terms()}
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate, with the loss terms among the metrics, and the rows in their own order."""
        # Those of the training steps since the last log are put aside.
        training, self._terms = self._terms, {}
        measure, order = self.compute_metrics, get_sampler(dataloader)
        places = np.argsort(order) if isinstance(order, list) else None
        if measure is not None and places is not None:
            self.compute_metrics = lambda found: measure(_rows_of(found, places))
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self.compute_metrics = measure

        terms = {f"{metric_key_prefix}_{name}": value for name, value in self._take_terms().items()}
        self._terms = training
        output = output._replace(metrics={**output.metrics, **terms})
        if places is None:
            return output
        rows = {name: _taken(getattr(output, name), places) for name in ("predictions", "label_ids")}
        return output._replace(**rows)


def _of_all(name: str, values: Any) -> Any:
    """Gather the rows of all processes; those of shorter texts are filled up with what stands for nothing."""
    if isinstance(values, list):  # images and texts as they are, for a teacher of another family
        return gather_object(values)
    nothing = -100 if name.endswith("labels") else 0
    return gather_rows(values - nothing) + nothing if nothing else gather_rows(values)


def _rows_of(found: EvalPrediction, places: Any) -> EvalPrediction:
    """Return what an evaluation found, row by row in another order."""
    parts = found.predictions, found.label_ids, found.inputs, found.losses
    return EvalPrediction(*(_taken(part, places) for part in parts))


def _taken(values: Any, places: Any) -> Any:
    """Return rows of an array, or of those of a tuple or mapping."""
    if isinstance(values, tuple | list):
        return type(values)(_taken(one, places) for one in values)
    if isinstance(values, Mapping):
        return {name: _taken(one, places) for name, one in values.items()}
    return values if values is None else values[places]


def _filled(values: Any, first: int, rows: int) -> Any:
    """Return so many rows of a tensor, or of those of a tuple, from one on; where none are left, the last again."""
    if isinstance(values, tuple):
        return tuple(_filled(one, first, rows) for one in values)
    return values if values is None else values[torch.arange(first, first + rows).clamp(max=len(values) - 1)]
