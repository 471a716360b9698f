"""Words to guess, and the batches that hold them: pre-training on image-text rows, and learning to write captions.

What is unusual: which words are masked depends on a seed, the epoch and the row, and on nothing else; no global random
state is read. A data loader's workers, a resumed run, and a teacher and student that share a batch all see the same
words masked, and a row is masked anew in each epoch. Whole words are what the tokenizer says they are (`word_ids`), so
that BERT's "##" pieces and any other fast tokenizer are served alike. And a pre-training batch says which of its rows
show the same image or say the same caption, by hashes of content and not by ids of the data set, so that duplicates of
several sources are known to be no negatives of one another.
"""

import copy
import hashlib
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from dual_distill.data.image_content import image_content
from dual_distill.data.indexed_dataset import EPOCH_COLUMN, INDEX_COLUMN
from dual_distill.data.tasks import Task

from .base import Batch, ImageTextCollator, Row

# Longest caption in tokens, [CLS] and [SEP] among them, as the models have it.
CAPTION_LENGTH = 40

# Most tokens of the tags.
TAG_LENGTH = 30

_IGNORED = -100  # the index that torch's cross-entropy leaves out
_BITS = (1 << 63) - 1

Key = Sequence[Hashable]


class _Masker:
    """Draws units of a text, lists of indices, and masks them: 80 % mask token, 10 % random piece, 10 % kept."""

    name: str

    def __init__(self, tokenizer: Any, seed: int) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token; add one, or pass masking=None.")
        self.tokenizer, self.seed = tokenizer, seed
        self._special = frozenset(tokenizer.all_special_ids)
        self._ordinary = [index for index in range(len(tokenizer)) if index not in self._special]

    def _mask(
        self, input_ids: Tensor, units: Sequence[Any], keys: Sequence[Key], count: Callable[[int, random.Random], int]
    ) -> tuple[Tensor, Tensor]:
        """Masked ids, and labels with the piece that belongs where one was drawn, -100 elsewhere; both `(B, T)`.

        `count` says how many of so many units are drawn.
        """
        if len(keys) != len(input_ids):
            raise ValueError(f"there are {len(input_ids)} texts and {len(keys)} keys; give one key for each text.")

        masked, labels = input_ids.clone(), torch.full_like(input_ids, _IGNORED)
        for row, (candidates, key) in enumerate(zip(units, keys, strict=True)):
            # A string seed goes through SHA-512, and of `random()` alone does Python promise to keep the numbers.
            numbers = random.Random(f"{self.name}/{self.seed}/" + "/".join(map(repr, key)))
            drawn_units = count(len(candidates), numbers)
            order = sorted((numbers.random(), index) for index in range(len(candidates)))

            for _, drawn in order[:drawn_units]:
                kind = numbers.random()
                for index in candidates[drawn]:
                    labels[row, index] = input_ids[row, index]
                    if kind < 0.8:
                        masked[row, index] = self.tokenizer.mask_token_id
                    elif kind < 0.9:
                        masked[row, index] = self._ordinary[int(numbers.random() * len(self._ordinary))]
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
        ValueError: the tokenizer is not a fast one, has no mask token or takes all of a text for one word, or
            `probability` is out of range.

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
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer, which knows where words begin.")
        if not 0 < probability <= 1:
            raise ValueError(f"probability is {probability}, but must be above 0 and at most 1 (BERT: 0.15).")
        super().__init__(tokenizer, seed)
        # Gemma's, for one, takes all of a text for one word, and all of it would be masked.
        if len({*tokenizer("two words").word_ids()} - {None}) == 1:
            takes = f"{type(tokenizer).__name__} takes a text of two words for one word, all of which would be masked"
            raise ValueError(f"{takes}; take a tokenizer that says where words begin, as BERT's.")
        self.probability = probability

    def __call__(self, encoding: Any, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
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
        units = []
        for row, pieces in enumerate(encoding["input_ids"].tolist()):
            words: dict[int, list[int]] = {}
            for index, word in enumerate(encoding.word_ids(row)):
                if word is not None:
                    words.setdefault(word, []).append(index)

            # What is unknown, or a special token that was written out, is nothing to guess.
            units.append([word for word in words.values() if self._special.isdisjoint(pieces[i] for i in word)])

        def count(units: int, numbers: random.Random) -> int:
            return min(units, max(1, int(self.probability * units + numbers.random())))

        return self._mask(encoding["input_ids"], units, keys, count)


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
        self.share, self.max_masked = share, max_masked

    def __call__(self, input_ids: Tensor, caption_mask: Tensor, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Mask one batch.

        Args:
            input_ids: `(B, T)`, captions from `[CLS]` to `[SEP]`, tags and padding behind them.
            caption_mask: `(B, T)`, 1 for the tokens of the caption, `[CLS]` and `[SEP]` among them.
            keys: B keys, each such as `(epoch, row)`; equal key and caption give equal masking.

        Returns:
            Masked ids, and labels with the token that belongs where one was drawn, -100 elsewhere; both `(B, T)` int64.
        """
        # Behind [CLS], each token by itself.
        tokens = [[[index] for index in row.nonzero()[1:, 0].tolist()] for row in caption_mask]

        def count(units: int, numbers: random.Random) -> int:
            return min(self.max_masked, units, max(1, round(self.share * units)))

        return self._mask(input_ids, tokens, keys, count)


class PreTrainingCollator(ImageTextCollator):
    """Makes the batch of pre-training (with `masking`) or of image-text retrieval (without) of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row, any text column. Its labels are left out.
        masking: masks the words, with the processor's tokenizer; None leaves the masked text out.
        **options: further arguments of `ImageTextCollator`: longest text, cache, augmentation.

    Raises:
        ValueError: the task has several images a row, or as for `ImageTextCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> collator = PreTrainingCollator(None, TASKS["coco_retrieval"], masking=None)
        >>> collator([])
        Traceback (most recent call last):
        ValueError: A batch needs at least one row, but the list is empty.
    """

    one_image = True

    def __init__(self, processor: Any, task: Task, masking: WholeWordMasker | None = None, **options: Any) -> None:
        super().__init__(processor, task, **options)
        self.masking = masking

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: B rows with the task's image and text. Rows with `__epoch__` and `__index__` are masked by these, so
                anew in each epoch; others by their caption alone, so alike each time (evaluation).

        Returns:
            `input_ids`, `attention_mask` `(B, T)`; `pixel_values` `(B, 1, 3, H, W)`, `pixel_mask` `(B, 1, H, W)`;
            `image_ids`, `caption_ids` `(B,)` int64, from 0 to 2^63 - 1, equal for equal images and for captions of
            equal words; with `masking` also `masked_input_ids`, `masked_labels` `(B, T)` int64.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no rows, a column is missing, or a text is empty; the message names the row.
        """
        rows = self.read_rows(rows, self.task.text_column)
        batch = self.encode(rows)
        captions = [row[self.task.text_column] for row in rows]
        caption_ids = [_content_id(" ".join(caption.lower().split()).encode()) for caption in captions]
        image_ids = [_content_id(image_content(row[self.task.image_columns[0]])) for row in rows]
        batch |= {"image_ids": torch.tensor(image_ids), "caption_ids": torch.tensor(caption_ids)}
        if self.masking is None:
            return batch

        # The batch is as wide as its longest text, cut or not, so cutting there gives the same word pieces again.
        cut = {"padding": "longest", "truncation": True, "max_length": batch["input_ids"].shape[1]}
        encoding = self.processor.tokenizer(captions, return_tensors="pt", **cut)
        keys = [_masking_key(row, caption) for row, caption in zip(rows, caption_ids, strict=True)]
        batch["masked_input_ids"], batch["masked_labels"] = self.masking(encoding, keys)
        return batch


class CaptioningCollator(ImageTextCollator):
    """Makes a batch to learn captions from (with `masking`), or to write captions about (without), of a list of rows.

    Args:
        processor: a `DualDistillProcessor`.
        task: which columns are what; one image a row.
        masking: masks the captions; None: the batch holds no caption, and goes to `generate`.
        **options: further arguments of `ImageTextCollator`: cache, augmentation, regions; `max_text_length` is 40 and
            `max_tag_length` 30 where they are not given.

    Raises:
        ValueError: the task has several images a row, or as for `ImageTextCollator`.

    Example:
        >>> from dual_distill.data.tasks import TASKS
        >>> CaptioningCollator(None, TASKS["nlvr2"])
        Traceback (most recent call last):
        ValueError: Task 'nlvr2' has 2 images a row (image_0, image_1), but a text here is about one; ...
    """

    one_image = True

    def __init__(self, processor: Any, task: Task, masking: CaptionMasker | None = None, **options: Any) -> None:
        lengths = {"max_text_length": CAPTION_LENGTH, "max_tag_length": TAG_LENGTH}
        super().__init__(processor, task, **{**lengths, **options})
        self.masking = masking

    def without_captions(self) -> "CaptioningCollator":
        """Return a collator of the same images whose batches hold no caption, for `generate`; it shares the cache."""
        other = copy.copy(self)
        other.masking = None
        return other

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch.

        Args:
            rows: B rows with the task's image, and with `masking` its caption. Rows with `__epoch__` and `__index__`
                are masked by these, so anew in each epoch; others by their caption alone, so alike each time
                (evaluation).

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` `(B, T)`: `[CLS] caption [SEP] tags [SEP]` with masked
            words, 1 for tags; `labels` `(B, T)`, the word piece where one was masked, -100 elsewhere; images as
            `ImageTextCollator` gives them. Without `masking` the caption is left out, `[CLS] [SEP] tags [SEP]`, and
            there are no labels.

        Raises:
            ImageError: an image cannot be used.
            ValueError: no rows, a column is missing, a caption is empty, or a store lacks an image; the message names
                the row.
        """
        if self.masking is None:
            batch = self.encode_images(rows)
            batch.pop("teacher_region_features", None)  # no teacher watches what is written
            return batch

        batch = super().__call__(rows)
        segments = batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))
        caption_mask = batch["attention_mask"].bool() & (segments == 0)
        keys = [_masking_key(row, row[self.task.text_column]) for row in rows]
        batch["input_ids"], batch["labels"] = self.masking(batch["input_ids"], caption_mask, keys)
        return batch


def _masking_key(row: Row, caption: Hashable) -> Key:
    """What a row is masked by: its number and epoch (training), or its caption (evaluation, alike each time)."""
    if EPOCH_COLUMN in row and INDEX_COLUMN in row:
        return (row[EPOCH_COLUMN], row[INDEX_COLUMN])
    return ("caption", caption)


def _content_id(content: bytes) -> int:
    """The first 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") & _BITS
