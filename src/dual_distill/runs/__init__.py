"""A recipe becomes a trainer: arguments, the table of heads, how a run is put together, and its plan."""

from .arguments import DataArguments, ModelArguments, ReadingArguments
from .build import build_processor, make_run
from .continuation import processor_of_run, train
from .data import list_labels, load_data
from .distilling import DistilledStudent, distill
from .heads import HEADS, HeadSpec, head_of
from .plan import RunPlan, plan_run
