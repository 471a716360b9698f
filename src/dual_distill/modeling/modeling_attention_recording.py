"""Queries and keys of chosen attention modules, noted while any model of transformers runs, however it attends.

A module that calls transformers' `AttentionInterface` is given, while it is recorded, a copy of its config that names a
function registered here, which notes queries and keys and hands on to the attention that was set: sdpa, flash, flex or
eager. Masks stay those of the model, since only the module sees the copy. A module with attention of its own (ViLT,
BLIP, VisualBERT, LXMERT, FLAVA) has its linear maps `query` and `key` hooked.
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "dual_distill_recording|"


@dataclass
class RecordedAttention:
    """What one attention module was given in the last forward pass.

    Attributes:
        name: of the module in the model.
        queries: `(B, H, Q, D)`, after any rotary embedding.
        keys: `(B, H_kv, K, D)`; K is larger than Q where keys were cached. `repeated_keys` has H heads.
        scaling: what queries @ keys is multiplied by.
        softcap: scores are squashed to softcap * tanh(scores / softcap); None: they are not.
        mask: as the attention got it, in the form that its implementation wants; None: it got none.
        before: what the module was given in its call before the last one, as a module that both directions share is.
    """

    name: str
    queries: Tensor
    keys: Tensor
    scaling: float
    softcap: float | None = None
    mask: Any = None
    before: "RecordedAttention | None" = None

    @property
    def repeated_keys(self) -> Tensor:
        """Keys `(B, H, K, D)`: those of a group stand once for each of its heads."""
        groups = self.queries.shape[1] // self.keys.shape[1]
        return self.keys if groups == 1 else self.keys.repeat_interleave(groups, dim=1)


class _Recorder(NamedTuple):
    """One `with` block: the modules that it records, the thread that it records in, and what it found."""

    names: Mapping[nn.Module, str]
    thread: int
    found: dict[str, RecordedAttention]


class _Recorded(NamedTuple):
    """One module that is recorded: by whom, and what makes it as it was before."""

    recorders: list[_Recorder]
    restore: Callable[[], Any]


_LOCK = threading.Lock()
_RECORDED: dict[nn.Module, _Recorded] = {}


@contextmanager
def record_attention(model: nn.Module, layers: Sequence[str]) -> Iterator[Mapping[str, RecordedAttention]]:
    """Record queries and keys of attention modules while the block runs; afterwards all is as it was before.

    It works under every attention implementation, under `torch.compile` (the recorded modules break its graph) and
    under activation checkpointing, whose second run is not recorded. What is recorded has its gradient where the
    model's pass has one. Several blocks may record one model at once, each what its own thread runs.

    Args:
        model: any model; one that is wrapped (compiled, distributed) is given unwrapped.
        layers: names of its attention modules, as `model.named_modules()` has them.

    Yields:
        Name of a module -> what it was given in the last pass; empty before the first one.

    Raises:
        ValueError: there is no module of that name, or it can be recorded in neither way.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        >>> bert = BertModel(BertConfig(**shape))
        >>> with record_attention(bert, ["encoder.layer.0.attention.self"]) as recorded:
        ...     _ = bert(input_ids=torch.tensor([[1, 2, 3]]))
        >>> [attention] = recorded.values()
        >>> attention.queries.shape, attention.scaling
        (torch.Size([1, 2, 3, 4]), 0.5)
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(f"{type(model).__name__} has no module {', '.join(unknown)}; give names of attention modules.")

    recorder = _Recorder({modules[name]: name for name in layers}, threading.get_ident(), {})
    entered = []
    try:
        for module, name in recorder.names.items():
            with _LOCK:
                if module not in _RECORDED:
                    _RECORDED[module] = _Recorded([], _attach(module, name))
                _RECORDED[module].recorders.append(recorder)
                entered.append(module)
        yield recorder.found
    finally:
        for module in entered:
            with _LOCK:
                recorded = _RECORDED[module]
                recorded.recorders.remove(recorder)
                if not recorded.recorders:
                    _RECORDED.pop(module).restore()


def _attach(module: Any, name: str) -> Callable[[], Any]:
    """Let a module note what it is given; return what undoes that."""
    config = getattr(module, "config", None)
    if hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS") and config is not None:
        # A copy, so that no other module and no mask sees the name; not the property, which sets shared parts too.
        given = config._attn_implementation or "eager"
        AttentionInterface.register(_PREFIX + given, _recording(given))
        module.config = copy.copy(config)
        module.config.__dict__ |= {"_attn_implementation_internal": _PREFIX + given, "config_before_recording": config}
        return partial(setattr, module, "config", config)

    if not all(isinstance(getattr(module, part, None), nn.Linear) for part in ("query", "key")):
        lacks = "does not use transformers' AttentionInterface and has no linear maps `query` and `key`"
        raise ValueError(f"{name} ({type(module).__name__}) cannot be recorded: it {lacks}.")
    return _hook(module)


def _recording(given: str) -> Callable[..., Any]:
    """Return an attention function that notes what it gets and attends as the implementation `given` does."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        _note(module, query, key, mask, options.get("scaling"), options.get("softcap"))
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(given, eager)
        # Flash attention reads the name of its kernel from the module's config, which is the copy here.
        return attention(_AsBefore(module) if "flash" in given else module, query, key, value, mask, **options)

    return attend


class _AsBefore:
    """A module as it was before it was recorded: with the config that it had."""

    def __init__(self, module: Any):
        self._module, self.config = module, module.config.config_before_recording

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _hook(module: Any) -> Callable[[], Any]:
    """Hook the linear maps of queries and keys, and the module itself, behind which both are noted."""
    last = threading.local()

    def keep(part: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, output: Tensor) -> None:
            setattr(last, part, output.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2))

        return hook

    def note(_: nn.Module, given: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
        _note(module, last.query, last.key, options.get("attention_mask", given[1] if len(given) > 1 else None))

    handles = [getattr(module, part).register_forward_hook(keep(part)) for part in ("query", "key")]
    handles.append(module.register_forward_hook(note, with_kwargs=True))
    return lambda: [handle.remove() for handle in handles]


@torch.compiler.disable
def _note(
    module: nn.Module,
    queries: Tensor,
    keys: Tensor,
    mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
) -> None:
    """Note what a module is given, for those who record it in this thread."""
    # In a backward pass, activation checkpointing runs the module again: what it gets then was noted before.
    if torch._C._current_graph_task_id() != -1:
        return
    scaling = queries.shape[-1] ** -0.5 if scaling is None else scaling
    for recorder in _RECORDED[module].recorders if module in _RECORDED else ():
        if recorder.thread == threading.get_ident():
            name = recorder.names[module]
            before = recorder.found.get(name)
            before = None if before is None else replace(before, before=None)
            recorder.found[name] = RecordedAttention(name, queries, keys, scaling, softcap, mask, before)
