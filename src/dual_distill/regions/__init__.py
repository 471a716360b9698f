"""DistillVLM's inputs: object detectors, region features, the region store, published region files."""

from .detectors import Detector, load_detector
from .extraction import BATCH_SIZE, MAX_REGIONS, MIN_REGIONS, THRESHOLD, RegionReport, extract_regions, report_store
from .files import SHARD_SIZE
from .store import RegionStore
from .tsv import read_region_tsv

__all__ = [
    "BATCH_SIZE",
    "MAX_REGIONS",
    "MIN_REGIONS",
    "SHARD_SIZE",
    "THRESHOLD",
    "Detector",
    "RegionReport",
    "RegionStore",
    "extract_regions",
    "load_detector",
    "read_region_tsv",
    "report_store",
]
