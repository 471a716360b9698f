"""Whole words to guess: which are masked depends on a seed, the epoch and the row, and on nothing else.

What is unusual: no global random state is read. A data loader's workers, a resumed run, and a teacher and student that
share a batch all see the same words masked, and a row is masked anew in each epoch. Words are what the tokenizer says
they are (`word_ids`), so that BERT's "##" pieces and any other fast tokenizer are served alike.
"""

import random
from collections.abc import Hashable, Sequence
from typing import Any

import torch

_IGNORED = -100
"""The index that torch's cross-entropy leaves out."""


class WholeWordMasker:
    """Masks 15 % of the words of each text, at least one, and keeps what stood there as labels.

    Of n words, `probability * n` are drawn, rounded up or down at random so that the mean is exact, and at least one. A
    drawn word is, as a whole, replaced by mask tokens (80 %), by random word pieces (10 %) or left as it is (10 %).

    Args:
        tokenizer: a fast tokenizer with a mask token.
        probability: share of words that are to be guessed, above 0 and at most 1.
        seed: which masking; another seed draws everything anew.

    Raises:
        ValueError: the tokenizer is not a fast one or has no mask token, or `probability` is out of range.

    Note:
        BERT's own whole-word masking draws 80 / 10 / 10 for each word piece. Here it is drawn for the word, so that no
        piece of a masked word stays to be read off. Words that hold a special token (an unknown one among them) are
        never drawn.

    References:
        Devlin et al., NAACL 2019, arXiv 1810.04805, and the whole-word variant of its release.

    Example:
        >>> from dual_distill.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red circle and a blue square"])
        >>> encoding = tokenizer(["a red circle"], return_tensors="pt")
        >>> masked_ids, labels = WholeWordMasker(tokenizer, seed=1)(encoding, [(0, "row 7")])
        >>> tokenizer.convert_ids_to_tokens(masked_ids[0]), (labels != -100).sum().item()
        (['[CLS]', 'a', 'red', '[MASK]', '[SEP]'], 1)
    """

    def __init__(self, tokenizer: Any, probability: float = 0.15, seed: int = 0) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and does not say which word pieces make a word; "
                f"load the "
                "fast one of the same model."
            )
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask token, which masked words are replaced by; add one, or pass "
                "masking=None."
            )
        if not 0 < probability <= 1:
            raise ValueError(
                f"probability is {probability}, but a share of words lies above 0 and at most at 1 (BERT: 0.15)."
            )
        self.tokenizer = tokenizer
        self.probability = probability
        self.seed = seed
        self._special = frozenset(tokenizer.all_special_ids)
        self._ordinary = [index for index in range(len(tokenizer)) if index not in self._special]

    def __call__(self, encoding: Any, keys: Sequence[Sequence[Hashable]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask one batch.

        Args:
            encoding: what the tokenizer returned for B texts, with `return_tensors="pt"` and padding.
            keys: B keys, each such as `(epoch, row)`; equal key and text give equal masking.

        Returns:
            `masked_input_ids` and `masked_labels`, `(B, T)` int64: the text with masked words, and the word piece that
            belongs where one was drawn, -100 elsewhere. A text without words has no label.

        Raises:
            ValueError: there are not as many keys as texts.
        """
        input_ids: torch.Tensor = encoding["input_ids"]
        if len(keys) != len(input_ids):
            raise ValueError(f"there are {len(input_ids)} texts and {len(keys)} keys; give one key for each text.")
        masked, labels = input_ids.clone(), torch.full_like(input_ids, _IGNORED)
        for row, key in enumerate(keys):
            pieces = input_ids[row].tolist()
            for position, piece in self._draw(encoding.word_ids(row), pieces, key):
                labels[row, position] = pieces[position]
                masked[row, position] = piece
        return masked, labels

    def _draw(self, word_ids: list[int | None], pieces: list[int], key: Sequence[Hashable]) -> list[tuple[int, int]]:
        """Positions of drawn words, each with the word piece that takes its place."""
        words: dict[int, list[int]] = {}
        for position, word in enumerate(word_ids):
            if word is not None:
                words.setdefault(word, []).append(position)
        candidates = [
            word for word in words.values() if not any(pieces[position] in self._special for position in word)
        ]
        if not candidates:
            return []
        # A string seed goes through SHA-512, and `random()` is the one method whose numbers Python promises to keep.
        numbers = random.Random(f"words/{self.seed}/" + "/".join(repr(part) for part in key))
        count = min(len(candidates), max(1, int(self.probability * len(candidates) + numbers.random())))
        order = sorted((numbers.random(), place) for place in range(len(candidates)))
        drawn: list[tuple[int, int]] = []
        for _, place in order[:count]:
            kind = numbers.random()
            for position in candidates[place]:
                if kind < 0.8:
                    piece = self.tokenizer.mask_token_id
                elif kind < 0.9:
                    piece = self._ordinary[int(numbers.random() * len(self._ordinary))]
                else:
                    piece = pieces[position]
                drawn.append((position, piece))
        return drawn


__all__ = ["WholeWordMasker"]
