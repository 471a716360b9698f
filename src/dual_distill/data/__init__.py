"""Tasks as data and their readers, custom datasets, generated scenes, safe decoding, collators, streams, tables."""

from .answers import answer_coverage, build_answer_vocabulary
from .augmentation import RandAugment
from .collators.base import ID_COLUMNS, DistillationCollator, ImageTextCollator
from .collators.masked_words import TAG_LENGTH, CaptioningCollator, CaptionMasker, PreTrainingCollator, WholeWordMasker
from .datasets.custom import CustomDataset, load_custom_dataset
from .datasets.scene_questions import COLOURS, SHAPES, scene_answers
from .datasets.scenes import generate_scenes
from .decode_ahead import InputSource, Prepared, decode_ahead, fill_shards, is_readable, run_by_shape
from .fingerprint import described_fingerprint, fingerprint
from .image_content import image_content
from .images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ImageError,
    decode_image,
    image_bytes,
    image_source,
    other_names,
    resize_image,
)
from .indexed_dataset import IndexedDataset, RowEpochCallback
from .reading import ReadingReport, table_rows
from .records import FilePath, existing_file, read_json_lines
from .region_inputs import NUM_TAGS, RegionSet, distinct_tags, pad_regions, tag_texts
from .row_identity import identify_data, identify_rows
from .shape_grouping import (
    ShapeGroupedSampler,
    ShapeKey,
    grouped_order,
    in_order,
    shape_key,
    shape_keys,
    varies_in_shape,
)
from .sharded_table import PlannedShard, ShardedTable, TableStore, tensor_column
from .streaming.sources import ImageTextSource
from .streaming.stream import ImageTextLoader, ImageTextStream, ImageTextStreamCallback, load_image_text_stream
from .tasks import TASKS, Task, get_task, load_task
from .text_spans import text_spans
from .tokenizer import tokenizer_content, train_tokenizer
