"""Linear layers whose weights are laid out once for the processor, as oneDNN reads them fastest.

torch hands float32 matrix products on x86 to MKL. oneDNN can read weights that were rearranged beforehand, which suits
answering, where they do not change. The numbers are the same up to rounding; how much faster it is depends on the
processor: twice on an AMD one, nothing on an Intel one that MKL was made for (`benchmarks/prepacking.py`,
`docs/results.md`). So it is timed once a process, and left where it gains nothing.
"""

from functools import cache
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dual_distill.modeling import SplitLinear

# Rows of input that the layout is made for; it is used for any number of them.
_ROWS = 256
# Products below this take the plain way: a call of oneDNN costs some 20 microseconds before it begins, in which MKL
# finishes a small one (`benchmarks/results/prepacking.json`: they break even about here).
_LEAST_MULTIPLY_ADDS = 2**20
# Below this gain the second copy of the weights is not worth its memory.
_LEAST_GAIN = 1.2
_TIMED_WIDTH, _TIMED_ROUNDS = 768, 15  # some 50 milliseconds


def prepack_linear_layers(model: nn.Module) -> int:
    """Let a model's linear layers keep a second copy of their weights, laid out for oneDNN, where that is faster.

    The copy is made at a layer's first call, and anew when its weights have changed (unless through `.data`, which
    hides the change from torch as well). It is used in calls without gradients, in float32, on the processor, of a
    million multiply-adds or more; any other call computes what it always did. The model's weights, names and files stay
    what they are.

    Args:
        model: any; it is changed in place, and takes up to twice its memory once it was called.

    Returns:
        How many layers: 0 where torch has no oneDNN, the model is not float32 on the processor, or the processor gains
        less than a fifth, as timed here once a process.

    Example:
        >>> layer = nn.Sequential(nn.Linear(64, 32))
        >>> features = torch.randn(5, 64)
        >>> before = layer(features)
        >>> prepack_linear_layers(layer) in (0, 1)
        True
        >>> with torch.inference_mode():
        ...     torch.allclose(layer(features), before, atol=1e-6)
        True
    """
    if not torch.backends.mkldnn.is_available() or (_LEAST_GAIN and _gain() < _LEAST_GAIN):
        return 0
    changed = 0
    for module in model.modules():
        kind = _PREPACKED.get(type(module))
        if kind is not None and isinstance(module, nn.Linear) and _is_plain(module.weight):
            # The class alone changes: names, weights, hooks and whoever else holds the layer stay.
            module.__class__ = kind
            changed += 1
    return changed


@cache
def _gain() -> float:
    """How many times faster this processor computes a prepacked layer; both in turn, so that other work meets both."""
    features, weight, bias = (torch.ones(*size, _TIMED_WIDTH) for size in ((_ROWS,), (_TIMED_WIDTH,), ()))
    ratios = []
    with torch.inference_mode():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        for _ in range(_TIMED_ROUNDS):
            start = perf_counter()
            nn.functional.linear(features, weight, bias)
            middle = perf_counter()
            torch.ops.mkldnn._linear_pointwise(features, packed, bias, "none", [], "")
            ratios.append((middle - start) / (perf_counter() - middle))
    return median(ratios)


class PrepackedLinear(nn.Linear):
    """An `nn.Linear` that keeps its weights in oneDNN's layout as well."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as torch names it)
        """Give `(..., in_features)` -> `(..., out_features)`."""
        product = self._product(input, "whole", slice(None), self.bias)
        return super().forward(input) if product is None else product

    def __getstate__(self) -> dict[str, object]:
        # A copy of the layer, in this process or another, makes its own: oneDNN's tensors cannot be copied.
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _product(self, features: Tensor, name: str, columns: slice, bias: Tensor | None) -> Tensor | None:
        """`features` times some columns of the weights, or None where the plain way must be taken."""
        weight = self.weight
        if (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or features.numel() * self.out_features < _LEAST_MULTIPLY_ADDS
            or not _is_plain(features)
            or not _is_plain(weight)
        ):
            return None

        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        packed: dict[str, tuple[tuple[int, int], Tensor]] = self.__dict__.setdefault("_packed", {})
        if name not in packed or packed[name][0] != state:
            part = weight.detach()[:, columns].contiguous()
            packed[name] = state, torch.ops.mkldnn._reorder_linear_weight(part, _ROWS)
        return torch.ops.mkldnn._linear_pointwise(features, packed[name][1], bias, "none", [], "")


class PrepackedSplitLinear(PrepackedLinear, SplitLinear):
    """A `SplitLinear` that keeps both halves of its weights in oneDNN's layout as well."""

    def forward(self, input: Tensor, half: Any = None) -> Tensor:  # noqa: A002 (as torch names it)
        """Give the whole product, or one half's."""
        middle = self.in_features // 2
        columns = {None: slice(None), "first": slice(None, middle), "second": slice(middle, None)}[half]
        product = self._product(input, half or "whole", columns, None if half == "second" else self.bias)
        return SplitLinear.forward(self, input, half) if product is None else product


_PREPACKED: dict[type[nn.Module], type[nn.Linear]] = {nn.Linear: PrepackedLinear, SplitLinear: PrepackedSplitLinear}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided
