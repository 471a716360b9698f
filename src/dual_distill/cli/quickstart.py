"""`dual-distill quickstart`: see `dual_distill.quickstart`."""

from dual_distill.quickstart import run

__all__ = ["run"]
