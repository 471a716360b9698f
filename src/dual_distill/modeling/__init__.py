"""Configurations, models and processor; importing this package registers them with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig
from .configuration_fusion_encoder import FusionEncoderConfig, own_fields
from .modeling_dual_encoder import DualEncoderModel
from .modeling_dual_encoder_heads import DualEncoderForImagesAndTextClassification, DualEncoderForQuestionAnswering
from .modeling_dual_encoder_pretraining import DualEncoderForPreTraining
from .modeling_dual_encoder_retrieval import ContrastiveDualEncoder, DualEncoderForImageTextRetrieval
from .modeling_fusion_encoder import (
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
    FusionEncoderPreTrainedModel,
)
from .modeling_fusion_encoder_captioning import FusionEncoderForCaptioning
from .modeling_fusion_encoder_heads import FusionEncoderForImageTextRetrieval, FusionEncoderForMaskedLM
from .modeling_fusion_encoder_pretraining import FusionEncoderForPreTraining
from .modeling_heads import SplitLinear
from .modeling_pretraining_losses import PairIds, allowed_negatives, gather_pair_ids, gather_rows, pair_similarities
from .modeling_towers import DualEncoderPreTrainedModel, DualEncoderTextModel, DualEncoderVisionModel
from .processing_dual_distill import DualDistillProcessor
from .tower_initialization import dual_config_from_fusion

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
for _config, _model in (
    (FusionEncoderConfig, FusionEncoderForImagesAndTextClassification),
    (DualEncoderConfig, DualEncoderForImagesAndTextClassification),
):
    # transformers has no Auto class for "classify a text with images"; this one is what its examples load classifiers
    # with.
    AutoModelForSequenceClassification.register(_config, _model)
AutoModelForMaskedLM.register(FusionEncoderConfig, FusionEncoderForMaskedLM)
AutoModelForImageTextToText.register(FusionEncoderConfig, FusionEncoderForCaptioning)
AutoModelForPreTraining.register(FusionEncoderConfig, FusionEncoderForPreTraining)
AutoModelForPreTraining.register(DualEncoderConfig, DualEncoderForPreTraining)
AutoModelForZeroShotImageClassification.register(DualEncoderConfig, DualEncoderForImageTextRetrieval)
