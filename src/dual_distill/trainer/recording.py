"""A Trainer that knows what its run did: a record beside every checkpoint, its card, and pushes in one commit.

Unusual here:

* `run.json` is written beside the weights whenever they are saved, with the numbers that were measured on these very
  weights: those of an earlier step, or of a later one where the best checkpoint was loaded, are left out.
* Pushes do what transformers' do, `hub_strategy` and all, but in one commit each, with our card, and without
  `training_args.bin`: a pickle that may hold tokens.
* No constructor opens a socket: the first push creates the repository.
"""

import functools
import json
import logging
import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import MISSING, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    Origin,
    PushReport,
    RunRecord,
    origin_of,
    push_folder,
    read_run,
    write_card,
    write_run,
)

_logger = logging.getLogger(__name__)
_PACKAGES = ("dual-distill", "torch", "transformers", "datasets")
# Where things lie on one machine, what Trainer makes of it, and what the Hub client is told: no part of what was done.
_NOT_SETTINGS = {
    *("data", "init_from", "init_revision", "output_dir", "run_name", "teacher", "teacher_revision"),
    *("regions", "teacher_regions", "teacher_cache_dir", "accelerator_config", "dataloader_pin_memory", "use_cpu"),
}
_HUB_PREFIXES = ("hub_", "push_to_hub", "logging_dir", "report_to", "disable_tqdm", "resume_from")
# What Trainer says of the machine.
_NOT_METRICS = re.compile(r"mem_.*|(.*_)?(runtime|per_second|preparation_time|compilation_time)")


