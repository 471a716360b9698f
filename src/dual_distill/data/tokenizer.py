"""A word-piece tokenizer trained on the texts at hand, for models that are trained from nothing."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 30_522, max_text_length: int = 40) -> BertTokenizer:
    """Train BERT-style lower-case word pieces; accents, vowel signs and tone marks are kept, which make other words.

    Args:
        texts: training texts; repeated texts weigh more. They are read as Unicode's NFC, as the processor and the
            collators give texts to a tokenizer.
        vocab_size: largest vocabulary, special tokens included; a small corpus gives a smaller one.
        max_text_length: longest text in tokens that the tokenizer lets through when asked to truncate.

    Returns:
        A `BertTokenizer` with `[PAD]` at id 0.

    Raises:
        ValueError: there are no texts.

    Example:
        >>> tokenizer = train_tokenizer(["is there a red circle?", "is there a blue circle?"])
        >>> tokenizer.convert_ids_to_tokens(tokenizer("a red circle")["input_ids"])
        ['[CLS]', 'a', 'red', 'circle', '[SEP]']
    """
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    if not texts:
        raise ValueError("a tokenizer needs at least one training text, but there is none.")

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.decoder = decoders.WordPiece()

    # The trainer numbers letters within words in the order of a hash table, another one each time, and breaks ties by
    # these numbers: given first and sorted, they make equal texts give equal word pieces.
    normal = {trained.normalizer.normalize_str(text) for text in texts}
    words = {word for text in normal for word, _ in trained.pre_tokenizer.pre_tokenize_str(text)}
    letters = sorted({f"##{letter}" for word in words for letter in word[1:]})

    first = [*_SPECIAL_TOKENS, *letters]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    told = {"do_lower_case": True, "strip_accents": False, "model_max_length": max_text_length}
    return BertTokenizer(vocab=trained.get_vocab(), **told)


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """What a fast tokenizer does, as JSON holds it, whatever it tokenized before."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's state, no settings; but at which end a text is cut is one, named where it is not the usual one.
    settings = {name: value for name, value in content.items() if name not in ("padding", "truncation")}
    cut = tokenizer.truncation_side
    return settings if cut == "right" else {**settings, "truncation_side": cut}
