"""What one does with a trained model: ask it, see where it looks, and how long it takes.

Importing this room registers `pipeline("dual-visual-question-answering")` with transformers.
"""

from .answering import ANSWERING_TASK, AnsweringModel, DualVisualQuestionAnsweringPipeline
from .image_sources import load_image
from .latency import PairLatency, measure_pair_latency
from .word_attention import word_attention

__all__ = [
    "ANSWERING_TASK",
    "AnsweringModel",
    "DualVisualQuestionAnsweringPipeline",
    "PairLatency",
    "load_image",
    "measure_pair_latency",
    "word_attention",
]
