"""What pre-training and retrieval compare: texts with images across all processes, and which pairs are no negatives.

Unusual here:

* The gallery is the batch of all processes, gathered with gradients, and every mean is over all processes: two
  processes give one process' loss and gradients once DistributedDataParallel has averaged them. So all processes must
  make the same calls.
* A pair that some row of the gallery holds (equal ids, not equal indices) is never a negative, whichever row it came
  from.
* Hard negatives are drawn with noise that is computed from the ids. A draw depends neither on the order of the rows nor
  on the process that they lie in, needs no random state, and differs from batch to batch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

LARGEST_LOGIT_SCALE = math.log(100.0)
# Odd 64-bit constants with evenly spread bits, as signed numbers: multiplication wraps around.
_FIRST_FACTOR, _SECOND_FACTOR = -7046029254386353131, -4658895280553007687
_NOISE_BITS = 23  # a float32 holds every half step between 0 and 2 ** 23


class PairIds(NamedTuple):
    """Which text and which image each row of the gallery holds; rows with equal ids hold the same.

    Attributes:
        image_ids: `(G,)` int64, of all processes, in their order.
        caption_ids: `(G,)` int64.
        first_row: index of this process' first row among the G.
        num_rows: B, rows of this process.
    """

    image_ids: Tensor
    caption_ids: Tensor
    first_row: int
    num_rows: int

    @property
    def own_rows(self) -> Tensor:
        """Indices of this process' rows, `(B,)`."""
        return torch.arange(self.first_row, self.first_row + self.num_rows, device=self.image_ids.device)


_is_alone = False


@contextmanager
def as_one_process() -> Iterator[None]:
    """Compare rows of this process alone: where every process holds the whole batch already."""
    global _is_alone
    _is_alone, found = True, _is_alone
    try:
        yield
    finally:
        _is_alone = found


def process_count() -> int:
    """Return how many processes compute one batch together; 1 without `torch.distributed`."""
    if _is_alone:
        return 1
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all processes in their order, with gradients; the tensor itself in one process.

    The gradient of a gathered row is the sum over the processes, which averaging by DistributedDataParallel then turns
    into that of the mean of all processes' losses.

    Args:
        tensor: `(B, ...)`; B and the other sizes may differ between processes, the number of dimensions may not.

    Returns:
        `(G, ...)`, G the sum of all B; zeros (False) fill rows up to the largest of each further size.

    Example:
        >>> gather_rows(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    return _gather(tensor)[0]


def _gather(tensor: Tensor) -> tuple[Tensor, int]:
    """Gather as `gather_rows`, and say at which row of the result this process' rows start."""
    if process_count() == 1:
        return tensor, 0

    # The shapes first: what is gathered must be equally large on every process.
    shape = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(process_count())]
    distributed.all_gather(shapes, shape)
    sizes = torch.stack(shapes).tolist()
    largest = [max(size) for size in zip(*sizes, strict=True)]
    carried = tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor
    missing = [amount for size, most in zip(carried.shape, largest, strict=True) for amount in (most - size, 0)]
    if any(missing):
        carried = nn.functional.pad(carried, missing[::-1])

    # Whose gradient is the sum of all processes' gradients.
    from torch.distributed.nn.functional import all_gather

    counts = [size[0] for size in sizes]
    parts = [part[:count] for part, count in zip(all_gather(carried.contiguous()), counts, strict=True)]
    return torch.cat(parts).to(tensor.dtype), sum(counts[: distributed.get_rank()])


def share_of_all(count: Tensor | int, device: torch.device | None = None) -> Tensor:
    """Return what turns a mean over this process' `count` items into its part of the mean of all processes.

    The average over processes of `share * mean` is that mean; 1 in one process.

    Args:
        count: items of this process, a scalar.
        device: where a plain number is put; not needed for a tensor.

    Example:
        >>> share_of_all(7)
        tensor(1.)
    """
    own = torch.as_tensor(count, dtype=torch.float32, device=device)
    if process_count() == 1:
        return torch.ones_like(own)
    total = own.clone()
    distributed.all_reduce(total)
    return own * process_count() / total.clamp(min=1)


