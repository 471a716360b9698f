"""What one does with a trained model: see where it looks, and how long it takes."""

from .latency import PairLatency, measure_pair_latency
from .word_attention import word_attention

__all__ = ["PairLatency", "measure_pair_latency", "word_attention"]
