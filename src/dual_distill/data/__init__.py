"""Tasks as data, readers of official files, generated scenes, answer vocabularies, safe decoding, the collator."""

from .answers import answer_coverage, build_answer_vocabulary
from .collator import ID_COLUMNS, DistillationCollator
from .easy_vqa import load_easy_vqa
from .images import ImageError, decode_image
from .nlvr import load_nlvr
from .scenes import generate_scenes, scene_answers
from .tasks import TASKS, Task, get_task, load_task
from .tokenizer import train_tokenizer

__all__ = [
    "ID_COLUMNS",
    "TASKS",
    "DistillationCollator",
    "ImageError",
    "Task",
    "answer_coverage",
    "build_answer_vocabulary",
    "decode_image",
    "generate_scenes",
    "get_task",
    "load_easy_vqa",
    "load_nlvr",
    "load_task",
    "scene_answers",
    "train_tokenizer",
]
