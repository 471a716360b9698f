"""A recipe becomes a trainer: arguments, the table of heads, how a run is put together, and its plan."""

from .arguments import DataArguments, ModelArguments, ReadingArguments
from .build import DistilledStudent, build_processor, distill, make_run, train
from .continuation import processor_of_run
from .data import load_data
from .heads import HEADS, HeadSpec, head_of
from .plan import RunPlan, plan_run
