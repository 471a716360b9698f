"""Hidden states of student and teacher held against each other, token by token: by a noise-contrastive loss or MSE.

Negatives of the noise-contrastive loss are earlier token states of the teacher, first in, first out. What is read and
what is written are apart: tokens of a step are collected by `collect` and count as negatives after `write`, when the
optimizer has made its step. So two micro-batches of four rows see the negatives that one batch of eight sees.
"""

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from .logits import check_positive, check_shapes

# Anchors and negatives whose similarities exist at once: on a processor 1 MB of them, which its cache holds.
_BLOCK, _BLOCK_ELSEWHERE = 512, 4096


def noise_contrastive_loss(
    anchors: Tensor, positives: Tensor, negatives: Tensor, token_mask: Tensor, temperature: float = 0.1
) -> Tensor:
    """How well a student's token finds the teacher's state of the same token among others, in nats per token.

    With everything scaled to length 1, per real token -ln(exp(a . p / t) / (exp(a . p / t) + sum_k exp(a . n_k / t)));
    averaged over the real tokens of a row, then over rows. Other tokens of the same batch are no negatives: most are
    words and regions of the same image.

    Args:
        anchors: `(B, L, P)` projected states of the student. Receives the gradient.
        positives: `(B, L, P)` states of the teacher, of the same tokens. No gradient reaches it.
        negatives: `(K, P)` states of earlier tokens of the teacher; K may be 0. No gradient reaches it.
        token_mask: `(B, L)` bool, True for a real token.
        temperature: t > 0.

    Returns:
        Scalar float32, >= 0; ln(1 + K) when all negatives equal the positive, 0 when there are none.

    Raises:
        ValueError: the shapes do not fit one another, or the temperature is not positive.

    Note:
        Similarities exist a block at a time, in the forward pass alone, which makes the gradient of the anchors too:
        memory does not grow with the number of negatives.

    References:
        Fang et al., ICCV 2021, arXiv 2104.02096. It publishes neither temperature nor projection.

    Example:
        >>> one = torch.ones(1, 2, 3)
        >>> loss = noise_contrastive_loss(torch.randn(1, 2, 3), one, torch.ones(7, 3), torch.ones(1, 2).bool())
        >>> round(loss.item(), 4)   # ln 8
        2.0794
    """
    _check_states(anchors, positives, token_mask)
    fit = negatives.dim() == 2 and negatives.shape[1] == anchors.shape[2]
    check_shapes(fit, f"(K, {anchors.shape[2]})", negatives=negatives, anchors=anchors)
    check_positive(temperature=temperature)

    real = token_mask.bool()
    with torch.autocast(anchors.device.type, enabled=False):
        # Padded tokens would cost as much as real ones.
        anchor = nn.functional.normalize(anchors[real].float(), dim=-1) / temperature
        positive = nn.functional.normalize(positives.detach()[real].float(), dim=-1)
        of_token = _ContrastWithNegatives.apply(anchor, (anchor * positive).sum(-1, keepdim=True), negatives.detach())
    return mean_over_rows(of_token.new_zeros(real.shape).masked_scatter(real, of_token), real)


class _ContrastWithNegatives(torch.autograd.Function):
    """ln(1 + sum_k exp(a . n_k - own)) of each anchor, and its gradient: each similarity is computed once."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, own: Tensor, negatives: Tensor) -> Tensor:
        is_trained, side = any(ctx.needs_input_grad), _BLOCK if anchors.device.type == "cpu" else _BLOCK_ELSEWHERE
        # To the base 2, whose powers are faster than e's; sums hold the positive first.
        scaled, own = anchors / math.log(2), own / math.log(2)
        largest, sums, pulled = own.clone(), torch.ones_like(own), torch.zeros_like(anchors)

        for first in range(0, len(negatives), side):
            block = nn.functional.normalize(negatives[first : first + side].float(), dim=-1)
            for rows in (slice(start, start + side) for start in range(0, len(anchors), side)):
                scores = scaled[rows] @ block.T
                before = largest[rows].clone()
                torch.maximum(before, scores.amax(1, keepdim=True), out=largest[rows])

                powers, shrinks = scores.sub_(largest[rows]).exp2_(), before.sub_(largest[rows]).exp2_()
                sums[rows] = (sums[rows] * shrinks).add_(powers.sum(1, keepdim=True))
                if is_trained:
                    pulled[rows] = torch.addmm(pulled[rows].mul_(shrinks), powers, block)

        if is_trained:
            ctx.save_for_backward(pulled.div_(sums), (own - largest).exp2_().div_(sums).sub_(1))
        return ((largest - own + sums.log2()) * math.log(2))[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        of_anchors, of_own = ctx.saved_tensors
        return of_anchors * grad_output[:, None], of_own * grad_output[:, None], None


def hidden_state_mse_loss(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """MSE of hidden states, over the real tokens of a row and their width, then over rows.

    Args:
        student: `(B, L, P)` projected states. Receives the gradient.
        teacher: `(B, L, P)` states of the same tokens. No gradient reaches it.
        token_mask: `(B, L)` bool, True for a real token.

    Returns:
        Scalar float32, >= 0; 0 when the two agree.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> hidden_state_mse_loss(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 3.0), torch.ones(1, 2).bool()).item()
        9.0
    """
    _check_states(student, teacher, token_mask)
    return mean_over_rows((student.float() - teacher.detach().float()).square().mean(-1), token_mask.bool())


def pool_tokens(states: Tensor, token_mask: Tensor) -> Tensor:
    """Mean state of the real tokens of a row, `(B, L, C)` -> `(B, 1, C)`; zeros for a row without any.

    Example:
        >>> pool_tokens(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).item()
        2.0
    """
    real = token_mask.to(states.dtype)[:, :, None]
    return (states * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


def mean_over_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values at True inside each row, then over the rows that have any: `(B, ...)` -> scalar.

    A row weighs the same alone, in a batch and across processes, however long it is.

    Example:
        >>> values = torch.tensor([[1.0, 3.0], [8.0, 9.0], [7.0, 7.0]])
        >>> mean_over_rows(values, torch.tensor([[True, True], [True, False], [False, False]])).item()   # (2 + 8) / 2
        5.0
    """
    mask = mask.to(values.dtype)
    counts = mask.flatten(1).sum(1)
    means = (values * mask).flatten(1).sum(1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)


