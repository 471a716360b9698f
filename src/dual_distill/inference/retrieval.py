"""Image-text retrieval, evaluated: the dual encoder alone, what re-ranks its candidates, and what each costs.

A dual encoder encodes N images and M texts once, N + M passes, and compares all N x M pairs by one product. A fusion
encoder reads each pair, N x M passes, so it is given the dual encoder's best k of each query only. What is unusual: the
pairs of all queries, of both directions and of all folds, are collected first, each once, and sorted by image. So each
image is decoded once for all its pairs, however many queries it is a candidate of; the dual encoder's own layers, which
read pairs too, read each caption once as well.

Beside the vectors of both sides and the candidates, memory does not grow with the data: similarities are made and
ranked in blocks, images are decoded as they are needed, a few ahead, and are not kept.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import ImageError, Prepared, Task, decode_ahead, decode_image, resize_image, run_by_shape
from dual_distill.evaluation import RetrievalRecall
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    FusionEncoderForImageTextRetrieval,
)

from .encoding import encode_in_order, text_inputs, tower_output
from .feature_store import pad_tokens
from .model_identity import longest_text
from .queries import check_at_least_1
from .sources import dataset_images

_SCORES = 2**20  # similarities at once: 4 MB

Recalls = dict[str, dict[str, dict[str, float]]]


class PairTime(NamedTuple):
    """How long one way takes for a number of pairs.

    Attributes:
        way: "dual", "rerank", or of every pair "fusion" or, by the dual encoder's own layers, "rerank_all".
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
        whole: way ("dual", "reranked") -> direction ("text_to_image", "image_to_text") -> what `RetrievalRecall`
            computes, over all images and captions.
        times: for all pairs of the whole.
        rerank_top: candidates a query; None without a fusion encoder.
        folds: number of parts of `fold_images` images each; 0 where there are fewer than two.
        fold_images: images a fold.
        mean_of_folds: as `whole`: each number is the mean over the folds.
        nearest: for each caption the ids of the nearest images, the nearest first.
    """

    images: int
    captions: int
    whole: Recalls
    times: list[PairTime]
    rerank_top: int | None = None
    folds: int = 0
    fold_images: int | None = None
    mean_of_folds: Recalls = field(default_factory=dict)
    nearest: list[list[Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes, but for the nearest images."""
        found = {name: value for name, value in asdict(self).items() if name != "nearest"}
        return found | {"times": [time._asdict() for time in self.times]}


