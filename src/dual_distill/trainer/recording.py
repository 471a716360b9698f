"""A Trainer that knows what its run did: a record beside every checkpoint, its card, and pushes in one commit.

Unusual here:

* `run.json` is written beside the weights whenever they are saved, with the numbers that were measured on these very
  weights: those of an earlier step, or of a later one where the best checkpoint was loaded, are left out.
* Pushes do what transformers' do, `hub_strategy` and all, but in one commit each, with our card, and without
  `training_args.bin`: a pickle that may hold tokens.
* No constructor opens a socket: the first push creates the repository.
"""

import functools
import inspect
import json
import logging
import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import MISSING, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import NamedSplit
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from dual_distill import hub_cards, sealed
from dual_distill.data import identify_rows

from .sealed_trainer import SealedTrainer

_logger = logging.getLogger(__name__)
_PACKAGES = ("dual-distill", "torch", "transformers", "datasets")
# Where things lie on one machine, what Trainer makes of it, and what the Hub client is told: no part of what was done.
_NOT_SETTINGS = {
    *("data", "init_from", "init_revision", "output_dir", "run_name", "teacher", "teacher_revision"),
    *("text_tower", "vision_tower", "accelerator_config", "dataloader_pin_memory", "use_cpu"),
    *("regions", "teacher_regions", "teacher_cache_dir", "preflight"),
}
_NOT_SETTINGS_OF = ("ddp_", "hub_", "push_to_hub", "logging_dir", "report_to", "disable_tqdm", "resume_from")
# What a record has from the last training.
_OF_A_TRAINING = ("_earlier_steps", "_seconds", "_measurements", "_loaded_step", "_saved_step", "_finished")
# What Trainer says of the machine.
_NOT_METRICS = re.compile(r"mem_.*|(.*_)?(runtime|per_second|preparation_time|compilation_time)")


