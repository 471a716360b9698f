"""A recipe becomes a trainer: the arguments of a run, the table of heads, what they are put together to, and its plan."""

from .arguments import DataArguments, ModelArguments
from .build import Run, build_processor, load_model, make_run, train
from .data import load_data
from .plan import RunPlan, plan_run
from .recording import record_run

__all__ = [
    "DataArguments",
    "ModelArguments",
    "Run",
    "RunPlan",
    "build_processor",
    "load_data",
    "load_model",
    "make_run",
    "plan_run",
    "record_run",
    "train",
]
