"""Fusion encoders teach dual encoders."""
