"""A Trainer whose checkpoints are whole or not there, and which resumes from one that is.

What is unusual: transformers writes a checkpoint file by file under its name, and takes the highest number for the last
one. Here it is written in a hidden folder, sealed and renamed, before an older one is removed; what is resumed from is
verified file by file.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import PREFIX_CHECKPOINT_DIR, TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints, sort_checkpoints

from dual_distill import sealed

from .finite_trainer import FiniteTrainer

_logger = logging.getLogger(__name__)
# Without one of these transformers would begin anew, in part, and say nothing.
_NEEDED = ("optimizer.pt", "scheduler.pt", TRAINER_STATE_NAME)


class SealedTrainer(FiniteTrainer):
    """A `Trainer` that seals its checkpoints, verifies what it reads of them, and trains in its folder alone.

    Args:
        *args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.
    """

    _unfinished: Path | None = None  # the checkpoint that is being written

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; `True` resumes from the newest checkpoint that is whole.

        Raises:
            ValueError: the checkpoint is damaged, none is whole, or another process writes into the output folder.
        """
        found = resume_from_checkpoint or None
        if found is True:
            found = newest_whole(self.args.output_dir)
            if found is None:
                raise ValueError(f"{self.args.output_dir!r} holds no whole checkpoint to resume from; leave it out.")
        elif found is not None:
            sealed.verify(found)
        if found is not None:
            missing = [name for name in _NEEDED if not Path(found, name).is_file()]
            if missing and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
                raise ValueError(f"{found!r} has no {missing[0]}; resume from a checkpoint that was saved whole.")
        with sealed.locked(self.args.output_dir, writes=self.args.should_save):
            result = super().train(found, *args, **kwargs)
            self._end_workers()

            if self.args.should_save:  # what a kill left that came while a checkpoint was written or removed
                self._remove_old_checkpoints(self.args.output_dir)
                for unfinished in Path(self.args.output_dir).glob(f".{PREFIX_CHECKPOINT_DIR}-*.unfinished"):
                    shutil.rmtree(unfinished)
        return result

    def _end_workers(self) -> None:
        """End workers that outlive an epoch: the garbage collector would wait five seconds for each that it finds."""
        for prepared in self.accelerator._dataloaders:
            loader = getattr(prepared, "base_dataloader", prepared)
            if getattr(loader, "_iterator", None) is not None:
                loader._iterator._shutdown_workers()
                loader._iterator = None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that was stopped behind its last step has none left; transformers would take one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished.parent)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args, state = self.args, self.state
        final = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        aside = final.parent / f".{final.name}.unfinished" / final.name
        if args.should_save:
            sealed.begin(aside)
        self.accelerator.wait_for_everyone()

        self._unfinished = aside
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if state.best_model_checkpoint == str(aside):
                state.best_model_checkpoint = str(final)

            if args.should_save:
                state.save_to_json(str(aside / TRAINER_STATE_NAME))
                sealed.seal(aside)
                if final.exists():  # it was passed over
                    final.rename(aside.with_name("replaced"))
                sealed.publish(aside, final)
        finally:
            self._unfinished = None
            if args.should_save:
                shutil.rmtree(aside.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()

        # What transformers does last, with the hidden folder in place of the output folder.
        if args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if args.should_save:
            self._remove_old_checkpoints(str(final.parent))

    def _remove_old_checkpoints(self, folder: str) -> None:
        # By their steps, not by time as transformers: one that is half removed would be the newest, a whole one go.
        rotate_checkpoints(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _load_best_model(self) -> None:
        sealed.verify(str(self.state.best_model_checkpoint))
        super()._load_best_model()


def newest_whole(folder: str | Path) -> str | None:
    """Return the newest checkpoint of a run that is whole; those that are passed over are named, with the reason.

    Raises:
        ValueError: none is, and there is one of an earlier version.
    """
    unsealed = None
    for checkpoint in reversed(sort_checkpoints(str(folder))):
        try:
            sealed.verify(checkpoint)
            if sealed.read_seal(checkpoint):
                return str(checkpoint)
            unsealed, problem = checkpoint, f"it has no {sealed.SEAL}"
        except ValueError as error:
            problem = str(error)
        _logger.warning("passed over %s: %s", Path(checkpoint).name, problem)

    if unsealed is not None:
        way_out = "resume_from_checkpoint takes it as it is, --overwrite begins anew"
        raise ValueError(f"{unsealed!r} was written by an earlier version, and cannot be verified; {way_out}.")
    return None
