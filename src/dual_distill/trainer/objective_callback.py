"""Steps of the parameters of an objective, which no wrapped module holds."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback


class ObjectiveCallback(TrainerCallback):
    """Averages, clips and clears the gradients of an objective's own parameters, and tells it the end of each step.

    The objective is no part of the student, so neither DistributedDataParallel nor `model.zero_grad()` reaches it.
    Gradients are clipped by themselves, so that the student is clipped as it would be without them.

    Args:
        trainer: a `DistillationTrainer`, whose objective it is; in each run of a search another.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Give every process the mean gradient."""
        accelerator, largest = self.trainer.accelerator, self.trainer.args.max_grad_norm
        objective: Any = self.trainer.distillation_objective
        parameters = [one for one in objective.parameters() if one.requires_grad]
        if accelerator.num_processes > 1:
            for parameter in parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(gradient, reduction="mean")
        if largest > 0 and parameters:
            nn.utils.clip_grad_norm_(parameters, largest)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clear the gradients, and let the objective take in what the step collected."""
        objective: Any = self.trainer.distillation_objective
        if (own := self.trainer._objective_optimizer) is not None:
            for group in own.param_groups:
                group["lr"] = self.trainer._get_learning_rate()
            own.step()
        objective.zero_grad()
        objective.finish_step()