class RecordingTrainer(SealedTrainer):
    """A `Trainer` that writes `run.json` with every checkpoint, and makes its card from it.

    Args:
        args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.
    """

    data_collator: Any

    def __init__(self, *, args: TrainingArguments, **kwargs: Any):
        self._told: dict[str, Any] = {"settings": {}}
        self._measurements: dict[tuple[int, str, str], hub_cards.Measurement] = {}
        self._loaded_step: int | None = None
        self._saved_step: int | None = None
        self._rows_of_loaders: dict[str, Any] = {}
        self._finished: hub_cards.RunRecord | None = None
        self._told_before: dict[str, Any] = {}
        self._seconds = self._began = 0.0
        self._earlier_steps = 0  # of trainings before, which gave the weights that this one began with
        super().__init__(args=args, **kwargs)

        # Known by its weights as they are now, whatever happens to their folder later.
        model = self.accelerator.unwrap_model(self.model)
        self._start = known_origin(loaded_from(model)) if self.args.should_save else None

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Give each loader a generator of its own to seed its workers from, so that dropout draws the same on a resume.

        Workers that outlive an epoch are seeded once in a whole run, and once more after each resume.
        """
        loader = super()._get_dataloader(*args, **kwargs)
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the batches of an evaluation; those of workers that outlive it are held for the same rows alone."""
        name = eval_dataset if isinstance(eval_dataset, str) else "eval"
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[name] if isinstance(given, str) else given
        if self._rows_of_loaders.get(name) is not rows:
            self.__dict__.get("_eval_dataloaders", {}).pop(name, None)
            self._rows_of_loaders[name] = rows
        return super().get_eval_dataloader(eval_dataset)

    def describe_run(self, settings: Mapping[str, Any] | None = None, **known: Any) -> None:
        """Add to the record what the trainer cannot know.

        Args:
            settings: of a recipe, see `differing_fields`; those of the arguments are known.
            **known: fields of `RunRecord`, such as `data`, `start`, `teacher` and `command`; the rows are known.
        """
        self._told |= {**known, "settings": self._told["settings"] | (settings or {})}

    def run_record(self) -> hub_cards.RunRecord:
        """Return what is known of the run, and of the weights as they are now."""
        collator = getattr(self.data_collator, "collator", self.data_collator)
        task_name = getattr(getattr(collator, "task", None), "name", None)
        splits = {"train": self.train_dataset, **self._evaluated()}
        rows = {split: _num_rows(dataset) for split, dataset in splits.items()}
        now = self._step()
        measured = tuple(one for (step, *_), one in self._measurements.items() if step == now)
        if self._finished is not None:
            anew = {(one.metric, one.split) for one in measured}
            kept = [one for one in self._finished.measurements if one.task or (one.metric, one.split) not in anew]
            told = {name: value for name, value in self._told.items() if value is not self._told_before.get(name)}
            told.pop("settings", None)
            return replace(self._finished, **told, measurements=(*kept, *measured))

        # What the caller knows better stands; rows are those that the trainer was given.
        known: dict[str, Any] = {
            "start": self._start,
            "seed": self.args.seed,
            "steps": self._earlier_steps + now,
            "train_seconds": round(time.perf_counter() - self._began if self.is_in_train else self._seconds, 3),
            "device": torch.cuda.get_device_name(self.args.device) if self.args.device.type == "cuda" else None,
            "measurements": measured,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            **self._told,
        }
        data = self._told.get("data", hub_cards.DataOrigin(task_name))
        rows = {split: count for split, count in rows.items() if count is not None}
        identity = identify_rows(self.train_dataset)
        known["data"] = replace(data, rows=rows, identity=identity, task=data.task or task_name)
        known["settings"] = {**self._told["settings"], **differing_fields(self.args)}
        return hub_cards.RunRecord(**known)

    def take_up(self, record: hub_cards.RunRecord) -> None:
        """Stand for a finished run, whose weights the model has: its record changes by what is measured now alone."""
        self._finished, self._told_before = replace(record, weights=None), dict(self._told)
        self._measurements, self._loaded_step, self._seconds = {}, record.steps, record.train_seconds or 0.0

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, and note how long; a training of these weights before counts too."""
        goes_on = not resume_from_checkpoint and self.model_init is None
        state, before = self.state, {name: getattr(self, name) for name in _OF_A_TRAINING}
        self._earlier_steps = self._earlier_steps + self._step() if goes_on else 0
        self._began = time.perf_counter() - (self._seconds if goes_on else 0.0)
        self._measurements, self._loaded_step, self._saved_step, self._finished = {}, None, None, None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.is_in_train = False  # where it was stopped too, or the clock would run on
            self._seconds = time.perf_counter() - self._began
            if self.state is state:  # it was refused before it began
                self.__dict__.update(before)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and note what was measured, by the prefix or the name or split of the dataset."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):  # each was evaluated by a call of its own
            return metrics

        rows = _num_rows(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)
        if rows and self.args.dataloader_drop_last:  # which leaves out the last rows of an evaluation too
            rows -= rows % (self.args.eval_batch_size * self.args.world_size)
            if not rows:
                _logger.warning("nothing was measured: dataloader_drop_last leaves out all rows, which fill no batch")
        split = metric_key_prefix.removeprefix("eval_") if metric_key_prefix != "eval" else self._split_of(dataset)
        if split is None:
            way_out = "give metric_key_prefix, such as 'test', for numbers that a card may hold"
            _logger.warning("nothing was noted: these rows are not the trainer's and have no split; %s", way_out)
            return metrics
        source = self._told.get("command") or f"{type(self).__name__}.evaluate"
        for name, value in metrics.items():
            metric = name.removeprefix(f"{metric_key_prefix}_")
            # What is not finite has no place on a card: the run failed.
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if metric != name and is_number and not _NOT_METRICS.fullmatch(metric):
                measured = hub_cards.Measurement(metric, value, split, source, rows)
                self._measurements[self._step(), split, metric] = measured

        # In training the next save writes it; afterwards the weights lie there already.
        if not self.is_in_train and self._saved_step == self._step() and self.args.should_save:
            hub_cards.write_run(self.args.output_dir, self.run_record())
        return metrics

    def _evaluated(self) -> dict[str, Any]:
        """The rows that the trainer evaluates on, by what they are called."""
        given = self.eval_dataset
        return given if isinstance(given, dict) else {} if given is None else {"validation": given}

    def _split_of(self, dataset: Any) -> str | None:
        """What rows are called that were evaluated without a prefix of their own; None: it is not known."""
        for split, rows in self._evaluated().items():
            if dataset is rows or dataset == split:
                return split
        # Others must not take the name of the trainer's own.
        found = getattr(dataset, "split", None)
        return str(found) if isinstance(found, str | NamedSplit) and str(found) not in self._evaluated() else None

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """Save the model where that was not done, and write the card beside it from the record of the run.

        Args:
            *given: as transformers' `Trainer.create_model_card` takes them, in its order.
            **named: the same by name: `language` and `license` of texts and weights, `tags` beside those that every
                card has, `model_name`, `finetuned_from` in place of where the weights came from, `tasks` in place of
                what follows from the head, `dataset` in place of the collator's task, `dataset_tags` (`owner/name` of
                data sets on the Hub) and `dataset_args` (the configuration of each).

        Raises:
            TypeError: an argument that transformers' method does not have.
        """
        card = inspect.signature(Trainer.create_model_card).bind(self, *given, **named).arguments
        if self._saved_step != self._step():
            self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return

        # All of it is told, so that a later push says it again.
        told = {name: card.get(name) for name in ("model_name", "finetuned_from")}
        told["tasks"] = _listed(card.get("tasks"))
        dataset, hub_ids, arguments = (_listed(card.get(name)) for name in ("dataset", "dataset_tags", "dataset_args"))
        data: dict[str, Any] = {"name": " and ".join(dataset), "hub_ids": hub_ids, "arguments": arguments}
        self._told |= {name: value for name, value in told.items() if value}
        self._told["data"] = replace(self.run_record().data, **{name: value for name, value in data.items() if value})
        hub_cards.write_run(self.args.output_dir, self.run_record())

        # These stay in the README's own metadata.
        metadata = {"language": card.get("language"), "license": card.get("license"), "tags": _listed(card.get("tags"))}
        hub_cards.write_card(self.args.output_dir, repo_id=self.args.hub_model_id, metadata=metadata)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Note the name of the repository; the first push creates it."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.push_in_progress = None

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, **options: Any
    ) -> "hub_cards.PushReport | Future[hub_cards.PushReport] | None":
        """Save, and push model, processor, record and card in one commit, and nothing else.

        Args:
            commit_message: of the commit.
            blocking: whether to wait for it.
            **options: `token`, `revision` (a branch) and `private` (of a repository that is created), in place of
                `hub_token`, `hub_revision` and `hub_private_repo` of the arguments; others as for `create_model_card`.

        Returns:
            What was pushed, or without `blocking` a future of it; None on other processes than the first.
        """
        where = {name: options.pop(name, None) for name in ("token", "revision", "private")}
        tags = [*_listed(options.pop("tags", None)), *_listed(getattr(self.model, "model_tags", None))]
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo()

        self.save_model(_internal_call=True)
        self.create_model_card(tags=tags, **options)
        if not self.is_world_process_zero():
            return None

        self._finish_current_push()
        push = self._push(self.args.output_dir, commit_message, where)
        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint beside the training that goes on, as `hub_strategy` says; what fails is a warning."""
        strategy, pushing = self.args.hub_strategy, self.push_in_progress
        is_skipped = pushing is not None and not pushing.is_done() and not self.args.hub_always_push
        is_skipped |= self._unfinished is not None
        if is_skipped or strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        # Of two pushes at once one would be refused.
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)

        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        own_name = Path(checkpoint_folder).name
        state_folders = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: own_name}
        options = {"state_folder": state_folders.get(strategy)}
        job = HfApi().run_as_future(self._push(checkpoint_folder, f"Training in progress, {progress}", options))

        job.add_done_callback(_warn_of_failure)
        self.push_in_progress = PushInProgress([job])
        # Or the folder could be deleted under it.
        if self.args.save_total_limit is not None:
            self._finish_current_push()

    def _push(self, folder: str, message: str | None, options: Mapping[str, Any]) -> Callable[[], hub_cards.PushReport]:
        """Return what pushes a folder, as the arguments say where the caller does not."""
        args = self.args
        own = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
        own |= {name: value for name, value in options.items() if value is not None}
        return functools.partial(hub_cards.push_folder, folder, str(self.hub_model_id), message=message, **own)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save model or adapter, processor and record, and no pickle of the arguments."""
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return

        with sealed.written(folder) if self._unfinished is None else nullcontext(folder) as aside:
            super()._save(str(aside), state_dict)
            # A state beside the weights that it is of. peft leaves an empty form for a card.
            if folder == Path(self.args.output_dir):
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
            for name in (TRAINING_ARGS_NAME, "README.md"):
                (aside / name).unlink(missing_ok=True)
            sealed.seal(aside)
            hub_cards.write_run(aside, self.run_record())

    def save_state(self) -> None:
        """Save the state with the weights that it is of, unless both lie there."""
        if self._saved_step != self._step():
            self.save_model(_internal_call=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, with the record of the run."""
        if output_dir in (None, self.args.output_dir):
            self._saved_step = self._step()
        super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._loaded_step = self.state.best_global_step
        self._recall(self.state.best_model_checkpoint, self._loaded_step or 0)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take up what was saved, the seconds that were trained before among it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (earlier := self._recall(checkpoint, self.state.global_step)) is not None:
            self._began -= earlier.train_seconds or 0.0
            self._earlier_steps = max((earlier.steps or 0) - self.state.global_step, 0)

    def _recall(self, checkpoint: Any, step: int) -> hub_cards.RunRecord | None:
        """Read the record of a checkpoint; what was measured of its weights is known again."""
        if (record := hub_cards.read_run(checkpoint)) is not None:
            known: Any = {(step, one.split, one.metric): one for one in record.measurements}
            self._measurements = known | self._measurements
        return record

    def _step(self) -> int:
        """The step whose weights the model has."""
        return self.state.global_step if self._loaded_step is None else self._loaded_step


