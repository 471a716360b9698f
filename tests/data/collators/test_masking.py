from collections import Counter
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast

from dual_distill.data import WholeWordMasker, train_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "dog", "ball", "a", "with", "the", "."]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def encode(tokenizer, *texts):
    return tokenizer(list(texts), padding=True, return_tensors="pt")


def test_words_are_masked_as_a_whole(tokenizer):
    encoding = encode(tokenizer, "playing dogs")  # play ##ing dog ##s
    mask = tokenizer.mask_token_id
    seen = set()
    for row in range(200):
        ids, labels = WholeWordMasker(tokenizer)(encoding, [(0, row)])
        drawn = (labels[0] != -100).nonzero().flatten().tolist()
        assert drawn in ([1, 2], [3, 4])
        assert labels[0, drawn].tolist() == encoding["input_ids"][0, drawn].tolist()
        others = [place for place in range(6) if place not in drawn]
        assert ids[0, others].tolist() == encoding["input_ids"][0, others].tolist()
        seen.add((tuple(drawn), tuple((ids[0, drawn] == mask).tolist())))
    assert seen == {(place, masked) for place in ((1, 2), (3, 4)) for masked in ((True, True), (False, False))}


def test_shares_of_words_and_of_what_takes_their_place(tokenizer):
    text = " ".join(["dog"] * 30)  # 15 % of 30 words: 4 or 5, each as often
    encoding = encode(tokenizer, *[text] * 2_000)
    ids, labels = WholeWordMasker(tokenizer, seed=3)(encoding, [(0, row) for row in range(2_000)])
    counts = (labels != -100).sum(dim=1)
    assert set(counts.tolist()) == {4, 5}
    assert counts.float().mean().item() == pytest.approx(4.5, abs=0.05)
    pieces = Counter(ids[labels != -100].tolist())
    total, dog = pieces.total(), tokenizer.convert_tokens_to_ids("dog")
    assert pieces[tokenizer.mask_token_id] / total == pytest.approx(0.8, abs=0.015)
    assert pieces[dog] / total == pytest.approx(0.1 + 0.1 / 9, abs=0.015)  # 9 pieces are no special tokens
    assert set(pieces) == {tokenizer.mask_token_id, *range(5, len(WORDS))}


def test_every_word_is_drawn_alike_often(tokenizer):
    encoding = encode(tokenizer, *["dog with a ball ."] * 2_000)
    _, labels = WholeWordMasker(tokenizer)(encoding, [(0, row) for row in range(2_000)])
    assert (labels != -100).float().mean(dim=0).tolist() == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0], abs=0.03)


def test_special_unknown_and_padding_are_never_drawn_and_one_word_always_is(tokenizer):
    encoding = encode(
        tokenizer, "dog", "zebra xylophone ball", "zebra", "[SEP] dog [MASK]", "with the dog and the ball"
    )
    for epoch in range(50):
        _, labels = WholeWordMasker(tokenizer, probability=1.0)(encoding, [(epoch, row) for row in range(5)])
        known = torch.tensor([[piece >= 5 for piece in row] for row in encoding["input_ids"].tolist()])
        assert torch.equal(labels != -100, known)
        _, labels = WholeWordMasker(tokenizer)(encoding, [(epoch, row) for row in range(5)])
        assert (labels != -100).sum(dim=1).tolist() == [1, 1, 0, 1, 1]


def test_the_key_alone_decides(tokenizer):
    masker = WholeWordMasker(tokenizer, seed=5)
    texts = ["a dog with a ball", "the ball with the dog playing ."]
    together = masker(encode(tokenizer, *texts), [(0, "a.tar/1"), (0, "a.tar/2")])
    torch.rand(3)
    alone = WholeWordMasker(tokenizer, seed=5)(encode(tokenizer, texts[1]), [(0, "a.tar/2")])
    assert torch.equal(together[0][1], alone[0][0])
    assert torch.equal(together[1][1], alone[1][0])
    same = [masker(encode(tokenizer, texts[1]), [(0, "a.tar/2")])[1].tolist() for _ in range(3)]
    assert same[0] == same[1] == same[2]
    other = {
        str(WholeWordMasker(tokenizer, seed=seed)(encode(tokenizer, texts[1]), [(epoch, row)])[1].tolist())
        for seed, epoch, row in [
            (5, 0, "x"),
            (5, 1, "x"),
            (6, 0, "x"),
            (5, 0, "y"),
            (5, 2, "x"),
            (7, 0, "x"),
            (5, 3, "x"),
        ]
    }
    assert len(other) > 2


def test_a_tokenizer_without_double_hashes(tokenizer):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<unk>", "<mask>", "▁play", "ing", "▁dog", "s"]
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1)
    metaspace = Tokenizer(model)
    metaspace.pre_tokenizer, metaspace.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=metaspace, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>"
    )
    encoding = encode(fast, "playing dogs")
    assert encoding["input_ids"].tolist() == [[3, 4, 5, 6]]
    drawn = {
        str((WholeWordMasker(fast)(encoding, [(row,)])[1][0] != -100).nonzero().flatten().tolist()) for row in range(30)
    }
    assert drawn == {"[0, 1]", "[2, 3]"}


def test_each_error_by_its_message(tokenizer):
    with pytest.raises(ValueError, match=r"probability is 0, but must be above 0"):
        WholeWordMasker(tokenizer, probability=0)
    with pytest.raises(ValueError, match=r"is not a fast tokenizer"):
        WholeWordMasker(SimpleNamespace(is_fast=False))
    with pytest.raises(ValueError, match=r"has no mask token"):
        WholeWordMasker(SimpleNamespace(is_fast=True, mask_token_id=None))
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[MASK]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"takes a text of two words for one word, all of which would be masked"):
        WholeWordMasker(PreTrainedTokenizerFast(tokenizer_object=whole, mask_token="[MASK]"))
    with pytest.raises(ValueError, match=r"there are 1 texts and 2 keys"):
        WholeWordMasker(train_tokenizer(["a dog"]))(encode(tokenizer, "a dog"), [(0, 0), (0, 1)])
