"""A Trainer that stops when something is no number any more, instead of training on and saving it.

What is unusual: no step waits for the device. The first step at which a value was not finite is noted beside it, and
looked at when a log, an evaluation or a save waits anyway; weights are looked at before they are saved, so that every
checkpoint in the output folder is good. transformers' own filter would log such a loss as the mean of those before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

_NEVER = 2**62


class FiniteTrainer(Trainer):
    """A `Trainer` whose loss, gradients, saved weights, and whatever else is noted, must be finite.

    Args:
        *args: as for `transformers.Trainer`.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        ValueError: in training, evaluating and saving: something is NaN or infinite; the sentence names it, the step
            and the last good checkpoint.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._not_finite: dict[str, torch.Tensor] = {}
        super().__init__(*args, **kwargs)

    def note_finite(self, name: str, values: Any) -> None:
        """Note, on the device, the first step at which one of the tensors in `values` was not finite."""
        step = self.state.global_step + int(self.is_in_train and self.model.training)
        for value in _floating(values):
            noted = torch.where(value.detach().isfinite().all(), _NEVER, step)
            self._not_finite[name] = torch.minimum(self._not_finite.get(name, noted), noted)

    def check_finite(self) -> None:
        """Stop where something was not finite in any process since the last check; waits for the device."""
        noted, self._not_finite = self._not_finite, {}
        if not noted:
            return
        steps = torch.stack([step.to(self.args.device) for step in noted.values()])
        first = self.accelerator.gather(steps[None]).amin(0).tolist()
        found = sorted((step, name) for step, name in zip(first, noted, strict=True) if step != _NEVER)
        if found:
            names = " and ".join(name for step, name in found if step == found[0][0])
            self._stop(f"{names} at step {found[0][0]}")

    def check_weights(self) -> None:
        """Refuse to save weights that are not finite."""
        # Of what is sharded each process looks at its own part.
        parameters = self.accelerator.unwrap_model(self.model).named_parameters()
        own = ((name, getattr(weight, "to_local", lambda weight=weight: weight)()) for name, weight in parameters)
        if found := [name for name, weight in own if not weight.isfinite().all()]:
            self._stop(f"{len(found)} weights after step {self.state.global_step} (the first is {found[0]})")

    def _stop(self, what: str) -> None:
        good = get_last_checkpoint(self.args.output_dir) if self.args.should_save else None
        last = f"the last good checkpoint is {good}" if good else "no checkpoint was saved before"
        way_out = "look at the learning rate, the teacher and the rows"
        raise ValueError(f"not a number (NaN or infinity): {what}; nothing of it was saved, {last}; {way_out}.")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # float16's scaler meets infinite gradients as it looks for its scale, and passes over such steps.
        if not self.args.fp16:
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            self.note_finite("the gradients", whole)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as `Trainer` does, and stop where something was not finite."""
        output = super().evaluation_loop(*args, **kwargs)
        self.check_finite()
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, if all weights are finite."""
        self.check_weights()
        super().save_model(output_dir, _internal_call)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.check_finite()
        return super()._finalize_training(*args, **kwargs)


def _floating(values: Any) -> Iterator[torch.Tensor]:
    """The floating point tensors in a tensor, a mapping or a sequence of such."""
    if isinstance(values, torch.Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping | list | tuple):
        for one in values.values() if isinstance(values, Mapping) else values:
            yield from _floating(one)
