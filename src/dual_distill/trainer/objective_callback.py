"""What an objective with parameters or a queue needs of a run: its gradients over all processes, and the end of a step.

The objective is no part of the student, so neither DistributedDataParallel nor Trainer's `model.zero_grad()` reaches
it.
"""

from typing import Any

import torch
from transformers import TrainerCallback


class ObjectiveCallback(TrainerCallback):
    """Averages, clips and clears the gradients of an objective's own parameters, and tells it the end of each step.

    Gradients are clipped by themselves, so that the student is clipped as it would be without them.

    Args:
        trainer: whose objective it is; in each run of a search another.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Give every process the mean gradient."""
        accelerator, largest = self.trainer.accelerator, self.trainer.args.max_grad_norm
        parameters = [one for one in self.trainer.distillation_objective.parameters() if one.requires_grad]
        if accelerator.num_processes > 1:
            for parameter in parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(gradient, reduction="mean")
        if largest > 0 and parameters:
            torch.nn.utils.clip_grad_norm_(parameters, largest)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clear the gradients, and let the objective take in what the step collected."""
        self.trainer.distillation_objective.zero_grad()
        self.trainer.distillation_objective.finish_step()
