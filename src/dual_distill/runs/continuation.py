"""What lies in a run's output folder already: it is gone on from, finished, or another run's, and that is said."""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from dual_distill import sealed
from dual_distill.hub_cards import Origin, RunRecord, origin_of, read_run
from dual_distill.modeling import DualDistillProcessor
from dual_distill.teachers import load_config, load_model
from dual_distill.trainer import DistillationTrainer, DistillationTrainingArguments, newest_whole, note_preflight

from .arguments import DataArguments, ModelArguments
from .duration import count_steps, warn_if_long

_logger = logging.getLogger(__name__)
# What may change on the way: how a run is watched and saved, and how its rows are loaded.
_FREE = re.compile(
    r"(log|logging|save|eval|per_device_eval|max_eval|torch_empty|dataloader_(num|persistent|prefetch))_.*"
    r"|do_.*|load_best_model_at_end|metric_for_best_model|greater_is_better|ignore_data_skip"
)
# What a record says nothing of.
_DEFAULTS = {
    field.name: field.default
    for arguments in (ModelArguments, DataArguments, DistillationTrainingArguments)
    for field in fields(arguments)
    if field.default not in (MISSING, None)
}

# What records have said since they have said what the rows are known by.
_LATER = ("data", "text_tower", "vision_tower", "regions", "teacher_regions")


def train(trainer: DistillationTrainer, resume: bool = False, overwrite: bool = False) -> dict[str, float]:
    """Train, go on from the last checkpoint in the output folder if there is one, and save model and processor.

    A run that is finished is not trained again: the trainer takes its weights.

    Args:
        trainer: of the run.
        resume: whether a run of other settings in the folder is gone on with.
        overwrite: whether a run in the folder is removed.

    Returns:
        The metrics that Trainer reports, with `train_runtime` in seconds.

    Raises:
        ValueError: the folder holds a run of other settings, or another process writes into it.
    """
    with sealed.locked(trainer.args.output_dir, writes=trainer.args.should_save):
        checkpoint = find_checkpoint(trainer, resume, overwrite)
        if checkpoint == trainer.args.output_dir:
            return take_up_finished(trainer)
        if trainer.is_world_process_zero():
            warn_if_long(trainer)

        if checkpoint is not None:
            _logger.warning("resuming from %s", Path(checkpoint).name)
        note_preflight(trainer, checkpoint)

        metrics: dict[str, float] = trainer.train(resume_from_checkpoint=checkpoint).metrics
        trainer.save_model()
    return metrics


def find_checkpoint(trainer: DistillationTrainer, resume: bool, overwrite: bool) -> str | None:
    """Return what a run goes on from: the output folder itself where it is finished; None: the run begins.

    Raises:
        ValueError: the folder holds a run of other settings, and neither `resume` nor `overwrite` is set.
    """
    folder, named = Path(trainer.args.output_dir), trainer.args.resume_from_checkpoint
    if overwrite:
        if trainer.is_world_process_zero():
            _remove_run(folder)
        return None

    steps = None if named else _finished_steps(folder)
    last = named or newest_whole(folder)
    found = last if steps is None else trainer.args.output_dir
    earlier = None if found is None else read_run(found)
    differences = [] if earlier is None else _differences(earlier, trainer.run_record())
    shape: list[str] = []
    if found is not None and Path(found, "config.json").is_file():
        there, here = load_config(found), trainer.model.config
        others = f"labels: {len(there.id2label)} there, {len(here.id2label)} now, or in another order"
        differences += [] if there.id2label == here.id2label else [others]
        shape = _described(_shape(there), _shape(here))
    if shape or (differences and not resume):
        begun = f"{str(folder)!r} holds a run of other settings ({'; '.join(shape + differences)})"
        goes_on = "ask for the same shape" if shape else "give resume (--resume) to go on with these"
        raise ValueError(f"{begun}; {goes_on}, overwrite to begin anew, or another output_dir.")

    # With more steps than it was to have, a finished run goes on.
    asked = count_steps(trainer.train_dataset, trainer.args)["steps"] if differences else 0
    if steps is not None and asked > steps:
        if last is None:
            way_out = "overwrite to begin anew, or start from it (init_from) in another output_dir"
            raise ValueError(f"{str(folder)!r} holds a finished run and no whole checkpoint to go on from; {way_out}.")
        found = last
    resumed = None if found in (None, trainer.args.output_dir) else read_run(found)
    if resumed is not None:
        # Of larger batches a run has fewer steps.
        taken = TrainerState.load_from_json(str(Path(str(found), TRAINER_STATE_NAME))).global_step
        if differences and taken > asked:
            has_less = (
                f"{found!r} is at step {taken}, but with these settings the run has {asked} ({'; '.join(differences)})"
            )
            raise ValueError(f"{has_less}; give more max_steps or num_train_epochs, or settings as they were.")
        changed = [f"at step {resumed.steps}: {'; '.join(differences)}"] if differences else []
        trainer.describe_run(changed=[*resumed.changed, *changed])
    return found


