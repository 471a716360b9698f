"""Optimizers of a run: a learning rate of its own for heads, Muon for the matrices inside layers."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def rate_heads(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Multiply the learning rate of a model's classifier; as in the authors' release not that of the interaction."""
    if factor == 1.0:
        return
    heads = {id(parameter) for name, parameter in model.named_parameters() if "classifier." in name}
    for group in list(optimizer.param_groups):
        if chosen := [parameter for parameter in group["params"] if id(parameter) in heads]:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * factor})


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps both; learning rates, state and checkpoints are those of one optimizer, so a scheduler reaches both.

    Muon orthogonalises the momentum of a matrix, so that all of its directions learn at the same rate.

    Args:
        muon: its groups come first.
        adamw: of all other parameters.

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024; Liu et al., *Muon is scalable
        for LLM training*, arXiv 2502.16982, for the scale of its updates, which is AdamW's.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> pair = torch.optim.Muon([layer.weight], lr=0.1), torch.optim.AdamW([layer.bias], lr=0.01)
        >>> [group["lr"] for group in MuonWithAdamW(*pair).param_groups]
        [0.1, 0.01]
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.Optimizer):
        self._parts = (muon, adamw)
        self._num_muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a loaded state; the parts keep reading the same one."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both parts; `closure` computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def _share(self) -> None:
        """Groups and state are one and the same object here and in the parts."""
        muon, adamw = self._parts
        muon.param_groups = self.param_groups[: self._num_muon_groups]
        adamw.param_groups = self.param_groups[self._num_muon_groups :]
        muon.state = adamw.state = self.state


def with_muon(
    optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float, is_sharded: bool = False
) -> MuonWithAdamW:
    """Hand the matrices inside a model's stacks of layers from its optimizer over to Muon.

    What Muon is made for: trained weights between hidden states. Embeddings, patch projections, poolers and heads are
    none. Weight decay stays that of each matrix' group.

    Raises:
        ValueError: the model has no such matrix, or its matrices are sharded.
    """
    if is_sharded:
        raise ValueError("muon_learning_rate is given, but FSDP and DeepSpeed shard the matrices; leave it out.")
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linear = [module for stack in stacks for module in stack.modules() if isinstance(module, nn.Linear)]
    matrices = {id(module.weight) for module in linear if module.weight.requires_grad}

    groups = []
    for group in optimizer.param_groups:
        if chosen := [parameter for parameter in group["params"] if id(parameter) in matrices]:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in matrices]
            groups.append({"params": chosen, "weight_decay": group["weight_decay"]})
    if not groups:
        raise ValueError("muon_learning_rate is given, but no layer's matrix is trained; leave it out.")
    # Its updates are scaled as AdamW's are, so that one weight decay fits both.
    return MuonWithAdamW(torch.optim.Muon(groups, lr=learning_rate, adjust_lr_fn="match_rms_adamw"), optimizer)


def save_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Write the state of an optimizer, without its learning rates."""
    entries = [(index, *entry) for index, state in optimizer.state_dict()["state"].items() for entry in state.items()]
    save_file({f"{index}.{name}": torch.as_tensor(it) for index, name, it in entries if it is not None}, file)


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Take up what `save_optimizer` wrote.

    Raises:
        ValueError: there is no such file.
    """
    if not file.is_file():
        way_out = "resume with as many processes and the sharding that it was written with"
        raise ValueError(f"{str(file.parent)!r} holds no {file.name}; {way_out}.")
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in load_file(file).items():
        index, _, entry = name.partition(".")
        state[int(index)][entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
