"""Image-text retrieval, evaluated: the dual encoder alone, the fusion encoder behind it, and what each costs.

A dual encoder encodes N images and M texts once, N + M passes, and compares all N x M pairs by one product. A fusion
encoder reads each pair, N x M passes, so it is given the dual encoder's best k of each query only. What is unusual: the
pairs of all queries, of both directions and of all folds, are collected first, each once, and sorted by image. So each
image is decoded once for all its pairs, however many queries it is a candidate of.

Beside the vectors of both sides and the candidates, memory does not grow with the data: similarities are made and
ranked in blocks, images are decoded as they are needed.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from dual_distill.data import Task
from dual_distill.evaluation import RetrievalRecall
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    FusionEncoderForImageTextRetrieval,
)

from .retrieval_pairs import FusionScores, ImagesWithCaptions, encode_both_sides

DIRECTIONS = ("text_to_image", "image_to_text")
_QUERIES = 512

Recalls = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class PairTime:
    """How long one way takes for a number of pairs.

    Attributes:
        way: "dual", "rerank" or "fusion".
        pairs: that it judges.
        seconds: with reading and decoding images, without loading models.
        measured: False: computed from the measured pairs per second of other pairs of the same data.
    """

    way: str
    pairs: int
    seconds: float
    measured: bool


@dataclass(frozen=True)
class RetrievalReport:
    """What an evaluation of retrieval found.

    Attributes:
        images: number of images.
        captions: number of captions.
        whole: way ("dual", "reranked", "fusion") -> direction (one of `DIRECTIONS`) -> what `RetrievalRecall` computes,
            over all images and captions.
        times: for all pairs of the whole.
        rerank_top: candidates a query; None without a fusion encoder.
        folds: number of parts of `fold_images` images each; 0 where there are fewer than two.
        fold_images: images a fold.
        mean_of_folds: as `whole`: each number is the mean over the folds.
    """

    images: int
    captions: int
    whole: Recalls
    times: list[PairTime]
    rerank_top: int | None = None
    folds: int = 0
    fold_images: int | None = None
    mean_of_folds: Recalls = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes."""
        return asdict(self)


