"""Student + frozen teacher + objective -> named losses; and one training run put together from its arguments."""

from .arguments import DataArguments, ModelArguments
from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import EvaluationReport, predict_answers, report_answers
from .pairing import check_pair
from .recipe import Run, build_processor, load_model, make_run, train
from .recording import record_run
from .run_data import load_data
from .run_plan import RunPlan, plan_run

__all__ = [
    "DataArguments",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "EvaluationReport",
    "ModelArguments",
    "Run",
    "RunPlan",
    "build_processor",
    "check_pair",
    "load_data",
    "load_model",
    "make_run",
    "plan_run",
    "predict_answers",
    "record_run",
    "report_answers",
    "train",
]
