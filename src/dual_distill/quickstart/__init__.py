"""The quickstart: generated scenes, a teacher, two students and a report."""

from .report import finding, report_table
from .run import PRESETS, quickstart
