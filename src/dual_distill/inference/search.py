"""Search a store by cosine: images for a text, texts for an image, in the one space of a retrieval head.

Exact by default: every stored vector is compared, piece by piece from the disk, and only the best are kept, so memory
does not grow with the store. An index of faiss holds the vectors in memory instead, and may be approximate: then it is
faster and misses some.

A model with interaction layers can read the nearest once more, with the text beside them: as many as `rerank_top` says.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor

from .encoding import encode_in_order, searches
from .feature_store import FeatureStore
from .queries import FeatureStoreQueries, RunningTopK, check_at_least_1
from .sources import load_image

_ROWS = 8192
_PAIRS = 64


class SearchHit(NamedTuple):
    """One row of a search.

    Attributes:
        id: of the image; of texts, the text itself.
        score: cosine, in [-1, 1].
        match: by interaction layers, the probability that text and image fit; None where they did not read the pair.
    """

    id: str
    score: float
    match: float | None = None


class SearchResult(NamedTuple):
    """What one query found.

    Attributes:
        best: the first `top_k`, nearest first; equal ones in the order of the store, where the search is exact. Those
            that were re-ranked stand before all others, in the order of `match`.
        matches: rows that reach the threshold, of which `best` shows at most `top_k`; None where an index answered,
            which does not count them.
    """

    best: list[SearchHit]
    matches: int | None


class FeatureStoreSearcher(FeatureStoreQueries):
    """Searches a store of images by texts, or a store of texts by images.

    Args:
        model: the dual encoder with a retrieval head that made the store; put into eval mode.
        processor: its processor.
        store: of images or of texts: what is found.
        queries: a store of the other kind; queries that it holds, images by their ids, are not encoded again.
        index: None compares every stored vector; "faiss" puts them into a flat index of faiss, which gives the same in
            memory; "faiss:SPEC" into one that `faiss.index_factory` makes of the SPEC, such as "faiss:HNSW32".

    Raises:
        ValueError: a store was made with another model or processor or is of the wrong kind, the model has no retrieval
            head, or the index is unknown.
        ImportError: faiss is asked for and not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from transformers import ViltImageProcessorPil
        >>> from dual_distill.data import train_tokenizer
        >>> from dual_distill.inference import encode_images
        >>> from dual_distill.modeling import DualEncoderConfig, DualEncoderForImageTextRetrieval
        >>> tokenizer = train_tokenizer(["a red circle"])
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = DualEncoderForImageTextRetrieval(DualEncoderConfig(
        ...     text_config={"vocab_size": len(tokenizer), **tower}, projection_dim=4,
        ...     vision_config={"image_size": 32, "patch_size": 16, **tower}))
        >>> processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer)
        >>> images = {colour: Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = encode_images(model, processor, images, folder)
        ...     [result] = FeatureStoreSearcher(model, processor, FeatureStore(folder)).by_texts(["a red circle"])
        >>> sorted(found.id for found in result.best), result.matches
        (['blue', 'red'], 2)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        store: FeatureStore,
        queries: FeatureStore | None = None,
        *,
        index: str | None = None,
    ) -> None:
        if not searches(model):
            wrong = f"{type(model).__name__} puts images and texts into no common space"
            raise ValueError(f"{wrong}; give a dual encoder with the head image_text_retrieval.")
        # Images are searched by texts and texts by images.
        kind = store.manifest.kind
        super().__init__(model, processor, **{kind: store, "text" if kind == "image" else "image": queries})
        self.store, self.queries = store, queries
        self._index = None if index is None else make_index(store, index)

    def by_texts(
        self, texts: Sequence[str], top_k: int = 10, threshold: float = -1.0, rerank_top: int | None = None
    ) -> list[SearchResult]:
        """Find images for texts.

        Args:
            texts: with words in them.
            top_k: images a text.
            threshold: least cosine, in [-1, 1].
            rerank_top: how many of the nearest images each text reads, by the model's interaction layers, to order them
                anew; the store has their tokens (`encode_images(tokens=True)`). None: the cosines alone.

        Returns:
            A `SearchResult` a text.

        Raises:
            ValueError: the store holds texts, a text is empty, `top_k`, `threshold` or `rerank_top` is out of range, or
                there are no tokens to re-rank by.
        """
        self._check_kind("image")
        return self._search(self._text_vectors(texts, self.queries), texts, top_k, threshold, rerank_top)

    def by_images(
        self, images: Sequence[Any], top_k: int = 10, threshold: float = -1.0, rerank_top: int | None = None
    ) -> list[SearchResult]:
        """Find texts for images.

        Args:
            images: ids of the store of queries where there is one; else what `load_image` takes: a path, a URL, a PIL
                image, bytes.
            top_k: texts an image.
            threshold: least cosine, in [-1, 1].
            rerank_top: as in `by_texts`: how many of the nearest texts read each image, whose tokens the store of
                queries has.

        Returns:
            A `SearchResult` an image.

        Raises:
            ValueError: the store holds images, the store of queries lacks one, `top_k`, `threshold` or `rerank_top` is
                out of range, or there are no tokens to re-rank by.
            ImageError: an image cannot be read.
        """
        self._check_kind("text")
        if not images:
            raise ValueError("There are no images to search by; give one or more.")
        if self.queries is not None:
            vectors = self._read(self.queries, self.queries.indices(list(images)))
        else:
            size = self.processor.jpeg_size
            decoded = (load_image(image, number, jpeg_size=size) for number, image in enumerate(images))
            pixels = map(self.processor.prepare_image, decoded)
            vectors = encode_in_order(self.model, pixels, batch_size=1)
        return self._search(vectors, images, top_k, threshold, rerank_top)

    def _check_kind(self, kind: str) -> None:
        found = self.store.manifest.kind
        if found != kind:
            raise ValueError(f"{self.store.path!r} is a store of {found}s, but {kind}s are to be found.")

    @torch.inference_mode()
    def _search(
        self, vectors: torch.Tensor, given: Sequence[Any], top_k: int, threshold: float, rerank_top: int | None
    ) -> list[SearchResult]:
        check_at_least_1("top_k", top_k)
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but a cosine lies between -1 and 1.")
        if rerank_top is not None:
            check_at_least_1("rerank_top", rerank_top)
            images = self.store if self.store.manifest.kind == "image" else self.queries
            if images is None or not images.manifest.tokens:
                needed = "a store of images with tokens (`dual-distill encode --tokens`)"
                raise ValueError(f"rerank_top lets interaction layers read images; give {needed}.")

        # What a float16 store gives back is of length 1 up to its rounding.
        queries, number = normalize(vectors, dim=-1), max(top_k, rerank_top or 0)
        if self._index is not None:
            results = self._ask_index(queries.cpu(), number, threshold)
        else:
            best = [RunningTopK(number, threshold) for _ in queries]
            for start, piece in self.store.pieces(rows=_ROWS):
                scores = (queries @ piece.to(queries).T).clamp(-1, 1).cpu()
                for one, row in zip(best, scores, strict=True):
                    one.add(start, row)
            results = [SearchResult(self._hits(one.rows.tolist(), one.scores.tolist()), one.matches) for one in best]

        # More were searched than are wanted, where more are read again.
        if rerank_top is not None:
            pairs = zip(given, results, strict=True)
            results = [found._replace(best=self._reranked(query, found.best, rerank_top)) for query, found in pairs]
        return [result._replace(best=result.best[:top_k]) for result in results]

    def _reranked(self, query: str, hits: list[SearchHit], rerank_top: int) -> list[SearchHit]:
        """The nearest in the order in which text and image fit, read together; the others behind them."""
        matched = []
        for start in range(0, min(rerank_top, len(hits)), _PAIRS):
            part = hits[start : min(start + _PAIRS, rerank_top)]
            names, is_image = [hit.id for hit in part], self.store.manifest.kind == "image"
            texts, images, store = ([query], names, self.store) if is_image else (names, [query], self.queries)
            assert store is not None
            inputs = self._pair_inputs(texts, store, store.indices(images))
            fits = self.model.match_scores(**inputs)[:, 0].float().sigmoid().expand(len(part)).tolist()
            matched += [hit._replace(match=fit) for hit, fit in zip(part, fits, strict=True)]

        # Stable, so that equal ones stay in the order of their cosines.
        matched.sort(key=lambda hit: -(hit.match or 0.0))
        return matched + hits[rerank_top:]

    def _ask_index(self, queries: torch.Tensor, top_k: int, threshold: float) -> list[SearchResult]:
        assert self._index is not None
        found = self._index.search(queries.numpy(), min(top_k, len(self.store)))
        results = []
        for scores, rows in zip(*(array.tolist() for array in found), strict=True):
            # Row -1: an approximate index found fewer.
            number = sum(row >= 0 and score >= threshold for score, row in zip(scores, rows, strict=True))
            results.append(SearchResult(self._hits(rows[:number], scores[:number]), None))
        return results

    def _hits(self, rows: list[int], scores: list[float]) -> list[SearchHit]:
        return list(map(SearchHit, self.store.ids(rows), scores))


