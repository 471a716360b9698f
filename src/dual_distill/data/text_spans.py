"""Which characters of a text each of its tokens covers, for tokenizers that say so and for those that do not."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Span = tuple[int, int]
_NOTHING: Span = (0, 0)


def text_spans(tokenizer: Any, texts: Sequence[str], encoded: Any) -> Tensor:
    """Start and end of each token's characters in its own text, without the white space at its ends.

    Byte-level tokens that share a character all cover it. A tokenizer without offsets (a slow one) is followed piece by
    piece through the text; what cannot be followed, an unknown word or the bytes of an emoji, covers the characters
    between its neighbours.

    Args:
        tokenizer: of the texts.
        texts: B texts.
        encoded: what the tokenizer made of them, padded or not.

    Returns:
        `(B, T, 2)` int64; (0, 0) for special tokens and padding.
    """
    rows = []
    for index, text in enumerate(texts):
        ids = [int(each) for each in encoded["input_ids"][index]]
        offsets = encoded.encodings[index].offsets if encoded.encodings else _followed(tokenizer, text, ids)
        rows.append([_trimmed(text, *span) for span in offsets])
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), -1, 2)


def _trimmed(text: str, start: int, end: int) -> Span:
    """A span without the white space at its ends.

    Example:
        >>> _trimmed("a dog", 1, 5), _trimmed("a dog", 1, 2)
        ((2, 5), (0, 0))
    """
    covered = text[start:end]
    kept = covered.strip()
    start += len(covered) - len(covered.lstrip())
    return (start, start + len(kept)) if kept else _NOTHING


def _followed(tokenizer: Any, text: str, ids: Sequence[int]) -> list[Span]:
    """Spans of tokens whose tokenizer gives none: each piece is found in what is left of the text."""
    # Tokenizers take off case and accents in ways of their own: text and pieces are compared without them.
    plain = [(letter, index) for index, character in enumerate(text) for letter in _plain(character)]
    letters = "".join(letter for letter, _ in plain)
    spans: list[Span] = []
    unknown: list[int] = []
    at = 0

    def fill(end: int) -> None:
        for index in unknown:
            spans[index] = (plain[at][1], plain[end - 1][1] + 1) if end > at else _NOTHING
        unknown.clear()

    silent = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        spans.append(_NOTHING)
        if ids[index] in silent:
            continue
        piece = _plain(tokenizer.convert_tokens_to_string([token]).removeprefix("##"))
        found = letters.find(piece, at) if piece and ids[index] != tokenizer.unk_token_id else -1
        if found < 0:
            unknown.append(index)
            continue
        fill(found)
        at = found + len(piece)
        spans[index] = (plain[found][1], plain[at - 1][1] + 1)
    fill(len(letters))
    return spans


def _plain(text: str) -> str:
    """Small letters without accents and white space."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(each for each in letters if not (unicodedata.combining(each) or each.isspace() or each == "\ufffd"))
