"""Image-text retrieval, evaluated: the dual encoder alone, the fusion encoder behind it, and what each costs.

A dual encoder encodes N images and M texts once, N + M passes, and compares all N x M pairs by one product. A fusion
encoder reads each pair, N x M passes, so it is given the dual encoder's best k of each query only. What is unusual: the
pairs of all queries, of both directions and of all folds, are collected first, each once, and sorted by image. So each
image is decoded once for all its pairs, however many queries it is a candidate of.

Beside the vectors of both sides and the candidates, memory does not grow with the data: similarities are made and
ranked in blocks, images are decoded as they are needed, a few ahead, and are not kept.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import ImageError, Prepared, ShapedBatches, Task, decode_ahead, decode_image, resize_image
from dual_distill.evaluation import RetrievalRecall
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    FusionEncoderForImageTextRetrieval,
)

from .encoding import encode_text_vectors, stored_vectors
from .sources import dataset_images
from .top_k import check_at_least_1

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
        whole: way ("dual", "reranked", "fusion") -> direction ("text_to_image", "image_to_text") -> what
            `RetrievalRecall` computes, over all images and captions.
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
        all_pairs: let the fusion encoder read every pair too, which is slow, and keeps 12 bytes a pair.
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
    _check_models(dual, fusion, fusion_processor, all_pairs)
    for name, value in (("rerank_top", rerank_top), ("batch_size", batch_size), ("fold_images", fold_images)):
        if value is not None:
            check_at_least_1(name, value)
    data = ImagesWithCaptions(rows, task)
    num_images, num_pairs = data.num_images, data.num_images * len(data.captions)

    start = time.perf_counter()
    vectors = data.vectors(dual.eval(), processor, batch_size, show_progress)
    owners = torch.tensor(data.image_of_caption)
    parts = [_directions(*vectors, owners, range(num_images))]
    parts[0]["text_to_image"].candidates(1)  # compares every pair once
    times = [PairTime("dual", num_pairs, time.perf_counter() - start, True)]

    fold = fold_images or num_images
    firsts = range(0, num_images - fold + 1, fold)
    if len(firsts) > 1:
        parts += [_directions(*vectors, owners, range(first, first + fold)) for first in firsts]

    recalls: list[Recalls] = [{"dual": {name: one.recall() for name, one in part.items()}} for part in parts]

    if fusion is not None and fusion_processor is not None:
        candidates = [{name: one.candidates(rerank_top) for name, one in part.items()} for part in parts]
        asked = [
            torch.cat([one.pair_keys(best[name]).flatten() for name, one in part.items()]).unique()
            for part, best in zip(parts, candidates, strict=True)
        ]
        keys = torch.arange(num_pairs) if all_pairs else torch.cat(asked).unique()
        start = time.perf_counter()
        pair_scores = data.pair_scores(fusion.eval(), fusion_processor, keys, batch_size, show_progress)
        seconds = time.perf_counter() - start

        def scores_of(wanted: torch.Tensor) -> torch.Tensor:
            return pair_scores[torch.searchsorted(keys, wanted)]

        for part, best, recall in zip(parts, candidates, recalls, strict=True):
            recall["reranked"] = {name: one.recall(scores_of, best[name]) for name, one in part.items()}
            if all_pairs:
                recall["fusion"] = {name: one.recall(scores_of) for name, one in part.items()}
        # Whoever needs the whole alone scores the pairs of the whole alone.
        for way, number in (("rerank", len(asked[0])), ("fusion", num_pairs)):
            times.append(PairTime(way, number, number * seconds / len(keys), number == len(keys)))

    return RetrievalReport(
        images=num_images,
        captions=len(data.captions),
        whole=recalls[0],
        times=times,
        rerank_top=None if fusion is None else rerank_top,
        folds=len(parts) - 1,
        fold_images=fold_images if len(parts) > 1 else None,
        mean_of_folds=_mean(recalls[1:]) if len(parts) > 1 else {},
    )


def _check_models(
    dual: PreTrainedModel, fusion: PreTrainedModel | None, fusion_processor: Any, all_pairs: bool
) -> None:
    apart = "does not encode images and texts apart for comparison; give a dual encoder"
    if not isinstance(dual, DualEncoderForImageTextRetrieval):
        raise ValueError(f"{type(dual).__name__} {apart} with the head image_text_retrieval.")
    if fusion is not None and not isinstance(fusion, FusionEncoderForImageTextRetrieval):
        needed = "a fusion encoder with the head image_text_retrieval"
        raise ValueError(f"{type(fusion).__name__} cannot re-rank; give {needed}.")
    if (fusion is None) != (fusion_processor is None):
        raise ValueError("fusion and fusion_processor belong together; give both or neither.")
    if all_pairs and fusion is None:
        raise ValueError("all_pairs lets a fusion encoder read every pair; give one.")


class ImagesWithCaptions:
    """The rows of a split as images and captions, by their indices.

    Args:
        rows: one row a caption.
        task: names the columns, that of the image's id among them.

    Attributes:
        captions: one string a caption.
        num_images: number of images.
        image_of_caption: for each caption the index of its image; images are in the order of their first captions.

    Raises:
        ValueError: the task does not say which rows show the same image, there are no rows, or a caption is empty.

    Example:
        >>> from dual_distill.data import get_task
        >>> rows = {"image": ["a.png", "a.png", "b.png"], "caption": ["x", "y", "z"], "image_id": [7, 7, 3]}
        >>> data = ImagesWithCaptions(Dataset.from_dict(rows), get_task("coco_retrieval"))
        >>> data.num_images, data.image_of_caption
        (2, [0, 0, 1])
    """

    def __init__(self, rows: Dataset, task: Task) -> None:
        if task.image_id_column is None:
            raise ValueError(f"task {task.name!r} has no images with captions to search; coco_retrieval has.")
        if not len(rows):
            raise ValueError("There are no rows, but retrieval needs one caption or more.")
        self.captions = [str(caption) for caption in rows[task.text_column]]
        if empty := [row for row, caption in enumerate(self.captions) if not caption.strip()]:
            raise ValueError(f"row {empty[0]}: its caption is empty; leave the row out or give it words.")

        [image_column], image_ids = task.image_columns, list(rows[task.image_id_column])
        self._source = dataset_images(rows, image_column)
        first_rows: dict[Any, int] = {}
        for row, image_id in enumerate(image_ids):
            first_rows.setdefault(image_id, row)
        indices = {image_id: index for index, image_id in enumerate(first_rows)}
        self.image_of_caption = [indices[image_id] for image_id in image_ids]
        self._rows = list(first_rows.values())
        self.num_images = len(self._rows)

    def prepared(self, processor: DualDistillProcessor, indices: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield indices and prepared images `(3, H, W)`, in the order given; a few are decoded ahead.

        Raises:
            ImageError: an image cannot be read.
        """
        rows = [str(self._rows[index]) for index in indices]
        decoded = decode_ahead(self._source, rows, partial(_prepare, processor))
        for index, image in zip(indices, decoded, strict=True):
            if isinstance(image, ImageError):
                raise image
            yield index, image.values

    @torch.inference_mode()
    def vectors(
        self, model: PreTrainedModel, processor: DualDistillProcessor, batch_size: int, show: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode all images and captions with a dual encoder: `(images, P)`, `(captions, P)` float32 of length 1."""

        def encode(batch: list[Prepared]) -> torch.Tensor:
            pixels = torch.stack([image.values for image in batch]).to(model.device, model.dtype)
            return stored_vectors(model, model.get_image_features(pixels).pooler_output)

        batches = ShapedBatches(encode, batch_size)
        everything = range(self.num_images)
        prepared = self.prepared(processor, everything)
        for index, pixels in tqdm(prepared, "encode images", len(everything), unit=" images", disable=not show):
            batches.add(index, Prepared(pixels))
        found = batches.finish()

        captions = tqdm(self.captions, "encode texts", unit=" texts", disable=not show)
        texts = encode_text_vectors(model, processor, captions, batch_size)
        return torch.stack([found[index] for index in everything]), texts

    @torch.inference_mode()
    def pair_scores(
        self, model: PreTrainedModel, processor: DualDistillProcessor, keys: torch.Tensor, batch_size: int, show: bool
    ) -> torch.Tensor:
        """The fusion encoder's score of each pair; keys ascend, so that an image's pairs stand together."""
        images, texts = keys // len(self.captions), keys % len(self.captions)
        max_tokens = min(processor.tokenizer.model_max_length, model.config.max_position_embeddings)
        prepared = self.prepared(processor, images.unique().tolist())
        held: dict[int, torch.Tensor] = {}
        scores = []
        with tqdm(total=len(keys), desc="fusion encoder", unit=" pairs", disable=not show) as bar:
            for start in range(0, len(keys), batch_size):
                of_rows = images[start : start + batch_size].tolist()
                while of_rows[-1] not in held:
                    held.update([next(prepared)])
                held = {image: held[image] for image in dict.fromkeys(of_rows)}

                # Moved once an image, repeated on the device.
                position = {image: row for row, image in enumerate(held)}
                repeats = torch.tensor([position[image] for image in of_rows], device=model.device)
                padded = processor.pad_images([[pixels] for pixels in held.values()])
                inputs = {name: tensor.to(model.device)[repeats] for name, tensor in padded.items()}
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
                captions = [self.captions[text] for text in texts[start : start + batch_size].tolist()]
                words = processor.encode_text(captions, max_length=max_tokens)
                inputs |= {name: tensor.to(model.device) for name, tensor in words.items()}
                scores.append(model(**inputs).logits[:, 0].float().cpu())
                bar.update(len(captions))
        return torch.cat(scores)


def _prepare(processor: DualDistillProcessor, identifier: str, value: Any) -> Prepared:
    return Prepared(resize_image(processor.prepare_image, decode_image(value, identifier), identifier))


@dataclass(frozen=True)
class _Direction:
    """Queries that search a gallery; the key of a pair, image * captions + caption, is the sum of its sides' keys."""

    queries: torch.Tensor
    gallery: torch.Tensor
    query_keys: torch.Tensor
    gallery_keys: torch.Tensor
    right: list[list[int]]

    def _blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, len(self.queries), _QUERIES):
            block = slice(start, start + _QUERIES)
            yield block, self.queries[block] @ self.gallery.T

    def candidates(self, number: int) -> torch.Tensor:
        """`(queries, number)` indices in the gallery, the nearest first."""
        number = min(number, len(self.gallery))
        return torch.cat([similarities.topk(number, dim=1).indices.cpu() for _, similarities in self._blocks()])

    def pair_keys(self, candidates: torch.Tensor, block: slice = slice(None)) -> torch.Tensor:
        """The keys of queries and their candidates."""
        return self.query_keys[block, None] + self.gallery_keys[candidates]

    def recall(
        self, scores_of: Callable[[torch.Tensor], torch.Tensor] | None = None, candidates: torch.Tensor | None = None
    ) -> dict[str, float]:
        """Recall by the dual encoder; with scores of pairs by their keys, re-ranked by those, candidates or all."""
        metric = RetrievalRecall()
        for block, similarities in self._blocks():
            scores = similarities.cpu()
            if scores_of is not None:
                everything = torch.arange(len(self.gallery)).expand(len(scores), -1)
                best = everything if candidates is None else candidates[block]
                scores = reranked(scores, best, scores_of(self.pair_keys(best, block)))
            metric.add_batch(predictions=scores, references=self.right[block])
        found: dict[str, float] = metric.compute()
        return found


def _directions(
    image_vectors: torch.Tensor, text_vectors: torch.Tensor, owners: torch.Tensor, images: range
) -> dict[str, _Direction]:
    """Some images with their captions, both ways: each caption searches the images and each image the captions."""
    texts = ((owners >= images.start) & (owners < images.stop)).nonzero()[:, 0]
    right_images = [[owner] for owner in (owners[texts] - images.start).tolist()]
    right_texts: list[list[int]] = [[] for _ in images]
    for text, [image] in enumerate(right_images):
        right_texts[image].append(text)

    image_side = image_vectors[images.start : images.stop], torch.tensor(images) * len(owners)
    text_side = text_vectors[texts.to(text_vectors.device)], texts
    return {
        "text_to_image": _Direction(text_side[0], image_side[0], text_side[1], image_side[1], right_images),
        "image_to_text": _Direction(image_side[0], text_side[0], image_side[1], text_side[1], right_texts),
    }


def reranked(similarities: torch.Tensor, candidates: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Put the candidates of each query before all others, in the order of their scores.

    Args:
        similarities: `(Q, G)` cosines of queries and gallery.
        candidates: `(Q, K)` indices in the gallery.
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