def _check_states(student: Tensor, teacher: Tensor, token_mask: Tensor) -> None:
    """Refuse states and a mask of unlike shapes."""
    fit = student.dim() == 3 and student.shape == teacher.shape and token_mask.shape == student.shape[:2]
    wanted = "(B, tokens, width) of the same tokens twice, and (B, tokens)"
    check_shapes(fit, wanted, student=student, teacher=teacher, token_mask=token_mask)


class TokenQueue(nn.Module):
    """A ring of `size` token states, gathered across processes, whose contents are part of the `state_dict`.

    It starts empty; until it is full, only what was written counts. All processes hold the same contents.

    Args:
        size: most token states.
        width: numbers a token state.

    Raises:
        ValueError: size or width is not positive.

    Example:
        >>> queue = TokenQueue(size=3, width=1)
        >>> for token in range(5):
        ...     queue.collect(torch.tensor([[float(token)]]))
        >>> len(queue)   # collected, not written
        0
        >>> queue.write()
        >>> queue.tokens_in_order().flatten()
        tensor([2., 3., 4.])
    """

    tokens: Tensor
    num_written: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        check_positive(size=size, width=width)
        self.size = size
        self.register_buffer("tokens", torch.zeros(size, width))
        self.register_buffer("num_written", torch.zeros((), dtype=torch.int64))
        self._collected: list[Tensor] = []

    def __len__(self) -> int:
        return min(int(self.num_written), self.size)

    def negatives(self) -> Tensor:
        """Return what was written, `(len(self), width)` float32, in no particular order; no copy is made."""
        return self.tokens[: len(self)]

    def tokens_in_order(self) -> Tensor:
        """Return what was written, oldest first, `(len(self), width)`."""
        if len(self) < self.size:
            return self.tokens[: len(self)]
        return self.tokens.roll(-(int(self.num_written) % self.size), 0)

    @torch.no_grad()
    def collect(self, tokens: Tensor) -> None:
        """Take real tokens of a batch in, those of all processes in their order; every process must call it.

        Args:
            tokens: `(M, width)` of this process, padded tokens left out before; M may differ between processes and be
                0.

        Raises:
            ValueError: the width differs.
        """
        fit = tokens.dim() == 2 and tokens.shape[1] == self.tokens.shape[1]
        check_shapes(fit, f"(tokens, {self.tokens.shape[1]})", tokens=tokens)

        # What a step collects beyond the queue's size would be overwritten by its own end.
        latest = gather_tokens(tokens.detach().to(self.tokens.dtype))[-self.size :]
        self._collected.append(latest)
        surplus = sum(map(len, self._collected)) - self.size
        while surplus >= len(self._collected[0]) and len(self._collected) > 1:
            surplus -= len(self._collected.pop(0))

    @torch.no_grad()
    def write(self) -> None:
        """Write what was collected; the oldest give way."""
        if not self._collected:
            return

        tokens = torch.cat(self._collected)[-self.size :]
        self._collected = []

        start = int(self.num_written)
        indices = torch.arange(start, start + len(tokens), device=tokens.device) % self.size
        self.tokens[indices] = tokens
        self.num_written += len(tokens)


def gather_tokens(tokens: Tensor) -> Tensor:
    """Concatenate the tokens of all processes in their order; one process gets its own back.

    Args:
        tokens: `(M, width)`, M may differ between processes.

    Returns:
        `(sum of M, width)`, without gradient, the same on every process.

    Example:
        >>> gather_tokens(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return tokens

    # Processes may hold unlike numbers of tokens, and `all_gather` takes equal shapes.
    counts = [torch.zeros(1, dtype=torch.int64, device=tokens.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(tokens)], device=tokens.device))
    numbers = [int(count) for count in counts]
    padded = tokens.new_zeros(max(numbers), tokens.shape[1])
    padded[: len(tokens)] = tokens.detach()

    gathered = [torch.empty_like(padded) for _ in numbers]
    distributed.all_gather(gathered, padded)
    return torch.cat([part[:number] for part, number in zip(gathered, numbers, strict=True)])
