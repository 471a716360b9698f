"""What a teacher shows of one batch: its logits, and where its tokens, words and patches alike, look.

Every family of teachers ends here, and whoever compares a student with a teacher starts here. Text tokens are known by
the characters that they cover, image tokens by their boxes, so that the other side may cut text and image differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["text_to_image", "image_to_text"]


@dataclass(frozen=True)
class DirectionAttention:
    """Which tokens of one modality look at which of the other, in one layer: queries and keys, or probabilities.

    Attributes:
        queries: `(B, H, Q, D)`, after any rotary embedding; None where probabilities are known instead.
        keys: `(B, H, K, D)`, those of grouped heads repeated.
        scaling: what `queries @ keys` is multiplied by; None: one over the root of D.
        softcap: scores are squashed to `softcap * tanh(scores / softcap)`; None: they are not.
        given_probs: `(B, H, Q, K)`, >= 0; rows need not sum to 1, since tokens of the same modality are left out.
    """

    queries: Tensor | None = None
    keys: Tensor | None = None
    scaling: float | None = None
    softcap: float | None = None
    given_probs: Tensor | None = None

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """Scores before softmax of the queries in `rows`, `(B, H, q, K)` float32; a probability of 0 is -inf.

        Example:
            >>> DirectionAttention(given_probs=torch.tensor([[[[0.5, 0.0]]]])).scores().exp()
            tensor([[[[0.5000, 0.0000]]]])
        """
        if self.queries is None or self.keys is None:
            assert self.given_probs is not None
            return self.given_probs[:, :, rows].float().log()
        scaling = self.queries.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        scores = (self.queries[:, :, rows] @ self.keys.transpose(-1, -2)).float() * scaling
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()

    def probs(self, key_mask: Tensor, rows: slice = slice(None)) -> Tensor:
        """Probabilities of the queries in `rows` over the real keys, `(B, H, q, K)` float32; each row sums to 1.

        Args:
            key_mask: `(B, K)` bool, True for a real key; a batch row without any gives zeros.
            rows: which queries, so that long sequences are gone through in pieces.
        """
        scores = self.scores(rows).masked_fill(~key_mask[:, None, None], -torch.inf)
        return scores.softmax(-1).nan_to_num(0.0)


@dataclass(frozen=True)
class LayerAttention:
    """Both directions of one layer; None where the model has no such direction, as causal ones have no second."""

    text_to_image: DirectionAttention | None = None
    image_to_text: DirectionAttention | None = None


@dataclass(frozen=True)
class TeacherView:
    """What a teacher shows of one batch of B texts with an image each.

    Attributes:
        text_spans: `(B, T', 2)` long, start and end of each token's characters in the row's own text; (0, 0) for what
            the text does not hold: special tokens, words of a template, padding.
        text_mask: `(B, T')` bool, True for a real token.
        image_boxes: `(B, I', 4)` float, `x0 y0 x1 y1` of each token in the unit square of the original image; a token
            of the whole image (CLS) has the whole square, and padding of the image lies beyond it.
        image_mask: `(B, I')` bool, True for a real token.
        layers: attention of the layers that were asked for, in that order.
        logits: `(B, L)`: of the student's labels, where the teacher names them; None: it says none.
        match_scores: `(B,)`: log-odds that text and image match; None: it does not say.
    """

    text_spans: Tensor
    text_mask: Tensor
    image_boxes: Tensor
    image_mask: Tensor
    layers: Sequence[LayerAttention] = field(default_factory=list)
    logits: Tensor | None = None
    match_scores: Tensor | None = None

    @property
    def match_probs(self) -> Tensor | None:
        """How probably text and image match, `(B,)`; None: the teacher does not say."""
        return None if self.match_scores is None else self.match_scores.sigmoid()

    def attention_probs(self, index: int, direction: Direction, rows: slice = slice(None)) -> Tensor | None:
        """Attention of the index-th layer that was asked for, `(B, H, Q, K)`: each row sums to 1 over real keys.

        It is computed when asked for, so that only one exists at a time.

        Args:
            index: of `layers`.
            direction: from queries to keys.
            rows: which queries; all unless given.

        Returns:
            Float32 probabilities, or None where the model has no such direction.

        Example:
            >>> keys = torch.tensor([[[[0.0], [0.0], [9.0]]]])
            >>> layer = LayerAttention(text_to_image=DirectionAttention(torch.ones(1, 1, 1, 1), keys))
            >>> two_real = torch.tensor([[True, True, False]])
            >>> text, boxes = torch.zeros(1, 1, 2), torch.zeros(1, 3, 4)
            >>> view = TeacherView(text.long(), two_real[:, :1], boxes, two_real, [layer])
            >>> view.attention_probs(0, "text_to_image"), view.attention_probs(0, "image_to_text")
            (tensor([[[[0.5000, 0.5000, 0.0000]]]]), None)
        """
        attention: DirectionAttention | None = getattr(self.layers[index], direction)
        if attention is None:
            return None
        return attention.probs(self.image_mask if direction == "text_to_image" else self.text_mask, rows)
