"""What an objective with parameters or a queue needs of a run: its gradients over all processes, and the end of each
step.

The objective is no part of the student, so neither DistributedDataParallel nor Trainer's `model.zero_grad()` reaches
it.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from dual_distill.objectives import Objective

OBJECTIVE_FILE = "objective.safetensors"
"""State of the objective in a checkpoint's folder; absent where it has none."""


class ObjectiveCallback(TrainerCallback):
    """Averages, clips and clears the gradients of an objective's own parameters, and tells it the end of each step.

    Gradients are clipped by themselves, so that the student is clipped as it would be alone.

    Args:
        objective: whose step it is.
        accelerator: of the run.
        max_grad_norm: largest norm of the gradients; 0: not clipped.
    """

    def __init__(self, objective: Objective, accelerator: Accelerator, max_grad_norm: float):
        self.objective = objective
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Give every process the mean gradient."""
        parameters = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(gradient, reduction="mean")
        if self.max_grad_norm > 0 and parameters:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clear the gradients, and let the objective take in what the step collected."""
        self.objective.zero_grad()
        self.objective.finish_step()


def save_objective(objective: Objective, folder: str | Path) -> None:
    """Write the state of an objective into a checkpoint's folder; one without state leaves no file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in objective.state_dict().items()}
    if state:
        save_file(state, Path(folder, OBJECTIVE_FILE))


def load_objective(objective: Objective, folder: str | Path) -> None:
    """Read the state of an objective from a checkpoint's folder, in place, so that an optimizer keeps its parameters.

    Raises:
        ValueError: the file is missing or damaged, or is that of another objective.
    """
    own = objective.state_dict()
    if not own:
        return
    file = Path(folder, OBJECTIVE_FILE)
    if not file.is_file():
        raise ValueError(
            f"{str(folder)!r} holds no {OBJECTIVE_FILE}, but the objective has a state (a queue, a projection) to "
            f"take up; "
            "resume from a checkpoint of the same method, or start anew in another output_dir."
        )
    try:
        found = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}); resume from an earlier checkpoint.") from error
    for name in sorted({*own, *found}):
        there, here = (None if name not in state else tuple(state[name].shape) for state in (found, own))
        if there != here:
            raise ValueError(
                f"{str(file)!r} has {name} of shape {there}, the objective of this run {here}; resume with the "
                f"settings that "
                "the checkpoint was written with."
            )
    objective.load_state_dict(found)


__all__ = ["OBJECTIVE_FILE", "ObjectiveCallback", "load_objective", "save_objective"]
