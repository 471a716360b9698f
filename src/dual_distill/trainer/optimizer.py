"""Optimizers of a run: a learning rate of its own for heads, Muon for the matrices inside layers."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# Coefficients of the Newton-Schulz steps and momentum, both of Jordan et al.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95
_MOST_ELEMENTS = 2**24  # of matrices that are stepped at once


def rate_heads(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Multiply the learning rate of a model's classifier; as in the authors' release not that of the interaction."""
    if factor == 1.0:
        return
    heads = {id(parameter) for name, parameter in model.named_parameters() if "classifier." in name}
    for group in list(optimizer.param_groups):
        if chosen := [parameter for parameter in group["params"] if id(parameter) in heads]:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * factor})


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` (momentum 0.95, Nesterov's) with all matrices of a shape in one product.

    It orthogonalises the momentum of a matrix, so that all of its directions learn at the same rate. torch's takes one
    matrix after another, and in a number format which most CPUs compute slowly (`benchmarks/muon.py`).

    Args:
        params: matrices, or groups of them.
        lr: learning rate; updates are scaled to the size of AdamW's.
        weight_decay: share of `lr` by which weights shrink a step.

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024; Liu et al., *Muon is scalable
        for LLM training*, arXiv 2502.16982, for the scale of its updates, which is AdamW's.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> weight.grad = torch.tensor([[3.0, 0.0], [0.0, -0.1]])  # both directions learn at one rate
        >>> Muon([weight], lr=0.1, weight_decay=0.0).step()
        >>> (torch.eye(2) - weight).diagonal().detach().sign()
        tensor([ 1., -1.])
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step all matrices that have a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device].append(matrix)
            for (shape, _), matrices in alike.items():
                # So many at once that their copies stay small beside a model.
                at_once = max(1, _MOST_ELEMENTS // shape.numel())
                for start in range(0, len(matrices), at_once):
                    self._step_alike(matrices[start : start + at_once], group["lr"], group["weight_decay"])

    def _step_alike(self, matrices: list[torch.Tensor], rate: float, decay: float) -> None:
        """Step matrices of one shape."""
        gradients = torch.stack([matrix.grad for matrix in matrices])  # type: ignore[misc]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        kept = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        momenta = torch.stack(kept).lerp_(gradients, 1 - _MOMENTUM)
        updates = orthogonalize(gradients.lerp(momenta, _MOMENTUM))

        scale = 0.2 * rate * max(matrices[0].shape) ** 0.5
        for matrix, buffer, momentum, update in zip(matrices, kept, momenta, updates, strict=True):
            buffer.copy_(momentum)
            matrix.mul_(1 - rate * decay).sub_(update, alpha=scale)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Bring singular values near 1, between about 0.7 and 1.2, by five Newton-Schulz steps; (N, R, C) -> (N, R, C).

    Example:
        >>> orthogonalize(torch.tensor([[[3.0, 0.0], [0.0, -3.0]]]))
        tensor([[[ 1.1250,  0.0000],
                 [ 0.0000, -1.1250]]])
    """
    # In bfloat16, as torch's. Most CPUs are faster at float32, so there each product is rounded as bfloat16's is.
    number = torch.bfloat16 if matrices.is_cuda else torch.float32

    def rounded(product: torch.Tensor) -> torch.Tensor:
        return product.bfloat16().to(number)

    is_tall = matrices.shape[1] > matrices.shape[2]
    found = rounded(matrices.mT if is_tall else matrices)
    found = rounded(found / rounded(found.norm(dim=(1, 2), keepdim=True)).clamp(min=1e-7))
    linear, cubic, quintic = _NEWTON_SCHULZ
    for _ in range(5):
        gram = rounded(found @ found.mT)
        factor = rounded(torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic))
        found = rounded(torch.baddbmm(found, factor, found, beta=linear))
    return (found.mT if is_tall else found).to(matrices.dtype)


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps both; learning rates, state and checkpoints are those of one optimizer, so a scheduler reaches both.

    Args:
        muon: its groups come first.
        adamw: of all other parameters.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> pair = Muon([layer.weight], lr=0.1), torch.optim.AdamW([layer.bias], lr=0.01)
        >>> [group["lr"] for group in MuonWithAdamW(*pair).param_groups]
        [0.1, 0.01]
    """

    def __init__(self, muon: Muon, adamw: torch.optim.Optimizer):
        self._parts = (muon, adamw)
        self._num_muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        # Schedules that end at a rate of their own ask here for the one that they begin with.
        self.defaults = adamw.defaults
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
    return MuonWithAdamW(Muon(groups, lr=learning_rate), optimizer)


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
