"""The head of every task, which is the shallow interaction too, and the loss of hard labels."""

from typing import Literal

import torch
from torch import nn


class SplitLinear(nn.Linear):
    """A linear map of two concatenated vectors, whole or in halves: `W [a; b] + c = (W_a a + c) + W_b b`."""

    def forward(self, features: torch.Tensor, half: Literal["first", "second"] | None = None) -> torch.Tensor:
        """Map both vectors `(..., in_features)`, or one half: the first with the bias, the second without."""
        middle = self.in_features // 2
        if half == "first":
            return nn.functional.linear(features, self.weight[:, :middle], self.bias)
        if half == "second":
            return nn.functional.linear(features, self.weight[:, middle:])
        return super().forward(features)


def classification_head(
    in_features: int, hidden_features: int, num_labels: int, first_layer: type[nn.Linear] = nn.Linear
) -> nn.Sequential:
    """Build `Linear -> LayerNorm -> GELU -> Linear`, the head of every task and of the shallow interaction."""
    return nn.Sequential(
        first_layer(in_features, hidden_features),
        nn.LayerNorm(hidden_features),
        nn.GELU(),
        nn.Linear(hidden_features, num_labels),
    )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
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
    raise ValueError(
        f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, logits {tuple(logits.shape)}; give integer "
        "classes (B,) or soft scores (B, labels)."
    )