def evaluate_retrieval(
    rows: Dataset,
    task: Task,
    dual: PreTrainedModel,
    processor: DualDistillProcessor,
    fusion: PreTrainedModel | None = None,
    fusion_processor: DualDistillProcessor | None = None,
    *,
    rerank_top: int = 16,
    all_pairs: bool = False,
    fold_images: int | None = 1000,
    batch_size: int = 64,
    show_progress: bool = False,
) -> RetrievalReport:
    """Search captions by images and images by captions, and say how often the right one is found, and how fast.

    A query's rank after re-ranking: its candidates in the order of the fusion encoder's scores, the others behind them
    in the dual encoder's order.

    Args:
        rows: one row a caption.
        task: names the columns.
        dual: a `DualEncoderForImageTextRetrieval`; put into eval mode.
        processor: its processor.
        fusion: a `FusionEncoderForImageTextRetrieval` that orders the dual's candidates anew; None: the dual alone.
        fusion_processor: its processor.
        rerank_top: candidates a query, >= 1.
        all_pairs: let the fusion encoder read every pair too, which is slow, and keeps one float32 a pair.
        fold_images: evaluate parts of so many images too (1,000 for COCO's 1K figures), in the order of the rows;
            images that fill no part are left out of them. None: the whole only.
        batch_size: images, texts or pairs a forward pass.
        show_progress: bars on stderr.

    Returns:
        A `RetrievalReport`.

    Raises:
        ValueError: a model is of another kind, or an argument is out of its range.
        ImageError: an image cannot be read.
    """
    _check(dual, fusion, fusion_processor, rerank_top, all_pairs, fold_images, batch_size)
    data = ImagesWithCaptions(rows, task)
    image_vectors, text_vectors, encode_s = encode_both_sides(data, dual.eval(), processor, batch_size, show_progress)
    owners = torch.tensor(data.image_of_caption)
    parts = [_Part(image_vectors, text_vectors, owners, torch.arange(data.num_images))]
    folds = data.num_images // fold_images if fold_images else 0
    if fold_images and folds > 1:
        parts += [
            _Part(image_vectors, text_vectors, owners, torch.arange(first, first + fold_images))
            for first in range(0, folds * fold_images, fold_images)
        ]
    start = time.perf_counter()
    parts[0].compare_all()
    num_pairs = data.num_images * len(data.captions)
    times = [PairTime("dual", num_pairs, encode_s + time.perf_counter() - start, True)]
    recalls: list[Recalls] = [{"dual": part.recall()} for part in parts]
    if fusion is not None and fusion_processor is not None:
        fusion_scores = FusionScores(data, fusion.eval(), fusion_processor, batch_size, show_progress)
        candidates = [part.candidates(rerank_top) for part in parts]
        if all_pairs:
            fusion_scores.score_all()
        else:
            fusion_scores.score(torch.cat([part.pairs(rows) for part, rows in zip(parts, candidates, strict=True)]))
        for part, part_candidates, recall in zip(parts, candidates, recalls, strict=True):
            recall["reranked"] = part.recall(part_candidates, fusion_scores)
            if all_pairs:
                recall["fusion"] = part.recall(None, fusion_scores)
        # Whoever needs the whole only scores its pairs only.
        asked = len(parts[0].pairs(candidates[0]).unique())
        pairs_s = fusion_scores.pairs_s
        times.append(PairTime("rerank", asked, asked / pairs_s, asked == fusion_scores.num_scored))
        times.append(PairTime("fusion", num_pairs, num_pairs / pairs_s, num_pairs == fusion_scores.num_scored))
    return RetrievalReport(
        images=data.num_images,
        captions=len(data.captions),
        whole=recalls[0],
        times=times,
        rerank_top=None if fusion is None else rerank_top,
        folds=len(parts) - 1,
        fold_images=fold_images if len(parts) > 1 else None,
        mean_of_folds=_mean(recalls[1:]) if len(parts) > 1 else {},
    )


