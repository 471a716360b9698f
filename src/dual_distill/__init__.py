"""dual_distill: a fusion encoder teaches a dual encoder, so that images are encoded once and asked many times."""

from importlib.metadata import version

from .data import load_task
from .modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from .objectives import DiDEObjective
from .trainer import DistillationTrainer, DistillationTrainingArguments

__version__ = version("dual-distill")

__all__ = [
    "DiDEObjective",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "DualDistillProcessor",
    "DualEncoderConfig",
    "DualEncoderForImagesAndTextClassification",
    "DualEncoderForQuestionAnswering",
    "DualEncoderModel",
    "FusionEncoderConfig",
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderModel",
    "__version__",
    "load_task",
]
