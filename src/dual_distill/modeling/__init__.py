"""Configurations, models and processor; importing this room registers them with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_dual_encoder import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    DualEncoderTextModel,
    DualEncoderVisionModel,
)
from .modeling_fusion_encoder import (
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from .modeling_outputs import DualEncoderOutput, EncoderForTaskOutput, FusionEncoderOutput, TowerOutput
from .processing_dual_distill import DualDistillProcessor

for _config, _model in (
    (FusionEncoderConfig, FusionEncoderModel),
    (DualEncoderConfig, DualEncoderModel),
    (DualEncoderTextConfig, DualEncoderTextModel),
    (DualEncoderVisionConfig, DualEncoderVisionModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
for _config, _model in (
    (FusionEncoderConfig, FusionEncoderForQuestionAnswering),
    (DualEncoderConfig, DualEncoderForQuestionAnswering),
):
    AutoModelForVisualQuestionAnswering.register(_config, _model)
    AutoProcessor.register(_config, DualDistillProcessor)

__all__ = [
    "DualDistillProcessor",
    "DualEncoderConfig",
    "DualEncoderForImagesAndTextClassification",
    "DualEncoderForQuestionAnswering",
    "DualEncoderModel",
    "DualEncoderOutput",
    "DualEncoderTextConfig",
    "DualEncoderTextModel",
    "DualEncoderVisionConfig",
    "DualEncoderVisionModel",
    "EncoderForTaskOutput",
    "FusionEncoderConfig",
    "FusionEncoderForImagesAndTextClassification",
    "FusionEncoderForQuestionAnswering",
    "FusionEncoderModel",
    "FusionEncoderOutput",
    "TowerOutput",
]
