"""DistillVLM's inputs: object detectors, region features, the region store, published region files."""

from .detectors import Detector, load_detector
from .extraction import BATCH_SIZE, MAX_REGIONS, MIN_REGIONS, THRESHOLD, RegionReport, extract_regions, report_store
from .roi_align import roi_align
from .store import SHARD_SIZE, RegionManifest, RegionStore, StoredImage, fill_store
from .tsv import read_region_tsv
