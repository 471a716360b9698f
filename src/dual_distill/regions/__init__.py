"""DistillVLM's inputs: object detectors, region features, the region store, published region files."""

from .detectors import Detector, load_detector
from .extraction import BATCH_SIZE, MAX_REGIONS, MIN_REGIONS, THRESHOLD, extract_regions
from .roi_align import roi_align
from .store import SHARD_SIZE, RegionManifest, RegionReport, RegionStore, StoredImage, fill_store, report_store
from .tsv import read_region_tsv