def evaluate_retrieval(
    rows: Dataset,
    task: Task,
    dual: PreTrainedModel,
    processor: DualDistillProcessor,
    fusion: PreTrainedModel | None = None,
    fusion_processor: DualDistillProcessor | None = None,
    *,
    rerank_with_layers: bool = False,
    rerank_top: int = 16,
    fold_images: int | None = 1000,
    batch_size: int = 64,
    nearest: int = 1,
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
        rerank_with_layers: let the dual encoder's own interaction layers order its candidates anew, in place of a
            fusion encoder: no second model, and each image's tokens are made once.
        rerank_top: candidates a query, >= 1; as many as there are images and captions for every pair.
        fold_images: evaluate parts of so many images too (1,000 for COCO's 1K figures), in the order of the rows;
            images that fill no part are left out of them. None: the whole only.
        batch_size: images, texts or pairs a forward pass.
        nearest: how many of the nearest images of each caption are named.
        show_progress: bars on stderr.

    Returns:
        A `RetrievalReport`.

    Raises:
        ValueError: a model is of another kind, or an argument is out of its range.
        ImageError: an image cannot be read.
    """
    if not isinstance(dual, DualEncoderForImageTextRetrieval):
        apart = "does not encode images and texts apart for comparison; give a dual encoder"
        raise ValueError(f"{type(dual).__name__} {apart} with the head image_text_retrieval.")
    if fusion is not None and not isinstance(fusion, FusionEncoderForImageTextRetrieval):
        raise ValueError(f"{type(fusion).__name__} cannot re-rank; give a fusion encoder for image_text_retrieval.")
    if (fusion is None) != (fusion_processor is None):
        raise ValueError("fusion and fusion_processor belong together; give both or neither.")
    if rerank_with_layers and (fusion is not None or not dual.config.interaction_layers):
        found = "a fusion encoder is given too" if fusion is not None else "the model has no interaction layers"
        raise ValueError(f"rerank_with_layers is set, but {found}; leave one of the two out.")
    sizes = {"rerank_top": rerank_top, "batch_size": batch_size, "fold_images": fold_images, "nearest": nearest}
    for name, value in sizes.items():
        if value is not None:
            check_at_least_1(name, value)

    data = ImagesWithCaptions(rows, task)
    num_images, num_pairs = data.num_images, data.num_images * len(data.captions)
    start = time.perf_counter()
    vectors = data.vectors(dual.eval(), processor, batch_size, show_progress)
    owners = torch.tensor(data.image_of_caption)
    parts = [_directions(*vectors, owners, range(num_images))]
    reranks = fusion is not None or rerank_with_layers
    # Compares every pair once, for the time that this takes.
    nearest_images = parts[0]["text_to_image"].candidates(max(nearest, rerank_top) if reranks else nearest)
    times = [PairTime("dual", num_pairs, time.perf_counter() - start, True)]

    # Published figures are means over parts of 1,000 images, in the order of the rows.
    fold = fold_images or num_images
    firsts = range(0, num_images - fold + 1, fold)
    if len(firsts) > 1:
        parts += [_directions(*vectors, owners, range(first, first + fold)) for first in firsts]
    recalls: list[Recalls] = [{"dual": {name: one.recall() for name, one in part.items()}} for part in parts]

    if reranks:
        # The pairs of all parts and directions, each once.
        best = [{name: one.candidates(rerank_top) for name, one in part.items()} for part in parts]
        best[0]["text_to_image"] = nearest_images[:, :rerank_top].clone()
        each = [
            torch.cat([one.pair_keys(chosen[name]).flatten() for name, one in part.items()]).unique()
            for part, chosen in zip(parts, best, strict=True)
        ]
        keys, num_of_whole = torch.cat(each).unique(), len(each[0])
        del each
        start = time.perf_counter()
        second, its_processor = (dual, processor) if fusion is None else (fusion.eval(), fusion_processor)
        scores = data.pair_scores(second, its_processor, keys, batch_size, show_progress)
        seconds = time.perf_counter() - start

        def scores_of(one: _Direction, chosen: Tensor) -> Tensor:
            return scores[torch.searchsorted(keys, one.pair_keys(chosen))]

        of_texts = scores_of(parts[0]["text_to_image"], best[0]["text_to_image"])
        nearest_images[:, :rerank_top] = best[0]["text_to_image"].gather(1, of_texts.argsort(1, descending=True))
        for part, chosen, recall in zip(parts, best, recalls, strict=True):
            of_candidates = {name: (chosen[name], scores_of(one, chosen[name])) for name, one in part.items()}
            recall["reranked"] = {name: one.recall(*of_candidates[name]) for name, one in part.items()}
        # Whoever needs the whole alone scores the pairs of the whole alone.
        for way, number in (("rerank", num_of_whole), ("rerank_all" if fusion is None else "fusion", num_pairs)):
            times.append(PairTime(way, number, number * seconds / len(keys), number == len(keys)))

    top = rerank_top if "reranked" in recalls[0] else None
    named = [[data.image_ids[index] for index in row] for row in nearest_images[:, :nearest].tolist()]
    report = RetrievalReport(num_images, len(data.captions), recalls[0], times, top, nearest=named)
    if len(parts) == 1:
        return report
    return replace(report, folds=len(parts) - 1, fold_images=fold_images, mean_of_folds=_mean(recalls[1:]))


class ImagesWithCaptions:
    """The rows of a split as images and captions, by their indices.

    Args:
        rows: one row a caption.
        task: names the columns, that of the image's id among them.

    Attributes:
        captions: one string a caption.
        num_images: number of images.
        image_ids: one an image.
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
            raise ValueError(f"task {task.name!r} does not say which captions are of one image; coco_retrieval does.")
        if not len(rows):
            raise ValueError("There are no rows, but retrieval needs one caption or more.")
        self.captions = [str(caption) for caption in rows[task.text_column]]
        if empty := [row for row, caption in enumerate(self.captions) if not caption.strip()]:
            raise ValueError(f"row {empty[0]}: its caption is empty; leave the row out or give it words.")

        # An image stands in as many rows as it has captions, and is read from the first of them.
        [image_column], image_ids = task.image_columns, list(rows[task.image_id_column])
        self._source = dataset_images(rows, image_column)
        first_rows: dict[Any, int] = {}
        for row, image_id in enumerate(image_ids):
            first_rows.setdefault(image_id, row)
        indices = {image_id: index for index, image_id in enumerate(first_rows)}
        self.image_of_caption = [indices[image_id] for image_id in image_ids]
        self._rows, self.image_ids = list(first_rows.values()), list(first_rows)
        self.num_images = len(self._rows)

    def prepared(self, processor: DualDistillProcessor, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
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

    def vectors(
        self, model: PreTrainedModel, processor: DualDistillProcessor, batch_size: int, show: bool
    ) -> tuple[Tensor, Tensor]:
        """Encode all images and captions with a dual encoder: `(images, P)`, `(captions, P)` float32 of length 1."""
        images = (pixels for _, pixels in self.prepared(processor, range(self.num_images)))
        texts = text_inputs(model, processor, self.captions)
        bars = {"images": (images, self.num_images), "texts": (texts, len(self.captions))}
        of_images, of_texts = (
            encode_in_order(model, tqdm(inputs, f"encode {kind}", total, disable=not show), total, batch_size)
            for kind, (inputs, total) in bars.items()
        )
        return of_images, of_texts

    @torch.inference_mode()
    def pair_scores(self, model: PreTrainedModel, processor: Any, keys: Tensor, batch_size: int, show: bool) -> Tensor:
        """A model's score of each pair; keys ascend, so that an image's pairs stand together."""
        images, texts = keys // len(self.captions), keys % len(self.captions)
        is_fusion = isinstance(model, FusionEncoderForImageTextRetrieval)
        max_tokens = longest_text(model, processor)

        def encode_texts(asked: Sequence[int]) -> Any:
            return processor.encode_text([self.captions[text] for text in asked], max_length=max_tokens)

        each_text = texts.unique().tolist()
        read_texts = encode_texts if is_fusion else self._read_captions(model, processor, each_text, batch_size)
        prepared = self.prepared(processor, images.unique().tolist())

        held: dict[int, Any] = {}
        scores = []
        with tqdm(total=len(keys), desc="re-rank", unit=" pairs", disable=not show) as bar:
            for start in range(0, len(keys), batch_size):
                of_rows = images[start : start + batch_size].tolist()
                while of_rows[-1] not in held:
                    image, pixels = next(prepared)
                    held[image] = pixels if is_fusion else _read_image(model, pixels)
                held = {image: held[image] for image in dict.fromkeys(of_rows)}

                # Moved once an image, repeated on the device.
                position = {image: row for row, image in enumerate(held)}
                repeats = torch.tensor([position[image] for image in of_rows], device=model.device)
                each = list(held.values())
                padded = processor.pad_images([[one] for one in each]) if is_fusion else _pad_states(each)
                inputs = {name: tensor.to(model.device)[repeats] for name, tensor in padded.items()}
                words = read_texts(texts[start : start + batch_size].tolist())
                inputs |= {name: tensor.to(model.device) for name, tensor in words.items()}

                if is_fusion:
                    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
                found = model(**inputs).logits if is_fusion else model.match_scores(**inputs)
                scores.append(found[:, 0].float().cpu())
                bar.update(len(of_rows))
        return torch.cat(scores)

    def _read_captions(
        self, model: PreTrainedModel, processor: Any, texts: Sequence[int], batch_size: int
    ) -> Callable[[Sequence[int]], dict[str, Tensor]]:
        """Read captions once, as interaction layers take them; what is returned gives some of them, padded."""
        pieces = map(Prepared, text_inputs(model, processor, (self.captions[text] for text in texts)))
        words = dict(zip(texts, pieces, strict=True))
        lengths = [len(one.values) for one in words.values()]
        ends = zip(words, lengths, itertools.accumulate(lengths), strict=True)
        spans = {text: slice(end - length, end) for text, length, end in ends}
        # In a file that has no name any more: all captions' tokens may be more than memory holds.
        shape = (sum(lengths), model.config.hidden_size)
        with tempfile.NamedTemporaryFile() as file:
            tokens = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=model.dtype).view(shape)

        def run(batch: list[Prepared]) -> Tensor:
            return tower_output(model, batch).last_hidden_state

        for text, row in run_by_shape(run, words.items(), batch_size):
            tokens[spans[text]] = row

        def some(asked: Sequence[int]) -> dict[str, Tensor]:
            padded = pad_tokens(tokens[spans[text]] for text in asked)
            return dict(zip(("text_token_embeds", "attention_mask"), padded.values(), strict=True))

        return some


def _read_image(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """An image as interaction layers take it from all its texts: pooled `(C,)`, and of each token `(L, numbers)`."""
    # An image alone is not padded: all its tokens are real.
    output = tower_output(model.dual_encoder, [Prepared(pixels)], output_token_states=True)
    return output.pooler_output[0], output.image_token_states[0, 0]


def _pad_states(images: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Images read by `_read_image`, side by side, as the model takes them."""
    pooled, states = zip(*images, strict=True)
    padded, mask = pad_tokens(one.permute(3, 0, 1, 2, 4).flatten(1) for one in states).values()
    layers, two, heads, _, width = states[0].shape
    padded = padded.unflatten(2, (layers, two, heads, width)).permute(0, 2, 3, 4, 1, 5)[:, None]
    return {"image_pooler_output": torch.stack(pooled), "image_token_states": padded, "image_token_mask": mask}


def _prepare(processor: DualDistillProcessor, identifier: str, value: Any) -> Prepared:
    image = decode_image(value, identifier, jpeg_size=processor.jpeg_size)
    return Prepared(resize_image(processor.prepare_image, image, identifier))


@dataclass(frozen=True)
class _Direction:
    """Queries that search a gallery; the key of a pair, image * captions + caption, is the sum of its sides' keys."""

    queries: Tensor
    gallery: Tensor
    query_keys: Tensor
    gallery_keys: Tensor
    right: list[list[int]]

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Similarities of some queries at a time, each in the memory of those before."""
        size = max(1, _SCORES // len(self.gallery))
        memory = self.queries.new_empty(min(size, len(self.queries)), len(self.gallery))
        for start in range(0, len(self.queries), size):
            queries = self.queries[start : start + size]
            yield slice(start, start + size), torch.mm(queries, self.gallery.T, out=memory[: len(queries)])

    def candidates(self, number: int) -> Tensor:
        """`(queries, number)` indices in the gallery, the nearest first."""
        # Filled in, not gathered: small results between large blocks would keep the memory of those.
        found = torch.empty(len(self.queries), min(number, len(self.gallery)), dtype=torch.long)
        for block, similarities in self._blocks():
            found[block] = similarities.topk(found.shape[1], dim=1).indices
        return found

    def pair_keys(self, candidates: Tensor) -> Tensor:
        """The keys of queries and their candidates, `(queries, number)`."""
        return self.query_keys[:, None] + self.gallery_keys[candidates]

    def recall(self, candidates: Tensor | None = None, scores: Tensor | None = None) -> dict[str, float]:
        """Recall by the dual encoder; its candidates re-ranked where they have scores, both `(queries, number)`."""
        metric = RetrievalRecall()
        for block, similarities in self._blocks():
            ranked = similarities.cpu()
            if candidates is not None and scores is not None:
                ranked = reranked(ranked, candidates[block], scores[block])
            metric.add_batch(predictions=ranked, references=self.right[block])
        return metric.compute()


def _directions(image_vectors: Tensor, text_vectors: Tensor, owners: Tensor, images: range) -> dict[str, _Direction]:
    """Some images with their captions, both ways: each caption searches the images and each image the captions."""
    texts = ((owners >= images.start) & (owners < images.stop)).nonzero()[:, 0]
    right_images = [[owner] for owner in (owners[texts] - images.start).tolist()]
    right_texts: list[list[int]] = [[] for _ in images]
    for text, [image] in enumerate(right_images):
        right_texts[image].append(text)

    image_side = image_vectors[images.start : images.stop], torch.tensor(images) * len(owners)
    # Captions stand beside each other as a rule: then theirs are no copy.
    first, last = int(texts[0]), int(texts[-1]) + 1
    beside = last - first == len(texts)
    text_side = text_vectors[first:last] if beside else text_vectors[texts.to(text_vectors.device)], texts
    return {
        "text_to_image": _Direction(text_side[0], image_side[0], text_side[1], image_side[1], right_images),
        "image_to_text": _Direction(image_side[0], text_side[0], image_side[1], text_side[1], right_texts),
    }


def reranked(similarities: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
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


def _mean(values: list[Any]) -> Any:
    """The mean of each number in dicts of the same keys."""
    if isinstance(values[0], dict):
        return {name: _mean([one[name] for one in values]) for name in values[0]}
    return sum(values) / len(values)
