"""A recipe becomes a trainer: arguments, the table of heads, how a run is put together, and its plan."""

from .arguments import DataArguments, ModelArguments, ReadingArguments
from .build import build_processor, list_labels, make_run, train
from .continuation import processor_of_run
from .data import load_data
from .distilling import DistilledStudent, distill
from .heads import HEADS, HeadSpec, head_of
from .plan import RunPlan, plan_run
