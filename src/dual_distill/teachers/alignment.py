"""A teacher's attention carried to the tokens of a student that cuts text and image differently.

Tokens are known by what they cover: characters of the text, boxes in the unit square of the image. A student's query
looks where the teacher's tokens look that cover the same, weighed by how much they have in common; what a teacher's
token is looked at is divided among the student's tokens that cover the same. So a teacher's map `P` becomes
`A @ P @ B`, whose rows are then rescaled over the student's tokens.

* Tokens without characters (special tokens, words of a template, padding) fall out.
* Boxes beyond the unit square (padding of a letterboxed image) are clipped to it: what is padding alone falls out. Of a
  patch that the student's crop cuts, the share that it sees is kept.
* A token of the whole image (CLS) goes with one of the other side, if it has one; else a teacher's is shared among all
  patches, and a student's looks where all patches look together and is looked at by nobody.

Both matrices and the map itself exist for one chunk at a time, while the loss is computed.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dual_distill.objectives import attention_probs_to_scores, regroup_heads

from .view import DirectionAttention, TeacherView

_WHOLE = 1e-4  # how far from the unit square's corners a box of the whole image may end
_MAX_COMMON = 2**22  # numbers in a chunk of the matrices of a batch
Part = tuple[slice, slice, slice]
_ALL: Part = (slice(None), slice(None), slice(None))


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """What each two tokens have in common: characters of spans, or area of boxes.

    Args:
        ours: `(B, L, 2)` start and end of characters, or `(B, L, 4)` `x0 y0 x1 y1` in the unit square.
        theirs: `(B, M, 2)` or `(B, M, 4)`.

    Returns:
        `(B, L, M)` float32, >= 0.

    Example:
        >>> overlaps(torch.tensor([[[0, 3], [3, 8]]]), torch.tensor([[[0, 4], [4, 8], [0, 0]]]))
        tensor([[[3., 0., 0.],
                 [1., 4., 0.]]])
    """
    ours, theirs = ours.float()[:, :, None], theirs.float()[:, None]
    dimensions = ours.shape[-1] // 2
    starts = torch.maximum(ours[..., :dimensions], theirs[..., :dimensions])
    ends = torch.minimum(ours[..., dimensions:], theirs[..., dimensions:])
    return (ends - starts).clamp(min=0).prod(-1)


class Tokens(NamedTuple):
    """Tokens of one side and one modality, by what they cover.

    Attributes:
        covered: `(B, L, 2)` characters or `(B, L, 4)` boxes; those of boxes end at the unit square.
        real: `(B, L)` bool, True for a real token.
        mask: `(B, L)` bool, True for a real token that covers anything.
        whole: `(B, L)` bool, True for a token of the whole image.
    """

    covered: Tensor
    real: Tensor
    mask: Tensor
    whole: Tensor

    @classmethod
    def of(cls, covered: Tensor, real: Tensor) -> "Tokens":
        """Clip boxes to the unit square, and leave out what covers nothing.

        Example:
            >>> boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.5, -0.5, 1.5, 0.5], [0.0, -1.0, 1.0, -0.5]]])
            >>> tokens = Tokens.of(boxes, torch.ones(1, 3))
            >>> tokens.covered[0, 1], tokens.mask, tokens.whole
            (tensor([0.5000, 0.0000, 1.0000, 0.5000]), tensor([[ True,  True, False]]), tensor([[ True, False, False]]))
        """
        real = real.bool()
        whole = torch.zeros_like(real)
        if covered.shape[-1] == 4:
            covered = covered.float().clamp(0, 1)
            whole = (covered - covered.new_tensor([0, 0, 1, 1])).abs().amax(-1) < _WHOLE
        dimensions = covered.shape[-1] // 2
        is_anything = (covered[..., dimensions:] > covered[..., :dimensions]).all(-1)
        mask = real & is_anything
        return cls(covered, real, mask, whole & mask)

    def rows(self, rows: slice) -> "Tokens":
        """The tokens of some rows."""
        return Tokens(*(each[rows] for each in self))

    def common(self, others: "Tokens") -> Tensor:
        """What each token has in common with each of the others, `(B, L, M)`; of a kind with its own, if there is one.

        Example:
            >>> image = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]])
            >>> with_cls, without = (Tokens.of(boxes, torch.ones(boxes.shape[:2])) for boxes in (image, image[:, 1:]))
            >>> with_cls.common(with_cls)[0, 0], with_cls.common(without)[0, 0]
            (tensor([1., 0., 0.]), tensor([0.5000, 0.5000]))
        """
        unlike = self.whole[:, :, None] != others.whole[:, None]
        has_whole, has_part = others.whole.any(1, keepdim=True), (others.mask & ~others.whole).any(1, keepdim=True)
        has_own_kind = torch.where(self.whole, has_whole, has_part)
        left_out = unlike & has_own_kind[:, :, None] | ~(self.mask[:, :, None] & others.mask[:, None])
        return overlaps(self.covered, others.covered).masked_fill(left_out, 0)


def query_weights(student: Tokens, teacher: Tokens) -> Tensor:
    """A: how much each of the teacher's tokens counts for each of the student's, `(B, L, L')`.

    Rows sum to 1, or to 0 where the teacher has nothing that the student's token covers.

    Example:
        >>> student, teacher = torch.tensor([[[0, 4], [4, 4]]]), torch.tensor([[[0, 3], [3, 9]]])
        >>> query_weights(Tokens.of(student, torch.ones(1, 2)), Tokens.of(teacher, torch.ones(1, 2)))
        tensor([[[0.7500, 0.2500],
                 [0.0000, 0.0000]]])
    """
    common = student.common(teacher)
    return common / common.sum(-1, keepdim=True).clamp(min=torch.finfo(common.dtype).tiny)


def key_shares(teacher: Tokens, student: Tokens) -> Tensor:
    """B: which share of what looks at a teacher's token falls to each of the student's, `(B, L', L)`.

    Rows of characters sum to 1, or to 0 where the student has none of them; rows of boxes to the part of the box that
    the student sees at all.

    Example:
        >>> left, quarters = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), torch.tensor([[[0.0, 0.0, 0.25, 0.5]]])
        >>> key_shares(Tokens.of(left, torch.ones(1, 1)), Tokens.of(quarters, torch.ones(1, 1)))
        tensor([[[0.2500]]])
    """
    common = teacher.common(student)
    total = common.sum(-1, keepdim=True)
    if teacher.covered.shape[-1] == 4:
        left, top, right, bottom = teacher.covered.unbind(-1)
        total = torch.maximum(total, ((right - left) * (bottom - top))[..., None])
    return common / total.clamp(min=torch.finfo(common.dtype).tiny)


class Matching:
    """Tokens of a student beside those of its teacher, in one modality; matrices of one chunk of rows at a time.

    Attributes:
        same: whether both have the same tokens, so that nothing needs to be carried.
        asked: `(B, L)` bool, tokens of the student as queries: True where the teacher has what they cover.
        seen: `(B, L)` bool, tokens of the student as keys: True where something of the teacher falls to them.
    """

    def __init__(self, student: Tokens, teacher: Tokens):
        self.same = student.covered.shape == teacher.covered.shape and all(map(torch.equal, student, teacher))
        self.teacher_real = teacher.real
        self.asked = self.seen = student.mask
        if self.same:
            return

        # Images of one size have the same boxes in all rows, and one matrix does.
        self._is_one = all(bool((each == each[:1]).all()) for each in (*student, *teacher))
        self._student, self._teacher = (side.rows(slice(0, 1)) if self._is_one else side for side in (student, teacher))
        self._kept: tuple[slice, Tensor, Tensor] | None = None
        self._sparse: tuple[Tensor, list[Tensor]] | None = None

        at_a_time = max(1, _MAX_COMMON // (student.mask.shape[1] * teacher.mask.shape[1]))
        matrices = [self.matrices(slice(row, row + at_a_time)) for row in range(0, len(self._student.mask), at_a_time)]
        self.asked = torch.cat([weights.any(2) for weights, _ in matrices]).expand_as(student.mask)
        self.seen = torch.cat([shares.any(1) for _, shares in matrices]).expand_as(student.mask)

    def matrices(self, rows: slice) -> tuple[Tensor, Tensor]:
        """A `(b, L, L')` and B `(b, L', L)` of some rows; b is 1 where all rows have the same."""
        rows = slice(0, 1) if self._is_one else rows
        if self._kept is None or self._kept[0] != rows:
            student, teacher = self._student.rows(rows), self._teacher.rows(rows)
            self._kept = rows, query_weights(student, teacher), key_shares(teacher, student)
        return self._kept[1:]

    def shared(self, rows: slice, probs: Tensor) -> Tensor:
        """What looks at the teacher's keys, `(b, N, L')`, divided among the student's, `(b, N, L)`."""
        shares = self.matrices(rows)[1]
        if shares.device.type != "cpu":
            return probs @ shares
        # Most tokens have nothing in common, and a processor minds products with 0.
        if self._sparse is None or self._sparse[0] is not shares:
            self._sparse = shares, [each.T.to_sparse() for each in shares]
        sparse = self._sparse[1] * (len(probs) if len(shares) == 1 else 1)
        return torch.stack([torch.sparse.mm(one, each.T).T for one, each in zip(sparse, probs, strict=True)])


def of_rows(attention: DirectionAttention, rows: slice) -> DirectionAttention:
    """The attention of some rows of a batch."""
    names = ("given_probs",) if attention.queries is None else ("queries", "keys")
    states: dict[str, Any] = {name: getattr(attention, name)[rows] for name in names}
    return replace(attention, **states)


def over_heads(attention: DirectionAttention, heads: int | None) -> DirectionAttention:
    """The attention over relation heads, where queries and keys are known; None: as it is."""
    if heads is None or attention.queries is None or heads == attention.queries.shape[1]:
        return attention
    regrouped: dict[str, Any] = {name: regroup_heads(getattr(attention, name), heads) for name in ("queries", "keys")}
    return replace(attention, **regrouped, scaling=None, softcap=None)


class AlignedAttention:
    """One direction of one layer of a teacher over a student's tokens: an `AttentionInParts` of the objectives.

    Args:
        attention: of the teacher.
        queries: tokens of both sides that look.
        keys: tokens of both sides that are looked at.

    Example:
        >>> word, halves = torch.tensor([[[0, 4]]]), torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]])
        >>> top_left, rest = [0.0, 0.0, 0.5, 0.5], [[0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
        >>> text, image = Tokens.of(word, torch.ones(1, 1)), Tokens.of(halves, torch.ones(1, 2))
        >>> finer = Tokens.of(torch.tensor([[top_left, *rest]]), torch.ones(1, 3))
        >>> looks_left = DirectionAttention(given_probs=torch.tensor([[[[1.0, 0.0]]]]))
        >>> aligned = AlignedAttention(looks_left, Matching(text, text), Matching(finer, image))
        >>> aligned.scores(_ALL).softmax(-1).round(decimals=4)
        tensor([[[[0.5000, 0.5000, 0.0000]]]])
    """

    def __init__(self, attention: DirectionAttention, queries: Matching, keys: Matching):
        self.attention, self.queries, self.keys = attention, queries, keys
        self.query_mask, self.key_mask = queries.asked, keys.seen
        self.has_states = attention.queries is not None
        states = attention.queries if attention.given_probs is None else attention.given_probs
        assert states is not None
        self.heads, num_queries = states.shape[1:3]
        self.averages = False

        # As many of the teacher's queries as cover one of the student's.
        ratio = -(-num_queries // self.query_mask.shape[1])
        self.scores_a_query = ratio * self.heads * self.keys.teacher_real.shape[1]

    def over_heads(self, heads: int) -> "AlignedAttention":
        """The same over relation heads, or as the mean over heads where probabilities are known."""
        other = AlignedAttention(over_heads(self.attention, heads), self.queries, self.keys)
        other.averages = not self.has_states and heads != self.heads
        return other

    def scores(self, part: Part) -> Tensor:
        """Logarithms of the attention over the student's keys, `(b, H, q, K)` float32; their softmax is the attention.

        Args:
            part: rows, heads (always all) and queries of the student.
        """
        rows, _, asked = part
        attention = of_rows(self.attention, rows)
        looking = "given_probs" if attention.queries is None else "queries"
        states: Tensor = getattr(attention, looking)

        weights = None
        if self.queries.same:
            states = states[:, :, asked]
        else:
            weights = self.queries.matrices(rows)[0][:, asked]
            # Of some queries, the teacher's attention is computed where it counts.
            if weights.shape[1] < self.query_mask.shape[1]:
                counts = weights.flatten(0, 1).any(0).nonzero()[:, 0]
                weights, states = weights[:, :, counts], states.index_select(2, counts)

        looks: Any = {looking: states}
        probs = replace(attention, **looks).probs(self.keys.teacher_real[rows])
        probs = probs.mean(1, keepdim=True) if self.averages else probs
        heads, num_keys = probs.shape[1], probs.shape[3]
        if weights is not None:
            # Heads side by side, or the weights would be copied for each.
            probs = weights @ probs.transpose(1, 2).flatten(2)
            probs = probs.unflatten(2, (heads, num_keys)).transpose(1, 2)
        if not self.keys.same:
            probs = self.keys.shared(rows, probs.flatten(1, 2)).unflatten(1, (heads, -1))
        return attention_probs_to_scores(probs)


Aligned = tuple[AlignedAttention | None, AlignedAttention | None]


def align_view(view: TeacherView, text: Tokens, image: Tokens) -> list[Aligned]:
    """Attention of each layer of a view over a student's tokens, text to image and image to text.

    Args:
        view: what the teacher shows.
        text: the student's tokens of the same texts.
        image: the student's tokens of the same images.

    Returns:
        A pair a layer, as an objective takes them as `cross_modal_scores`; None for a direction that the teacher lacks.
    """
    of_text = Matching(text, Tokens.of(view.text_spans, view.text_mask))
    of_image = Matching(image, Tokens.of(view.image_boxes, view.image_mask))

    def aligned(attention: DirectionAttention | None, queries: Matching, keys: Matching) -> AlignedAttention | None:
        return None if attention is None else AlignedAttention(attention, queries, keys)

    return [
        (aligned(layer.text_to_image, of_text, of_image), aligned(layer.image_to_text, of_image, of_text))
        for layer in view.layers
    ]
