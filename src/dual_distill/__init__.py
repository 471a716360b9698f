"""dual_distill: a fusion encoder teaches a dual encoder, so that images are encoded once and asked many times."""

from importlib.metadata import version

from .conversion import load_teacher
from .data import DistillationCollator, get_task, load_own_data, load_task
from .inference import DualVisualQuestionAnsweringPipeline
from .modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from .objectives import DiDEObjective
from .trainer import DistillationTrainer, DistillationTrainingArguments

__version__ = version("dual-distill")

__all__ = [
    "DiDEObjective",
    "DistillationCollator",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "DualDistillProcessor",
    "DualEncoderConfig",
    "DualEncoderForImagesAndTextClassification",
    "DualEncoderForQuestionAnswering",
    "DualEncoderModel",
    "DualVisualQuestionAnsweringPipeline",
    "FusionEncoderConfig",
    "FusionEncoderForImageTextRetrieval",
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForMaskedLM",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderModel",
    "__version__",
    "get_task",
    "load_own_data",
    "load_task",
    "load_teacher",
]
