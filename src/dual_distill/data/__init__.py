"""Tasks as data, readers of official files, generated scenes, answer vocabularies, safe decoding, the collator."""

from .answers import answer_coverage, build_answer_vocabulary
from .augmentation import RandAugment
from .captioning_collator import CaptioningCollator, CaptionMasker
from .captions import load_captions
from .collator import ID_COLUMNS, DistillationCollator
from .detectors import Detector, load_detector
from .easy_vqa import load_easy_vqa
from .images import ImageError, decode_image
from .masking import WholeWordMasker
from .nlvr import load_nlvr
from .nlvr2 import load_nlvr2
from .numbered_rows import NumberedRows, RowEpochCallback
from .own_data import OwnData, load_own_data
from .pair_loading import PairStreamCallback, load_place, pair_loader, save_place
from .pair_sources import PairSource
from .pair_streams import PairStream, load_pair_stream
from .pretraining_collator import PreTrainingCollator
from .reading import ReadingReport
from .region_set import RegionSet
from .region_store import RegionStore
from .region_tsv import read_region_tsv
from .regions import RegionReport, extract_regions
from .scene_captions import generate_scene_captions
from .scene_regions import SceneBackbone, scene_region_store, train_scene_backbone
from .scene_statements import generate_scene_statements
from .scenes import generate_scenes, scene_answers
from .snli_ve import load_snli_ve
from .task_loading import load_task
from .tasks import TASKS, Task, get_task
from .tokenizer import train_tokenizer
from .vqa import load_vqa

__all__ = [
    "ID_COLUMNS",
    "TASKS",
    "CaptionMasker",
    "CaptioningCollator",
    "Detector",
    "DistillationCollator",
    "ImageError",
    "NumberedRows",
    "OwnData",
    "PairSource",
    "PairStream",
    "PairStreamCallback",
    "PreTrainingCollator",
    "RandAugment",
    "ReadingReport",
    "RegionReport",
    "RegionSet",
    "RegionStore",
    "RowEpochCallback",
    "SceneBackbone",
    "Task",
    "WholeWordMasker",
    "answer_coverage",
    "build_answer_vocabulary",
    "decode_image",
    "extract_regions",
    "generate_scene_captions",
    "generate_scene_statements",
    "generate_scenes",
    "get_task",
    "load_captions",
    "load_detector",
    "load_easy_vqa",
    "load_nlvr",
    "load_nlvr2",
    "load_own_data",
    "load_pair_stream",
    "load_place",
    "load_snli_ve",
    "load_task",
    "load_vqa",
    "pair_loader",
    "read_region_tsv",
    "save_place",
    "scene_answers",
    "scene_region_store",
    "train_scene_backbone",
    "train_tokenizer",
]
