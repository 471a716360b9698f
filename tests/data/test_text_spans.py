"""Characters of tokens: byte-level and slow tokenizers, accents, emoji, white space, padding."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from dual_distill.data import text_spans

TEXTS = ["Zwei süsse Katzen 🐱 naïve", " a  dog\n"]
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def word_pieces():
    words = [*SPECIAL.values(), "zwei", "su", "##sse", "kat", "##zen", "naive", "a", "dog"]
    ids = {word: index for index, word in enumerate(words)}
    built = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    built.normalizer, built.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(tokenizer_object=built, **SPECIAL)


def bytes_in_pieces():
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(TEXTS, BpeTrainer(vocab_size=270, initial_alphabet=alphabet, special_tokens=["[PAD]"]))
    return PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]")


def slow_word_pieces(folder):
    ids, vocabulary = word_pieces().get_vocab(), folder / "vocab.txt"
    vocabulary.write_text("\n".join(sorted(ids, key=ids.get)), encoding="utf-8")
    return BertTokenizerLegacy(str(vocabulary))


def covered(tokenizer):
    encoded = tokenizer(TEXTS, padding="longest", return_tensors="pt")
    spans = text_spans(tokenizer, TEXTS, encoded)
    assert spans.shape == (*encoded["input_ids"].shape, 2)
    return [
        [text[start:end] for start, end in row if end] for text, row in zip(TEXTS, spans.tolist(), strict=True)
    ], spans


def test_bytes_that_share_a_character_all_cover_it():
    (first, second), spans = covered(bytes_in_pieces())
    assert "".join(second) == "adog"
    assert "🐱" in first
    assert all(piece == piece.strip() for piece in first)
    assert (spans[1, -1] == 0).all()  # padding


def test_a_slow_tokenizer_covers_what_the_fast_one_covers(tmp_path):
    slow, fast = slow_word_pieces(tmp_path), word_pieces()
    encoded = [tokenizer(TEXTS, padding="longest", return_tensors="pt") for tokenizer in (slow, fast)]
    assert encoded[0]["input_ids"].tolist() == encoded[1]["input_ids"].tolist()
    assert not encoded[0].encodings
    found = [text_spans(tokenizer, TEXTS, each) for tokenizer, each in zip((slow, fast), encoded, strict=True)]
    assert found[0].tolist() == found[1].tolist()
    pieces, spans = covered(slow)
    assert "".join(pieces[0]) == TEXTS[0].replace(" ", "")  # an unknown emoji and accents among them
    assert (spans[:, 0] == 0).all()  # [CLS]


@pytest.mark.parametrize("index", [0, 1])
def test_a_slow_byte_level_tokenizer_covers_every_character_but_white_space(index):
    pieces, spans = covered(ByT5Tokenizer())
    seen = {at for start, end in spans[index].tolist() for at in range(start, end)}
    assert seen == {at for at, character in enumerate(TEXTS[index]) if not character.isspace()}
    assert "🐱" in pieces[0]
