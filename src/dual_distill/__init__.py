"""dual_distill: a fusion encoder teaches a dual encoder, so that images are encoded once and asked many times.

Importing it lets transformers know models, processor and pipeline, which are imported when one of its Auto classes or
its pipeline is first asked for; any other name is imported when it is used. The command `dual-distill` leaves both
to its subcommands, so that help and a typo import no torch.
"""

import os
import signal
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
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


class _Package(ModuleType):
    """This module: once the models are imported, from wherever, they push in one commit, and know sealed folders."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "modeling":
            # Here, since `modeling` travels with checkpoints and must not know the Hub's client, nor seals.
            push_pretrained = import_module(".hub_cards", __name__).push_pretrained
            guard = import_module(".sealed", __name__).guard
            for model_class in (value.FusionEncoderPreTrainedModel, value.DualEncoderPreTrainedModel):
                model_class.push_to_hub = push_pretrained
                guard(model_class, "*config.json", "model*")
            guard(value.DualDistillProcessor, "*config.json", "tokenizer*")
        if name in _PUBLIC:
            _register()


def _register() -> None:
    """Import ours, which registers them, once transformers' Auto classes are there and no import is under way."""
    if "transformers.models.auto.configuration_auto" not in sys.modules or f"{__name__}.inference" in sys.modules:
        return
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(("transformers.", "dual_distill."))]
    if not any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules):
        import_module(".inference", __name__)


def _register_when_loaded() -> None:
    """Look after each name that transformers loads, from whatever module of its it is imported."""
    # The class, not the module: transformers puts another module in its own place while it is imported.
    lazy_module: Any = type(import_module("transformers"))

    def loaded(module: ModuleType, name: str, value: Any) -> None:
        ModuleType.__setattr__(module, name, value)
        _register()

    lazy_module.__setattr__ = loaded
    _register()


sys.modules[__name__].__class__ = _Package
_is_command = "dual-distill" in [Path(word).name.removesuffix(".exe") for word in sys.argv[:1]]
if not _is_command and ("-m", "dual_distill") not in pairwise(sys.orig_argv):
    _register_when_loaded()
elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While a command imports, an interruption ends it at once: an import that is cut short may say anything.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
