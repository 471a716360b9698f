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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "dual_distill_recording|"
_LOCK = threading.Lock()
# Who records which module, each in the thread that entered: whoever runs the same model elsewhere is not noted.
_RECORDERS: dict[nn.Module, list["_Recorder"]] = {}


@dataclass
class RecordedAttention:
    """What one attention module was given in the last forward pass.

    Attributes:
        name: of the module in the model.
        queries: `(B, H, Q, D)`, after any rotary embedding.
        keys: `(B, H_kv, K, D)`; K is larger than Q where keys were cached. `repeated_keys` has H heads.
        scaling: what queries @ keys is multiplied by.
        softcap: as in `DirectionAttention`; None: scores are not squashed.
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


class _Recorder:
    """One `with` block: the modules that it records and the thread that it records in."""

    def __init__(self, names: Mapping[nn.Module, str]):
        self.names, self.thread = names, threading.get_ident()
        self.found: dict[str, RecordedAttention] = {}


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
    recorder = _Recorder({modules[name]: name for name in layers})
    with ExitStack() as stack:
        for module in recorder.names:
            stack.enter_context(_recorded(module, recorder))
        yield recorder.found


@contextmanager
def _recorded(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Note what one module is given, for one recorder."""
    name, hooks, has_interface = recorder.names[module], [], _has_interface(module)
    if not has_interface:
        if not all(isinstance(getattr(module, part, None), nn.Linear) for part in ("query", "key")):
            lacks = "does not use transformers' AttentionInterface and has no linear maps `query` and `key`"
            raise ValueError(f"{name} ({type(module).__name__}) cannot be recorded: it {lacks}.")
        hooks = _hooks(module, recorder)

    with _LOCK:
        _RECORDERS.setdefault(module, []).append(recorder)
        if has_interface:
            _take_config(module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with _LOCK:
            _RECORDERS[module].remove(recorder)
            if not _RECORDERS[module]:
                del _RECORDERS[module]
                _give_config_back(module, has_interface)


def _has_interface(module: nn.Module) -> bool:
    """Whether a module asks transformers' `AttentionInterface` for its attention, as its source says."""
    source = sys.modules[type(module).__module__]
    return hasattr(source, "ALL_ATTENTION_FUNCTIONS") and getattr(module, "config", None) is not None


def _take_config(module: Any) -> None:
    """Let one module, and none that shares its config, see the name of the recording attention."""
    given = module.config._attn_implementation or "eager"
    if given.startswith(_PREFIX):
        return
    AttentionInterface.register(_PREFIX + given, _recording(given))
    config = copy.copy(module.config)
    # Not the property, which would set it in the parts of the config too, and those are shared.
    config.__dict__ |= {"_attn_implementation_internal": _PREFIX + given, "config_before_recording": module.config}
    module.config = config


def _give_config_back(module: Any, has_interface: bool) -> None:
    if has_interface:
        module.config = module.config.config_before_recording


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


def _hooks(module: Any, recorder: _Recorder) -> list[Any]:
    """Hook the linear maps of queries and keys, and the module itself for its mask and for the moment to note."""
    seen: dict[str, Any] = {}

    def before(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        mask = options.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
        seen.clear()
        seen["mask"] = mask

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, output: Tensor) -> None:
            seen[name] = output.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)

        return hook

    def after(_: nn.Module, arguments: Any, output: Any) -> None:
        if threading.get_ident() == recorder.thread:
            _note_for([recorder], module, seen["query"], seen["key"], seen["mask"], None, None)

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.query.register_forward_hook(keep("query")),
        module.key.register_forward_hook(keep("key")),
        module.register_forward_hook(after),
    ]


@torch.compiler.disable
def _note(module: nn.Module, *attention: Any) -> None:
    """Note what a module is given, for those who record it in this thread."""
    here = threading.get_ident()
    _note_for([each for each in _RECORDERS.get(module, []) if each.thread == here], module, *attention)


def _note_for(
    recorders: Sequence[_Recorder],
    module: nn.Module,
    queries: Tensor,
    keys: Tensor,
    mask: Any,
    scaling: float | None,
    softcap: float | None,
) -> None:
    # In a backward pass, activation checkpointing runs the module again: what it gets then was noted before.
    if torch._C._current_graph_task_id() != -1:
        return
    scaling = queries.shape[-1] ** -0.5 if scaling is None else scaling
    for recorder in recorders:
        name = recorder.names[module]
        last = recorder.found.get(name)
        before = None if last is None else replace(last, before=None)
        recorder.found[name] = RecordedAttention(name, queries, keys, scaling, softcap, mask, before)
