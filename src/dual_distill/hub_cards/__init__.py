"""What a reader of the Hub sees: pictures and cards made from what a run really did, and the push of both. Knows no
torch.

`write_run` notes what a run did; `write_card` makes the card of a folder; `push_folder` sends both in one commit.
"""

from .checkpoint_folder import PUBLISHED, collect
from .hub_errors import PushError
from .hub_names import split_revision
from .model_card import make_card, write_card
from .push import PushReport, push_folder, push_pretrained
from .run_record import (
    DataOrigin,
    Measurement,
    Origin,
    RunRecord,
    Speed,
    add_evaluation,
    differing_fields,
    origin_of,
    read_json,
    read_run,
    versions_now,
    write_run,
)

__all__ = [
    "PUBLISHED",
    "DataOrigin",
    "Measurement",
    "Origin",
    "PushError",
    "PushReport",
    "RunRecord",
    "Speed",
    "add_evaluation",
    "collect",
    "differing_fields",
    "make_card",
    "origin_of",
    "push_folder",
    "push_pretrained",
    "read_json",
    "read_run",
    "split_revision",
    "versions_now",
    "write_card",
    "write_run",
]
