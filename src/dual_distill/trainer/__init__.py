"""Student + frozen teacher + objective -> named losses; and one training run put together from its arguments."""

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import EvaluationReport, predict_answers, report_answers
from .pairing import check_pair
from .recipe import DataArguments, ModelArguments, Run, build_processor, load_model, make_run, train

__all__ = [
    "DataArguments",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "EvaluationReport",
    "ModelArguments",
    "Run",
    "build_processor",
    "check_pair",
    "load_model",
    "make_run",
    "predict_answers",
    "report_answers",
    "train",
]
