"""What a reader of the Hub sees: pictures and cards made from what a run really did. Knows no torch."""

from .attention_picture import draw_attention_picture

__all__ = ["draw_attention_picture"]
