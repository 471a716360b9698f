"""`python -m dual_distill` is `dual-distill`."""

import sys

from dual_distill.cli import main

sys.exit(main())
