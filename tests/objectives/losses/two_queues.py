"""Two processes write unequal numbers of tokens; `test_token_queue.py` starts it.

torchrun --nproc_per_node 2 two_queues.py OUTPUT
"""

import sys
from pathlib import Path

import torch

from dual_distill.objectives import TokenQueue

STEPS = [([1, 2, 3], [100, 101]), ([], [200]), ([5], [102])]


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    queue = TokenQueue(6, 1)
    for step in STEPS:
        queue.collect(torch.tensor([[float(token)] for token in step[rank]]).reshape(-1, 1))
        queue.write()
    words = " ".join(str(int(token)) for token in queue.tokens_in_order().flatten())
    Path(sys.argv[1], f"{rank}.txt").write_text(words)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
