"""Load a teacher, or any model: ours, or other people's checkpoints that become ours with equal outputs.

`load_teacher(name)` and `load_model(name)` load, `load_config(name)` looks at a checkpoint without its weights;
`convert_vilt(model)` computes; `convert_folder(name, out)` writes a converted checkpoint once its parity with the
original is checked, `start_folder` one that begins with a BERT.
"""

from .bert import BertStart, start_from_bert
from .checkpoint import fetch
from .conversion import MAX_POSITIONS, ConversionReport, convert_folder, start_folder
from .loading import LoadedModel, load_config, load_model, load_processor, load_teacher
from .parity import largest_difference, random_batch
from .vilt import VILT_CLASSES, convert_vilt, convert_vilt_config, convert_vilt_state_dict

__all__ = [
    "MAX_POSITIONS",
    "VILT_CLASSES",
    "BertStart",
    "ConversionReport",
    "LoadedModel",
    "convert_folder",
    "convert_vilt",
    "convert_vilt_config",
    "convert_vilt_state_dict",
    "fetch",
    "largest_difference",
    "load_config",
    "load_model",
    "load_processor",
    "load_teacher",
    "random_batch",
    "start_folder",
    "start_from_bert",
]
