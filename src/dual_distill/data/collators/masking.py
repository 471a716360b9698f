"""Words to guess: which are masked depends on a seed, the epoch and the row, and on nothing else.

What is unusual: no global random state is read. A data loader's workers, a resumed run, and a teacher and student that
share a batch all see the same words masked, and a row is masked anew in each epoch. Whole words are what the tokenizer
says they are (`word_ids`), so that BERT's "##" pieces and any other fast tokenizer are served alike.
"""

import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN

_IGNORED = -100  # the index that torch's cross-entropy leaves out

Key = Sequence[Hashable]


def masking_key(row: Mapping[str, Any], caption: Hashable) -> Key:
    """What a row is masked by: its number and epoch (training), or its caption (evaluation, alike each time)."""
    if EPOCH_COLUMN in row and INDEX_COLUMN in row:
        return (row[EPOCH_COLUMN], row[INDEX_COLUMN])
    return ("caption", caption)


class _Masker:
    """Draws units of a text, lists of positions, and masks them: 80 % mask token, 10 % random piece, 10 % kept."""

    name: str

    def __init__(self, tokenizer: Any, seed: int) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token; add one, or pass masking=None.")
        self.tokenizer = tokenizer
        self.seed = seed
        self._special = frozenset(tokenizer.all_special_ids)
        self._ordinary = [index for index in range(len(tokenizer)) if index not in self._special]

    def _count(self, units: int, numbers: random.Random) -> int:
        """How many of so many units are drawn."""
        raise NotImplementedError

    def _mask(
        self, input_ids: torch.Tensor, units: Sequence[Sequence[Sequence[int]]], keys: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked ids, and labels with the piece that belongs where one was drawn, -100 elsewhere; both `(B, T)`."""
        masked, labels = input_ids.clone(), torch.full_like(input_ids, _IGNORED)
        for row, (candidates, key) in enumerate(zip(units, keys, strict=True)):
            # A string seed goes through SHA-512, and of `random()` alone does Python promise to keep the numbers.
            numbers = random.Random(f"{self.name}/{self.seed}/" + "/".join(repr(part) for part in key))
            count = self._count(len(candidates), numbers)
            order = sorted((numbers.random(), index) for index in range(len(candidates)))

            for _, index in order[:count]:
                kind = numbers.random()
                for position in candidates[index]:
                    labels[row, position] = input_ids[row, position]
                    if kind < 0.8:
                        masked[row, position] = self.tokenizer.mask_token_id
                    elif kind < 0.9:
                        masked[row, position] = self._ordinary[int(numbers.random() * len(self._ordinary))]
        return masked, labels


class WholeWordMasker(_Masker):
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

    name = "words"

    def __init__(self, tokenizer: Any, probability: float = 0.15, seed: int = 0) -> None:
        if not getattr(tokenizer, "is_fast", False):
            found = f"{type(tokenizer).__name__} is not a fast tokenizer, and does not say where words begin"
            raise ValueError(f"{found}; load the fast one of the same model.")
        if not 0 < probability <= 1:
            raise ValueError(f"probability is {probability}, but must be above 0 and at most 1 (BERT: 0.15).")
        super().__init__(tokenizer, seed)
        self.probability = probability

    def __call__(self, encoding: Any, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
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
        return self._mask(input_ids, [self._words(encoding, row) for row in range(len(keys))], keys)

    def _words(self, encoding: Any, row: int) -> list[list[int]]:
        """The positions of each word of a text, but of those that hold a special token."""
        words: dict[int, list[int]] = {}
        for position, word in enumerate(encoding.word_ids(row)):
            if word is not None:
                words.setdefault(word, []).append(position)

        pieces = encoding["input_ids"][row].tolist()
        return [word for word in words.values() if not any(pieces[position] in self._special for position in word)]

    def _count(self, units: int, numbers: random.Random) -> int:
        return min(units, max(1, int(self.probability * units + numbers.random())))


class CaptionMasker(_Masker):
    """Masks 15 % of the tokens of each caption, one at least and three at most, the `[SEP]` at its end among them.

    The `[SEP]` that ends a caption may be masked like a word, for it is how writing learns to stop. A drawn token
    becomes the mask token (80 %), a random word piece (10 %) or stays (10 %).

    Args:
        tokenizer: has a mask token.
        share: of the tokens behind `[CLS]`, above 0 and at most 1.
        max_masked: most tokens a caption.
        seed: which masking; another seed draws everything anew.

    Raises:
        ValueError: the tokenizer has no mask token, or a number is out of range.

    Note:
        Share and most tokens are those of Oscar's captioning code, which DistillVLM builds on.

    Example:
        >>> from dual_distill.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["a red circle"])
        >>> ids = torch.tensor([tokenizer("a red circle")["input_ids"]])
        >>> masked, labels = CaptionMasker(tokenizer, seed=3)(ids, torch.ones_like(ids), [(0, "row 7")])
        >>> tokenizer.convert_ids_to_tokens(masked[0]), (labels != -100).sum().item()
        (['[CLS]', '[MASK]', 'red', 'circle', '[SEP]'], 1)
    """

    name = "caption"

    def __init__(self, tokenizer: Any, share: float = 0.15, max_masked: int = 3, seed: int = 0) -> None:
        if not 0 < share <= 1 or max_masked < 1:
            raise ValueError(f"share is {share}, max_masked {max_masked}; give a share in (0, 1], and at least 1.")
        super().__init__(tokenizer, seed)
        self.share = share
        self.max_masked = max_masked

    def __call__(
        self, input_ids: torch.Tensor, caption_mask: torch.Tensor, keys: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask one batch.

        Args:
            input_ids: `(B, T)`, captions from `[CLS]` to `[SEP]`, tags and padding behind them.
            caption_mask: `(B, T)`, 1 for the tokens of the caption, `[CLS]` and `[SEP]` among them.
            keys: B keys, each such as `(epoch, row)`; equal key and caption give equal masking.

        Returns:
            Masked ids, and labels with the token that belongs where one was drawn, -100 elsewhere; both `(B, T)` int64.
        """
        tokens = [[[position] for position in row.nonzero()[1:, 0].tolist()] for row in caption_mask]
        return self._mask(input_ids, tokens, keys)

    def _count(self, units: int, numbers: random.Random) -> int:
        return min(self.max_masked, units, max(1, round(self.share * units)))
