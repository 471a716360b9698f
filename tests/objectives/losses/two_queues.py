"""Two processes write unequal numbers of tokens; `test_token_queue.py` starts it.

RANK=0 two_queues.py OUTPUT, and RANK=1
"""

import os
import sys
from pathlib import Path

import torch

from dual_distill.objectives import TokenQueue

STEPS = [([1, 2, 3], [100, 101]), ([], [200]), ([5], [102])]


def main() -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting, rank = Path(sys.argv[1], "meeting"), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=meeting.absolute().as_uri(), rank=rank, world_size=2)
    queue = TokenQueue(6, 1)
    for step in STEPS:
        queue.collect(torch.tensor([[float(token)] for token in step[rank]]).reshape(-1, 1))
        queue.write()
    words = " ".join(str(int(token)) for token in queue.tokens_in_order().flatten())
    Path(sys.argv[1], f"{rank}.txt").write_text(words)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
