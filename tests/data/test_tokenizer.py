"""A trained tokenizer follows from its texts alone."""

from dual_distill.data import train_tokenizer

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
