"""Load a teacher, or any model: ours, or other people's checkpoints that become ours with equal outputs.

`load_teacher(name)` and `load_model(name)` load, `load_config(name)` looks at a checkpoint without its weights;
`convert_vilt(model)` computes; `convert_folder(name, out)` writes a converted checkpoint once its parity with the
original is checked, `start_folder` one that begins with a BERT.
"""

from .aligned_teacher import AlignedTeacher, ForeignTeacher, as_binary, is_multi_label, student_tokens
from .alignment import Tokens, align_view, key_shares, of_rows, over_heads
from .bert import start_from_bert
from .causal_vlm import caption_images
from .checkpoint import content_of, fetch
from .conversion import (
    MAX_POSITIONS,
    TOLERANCE,
    ConversionReport,
    check_parity,
    convert_folder,
    largest_difference,
    random_batch,
    start_folder,
)
from .families import FAMILIES, TeacherFamily, empty_teacher, family_of, load_teacher
from .layout import grid_boxes
from .loading import LABELLED, LoadedModel, load_config, load_model, load_processor
from .view import DirectionAttention, LayerAttention, TeacherView
from .vilt import convert_vilt
