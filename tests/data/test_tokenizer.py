"""A trained tokenizer follows from its texts alone."""

from transformers import AutoTokenizer, ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.modeling import DualDistillProcessor

TEXTS = ["is there a red circle?", "how many blue squares are there?", "xylophones", "Straße, São Paulo: 東京"]


def test_equal_texts_give_equal_word_pieces() -> None:
    """Few texts and a small vocabulary: nearly every merge is a tie."""
    for vocab_size in (70, 30_522):
        vocabularies = [train_tokenizer(TEXTS, vocab_size).get_vocab() for _ in range(5)]
        assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert vocabularies[0]["[PAD]"] == 0


def test_every_text_is_made_of_its_pieces() -> None:
    tokenizer = train_tokenizer(TEXTS, 70)
    for text in TEXTS:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_marks_make_other_words_and_composed_accents_the_same(tmp_path) -> None:
    """Thai for cat and for mother, with and without its tone mark; an accent that is one letter or two."""
    texts = ["\u0e41\u0e21\u0e27", "\u0e41\u0e21\u0e48\u0e27", "caf\u00e9", "cafe"]
    train_tokenizer([*texts, "cafe\u0301"]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    ids = [tuple(row) for row in tokenizer(texts)["input_ids"]]
    assert len(set(ids)) == 4
    processor = DualDistillProcessor(ViltImageProcessorPil(), tokenizer)
    assert processor(text="cafe\u0301")["input_ids"].tolist() == [list(ids[2])]
