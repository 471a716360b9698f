"""What a reader of the Hub sees: cards made from what a run really did, and the push of a checkpoint. Knows no torch.

`write_run` notes what a run did; `write_card` makes the card of a folder; `push_folder` sends both in one commit.
"""

from .checkpoint_folder import PUBLISHED
from .evaluations import add_evaluation
from .model_card import write_card
from .push import PushError, PushReport, push_folder, push_pretrained
from .run_record import (
    DataOrigin,
    Measurement,
    ObjectiveRecord,
    Origin,
    Preflight,
    RunRecord,
    Speed,
    origin_of,
    read_run,
    read_yaml,
    split_revision,
    write_run,
)
