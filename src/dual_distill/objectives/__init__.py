"""What is compared: pure loss functions of tensors, and the objectives made of them."""

from .base import Objective, Paper, Settings
from .dide import CrossModalObjective, DiDEObjective
from .distillvlm import DistillVLMObjective
from .losses.attention import (
    attention_distillation_loss,
    attention_matrix_loss,
    attention_probs,
    attention_probs_to_scores,
    joint_pattern,
    regroup_heads,
    relation_scores,
)
from .losses.chunked_attention import AttentionInParts, aligned_attention_loss, chunked_attention_loss
from .losses.logits import (
    itm_distillation_loss,
    listwise_cross_entropy,
    listwise_distillation_loss,
    mlm_distillation_loss,
    soft_answer_loss,
    soft_label_loss,
)
from .losses.tokens import TokenQueue, hidden_state_mse_loss, noise_contrastive_loss
from .pretraining import PreTrainingObjective, hard_terms
from .ranking import RankingObjective