def known_origin(name: str | Path | None) -> hub_cards.Origin | None:
    """Return which weights a name stands for; None: there is no name, or it cannot be told any more."""
    if not name:
        return None
    try:
        return hub_cards.origin_of(name)
    except ValueError as error:
        _logger.warning("the record of the run will not say which weights were used: %s", error)
        return None


def loaded_from(model: Any) -> str | None:
    """Where a model was loaded from, as transformers notes it."""
    inside = getattr(model, "get_base_model", lambda: model)()
    return getattr(getattr(inside, "config", None), "_name_or_path", None)


def differing_fields(*arguments: Any) -> dict[str, Any]:
    """Return the fields of dataclasses that differ from their defaults, as JSON; paths and Hub settings are left out.

    Example:
        >>> from dual_distill.hub_cards import DataOrigin
        >>> differing_fields(DataOrigin(revision="b"))
        {'revision': 'b'}
    """
    found = {}
    for one in arguments:
        for field in fields(one):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            value = getattr(one, field.name)
            # None becomes False or [] on the way; a 0 was given.
            is_default = value == default or not (value or default or type(value) in (int, float))
            if not is_default and field.name not in _NOT_SETTINGS and not field.name.startswith(_NOT_SETTINGS_OF):
                found[field.name] = value
    return _without_paths(json.loads(json.dumps(found, default=str)))


def _without_paths(value: Any) -> Any:
    """Where files lie on one machine is no part of what was done, and a push would refuse it."""
    if isinstance(value, dict):
        kept = {name: _without_paths(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item not in ("", {}, [])}
    if isinstance(value, list):
        return [item for item in map(_without_paths, value) if item != ""]
    return "" if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _num_rows(dataset: Any) -> int | None:
    """Rows of a table, or of a stream that says how many it has."""
    return len(dataset) if hasattr(dataset, "__len__") else getattr(dataset, "num_rows", None)


def _listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _warn_of_failure(job: "Future[hub_cards.PushReport]") -> None:
    if (error := job.exception()) is not None:
        _logger.warning("a checkpoint was not pushed, training goes on: %s", error)
