"""What is compared: pure loss functions of tensors, and the objectives made of them."""

from .attention import attention_distillation_loss, attention_probs_to_scores, cross_modal_scores, relation_scores
from .attention_matrices import attention_matrix_loss, attention_probs, joint_pattern
from .chunked_attention import chunked_attention_loss
from .dide import DiDEObjective
from .distillvlm import DistillVLMObjective
from .hidden_states import noise_contrastive_loss, squared_distance_loss
from .labels import soft_answer_loss, soft_label_loss
from .objective import Objective
from .pretraining import HARD_TERMS, PreTrainingObjective, hard_terms, itm_distillation_loss, mlm_distillation_loss
from .ranking import RankingObjective, hardest_negatives, ranking_distillation_loss, right_first_loss
from .token_queue import TokenQueue

__all__ = [
    "HARD_TERMS",
    "DiDEObjective",
    "DistillVLMObjective",
    "Objective",
    "PreTrainingObjective",
    "RankingObjective",
    "TokenQueue",
    "attention_distillation_loss",
    "attention_matrix_loss",
    "attention_probs",
    "attention_probs_to_scores",
    "chunked_attention_loss",
    "cross_modal_scores",
    "hard_terms",
    "hardest_negatives",
    "itm_distillation_loss",
    "joint_pattern",
    "mlm_distillation_loss",
    "noise_contrastive_loss",
    "ranking_distillation_loss",
    "relation_scores",
    "right_first_loss",
    "soft_answer_loss",
    "soft_label_loss",
    "squared_distance_loss",
]
