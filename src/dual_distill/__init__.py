"""dual_distill: a fusion encoder teaches a dual encoder, so that images are encoded once and asked many times."""

from importlib.metadata import version

from .data import DistillationCollator, get_task, load_custom_dataset, load_task
from .hub_cards import push_folder, push_pretrained, write_card
from .inference import DualVisualQuestionAnsweringPipeline
from .modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    DualEncoderPreTrainedModel,
    FusionEncoderConfig,
    FusionEncoderForCaptioning,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForPreTraining,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
    FusionEncoderPreTrainedModel,
)
from .objectives import DiDEObjective, DistillVLMObjective
from .teachers import load_model, load_teacher
from .trainer import (
    CaptioningTrainer,
    DistillationTrainer,
    DistillationTrainingArguments,
    PreTrainingTrainer,
    RetrievalTrainer,
)

# `modeling` travels with checkpoints and must not know the Hub's client, so its models get our one-commit push here.
for _model in (FusionEncoderPreTrainedModel, DualEncoderPreTrainedModel):
    _model.push_to_hub = push_pretrained

__version__ = version("dual-distill")

__all__ = [
    "CaptioningTrainer",
    "DiDEObjective",
    "DistillVLMObjective",
    "DistillationCollator",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "DualDistillProcessor",
    "DualEncoderConfig",
    "DualEncoderForImageTextRetrieval",
    "DualEncoderForImagesAndTextClassification",
    "DualEncoderForPreTraining",
    "DualEncoderForQuestionAnswering",
    "DualEncoderModel",
    "DualVisualQuestionAnsweringPipeline",
    "FusionEncoderConfig",
    "FusionEncoderForCaptioning",
    "FusionEncoderForImageTextRetrieval",
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForMaskedLM",
    "FusionEncoderForPreTraining",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderModel",
    "PreTrainingTrainer",
    "RetrievalTrainer",
    "__version__",
    "get_task",
    "load_custom_dataset",
    "load_model",
    "load_task",
    "load_teacher",
    "push_folder",
    "write_card",
]
