"""Search a store by cosine: images for a text, texts for an image, in the one space of a retrieval head.

Exact by default: every stored vector is compared, from the mapped files, and only the best are kept, so memory does not
grow with the store. Where faiss is installed its kernels compare them, as they are stored; without it, and where very
many reach a threshold, torch does, piece by piece, slower and with the same result. An index of faiss may be
approximate instead: then it is faster and misses some.

A model with interaction layers can read the nearest once more, with the text beside them: as many as `rerank_top` says.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from dual_distill.data import resize_image
from dual_distill.modeling import DualDistillProcessor

from .encoding import encode_in_order, searches
from .feature_store import FeatureStore
from .queries import FeatureStoreQueries, RunningTopK, check_at_least_1
from .sources import load_image
from .vector_index import load_faiss, mapped_index, saved_index

_ROWS = 8192
_PAIRS = 64
_MOST_HITS = 2**24  # which faiss keeps of all shards, 12 bytes each


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
        matches: rows that reach the threshold, of which `best` shows at most `top_k`; None where an approximate index
            answered, which does not count them.
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
        index: None compares every stored vector; "faiss" does so too, and asks for faiss; "faiss:SPEC" takes what
            `faiss.index_factory` makes of the SPEC, such as "faiss:HNSW32", which is saved beside the store.

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

        library, _, spec = (index or "faiss").partition(":")
        if library != "faiss":
            known = "'faiss', 'faiss:SPEC' such as 'faiss:HNSW32', or None"
            raise ValueError(f"index is {index!r}, but expected is {known}.")
        self._approximate = saved_index(store, spec) if spec else None
        try:
            load_faiss()
            self._has_faiss = True
        except ImportError:
            if index is not None:
                raise
            self._has_faiss = False

    @cached_property
    def _mapped(self) -> Any:
        """What compares every vector, made when it is first asked."""
        return mapped_index(self.store)

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
            pixels = (resize_image(self.processor.prepare_image, one, str(n)) for n, one in enumerate(decoded))
            vectors = encode_in_order(self.model, pixels, len(images), batch_size=1)
        return self._search(vectors, images, top_k, threshold, rerank_top)

    def by_vectors(self, vectors: torch.Tensor, top_k: int = 10, threshold: float = -1.0) -> list[SearchResult]:
        """Find what is stored for vectors of the model's own space.

        Args:
            vectors: `(queries, width)`, of any length, such as `get_text_features` pools.
            top_k: as in `by_texts`.
            threshold: likewise.

        Returns:
            A `SearchResult` a query.

        Raises:
            ValueError: `top_k` or `threshold` is out of range.
        """
        return self._search(vectors, [], top_k, threshold, None)

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
        queries, number = normalize(vectors.float(), dim=-1), max(top_k, rerank_top or 0)
        results = self._nearest(queries, number, threshold)

        # More were searched than are wanted, where more are read again.
        if rerank_top is not None:
            pairs = zip(given, results, strict=True)
            results = [found._replace(best=self._reranked(query, found.best, rerank_top)) for query, found in pairs]
        return [result._replace(best=result.best[:top_k]) for result in results]

    def _reranked(self, query: str, hits: list[SearchHit], rerank_top: int) -> list[SearchHit]:
        """The nearest in the order in which text and image fit, read together; the others behind them."""
        matched: list[tuple[float, SearchHit]] = []
        for start in range(0, min(rerank_top, len(hits)), _PAIRS):
            part = hits[start : min(start + _PAIRS, rerank_top)]
            names, is_image = [hit.id for hit in part], self.store.manifest.kind == "image"
            texts, images, store = ([query], names, self.store) if is_image else (names, [query], self.queries)
            assert store is not None
            inputs = self._pair_inputs(texts, store, store.indices(images))
            logits = self.model.match_scores(**inputs)[:, 0].float().expand(len(part))
            fits = [hit._replace(match=fit) for hit, fit in zip(part, logits.sigmoid().tolist(), strict=True)]
            matched += zip(logits.tolist(), fits, strict=True)

        # By logits, for probabilities of sure ones are all 1; stable: equal ones stay in the order of their cosines.
        matched.sort(key=lambda one: -one[0])
        return [hit for _, hit in matched] + hits[rerank_top:]

    def _nearest(self, queries: torch.Tensor, number: int, threshold: float) -> list[SearchResult]:
        """The best of all, or of what an approximate index finds."""
        if self._approximate is not None:
            found = self._approximate.search(queries.cpu().numpy(), min(number, len(self.store)))
            return [self._result(scores, rows, number, threshold) for scores, rows in zip(*found, strict=True)]

        if (compared := self._compared_as_stored(queries, number, threshold)) is not None:
            return compared

        best = [RunningTopK(number, threshold) for _ in queries]
        for start, piece in self.store.pieces(rows=_ROWS):
            cosines = (queries @ piece.to(queries).T).clamp(-1, 1).cpu()
            for one, row in zip(best, cosines, strict=True):
                one.add(start, row)
        return [SearchResult(self._hits(one.rows.tolist(), one.scores.tolist()), one.matches) for one in best]

    def _compared_as_stored(self, queries: torch.Tensor, number: int, threshold: float) -> list[SearchResult] | None:
        """What faiss's kernels find; None without faiss, or where it would have to keep too many to be sure."""
        asked, most = queries.cpu().numpy(), number + 1
        while self._has_faiss and len(queries) * len(self.store.table.starts) * most <= _MOST_HITS:
            scores, rows = self._mapped.search(asked, min(most, len(self.store)))
            scores = scores.clip(-1, 1)
            counts = (scores >= threshold).sum(1).tolist()

            # More than are wanted: the last is below the threshold, or, where nothing is, worse than those wanted.
            beyond, last = scores[:, -1], scores[:, min(number, len(self.store)) - 1]
            if threshold == -1:
                counts = [len(self.store)] * len(counts)
            if most >= len(self.store) or ((beyond < threshold) | ((beyond < last) & (threshold == -1))).all():
                each = zip(scores, rows, counts, strict=True)
                return [self._result(score, row, number, threshold, count) for score, row, count in each]
            most *= 16
        return None

    def _result(
        self, scores: Any, rows: Any, number: int, threshold: float, matches: int | None = None
    ) -> SearchResult:
        """What faiss found for one query; of equal scores the first row is first. Row -1: an index found fewer."""
        found = [(-score, row) for score, row in zip(scores[scores >= threshold].tolist(), rows.tolist(), strict=False)]
        best = sorted(one for one in found if one[1] >= 0)[:number]
        return SearchResult(self._hits([row for _, row in best], [-score for score, _ in best]), matches)

    def _hits(self, rows: list[int], scores: list[float]) -> list[SearchHit]:
        return list(map(SearchHit, self.store.ids(rows), scores))