def processor_of_run(folder: str | Path) -> DualDistillProcessor | None:
    """Return the processor that an earlier start of a run saved in its folder: one built anew could give other ids."""
    for found in (Path(folder), *sorted(Path(folder).glob("checkpoint-*"))):
        if (found / sealed.SEAL).is_file():
            try:
                return DualDistillProcessor.from_pretrained(found, trust_remote_code=False)
            except (OSError, ValueError) as error:
                _logger.warning("passed over the processor in %s: %s", found, error)
    return None


def take_up_finished(trainer: DistillationTrainer) -> dict[str, float]:
    """Give a trainer the weights and the state of the finished run in its folder; return what its training measured."""
    folder = Path(trainer.args.output_dir)
    trained: Any = trainer.model
    found = load_model(folder, model_class=type(trained)).model.state_dict()
    # A result may have kept projections that the objective has while it is trained.
    trained.load_state_dict(found, strict=not trainer.args.keep_attention_projections)
    record: Any = read_run(folder)
    trainer.take_up(record)
    trainer.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    # A record counts the steps of trainings before, a folder does not.
    step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else trainer.state.global_step
    objective, checkpoint = trainer.distillation_objective, folder / f"checkpoint-{step}"
    if objective is not None and objective.state_dict():
        if (checkpoint / objective.state_file).is_file():
            objective.load_state(checkpoint)
        else:
            lost = f"{checkpoint.name} is gone or holds no {objective.state_file}, and with it"
            learned = f"what a {type(objective).__name__} learned"
            _logger.warning("%s %s: losses that need it are measured with numbers drawn anew", lost, learned)
    _logger.warning("the run in %s is finished, %s steps; nothing is trained", folder, trainer.state.global_step)
    measured = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    return dict(measured[-1]) if measured else {}


def _finished_steps(folder: Path) -> int | None:
    """Steps of the run whose final weights lie in a folder; None: there is none, or they are others by now."""
    record, file = read_run(folder), folder / TRAINER_STATE_NAME
    if record is None or not file.is_file():
        return None
    try:
        sealed.verify(folder)
        if record.weights != origin_of(folder).revision:
            return None
    except ValueError as error:
        _logger.warning("the final model is made again: %s", error)
        return None
    state = TrainerState.load_from_json(str(file))
    return state.global_step if state.global_step >= state.max_steps > 0 else None


def _differences(earlier: RunRecord, now: RunRecord) -> list[str]:
    """Settings, data, teacher and start that are not what they were, each with both values."""
    there, here = (
        {**one.settings, "data": one.data.identity, "seed": one.seed, "teacher": one.teacher, "start": one.start}
        for one in (earlier, now)
    )
    # A record of before says nothing of some.
    unknown = _LATER if earlier.data.identity is None else ()
    named = [name for name in {**there, **here} if not _FREE.fullmatch(name) and name not in unknown]
    known = ({name: value for name, value in {**_DEFAULTS, **one}.items() if name in named} for one in (there, here))
    return _described(*known)


def _described(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs, each with both values."""
    values = [(name, there.get(name, "the default"), here.get(name, "the default")) for name in sorted({*there, *here})]
    return [f"{name}: {before} there, {after} now" for name, before, after in values if _known(before) != _known(after)]


def _shape(config: Any) -> dict[str, Any]:
    """What the weights of a model have their shape from: of other shapes no run goes on."""
    names = ("interaction_layers", "projection_dim", "hidden_size", "num_hidden_layers")
    parts = {
        "": config,
        "text_": getattr(config, "text_config", None),
        "vision_": getattr(config, "vision_config", None),
    }
    return {f"{part}{name}": getattr(one, name) for part, one in parts.items() for name in names if hasattr(one, name)}


def _known(value: Any) -> Any:
    """Return what a value is compared by: a checkpoint in a folder by its digest, wherever it lies."""
    return value.revision if isinstance(value, Origin) and not value.on_hub else value


def _remove_run(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, of which the last would be taken for one of the new run."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
