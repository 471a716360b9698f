"""A Trainer whose objective has a state of its own (a projection, a queue): it goes with the weights that it fits."""

from pathlib import Path
from typing import Any

from dual_distill.objectives import Objective

from .optimizer import load_optimizer, save_optimizer
from .row_means import RowMeansTrainer

_OPTIMIZER = "objective_optimizer.safetensors"


class ObjectiveStateTrainer(RowMeansTrainer):
    """A `RowMeansTrainer` that saves the state of its objective in each checkpoint, and takes it up from there.

    Args:
        **kwargs: as for `transformers.Trainer`.
    """

    distillation_objective: Objective | None = None
    _objective_optimizer: Any = None  # of its parameters, where what the student's steps is sharded

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `RecordingTrainer` does; in a checkpoint, one of weights alone too, with the objective's state."""
        super().save_model(output_dir, _internal_call)
        if self._unfinished is not None and self.distillation_objective is not None and self.args.should_save:
            self.distillation_objective.save_state(self._unfinished)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.distillation_objective is not None:
            self.distillation_objective.load_state(str(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._objective_optimizer is not None and self.args.should_save:
            save_optimizer(self._objective_optimizer, Path(output_dir, _OPTIMIZER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take up what a checkpoint holds."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.distillation_objective is not None and checkpoint is not None:
            self.distillation_objective.load_state(checkpoint)
            if self._objective_optimizer is not None:
                load_optimizer(self._objective_optimizer, Path(checkpoint, _OPTIMIZER))
