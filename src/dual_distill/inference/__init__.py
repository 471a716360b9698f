"""What one does with a trained model: ask it, encode once and ask many, see where it looks, and how long it takes.

Importing this package registers `pipeline("dual-visual-question-answering")` with transformers.
"""

from .answering import answer_questions
from .attention_maps import word_attention
from .attention_picture import draw_attention_picture
from .benchmark import PairShape, alternate, measure_answering, multiply_adds, random_pairs
from .encoding import EncodingReport, encode_images, encode_texts
from .encoding_sources import open_images, read_texts
from .export import ExportReport, export_onnx
from .feature_store import DTYPES, NORMALISED, FeatureManifest, FeatureStore, FeatureTable
from .feature_store_vqa import FeatureStoreVQA
from .image_sources import load_image
from .model_identity import image_processor_settings, load_encoder, model_identity
from .pipeline import ANSWERING_TASK, DualVisualQuestionAnsweringPipeline
from .prepacking import prepack_linear_layers
from .retrieval import RetrievalReport, evaluate_retrieval
from .search import FeatureStoreSearcher
