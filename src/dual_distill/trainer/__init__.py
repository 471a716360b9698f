"""Student + frozen teacher + objective -> named losses; and one training run put together from its arguments."""

from .arguments import DataArguments, ModelArguments
from .captioning_evaluation import CaptionReport, captions_by_image, describe_images, report_captions
from .captioning_trainer import CaptioningTrainer, SelfCriticalTrainer
from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import EvaluationReport, predict_answers, report_answers
from .pairing import check_pair
from .pretraining_trainer import PreTrainingTrainer
from .recipe import Run, build_processor, load_model, make_run, train
from .recording import record_run
from .retrieval_trainer import RetrievalTrainer
from .run_data import load_data
from .run_plan import RunPlan, plan_run

__all__ = [
    "CaptionReport",
    "CaptioningTrainer",
    "DataArguments",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "EvaluationReport",
    "ModelArguments",
    "PreTrainingTrainer",
    "RetrievalTrainer",
    "Run",
    "RunPlan",
    "SelfCriticalTrainer",
    "build_processor",
    "captions_by_image",
    "check_pair",
    "describe_images",
    "load_data",
    "load_model",
    "make_run",
    "plan_run",
    "predict_answers",
    "record_run",
    "report_answers",
    "report_captions",
    "train",
]
