"""What one does with a trained model: ask it, encode once and ask many, see where it looks, and how long it takes.

Importing this room registers `pipeline("dual-visual-question-answering")` with transformers.
"""

from .answering import ANSWERING_TASK, AnsweringModel, DualVisualQuestionAnsweringPipeline
from .asking import RankedImage, Ranking, StoreAsker
from .benchmark import PairShape, Timing, alternate, half_depth, measure_answering, multiply_adds, peak_memory
from .encoding import encode_images, encode_texts
from .encoding_run import EncodingReport
from .encoding_sources import open_images, read_texts
from .export import ExportReport, export_onnx
from .feature_store import FeatureStore
from .image_sources import load_image
from .latency import PairLatency, measure_pair_latency
from .model_identity import load_encoder
from .prepacking import prepack_linear_layers
from .retrieval import PairTime, RetrievalReport, evaluate_retrieval
from .searching import Found, SearchResult, StoreSearcher
from .word_attention import word_attention

__all__ = [
    "ANSWERING_TASK",
    "AnsweringModel",
    "DualVisualQuestionAnsweringPipeline",
    "EncodingReport",
    "ExportReport",
    "FeatureStore",
    "Found",
    "PairLatency",
    "PairShape",
    "PairTime",
    "RankedImage",
    "Ranking",
    "RetrievalReport",
    "SearchResult",
    "StoreAsker",
    "StoreSearcher",
    "Timing",
    "alternate",
    "encode_images",
    "encode_texts",
    "evaluate_retrieval",
    "export_onnx",
    "half_depth",
    "load_encoder",
    "load_image",
    "measure_answering",
    "measure_pair_latency",
    "multiply_adds",
    "open_images",
    "peak_memory",
    "prepack_linear_layers",
    "read_texts",
    "word_attention",
]
