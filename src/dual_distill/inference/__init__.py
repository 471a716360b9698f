"""What one does with a trained model: ask it, encode once and ask many, see where it looks, and how long it takes.

Importing this package registers `pipeline("dual-visual-question-answering")` with transformers.
"""

from .attention import attention_maps, draw_attention_picture, draw_attention_tile
from .attention_callback import AttentionMapsCallback
from .benchmark import PairShape, alternate, answering_ways, measure_answering, multiply_adds, random_pairs
from .encoding import EncodingReport, encode_images, encode_texts, process_share
from .encoding_map import EncodeColumn
from .export import ExportReport, export_onnx
from .feature_store import DTYPES, NORMALISED, FeatureManifest, FeatureStore, FeatureTable
from .feature_store_vqa import FeatureStoreVQA
from .model_identity import model_identity, processor_settings
from .pipeline import ANSWERING_TASK, DualVisualQuestionAnsweringPipeline, answer_questions
from .prepacking import prepack_linear_layers
from .retrieval import RetrievalReport, evaluate_retrieval
from .search import FeatureStoreSearcher
from .serving import Batcher, ModelServer, ServingLimits
from .sources import fetch_image, load_image, open_images, read_texts
