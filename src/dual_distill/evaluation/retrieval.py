"""Recall@k and median rank of image-text retrieval, both ways, with any number of captions an image."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Features, Value
from datasets import Sequence as SequenceOf
from transformers import EvalPrediction

from .streaming import StreamedMetric, plain

RECALL_AT = (1, 5, 10)
_BLOCK = 1024  # queries ranked at once


class RetrievalRecall(StreamedMetric):
    """Recall@1, @5, @10 and median rank of one direction of retrieval, as an `evaluate.Metric`.

    `compute(predictions=, references=)` or many calls of `add_batch` take a block of queries: `predictions` `(Q, G)`,
    the scores of Q queries against the whole gallery of G, higher is nearer; `references`: for each query the indices
    in the gallery that are right, one (text to image) or several (image to text). Returned are `recall@1`, `recall@5`,
    `recall@10` in [0, 1], `median_rank` >= 1 and `num_queries`. What is kept is one counter of ranks, whatever the
    number of queries.

    Raises:
        ValueError: a block is no matrix, a score is NaN, galleries differ, or a reference lies outside the gallery.

    Note:
        A query's rank is 1 + the number of wrong entries that score as high as its best right one or higher: ties count
        against the model, so one that scores everything alike finds nothing. The median is the plain one, x.5 between
        two ranks; the code that many papers use rounds it down.

    Example:
        >>> to_image = RetrievalRecall()
        >>> to_image.add_batch(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[[0], [1]])
        >>> result = to_image.compute()
        >>> result["recall@1"], result["median_rank"]
        (0.5, 1.5)
    """

    row_features = Features({"predictions": SequenceOf(Value("float32")), "references": SequenceOf(Value("int64"))})

    def _start(self) -> None:
        self._ranks: Counter[int] = Counter()
        self._gallery: int | None = None

    def _update(self, predictions: Any, references: Any) -> None:
        scores = torch.as_tensor(predictions)
        if scores.dim() == 2 and self._gallery not in (None, scores.shape[1]):
            given = f"This block scores a gallery of {scores.shape[1]}, an earlier one of {self._gallery}"
            raise ValueError(f"{given}; each block is scored against the whole gallery.")

        self._ranks.update(retrieval_ranks(scores, references).tolist())
        self._gallery = scores.shape[1]

    def _result(self) -> dict[str, Any]:
        found = {f"recall@{k}": sum(n for rank, n in self._ranks.items() if rank <= k) / len(self) for k in RECALL_AT}
        return {**found, "median_rank": float(median(self._ranks.elements())), "num_queries": len(self)}


def retrieval_ranks(scores: torch.Tensor, right: Sequence[Sequence[int]]) -> torch.Tensor:
    """The rank of each query's best right entry among the wrong ones.

    Args:
        scores: `(Q, G)`, higher is nearer; no NaN.
        right: for each query the indices in the gallery that are right, at least one.

    Returns:
        `(Q,)` int64 >= 1; entries that tie with the right one come before it.

    Raises:
        ValueError: `scores` is no matrix or holds NaN, a query has no right entry, or one lies outside the gallery.

    Example:
        >>> retrieval_ranks(torch.tensor([[0.3, 0.9, 0.5, 0.1]]), [[2, 3]])
        tensor([2])
    """
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (queries, gallery).")
    if scores.isnan().any():
        row = int(scores.isnan().any(dim=1).nonzero()[0])
        raise ValueError(f"The scores of query {row} of this block hold NaN, which has no rank; check the embeddings.")

    is_right = torch.zeros(scores.shape, dtype=torch.bool)
    for row, indices in enumerate(right):
        indices = plain(indices)
        if not len(indices):
            raise ValueError(f"Query {row} of this block has no right entry; leave it out of the queries.")
        for index in indices:
            if not 0 <= index < scores.shape[1]:
                known = f"the gallery has entries 0 to {scores.shape[1] - 1}"
                raise ValueError(f"Query {row} of this block names entry {index} as right, but {known}.")
        is_right[row, indices] = True

    is_right = is_right.to(scores.device)
    best = scores.masked_fill(~is_right, float("-inf")).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~is_right).sum(dim=1)


def retrieval_recall(similarities: torch.Tensor, image_of_caption: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Both directions from a matrix of images against captions.

    Args:
        similarities: `(images, captions)`, higher is nearer.
        image_of_caption: for each caption the row of its image; each image needs a caption.

    Returns:
        `"text_to_image"` and `"image_to_text"`, each the result of `RetrievalRecall`. An image is found when any of its
        captions is.

    Raises:
        ValueError: the captions do not fit the matrix, or an image has none.

    Note:
        A matrix that is too large to hold needs no function: give `images[rows] @ texts.T` block by block to one
        `RetrievalRecall`, and `texts[rows] @ images.T` to another.

    Example:
        >>> both = retrieval_recall(torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.0]]), [0, 0, 1])
        >>> both["image_to_text"]["recall@1"], both["text_to_image"]["recall@1"]
        (0.5, 0.3333333333333333)
    """
    if similarities.dim() != 2 or similarities.shape[1] != len(image_of_caption):
        found = f"similarities has shape {tuple(similarities.shape)} and there are {len(image_of_caption)} captions"
        raise ValueError(f"{found}; expected (images, captions).")
    images = plain(image_of_caption)
    captions: defaultdict[int, list[int]] = defaultdict(list)
    for caption, image in enumerate(images):
        captions[image].append(caption)

    # Texts first: theirs is the refusal of an image that is not there.
    directions = {
        "text_to_image": (similarities.T, [[image] for image in images]),
        "image_to_text": (similarities, [captions[image] for image in range(len(similarities))]),
    }
    results = {}
    for name, (scores, right) in directions.items():
        # In blocks, since ranking makes matrices of the block's size.
        metric = RetrievalRecall()
        for start in range(0, len(scores), _BLOCK):
            metric.add_batch(predictions=scores[start : start + _BLOCK], references=right[start : start + _BLOCK])
        results[name] = metric.compute()
    return results


def recall_of_vectors(prediction: EvalPrediction) -> dict[str, float]:
    """Return recall@1, @5 and @10 both ways over a whole split, as Trainer's `compute_metrics` of retrieval.

    Args:
        prediction: `predictions` `(texts (B, P), images (B, P))` of length 1, one image-text a row; `label_ids` `(B,)`,
            equal for equal images, of which the gallery holds one.

    Returns:
        `text_to_image_recall@1` to `@10` and `image_to_text_recall@1` to `@10`, and their mean, `mean_recall`, all in
        [0, 1].

    Example:
        >>> texts, images = np.eye(3)[[0, 1, 1]], np.eye(3)[[0, 0, 1]]
        >>> found = recall_of_vectors(EvalPrediction((texts, images), np.array([7, 7, 8])))
        >>> found["text_to_image_recall@1"], found["image_to_text_recall@1"], found["text_to_image_recall@5"]
        (0.6666666666666666, 0.5, 1.0)
    """
    texts, images = (torch.as_tensor(np.asarray(vectors)) for vectors in prediction.predictions)
    # Each image once in the gallery, however many captions it has.
    _, first, image_of_caption = np.unique(np.asarray(prediction.label_ids), return_index=True, return_inverse=True)
    both = retrieval_recall(images[first] @ texts.T, image_of_caption.reshape(-1).tolist())
    found = {f"{way}_recall@{k}": float(both[way][f"recall@{k}"]) for way in both for k in RECALL_AT}
    return {**found, "mean_recall": sum(found.values()) / len(found)}
