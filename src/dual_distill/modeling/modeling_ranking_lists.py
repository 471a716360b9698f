"""Which texts and images are hard to tell apart: for each text a short list of images, for each image one of texts."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .modeling_losses import PairIds, distinct_negatives


def hardest_negatives(similarities: Tensor, is_allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar entries of the gallery that a row may be held against.

    Args:
        similarities: `(B, G)`, higher is nearer. No gradient passes.
        is_allowed: `(B, G)` bool, False for what belongs to the row or equals what does.
        count: K >= 1, cut down to G.

    Returns:
        Indices into the gallery, `(B, K)` int64, nearest first; and whether there is such an entry, `(B, K)` bool
        (where there is none the index is valid and means nothing).

    Raises:
        ValueError: the shapes differ, or count is below 1.

    Example:
        >>> similarities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.9, 0.3]])
        >>> allowed = torch.tensor([[False, True, True], [True, False, False]])
        >>> indices, found = hardest_negatives(similarities, allowed, 2)
        >>> indices[0], found
        (tensor([2, 1]), tensor([[ True,  True],
                [ True, False]]))
    """
    if similarities.shape != is_allowed.shape or similarities.dim() != 2:
        shapes = f"{tuple(similarities.shape)}, is_allowed {tuple(is_allowed.shape)}"
        raise ValueError(f"similarities has shape {shapes}; give (rows, gallery) twice.")
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1.")

    scores = similarities.detach().float().masked_fill(~is_allowed, -torch.inf)
    found = scores.topk(min(count, scores.shape[1]), dim=1)
    return found.indices, found.values > -torch.inf


def choose_lists(similarities: Iterable[Tensor], ids: PairIds, count: int) -> tuple[list[Tensor], Tensor]:
    """Choose the hardest allowed negatives of each text and each image, each image or text once a list.

    Args:
        similarities: `(B, G)` own texts against the images of all processes, and own images against all texts.
        ids: of the gallery.
        count: negatives a list at most.

    Returns:
        Of each text's images and of each image's texts the indices among the rows of all processes, `(B, K)`; and
        `(2 * B, 1 + K)` bool, whether such an entry exists: the first, the right one, always does.

    Example:
        >>> from dual_distill.modeling import gather_pair_ids
        >>> ids = gather_pair_ids(torch.tensor([1, 2, 3]), torch.tensor([7, 8, 9]))
        >>> similarities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.9, 0.3], [0.6, 0.4, 0.9]])
        >>> rows, _ = choose_lists((similarities, similarities.T), ids, 1)
        >>> rows[0].flatten()
        tensor([2, 2, 0])
    """
    rows, found = [], []
    for scores, texts_ask in zip(similarities, (True, False), strict=True):
        chosen, is_found = hardest_negatives(scores, distinct_negatives(ids, texts_ask), count)
        rows.append(chosen)
        found.append(is_found)
    is_listed = torch.cat(found)
    return rows, torch.cat([torch.ones_like(is_listed[:, :1]), is_listed], dim=1)


def listed_scores(similarities: Iterable[Tensor], ids: PairIds, rows: Iterable[Tensor]) -> Tensor:
    """Take the lists out of the similarities: `(2 * B, 1 + K)`, the right entry first, texts' lists first."""
    own = ids.own_rows[:, None]
    both = zip(similarities, rows, strict=True)
    return torch.cat([scores.gather(1, torch.cat([own, chosen], dim=1)) for scores, chosen in both])


def scored_lists(ids: PairIds, rows: Sequence[Tensor], score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Score the pairs of lists, all in one call and the matched pairs, which stand first in both lists, once.

    Args:
        ids: of the gallery.
        rows: of each text's images and of each image's texts the indices, `(B, K)`, from `choose_lists`.
        score: of P pairs, `(P,)`, by the rows of their texts and of their images among those of all processes.

    Returns:
        `(2 * B, 1 + K)`, laid out as by `listed_scores`.

    Example:
        >>> ids = PairIds(torch.arange(3), torch.arange(3), first_row=0, num_rows=2)
        >>> rows = (torch.tensor([[1], [2]]), torch.tensor([[2], [0]]))
        >>> scored_lists(ids, rows, lambda texts, images: 10 * texts + images).tolist()
        [[0, 1], [11, 12], [0, 20], [11, 1]]
    """
    own, number = ids.own_rows, rows[0].shape[1]
    again = own.repeat_interleave(number)
    of_text, of_image = torch.cat([own, again, rows[1].flatten()]), torch.cat([own, rows[0].flatten(), again])

    matched, drawn = score(of_text, of_image).split([len(own), 2 * len(again)])
    return torch.cat([matched.repeat(2)[:, None], drawn.unflatten(0, (-1, number))], dim=1)
