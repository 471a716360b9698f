"""Readers of official files, custom tables, generated scenes."""
