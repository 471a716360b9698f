"""Configurations, models and processor; importing this package registers them with transformers' Auto classes."""

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_RETRIEVAL_MAPPING

from .configuration_dual_encoder import DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig, Pooling
from .configuration_fusion_encoder import FusionEncoderConfig, own_fields
from .modeling_attention_recording import RecordedAttention, record_attention
from .modeling_dual_encoder import DualEncoderModel
from .modeling_dual_encoder_heads import (
    ContrastiveDualEncoder,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
)
from .modeling_fusion_encoder import FusionEncoderModel, FusionEncoderPreTrainedModel
from .modeling_fusion_encoder_captioning import FusionEncoderForCaptioning
from .modeling_fusion_encoder_heads import (
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForPreTraining,
    FusionEncoderForQuestionAnswering,
)
from .modeling_heads import SplitLinear
from .modeling_losses import PairIds, allowed_negatives, as_one_process, gather_pair_ids, gather_rows, pair_similarities
from .modeling_ranking_lists import choose_lists, hardest_negatives, scored_lists
from .modeling_towers import DualEncoderPreTrainedModel, DualEncoderTextModel, DualEncoderVisionModel
from .processing_dual_distill import DualDistillProcessor, Region, seen_region
from .tower_initialization import dual_config_from_fusion

for _model in (FusionEncoderModel, DualEncoderModel, DualEncoderTextModel, DualEncoderVisionModel):
    transformers.AutoModel.register(_model.config_class, _model)
for _task, *_models in (
    ("VisualQuestionAnswering", FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering),
    # transformers has no Auto class for "classify a text with images"; this one is what its examples load classifiers
    # with.
    ("SequenceClassification", FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification),
    ("PreTraining", FusionEncoderForPreTraining, DualEncoderForPreTraining),
    ("MaskedLM", FusionEncoderForMaskedLM),
    ("ImageTextToText", FusionEncoderForCaptioning),
    ("ZeroShotImageClassification", DualEncoderForImageTextRetrieval),
):
    for _model in _models:
        getattr(transformers, f"AutoModelFor{_task}").register(_model.config_class, _model)
# For sentence-transformers: there is no Auto class.
MODEL_FOR_RETRIEVAL_MAPPING.register(DualEncoderConfig, DualEncoderForImageTextRetrieval)
for _config in (FusionEncoderConfig, DualEncoderConfig, DualEncoderTextConfig, DualEncoderVisionConfig):
    transformers.AutoConfig.register(_config.model_type, _config)
for _config in (FusionEncoderConfig, DualEncoderConfig):
    transformers.AutoProcessor.register(_config, DualDistillProcessor)
