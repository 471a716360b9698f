"""What is compared: pure loss functions of tensors, and the objectives made of them."""

from .base import Objective, Paper, Settings
from .dide import DiDEObjective
from .distillvlm import DistillVLMObjective
from .losses.attention import (
    attention_distillation_loss,
    attention_probs_to_scores,
    cross_modal_scores,
    relation_scores,
)
from .losses.attention_matrices import attention_matrix_loss, attention_probs, joint_pattern
from .losses.chunked_attention import chunked_attention_loss
from .losses.hidden_states import hidden_state_mse_loss, noise_contrastive_loss
from .losses.labels import soft_answer_loss, soft_label_loss
from .losses.listwise import hardest_negatives, listwise_cross_entropy, listwise_distillation_loss
from .losses.pretraining import itm_distillation_loss, mlm_distillation_loss
from .losses.token_queue import TokenQueue
from .pretraining import PreTrainingObjective, hard_terms
from .ranking import RankingObjective