def check_pair_ids(image_ids: Tensor | None, caption_ids: Tensor | None) -> None:
    """Refuse ids of one side alone."""
    if (image_ids is None) != (caption_ids is None):
        given, missing = ("caption_ids", "image_ids") if image_ids is None else ("image_ids", "caption_ids")
        raise ValueError(f"{given} was given without {missing}; give both, so that no pair that fits is a negative.")


def gather_pair_ids(image_ids: Tensor, caption_ids: Tensor) -> PairIds:
    """Gather the ids of the rows of all processes.

    Args:
        image_ids: `(B,)` int64; equal for equal images.
        caption_ids: `(B,)` int64; equal for equal captions.

    Raises:
        ValueError: the shapes or types do not fit.

    Example:
        >>> gather_pair_ids(torch.tensor([5, 5]), torch.tensor([1, 2])).own_rows
        tensor([0, 1])
    """
    ids = (image_ids, caption_ids)
    if any(each.dim() != 1 or each.dtype != torch.int64 for each in ids) or len(image_ids) != len(caption_ids):
        found = " and ".join(f"{tuple(each.shape)} of {each.dtype}" for each in ids)
        raise ValueError(f"image_ids and caption_ids have shapes {found}; give one int64 id a row in each.")
    gathered, first_row = _gather(torch.stack(ids, dim=1))
    return PairIds(gathered[:, 0], gathered[:, 1], first_row, len(image_ids))


def unlike_ids(num_rows: int, device: torch.device) -> Tensor:
    """Return ids `(B,)` that differ from row to row and from process to process: nothing is there twice."""
    rank = distributed.get_rank() if process_count() > 1 else 0
    return torch.arange(num_rows, device=device) + (rank << 32)


def allowed_negatives(ids: PairIds, texts_ask: bool = True) -> Tensor:
    """Say which rows of the gallery may be negatives of this process' rows.

    A row is none if its text and the other's image (or the reverse) are together in any row of the gallery; so the same
    image, the same caption, and another image that the same caption is known to fit are all left out.

    Args:
        ids: of the gallery.
        texts_ask: True holds own texts against the gallery's images, False own images against its texts.

    Returns:
        `(B, G)` bool.

    Example:
        >>> ids = gather_pair_ids(torch.tensor([1, 2, 1]), torch.tensor([7, 8, 9]))
        >>> allowed_negatives(ids)  # rows 0 and 2 show the same image
        tensor([[False,  True, False],
                [ True, False,  True],
                [False,  True, False]])
    """
    asked = _asked_codes(ids, texts_ask)
    # Searched, not `torch.isin`, which waits for the device to tell how many are unlike.
    known = _pair_codes(ids.caption_ids, ids.image_ids).sort().values
    return known[torch.searchsorted(known, asked).clamp(max=len(known) - 1)] != asked


def distinct_negatives(ids: PairIds, texts_ask: bool = True) -> Tensor:
    """Say as `allowed_negatives` which rows may be negatives, each image or text once: at its first row."""
    asked = ids.image_ids if texts_ask else ids.caption_ids
    return allowed_negatives(ids, texts_ask) & ~(asked[:, None] == asked).tril(diagonal=-1).any(dim=1)


def inverse_temperature(logit_scale: Tensor) -> Tensor:
    """Return the factor on cosines, e to the logit scale, at most 100.

    Example:
        >>> [round(factor, 2) for factor in inverse_temperature(torch.tensor([0.0, 9.0])).tolist()]
        [1.0, 100.0]
    """
    return logit_scale.float().clamp(max=LARGEST_LOGIT_SCALE).exp()