def make_index(store: FeatureStore, index: str) -> Any:
    """Put all vectors of a store into an index of faiss, in memory.

    Args:
        store: of a retrieval head.
        index: "faiss" for a flat one, or "faiss:SPEC" with a spec of `faiss.index_factory`.

    Returns:
        The index; it ranks by the inner product.

    Raises:
        ValueError: the index is none of these.
        ImportError: faiss is not installed.

    Example:
        >>> make_index(None, "annoy")
        Traceback (most recent call last):
        ValueError: index is 'annoy', but expected is 'faiss', 'faiss:SPEC' such as 'faiss:HNSW32', or None.
    """
    library, _, spec = index.partition(":")
    if library != "faiss":
        raise ValueError(f"index is {index!r}, but expected is 'faiss', 'faiss:SPEC' such as 'faiss:HNSW32', or None.")
    try:
        import faiss
    except ImportError as error:
        wrong = "An index needs faiss, which is not installed: pip install 'dual-distill[retrieval]'"
        raise ImportError(f"{wrong}; or search without an index, which is exact.") from error
    # faiss says by a RuntimeError what it cannot make of a spec.
    try:
        found = faiss.index_factory(store.manifest.width, spec or "Flat", faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"faiss makes no index of {spec!r}; give a spec of faiss.index_factory.") from error

    if not found.is_trained:  # such as the centres of an inverted file
        found.train(torch.cat([piece for _, piece in store.pieces()]).float().numpy())
    for _, piece in store.pieces(rows=_ROWS):
        found.add(piece.float().numpy())
    return found
