"""Earlier teacher token states, first in, first out: the negatives of the noise-contrastive loss.

What is read and what is written are apart: tokens of a step are collected by `collect` and count as negatives after
`write`, when the optimizer has made its step. So two micro-batches of four rows see the negatives that one batch of
eight sees.
"""

import torch
from torch import Tensor, distributed, nn


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
        if size < 1 or width < 1:
            raise ValueError(f"a queue of {size} token states of width {width} was asked for; give numbers above 0.")
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
        if tokens.dim() != 2 or tokens.shape[1] != self.tokens.shape[1]:
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)} were given to a queue of width {self.tokens.shape[1]}; give "
                f"(tokens, {self.tokens.shape[1]})."
            )

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
