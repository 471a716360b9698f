"""Other people's checkpoints become ours, with proof of equal outputs.

`load_teacher(name)` loads, `convert_vilt(model)` computes; `load_config(name)` looks at a checkpoint without its
weights; `convert_folder(name, out)` writes the converted checkpoint once it is proved, `start_folder` one that begins
with a BERT.
"""

from .bert import BertStart, start_from_bert
from .checkpoint import fetch
from .folder import MAX_POSITIONS, ConversionReport, convert_folder, start_folder
from .heads import BARE, HEADS, LABELLED_HEADS, model_class
from .loading import Teacher, load_config, load_folder, load_processor, load_teacher, saved_head
from .parity import largest_difference, random_batch
from .vilt import VILT_HEADS, convert_vilt, convert_vilt_config, convert_vilt_state_dict

__all__ = [
    "BARE",
    "HEADS",
    "LABELLED_HEADS",
    "MAX_POSITIONS",
    "VILT_HEADS",
    "BertStart",
    "ConversionReport",
    "Teacher",
    "convert_folder",
    "convert_vilt",
    "convert_vilt_config",
    "convert_vilt_state_dict",
    "fetch",
    "largest_difference",
    "load_config",
    "load_folder",
    "load_processor",
    "load_teacher",
    "model_class",
    "random_batch",
    "saved_head",
    "start_folder",
    "start_from_bert",
]
