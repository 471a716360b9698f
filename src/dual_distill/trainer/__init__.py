"""Student + frozen teacher + objective -> named losses."""

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .pairing import check_pair

__all__ = ["DistillationTrainer", "DistillationTrainingArguments", "check_pair"]
