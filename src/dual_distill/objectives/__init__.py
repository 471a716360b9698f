"""What is compared: pure loss functions of tensors, and the objectives made of them."""

from .attention import attention_distillation_loss, attention_probs_to_scores, cross_modal_scores, relation_scores
from .chunked_attention import chunked_attention_loss
from .dide import DiDEObjective
from .labels import soft_answer_loss, soft_label_loss
from .objective import Objective

__all__ = [
    "DiDEObjective",
    "Objective",
    "attention_distillation_loss",
    "attention_probs_to_scores",
    "chunked_attention_loss",
    "cross_modal_scores",
    "relation_scores",
    "soft_answer_loss",
    "soft_label_loss",
]
