"""The best of a stream of scores, in memory that does not grow with the stream."""

import torch


class RunningTopK:
    """Keeps the best `top_k` rows of pieces that come one after the other.

    Args:
        top_k: rows that are kept.
        threshold: least score.

    Attributes:
        scores: `(kept,)`, best first; equal ones in the order in which they came.
        rows: `(kept,)` int64, their places.
        labels: `(kept,)` int64, what `add` was given beside them.
        matches: rows so far that reach the threshold, kept or not.

    Example:
        >>> best = RunningTopK(top_k=2, threshold=0.0)
        >>> best.add(0, torch.tensor([0.1, 0.9]))
        >>> best.add(2, torch.tensor([-0.5, 0.9, 0.3]))
        >>> best.rows, best.matches
        (tensor([1, 3]), 4)
    """

    def __init__(self, top_k: int, threshold: float) -> None:
        self._top_k, self._threshold = top_k, threshold
        self.scores = torch.empty(0)
        self.rows = self.labels = torch.empty(0, dtype=torch.long)
        self.matches = 0

    def add(self, start: int, scores: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Take in one piece.

        Args:
            start: place of its first row.
            scores: `(rows,)`, on the CPU.
            labels: `(rows,)` int64, kept beside the rows; None: 0.
        """
        is_match = scores >= self._threshold
        self.matches += int(is_match.sum())
        if len(self.scores) == self._top_k:
            is_match &= scores > self.scores[-1]
        found = is_match.nonzero()[:, 0]
        if not len(found):
            return
        # Sorted stably and the earlier ones first: equal scores stay in their order.
        self.scores, order = torch.cat([self.scores, scores[found]]).sort(descending=True, stable=True)
        order = order[: self._top_k]
        self.scores = self.scores[: self._top_k].clone()
        self.rows = torch.cat([self.rows, found + start])[order]
        self.labels = torch.cat([self.labels, torch.zeros_like(found) if labels is None else labels[found]])[order]


def check_top_k(top_k: int) -> None:
    """Refuse a number of rows to keep that is none.

    Raises:
        ValueError: it is no integer, or below 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}, but 1 or more are kept.")


__all__ = ["RunningTopK", "check_top_k"]