def pair_similarities(text_features: Tensor, image_features: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Hold own texts against the images of all processes, and own images against the texts of all.

    Args:
        text_features: `(B, P)` of length 1.
        image_features: `(B, P)` of length 1.
        logit_scale: logarithm of the factor (the inverse temperature); at most ln 100 of it is used.

    Returns:
        Own texts against images and own images against texts, both `(B, G)` float32, cosine times factor.

    Example:
        >>> similarities, _ = pair_similarities(torch.eye(2), torch.eye(2), torch.tensor(2.0).log())
        >>> similarities
        tensor([[2., 0.],
                [0., 2.]])
    """
    with torch.autocast(text_features.device.type, enabled=False):
        own = torch.stack([text_features.float(), image_features.float()], dim=1)
        texts, images = gather_rows(own).unbind(1)
        scale = inverse_temperature(logit_scale)
        return own[:, 0] @ images.T * scale, own[:, 1] @ texts.T * scale


def itc_loss(text_to_image: Tensor, image_to_text: Tensor, ids: PairIds) -> Tensor:
    """Image-text contrastive loss (ITC), in nats per row: the mean of both directions' cross-entropies.

    Each text must find its own image among those that are allowed negatives, and each image its own text.

    Args:
        text_to_image: `(B, G)` from `pair_similarities`.
        image_to_text: `(B, G)`.
        ids: of the gallery.

    Returns:
        Scalar float32, >= 0; ln G when all similarities are equal and nothing is there twice, 0 without a negative. In
        several processes it is this process' part of the mean over all.

    References:
        Radford et al., ICML 2021, arXiv 2103.00020 (the symmetric loss). Leaving out false negatives is ours.

    Example:
        >>> ids = gather_pair_ids(torch.arange(4), torch.arange(4))
        >>> round(itc_loss(torch.zeros(4, 4), torch.zeros(4, 4), ids).item(), 4)  # ln 4
        1.3863
    """
    own = ids.own_rows
    total = text_to_image.new_zeros(())
    for similarities, texts_ask in ((text_to_image, True), (image_to_text, False)):
        compared = allowed_negatives(ids, texts_ask).scatter(1, own[:, None], True)
        # A finite floor: exactly 0 after softmax, and no NaN in the gradient of a row without negatives.
        scores = similarities.float().masked_fill(~compared, torch.finfo(torch.float32).min)
        total = total + nn.functional.cross_entropy(scores, own)
    return total / 2 * share_of_all(ids.num_rows, total.device)


def itm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching loss (ITM), in nats per pair.

    Args:
        logits: `(P, 2)`, column 1 = the pair matches.
        labels: `(P,)` int64: 1 matched, 0 not, -100 for an index that holds no pair.

    Returns:
        Scalar float32, the mean over the labelled pairs; ln 2 for a head that gives every pair the same logits. In
        several processes it is this process' part of the mean over all.

    Example:
        >>> round(itm_loss(torch.zeros(3, 2), torch.tensor([1, 0, -100])).item(), 4)  # ln 2
        0.6931
    """
    count = (labels != -100).sum()
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return total / count.clamp(min=1) * share_of_all(count)


@torch.no_grad()
def hard_negatives(similarities: Tensor, ids: PairIds, texts_ask: bool = True) -> Tensor:
    """Draw one negative a row, in proportion to softmax(similarity) over what is allowed (each image or text once).

    Args:
        similarities: `(B, G)` from `pair_similarities`; zeros for a uniform draw.
        ids: of the gallery.
        texts_ask: True draws an image for each own text, False a text for each own image.

    Returns:
        Indices into the gallery, `(B,)` int64; -1 for a row without an allowed negative.

    Note:
        By Gumbel-max: the largest of similarity + noise is distributed as that softmax. The noise is an integer hash of
        both ids and of the sum of all ids in the gallery.

    Example:
        >>> ids = gather_pair_ids(torch.tensor([1, 2, 1]), torch.tensor([7, 8, 9]))
        >>> hard_negatives(torch.zeros(3, 3), ids)
        tensor([1, 0, 1])
    """
    allowed = distinct_negatives(ids, texts_ask)
    seed = _mix(ids.image_ids.sum() + _mix(ids.caption_ids.sum() + int(texts_ask)))
    bits = _shift(_mix(_asked_codes(ids, texts_ask) + seed), 64 - _NOISE_BITS)
    # Strictly between 0 and 1.
    uniform = (bits.float() + 0.5) * 2.0**-_NOISE_BITS
    scores = (similarities.float() - (-uniform.log()).log()).masked_fill(~allowed, -torch.inf)
    best = scores.max(dim=1)
    return torch.where(best.values > -torch.inf, best.indices, -1)


def _asked_codes(ids: PairIds, texts_ask: bool) -> Tensor:
    """Return the code of each pair of an own row and an entry of the gallery, `(B, G)`."""
    own = slice(ids.first_row, ids.first_row + ids.num_rows)
    if texts_ask:
        return _pair_codes(ids.caption_ids[own, None], ids.image_ids)
    return _pair_codes(ids.caption_ids, ids.image_ids[own, None])


def _pair_codes(caption_ids: Tensor, image_ids: Tensor) -> Tensor:
    """Return one 64-bit code a pair; which of both is the caption matters."""
    return _mix(_mix(caption_ids) + image_ids)


def _mix(values: Tensor) -> Tensor:
    """Spread every bit of int64 numbers over all 64, one number onto one number."""
    values = (values ^ _shift(values, 30)) * _FIRST_FACTOR
    values = (values ^ _shift(values, 27)) * _SECOND_FACTOR
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shift int64 numbers to the right and fill with zeros, as if they had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Hard-label loss in nats per row.

    Args:
        logits: `(B, labels)`.
        labels: `(B,)` integer classes (-100: row without a label) for cross-entropy, or `(B, labels)` soft scores in
            [0, 1] for binary cross-entropy summed over answers, as VQA v2 is trained.

    Raises:
        ValueError: the labels have neither shape.

    Example:
        >>> round(classification_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)  # ln 4
        1.3863
        >>> round(classification_loss(torch.zeros(1, 4), torch.zeros(1, 4)).item(), 4)  # 4 ln 2
        2.7726
    """
    logits = logits.float()

    if labels.is_floating_point() and labels.shape == logits.shape:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / len(logits)
    if not labels.is_floating_point() and labels.shape == logits.shape[:1]:
        # Divided by the rows, not by the labelled ones: unlabelled rows must not change the weight of the others, and
        # two half batches must add up to a whole one.
        return nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100) / len(logits)
    found = f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, logits {tuple(logits.shape)}"
    raise ValueError(f"{found}; give integer classes (B,) or soft scores (B, labels).")


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the masked words, in nats per labelled token.

    Args:
        logits: `(B, T, vocabulary)`.
        labels: `(B, T)` word pieces, -100 where nothing was masked.

    Returns:
        Scalar float32, the mean over the labelled tokens of the batch; 0 when it has none.

    Raises:
        ValueError: the labels have another shape.

    Note:
        Rows with more masked words weigh more, as in BERT and ViLT; two half batches therefore add up to a whole one
        only when they hold equally many.

    Example:
        >>> labels = torch.tensor([[-100, 3, -100]])
        >>> round(mlm_loss(torch.zeros(1, 3, 8), labels).item(), 4)  # ln 8
        2.0794
    """
    if labels.shape != logits.shape[:2]:
        shapes = f"{tuple(labels.shape)}, the text {tuple(logits.shape[:2])}"
        raise ValueError(f"labels have shape {shapes}; give one word piece a token.")
    tokens, words = logits.float().flatten(0, 1), labels.flatten()
    loss = nn.functional.cross_entropy(tokens, words, ignore_index=-100, reduction="sum")
    return loss / (labels != -100).sum().clamp(min=1)
