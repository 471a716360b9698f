"""Encodes a folder in a process of its own, which kills itself at the forward pass KILL_AT; `test_encoding.py` starts
it.

encode_in_a_process.py MODEL IMAGES STORE
"""

import os
import signal
import sys
from typing import Any

from dual_distill.inference import encode_images
from dual_distill.teachers import load_model


def main() -> None:
    model, processor = load_model(sys.argv[1])
    left = int(os.environ.get("KILL_AT", "0"))
    tower = model.dual_encoder.vision_model

    def kill(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    tower.register_forward_pre_hook(kill)
    model.name_or_path = ""  # as the model of the test has none
    report = encode_images(model, processor, sys.argv[2], sys.argv[3], batch_size=2, shard_size=4, num_workers=2)
    sys.stdout.write(f"{report.encoded} {report.missing_shards}\n")


if __name__ == "__main__":
    main()
