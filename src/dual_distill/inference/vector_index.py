"""Indexes of faiss over a store: one that compares every vector where it lies, and those that are built and kept.

What is unusual: the exact one holds nothing. The store's shards are mapped into memory, and faiss's kernels for
float32, half and 8-bit numbers read them there, so it costs no disk, no memory and no time to make, and cannot be out
of date.
Whatever `faiss.index_factory` makes is saved beside the shards, with the fingerprint of what it was made of.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dual_distill.data import fingerprint
from dual_distill.sealed import digest_of, read_json, write_file, write_json

from .feature_store import INT8_ZERO, NORMALISED, SCALES, FeatureStore

_ROWS = 8192
_logger = logging.getLogger(__name__)


def load_faiss() -> Any:
    """Import faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        wrong = "An index needs faiss, which is not installed: pip install 'dual-distill[retrieval]'"
        raise ImportError(f"{wrong}; or search without an index, which is exact.") from error
    return faiss


def mapped_index(store: FeatureStore) -> Any:
    """Return what compares a query with every vector of a store where it is mapped, by the inner product."""
    faiss, table, width = load_faiss(), store.table, store.manifest.width
    # One shard behind the other, their rows counted on.
    found = faiss.IndexShards(width, False, True)

    for number, start in enumerate(table.starts[:-1]):
        if start == table.starts[number + 1]:  # nothing of it could be read
            continue
        for vectors in table.arrays(number, NORMALISED):
            scale = float(table.tensor(number, SCALES, 0, 1)) if vectors.dtype == np.uint8 else 0.0
            found.add_shard(_view(faiss, vectors, scale))
    return found


def _view(faiss: Any, vectors: npt.NDArray[Any], scale: float) -> Any:
    """A flat index that reads `(rows, width)` vectors where they are; whoever calls keeps them there."""
    rows, width = vectors.shape
    if vectors.dtype == np.float32:
        found = faiss.IndexFlatIP(width)
    else:
        kinds = faiss.ScalarQuantizer
        kind = kinds.QT_fp16 if vectors.dtype == np.float16 else kinds.QT_8bit_uniform
        found = faiss.IndexScalarQuantizer(width, kind, faiss.METRIC_INNER_PRODUCT)
        if scale:
            # A code stands for the middle of its 255th: lowest + (code + 1/2) / 255 * range.
            bounds = np.array([-(INT8_ZERO + 0.5) * scale, 255 * scale], np.float32)
            faiss.copy_array_to_vector(bounds, found.sq.trained)

    # The third argument would keep the memory alive; an empty index's own keeps nothing.
    codes = vectors.reshape(-1).view(np.uint8)
    found.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(codes), len(codes), found.codes.owner)
    found.ntotal, found.is_trained = rows, True
    return found


def saved_index(store: FeatureStore, spec: str) -> Any:
    """Return an index of all vectors of a store, as saved beside them, or made and saved now.

    Args:
        store: of a retrieval head.
        spec: of `faiss.index_factory`, such as "HNSW32".

    Returns:
        The index, mapped into memory where it was saved; it ranks by the inner product.

    Raises:
        ValueError: faiss makes no such index.
        ImportError: faiss is not installed.
    """
    faiss = load_faiss()
    made_of = {"spec": spec, "store": store.table.content(), "faiss": faiss.__version__}
    file = Path(store.path, f"index-{fingerprint(spec)[:12]}.faiss")
    record = file.with_suffix(".json")

    if record.is_file():
        problem = "is damaged"
        try:
            kept = read_json(record)
            if kept["made_of"] != made_of:
                problem = "was made of other vectors or by another faiss"
            elif digest_of(file) == kept["file_sha256"]:
                return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        except (OSError, ValueError, KeyError) as error:
            problem = f"is damaged ({error})"
        _logger.warning("the index %r saved in %r %s; it is made again", spec, store.path, problem)

    found = _built(faiss, store, spec)
    content = faiss.serialize_index(found)
    try:
        write_file(file, [content.data])
        write_json(record, {"made_of": made_of, "file_sha256": fingerprint(content.data)})
    except OSError as error:
        _logger.warning("the index %r cannot be saved in %r (%s); each start makes it", spec, store.path, error)
    return found


def _built(faiss: Any, store: FeatureStore, spec: str) -> Any:
    # faiss says by a RuntimeError what it cannot make of a spec.
    try:
        found = faiss.index_factory(store.manifest.width, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"faiss makes no index of {spec!r}; give a spec of faiss.index_factory.") from error

    try:
        if not found.is_trained:  # such as the centres of an inverted file
            found.train(torch.cat([piece for _, piece in store.pieces()]).float().numpy())
    except RuntimeError as error:
        reason = str(error).rpartition("failed: ")[2]
        learns = f"faiss cannot make {spec!r} of the {len(store):,} vectors of {store.path!r} ({reason})"
        raise ValueError(f"{learns}; give a spec with fewer centres, or search without an index.") from error
    for _, piece in store.pieces(rows=_ROWS):
        found.add(piece.float().numpy())
    return found
