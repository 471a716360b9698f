"""What the families of other people's models share: loading a model with its processor, and running it recorded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor

from dual_distill.modeling import RecordedAttention, record_attention

from .checkpoint import fetch, first_line
from .loading import LoadedModel

Batch = Mapping[str, Tensor]
Modules = tuple[str, ...]
"""Names of the attention modules of one layer: one, or one for each direction or hop."""
Answers = Sequence[str] | None


def load(checkpoint: str, revision: str | None = None, trust_remote_code: bool = False, **options: Any) -> LoadedModel:
    """Load a model as the class that it was saved as, with its processor.

    Args:
        checkpoint: a folder, or `owner/name` on the Hub.
        revision: branch, tag or commit of a Hub repository.
        trust_remote_code: whether code of the repository may run; never unless given here.
        **options: of `from_pretrained`, such as `dtype`, `device_map` or `quantization_config`.

    Raises:
        ValueError: it cannot be found, has no safetensors weights, or weights of its head are missing.
    """
    source, trusted = checkpoint, {"revision": revision, "trust_remote_code": True}
    if not trust_remote_code:
        source, trusted = str(fetch(checkpoint, revision)), {"trust_remote_code": False}
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, **options, **trusted}
    try:
        saved = saved_class(AutoConfig.from_pretrained(source, **trusted))
        model, report = saved.from_pretrained(source, **options)
        processor = AutoProcessor.from_pretrained(source, **trusted)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{checkpoint!r} cannot be loaded: {first_line(error)}") from error

    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        named = f"{len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise ValueError(f"{checkpoint!r} lacks {named}; give the checkpoint that was saved with that head.")
    return LoadedModel(model.eval(), processor)


def saved_class(config: Any) -> Any:
    """Return the class that a checkpoint was saved as; AutoModel, where transformers has none of its name."""
    return getattr(transformers, (config.architectures or [""])[0], AutoModel)


@torch.no_grad()
def run_recorded(
    model: Any,
    batch: Mapping[str, Any],
    layers: Sequence[Modules],
    wanted: Sequence[int],
    run: Callable[..., Any] | None = None,
) -> tuple[Any, list[list[RecordedAttention]]]:
    """Run a model once, and return its outputs and what the modules of each layer that is wanted recorded.

    Args:
        model: any.
        batch: arguments of its `forward`.
        layers: modules of each of its layers.
        wanted: which of them; negative counts from the last.
        run: what runs of it; None: its `forward`.

    Raises:
        ValueError: there is no such layer, or the pass did not reach it.
    """
    if not all(-len(layers) <= layer < len(layers) for layer in wanted):
        has = f"{type(model).__name__} has {len(layers)} layers in which text and image meet"
        raise ValueError(f"{has}, but layers is {list(wanted)}; count from 0, or from the last with -1.")

    chosen = [layers[layer] for layer in wanted]
    # Most models round their pixels to the type of their weights themselves, but FLAVA and those that read regions.
    batch = {name: it.to(model.dtype) if _is_float(it) else it for name, it in batch.items()}
    with record_attention(model, [name for names in chosen for name in names]) as recorded:
        outputs = (run or model)(**batch)
    missing = [name for names in chosen for name in names if name not in recorded]
    if missing:
        raise ValueError(f"{type(model).__name__} ran no attention in {', '.join(missing)}; name modules that attend.")
    return outputs, [[recorded[name] for name in names] for names in chosen]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def check_no_answers(model: Any, answers: Answers) -> None:
    """Refuse answers of a student where the teacher says nothing about any."""
    if answers is not None:
        way_out = "set soft_label_weight to 0 (in teach: --no-answers), or give a teacher that answers"
        raise ValueError(f"{type(model).__name__} says nothing about answers; {way_out}.")


def match_scores(logits: Tensor) -> Tensor:
    """Log-odds that text and image match, of the two logits `(B, 2)` of a matching head."""
    return logits[:, 1].float() - logits[:, 0].float()
