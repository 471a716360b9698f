"""What an objective with parameters or a queue needs of a run: its gradients over all processes, and the end of each
step.

The objective is no part of the student, so neither DistributedDataParallel nor Trainer's `model.zero_grad()` reaches
it.
"""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from dual_distill.objectives import Objective


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
