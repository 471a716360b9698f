"""`dual-distill quickstart`: see `dual_distill.quickstart`."""

from dual_distill.quickstart import run as run
