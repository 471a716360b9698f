"""dual_distill: a fusion encoder teaches a dual encoder, so that images are encoded once and asked many times.

Importing it registers models, processor and pipeline with transformers; any other name is imported when it is first
used. The command `dual-distill` leaves both to its subcommands, so that help and a typo import no torch.
"""

import os
import signal
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import *
    from .hub_cards import *
    from .inference import *
    from .modeling import *
    from .objectives import *
    from .runs import *
    from .teachers import *
    from .trainer import *

_PUBLIC = {
    "data": ["DistillationCollator", "get_task", "load_custom_dataset", "load_task"],
    "hub_cards": ["push_folder", "write_card"],
    "inference": ["DualVisualQuestionAnsweringPipeline", "answer_questions"],
    "modeling": [
        *("DualDistillProcessor", "DualEncoderConfig", "DualEncoderModel", "FusionEncoderConfig", "FusionEncoderModel"),
        *("DualEncoderForQuestionAnswering", "FusionEncoderForQuestionAnswering"),
        *("DualEncoderForImagesAndTextClassification", "FusionEncoderForImagesAndTextClassification"),
        *("DualEncoderForImageTextRetrieval", "FusionEncoderForImageTextRetrieval"),
        *("DualEncoderForPreTraining", "FusionEncoderForPreTraining"),
        *("FusionEncoderForCaptioning", "FusionEncoderForMaskedLM"),
    ],
    "objectives": ["DiDEObjective", "DistillVLMObjective"],
    "runs": ["distill"],
    "teachers": ["load_model", "load_teacher"],
    "trainer": [
        *("DistillationTrainer", "DistillationTrainingArguments"),
        *("CaptioningTrainer", "PreTrainingTrainer", "RetrievalTrainer"),
    ],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(["__version__", *_MODULE_OF])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("dual-distill")
    if name in _PUBLIC:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *__all__})


def _register() -> None:
    """Register with transformers, which the imports do, and give the models our push in one commit."""
    from . import inference  # noqa: F401
    from .hub_cards import push_pretrained
    from .modeling import DualEncoderPreTrainedModel, FusionEncoderPreTrainedModel

    # Here, since `modeling` travels with checkpoints and must not know the Hub's client.
    for model_class in (FusionEncoderPreTrainedModel, DualEncoderPreTrainedModel):
        model_class.push_to_hub = push_pretrained


_is_command = "dual-distill" in [Path(word).name.removesuffix(".exe") for word in sys.argv[:1]]
if not _is_command and ("-m", "dual_distill") not in pairwise(sys.orig_argv):
    _register()
elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While a command imports, an interruption ends it at once: an import that is cut short may say anything.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
