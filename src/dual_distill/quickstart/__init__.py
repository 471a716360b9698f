"""The quickstart: generated scenes, a teacher, two students and a report."""

from .run import run

__all__ = ["run"]