def _check(
    dual: PreTrainedModel,
    fusion: PreTrainedModel | None,
    fusion_processor: DualDistillProcessor | None,
    rerank_top: int,
    all_pairs: bool,
    fold_images: int | None,
    batch_size: int,
) -> None:
    if not isinstance(dual, DualEncoderForImageTextRetrieval):
        raise ValueError(
            f"{type(dual).__name__} does not encode images and texts apart for comparison; give a dual encoder with "
            f"the head "
            "image_text_retrieval, and a fusion encoder as the one that re-ranks."
        )
    if fusion is not None and not isinstance(fusion, FusionEncoderForImageTextRetrieval):
        raise ValueError(
            f"{type(fusion).__name__} cannot re-rank; give a fusion encoder with the head image_text_retrieval."
        )
    if (fusion is None) != (fusion_processor is None):
        raise ValueError("fusion and fusion_processor belong together; give both or neither.")
    if all_pairs and fusion is None:
        raise ValueError("all_pairs lets a fusion encoder read every pair; give one.")
    for name, value in (("rerank_top", rerank_top), ("batch_size", batch_size), ("fold_images", fold_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but it counts 1 or more.")


class _Part:
    """Some images with their captions: each image searches the captions and each caption the images."""

    def __init__(
        self, image_vectors: torch.Tensor, text_vectors: torch.Tensor, owners: torch.Tensor, images: torch.Tensor
    ) -> None:
        first, last = int(images[0]), int(images[-1])
        texts = ((owners >= first) & (owners <= last)).nonzero()[:, 0]
        self._num_texts = len(owners)
        # Direction -> places of the queries and of the gallery in the whole, and which of the gallery are right.
        right_captions: list[list[int]] = [[] for _ in images]
        right_images = (owners[texts] - first).tolist()
        for caption, image in enumerate(right_images):
            right_captions[image].append(caption)
        self._places = {"text_to_image": (texts, images), "image_to_text": (images, texts)}
        self._right = {"text_to_image": [[image] for image in right_images], "image_to_text": right_captions}
        on_device = {"text_to_image": (text_vectors, image_vectors), "image_to_text": (image_vectors, text_vectors)}
        self._vectors = {
            direction: tuple(
                vectors[places.to(vectors.device)]
                for vectors, places in zip(sides, self._places[direction], strict=True)
            )
            for direction, sides in on_device.items()
        }

    def _blocks(self, direction: str) -> Iterator[tuple[slice, torch.Tensor]]:
        queries, gallery = self._vectors[direction]
        for start in range(0, len(queries), _QUERIES):
            block = slice(start, start + _QUERIES)
            yield block, queries[block] @ gallery.T

    def compare_all(self) -> None:
        """Compute the similarity of every pair once and keep none: what comparing costs."""
        for _, similarities in self._blocks("text_to_image"):
            similarities.amax().item()

    def candidates(self, number: int) -> dict[str, torch.Tensor]:
        """Direction -> `(queries, number)` places in the part's gallery, the nearest first."""
        return {
            direction: torch.cat(
                [
                    similarities.topk(min(number, similarities.shape[1]), dim=1).indices.cpu()
                    for _, similarities in self._blocks(direction)
                ]
            )
            for direction in DIRECTIONS
        }

    def pairs(self, candidates: dict[str, torch.Tensor]) -> torch.Tensor:
        """Every pair of a query and a candidate, as image * captions + caption, places in the whole."""
        return torch.cat(
            [self._keys(direction, slice(None), candidates[direction]).flatten() for direction in DIRECTIONS]
        )

    def _keys(self, direction: str, block: slice, candidates: torch.Tensor) -> torch.Tensor:
        queries, gallery = self._places[direction]
        mine, theirs = queries[block, None].expand(-1, candidates.shape[1]), gallery[candidates]
        images, texts = (theirs, mine) if direction == "text_to_image" else (mine, theirs)
        return images * self._num_texts + texts

    def recall(
        self, candidates: dict[str, torch.Tensor] | None = None, fusion_scores: FusionScores | None = None
    ) -> dict[str, dict[str, float]]:
        """Direction -> recall by the dual encoder; with scores and candidates re-ranked; with scores alone by those."""
        found = {}
        for direction in DIRECTIONS:
            metric = RetrievalRecall()
            for block, similarities in self._blocks(direction):
                scores = similarities.cpu()
                if fusion_scores is not None and candidates is None:
                    everything = torch.arange(scores.shape[1]).expand(len(scores), -1)
                    scores = fusion_scores.of(self._keys(direction, block, everything))
                elif fusion_scores is not None and candidates is not None:
                    best = candidates[direction][block]
                    scores = reranked(scores, best, fusion_scores.of(self._keys(direction, block, best)))
                metric.add_batch(predictions=scores, references=self._right[direction][block])
            found[direction] = metric.compute()
        return found


def reranked(similarities: torch.Tensor, candidates: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Put the candidates of each query before all others, in the order of their scores.

    Args:
        similarities: `(Q, G)` cosines of queries and gallery.
        candidates: `(Q, K)` places in the gallery.
        scores: `(Q, K)` of the candidates, higher is nearer, on any scale.

    Returns:
        `(Q, G)` float64, higher is nearer.

    Example:
        >>> scores = reranked(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0, 1]]), torch.tensor([[-5.0, 3.0]]))
        >>> scores.argsort(descending=True)
        tensor([[1, 0, 2]])
    """
    # Cosines end at 1: two more than the worst candidate's score stands before them all, with room for rounding.
    above = scores.double() - scores.double().amin(dim=1, keepdim=True) + 2
    return similarities.double().scatter(1, candidates, above)


def _mean(recalls: list[Recalls]) -> Recalls:
    """The mean of each number over the folds."""
    return {
        way: {
            direction: {name: sum(one[way][direction][name] for one in recalls) / len(recalls) for name in numbers}
            for direction, numbers in directions.items()
        }
        for way, directions in recalls[0].items()
    }


__all__ = ["DIRECTIONS", "PairTime", "RetrievalReport", "evaluate_retrieval", "reranked"]
