"""DistillVLM's inputs: object detectors, region features, the region store, published region files."""

from .detectors import Detector, load_detector
from .extraction import BATCH_SIZE, MAX_REGIONS, MIN_REGIONS, THRESHOLD, RegionReport, extract_regions, report_store
from .roi_align import roi_align
from .store import SHARD_SIZE, RegionManifest, RegionStore, StoredImage, fill_store
from .tsv import read_region_tsv

__all__ = [
    "BATCH_SIZE",
    "MAX_REGIONS",
    "MIN_REGIONS",
    "SHARD_SIZE",
    "THRESHOLD",
    "Detector",
    "RegionManifest",
    "RegionReport",
    "RegionStore",
    "StoredImage",
    "extract_regions",
    "fill_store",
    "load_detector",
    "read_region_tsv",
    "report_store",
    "roi_align",
]
