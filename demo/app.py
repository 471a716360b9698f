"""Shows a checkpoint in the browser; DEMO of the environment holds other words for `dual-distill demo`."""

import os
import sys

from dual_distill.cli import main

sys.exit(main(["demo", *os.environ.get("DEMO", "").split()]))