class RecordingTrainer(Trainer):
    """A `Trainer` that writes `run.json` with every checkpoint, and makes its card from it.

    Args:
        args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.
    """

    data_collator: Any

    def __init__(self, *, args: TrainingArguments, **kwargs: Any):
        self._told: dict[str, Any] = {"settings": {}}
        self._measurements: dict[int, dict[tuple[str, str], Measurement]] = {}
        self._loaded_step: int | None = None
        self._saved_step: int | None = None
        self._seconds = 0.0
        self._began: float | None = None
        super().__init__(args=args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        self._start = known_origin(loaded_from(model)) if self.args.should_save else None

    def describe_run(self, settings: Mapping[str, Any] | None = None, **known: Any) -> None:
        """Add to the record what the trainer cannot know.

        Args:
            settings: of a recipe, see `differing_fields`; those of the arguments are known.
            **known: fields of `RunRecord`, such as `data`, `start`, `teacher` and `command`; the rows are known.
        """
        self._told |= {**known, "settings": self._told["settings"] | (settings or {})}

    def run_record(self) -> RunRecord:
        """Return what is known of the run, and of the weights as they are now."""
        collator = getattr(self.data_collator, "collator", self.data_collator)
        name = getattr(getattr(collator, "task", None), "name", None)
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"validation": self.eval_dataset}
        datasets = {"train": self.train_dataset, **evaluated}
        rows = {split: count for split, dataset in datasets.items() if (count := _num_rows(dataset)) is not None}
        step = self._step()
        record = RunRecord(
            start=self._start,
            seed=self.args.seed,
            steps=step,
            train_seconds=round(self._train_seconds(), 3),
            device=torch.cuda.get_device_name(self.args.device) if self.args.device.type == "cuda" else None,
            measurements=tuple(self._measurements.get(step, {}).values()),
            versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        )

        # What the caller knows better stands; rows are those that the trainer was given.
        data = replace(self._told.get("data", DataOrigin(name)), rows=rows)
        settings = {**self._told["settings"], **differing_fields(self.args)}
        return replace(record, **{**self._told, "data": data, "settings": settings})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, and note how long."""
        self._measurements, self._loaded_step, self._saved_step = {}, None, None
        self._seconds, self._began = 0.0, time.perf_counter()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._seconds, self._began = self._train_seconds(), None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and note what was measured, by the prefix or the name of the dataset."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):  # each was evaluated by a call of its own
            return metrics

        rows = _num_rows(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)
        split = metric_key_prefix.removeprefix("eval_") if metric_key_prefix != "eval" else "validation"
        source = self._told.get("command") or f"{type(self).__name__}.evaluate"
        for name, value in metrics.items():
            metric = name.removeprefix(f"{metric_key_prefix}_")
            is_number = isinstance(value, int | float) and math.isfinite(value)  # NaN: the run failed
            if metric != name and is_number and not _NOT_METRICS.fullmatch(metric):
                one = Measurement(metric, value, split, source, rows)
                self._measurements.setdefault(self._step(), {})[split, metric] = one

        # In training the next save writes it; afterwards the weights lie there already.
        if not self.is_in_train and self._saved_step == self._step() and self.args.should_save:
            write_run(self.args.output_dir, self.run_record())
        return metrics

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,  # noqa: A002  (transformers' name)
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Save the model where that was not done, and write the card beside it from the record of the run.

        Args:
            language: of the texts, by its code.
            license: of the weights, as the Hub calls it.
            tags: beside those that every card has.
            model_name: what the model is called; None: as its repository, or its class.
            finetuned_from: repository that it was fine-tuned from; None: where its weights came from.
            tasks: the Hub's identifiers of what it is for; None: what follows from its head.
            dataset_tags: `owner/name` of the data sets on the Hub that it learned from.
            dataset: what the data is called; None: the task of the collator.
            dataset_args: configuration of each data set.
        """
        if self._saved_step != self._step():
            self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            # All of it is told, so that a later push says it again.
            told = {"model_name": model_name, "finetuned_from": finetuned_from, "tasks": _listed(tasks)}
            self._told |= {name: value for name, value in told.items() if value}
            name, arguments = " and ".join(_listed(dataset)), _listed(dataset_args)
            data: dict[str, Any] = {"name": name, "hub_ids": _listed(dataset_tags), "arguments": arguments}
            self._told["data"] = replace(self.run_record().data, **{name: it for name, it in data.items() if it})
            write_run(self.args.output_dir, self.run_record())

            # These stay in the README's own metadata.
            metadata = {"language": language, "license": license, "tags": _listed(tags)}
            write_card(self.args.output_dir, repo_id=self.args.hub_model_id, metadata=metadata)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Note the name of the repository; the first push creates it."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> "PushReport | Future[PushReport] | None":
        """Save, and push model, processor, record and card in one commit, and nothing else.

        Args:
            commit_message: of the commit.
            blocking: whether to wait for it.
            token: of the Hub; None: `args.hub_token`, else the one that is logged in.
            revision: branch; None: `args.hub_revision`, else main.
            private: whether a repository that is created is private; None: `args.hub_private_repo`.
            **card: of `create_model_card`.

        Returns:
            What was pushed, or without `blocking` a future of it; None on other processes than the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.save_model(_internal_call=True)
        tags = [*_listed(card.pop("tags", None)), *_listed(getattr(self.model, "model_tags", None))]
        self.create_model_card(tags=tags, **card)
        if not self.is_world_process_zero():
            return None

        self._finish_current_push()
        private = self.args.hub_private_repo if private is None else private
        push = self._push(self.args.output_dir, commit_message, token=token, revision=revision, private=private)
        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint beside the training that goes on, as `hub_strategy` says; what fails is a warning."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        is_pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_pushing and not self.args.hub_always_push:
            return
        self._finish_current_push()  # of two pushes at once one would be refused
        self.callback_handler.on_push_begin(self.args, self.state, self.control)

        # What is said of it, and where the state of the run goes.
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        state_folders = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }

        options = {"private": self.args.hub_private_repo, "state_folder": state_folders.get(strategy)}
        job = HfApi().run_as_future(self._push(checkpoint_folder, f"Training in progress, {progress}", **options))
        job.add_done_callback(_warn_of_failure)
        self.push_in_progress = PushInProgress([job])
        if self.args.save_total_limit is not None:
            self._finish_current_push()  # or the folder could be deleted under it

    def _push(
        self, folder: str, message: str | None, token: str | None = None, revision: str | None = None, **options: Any
    ) -> Callable[[], PushReport]:
        """Return what pushes a folder, as the arguments say where the caller does not."""
        options |= {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        return functools.partial(push_folder, folder, str(self.hub_model_id), message=message, **options)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save model or adapter, processor and record, and no pickle of the arguments."""
        folder = Path(output_dir or self.args.output_dir)
        card = folder / "README.md"
        written = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return

        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        # peft leaves an empty form for a card, or adds to the one that is there.
        if written is not None:
            card.write_bytes(written)
        else:
            card.unlink(missing_ok=True)
        write_run(folder, self.run_record())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, with the record of the run."""
        if output_dir in (None, self.args.output_dir):
            self._saved_step = self._step()
        super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._loaded_step = self.state.best_global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take up what was saved, the seconds that were trained before among it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (earlier := read_run(checkpoint)) is not None:
            self._seconds = earlier.train_seconds or 0.0

    def _step(self) -> int:
        """The step whose weights the model has."""
        return self.state.global_step if self._loaded_step is None else self._loaded_step

    def _train_seconds(self) -> float:
        return self._seconds + (0.0 if self._began is None else time.perf_counter() - self._began)


def known_origin(name: str | Path | None) -> Origin | None:
    """Return which weights a name stands for; None: there is no name, or it cannot be told any more."""
    if not name:
        return None
    try:
        return origin_of(name)
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
            is_default = value == default or not (value or default)  # None becomes False or [] on the way
            if not is_default and field.name not in _NOT_SETTINGS and not field.name.startswith(_HUB_PREFIXES):
                found[field.name] = value
    plain: dict[str, Any] = _without_paths(json.loads(json.dumps(found, default=str)))
    return plain


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
    count: int | None = len(dataset) if hasattr(dataset, "__len__") else getattr(dataset, "num_rows", None)
    return count


def _listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _warn_of_failure(job: "Future[PushReport]") -> None:
    if (error := job.exception()) is not None:
        _logger.warning("a checkpoint was not pushed, training goes on: %s", error)
