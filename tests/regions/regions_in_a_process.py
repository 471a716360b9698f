"""Extracts regions in a process of its own, which kills itself at the forward pass KILL_AT; `test_extraction.py` starts
it.

regions_in_a_process.py DETECTOR IMAGES STORE
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from dual_distill.inference import open_images
from dual_distill.regions.detectors import load_detector
from dual_distill.regions.extraction import extract_regions


def main() -> None:
    detector = load_detector(Path(sys.argv[1]), "tiny")
    left = int(os.environ.get("KILL_AT", "0"))

    def kill(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    detector.model.register_forward_pre_hook(kill)
    report = extract_regions(detector, open_images(sys.argv[2]), sys.argv[3], batch_size=2, shard_size=3, num_workers=2)
    sys.stdout.write(f"{report.added} {report.images}\n")


if __name__ == "__main__":
    main()
