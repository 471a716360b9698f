"""Rows of a task become a batch."""
