"""Captions: who sees whom, by brute force; a cache changes nothing; five beams are those of a slow search."""

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, ViltImageProcessorPil, pipeline

from dual_distill.modeling import DualDistillProcessor, FusionEncoderConfig, FusionEncoderForCaptioning
from dual_distill.modeling.modeling_caption_mask import seq2seq_mask

PAD, CLS, SEP, MASK = 0, 1, 2, 3
VOCABULARY = 60
IDS = {"bos_token_id": CLS, "eos_token_id": SEP, "mask_token_id": MASK, "pad_token_id": PAD}
KINDS = {
    "patches": {"image_size": [8, 12], "patch_size": 4},
    "regions": {"visual_inputs": "regions", "region_feature_size": 6, "norm_first": False},
}
of_both_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def writer(build):
    """A tiny model that seldom ends a caption, for `kind` images, with places for 12 words and 12 tags."""

    def writer(kind, eos_bias=0.0, **fields):
        fields = {"max_caption_tokens": 12, "max_position_embeddings": 24, **IDS, **KINDS[kind], **fields}
        model = build(FusionEncoderForCaptioning, **fields)
        with torch.no_grad():
            model.mlm_score.decoder.bias[SEP] += eos_bias
        return model

    return writer


def images_of(kind, num_rows, num_regions=4):
    """Random images of unequal sizes, padded with noise; the last row's is the smallest."""
    if kind == "patches":
        mask = torch.ones(num_rows, 1, 8, 12)
        mask[-1, :, :, 4:] = 0
        return {"pixel_values": torch.randn(num_rows, 1, 3, 8, 12), "pixel_mask": mask}
    mask = torch.ones(num_rows, num_regions, dtype=torch.bool)
    mask[-1, 1:] = False
    boxes = torch.rand(num_rows, num_regions, 6)
    return {"region_features": torch.randn(num_rows, num_regions, 6), "region_boxes": boxes, "region_mask": mask}


def tags_of(num_rows, num_tags=3):
    """`[CLS] tags [SEP]`, the last row with one tag less."""
    ids = torch.randint(4, VOCABULARY, (num_rows, num_tags + 2))
    ids[:, 0], ids[:, -1] = CLS, SEP
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    segments = torch.ones_like(ids)
    segments[:, 0] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def captioned(kind, num_words=6, num_rows=2):
    """A batch of captions, a place of padding, tags and images: what a model learns from."""
    captions = torch.randint(4, VOCABULARY, (num_rows, num_words + 1))
    captions[:, 0] = CLS
    tags = torch.randint(4, VOCABULARY, (num_rows, 3))
    ids = torch.cat([captions, tags], 1)
    mask = torch.ones_like(ids)
    mask[:, num_words] = 0
    segments = torch.cat([torch.zeros_like(captions), torch.ones_like(tags)], 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, **images_of(kind, num_rows)}


# Who sees whom


@of_both_kinds
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_later_word_never_changes_an_earlier_logit_and_tags_and_image_see_no_word(kind, attention, writer):
    model = writer(kind, attn_implementation=attention)
    batch = captioned(kind)
    num_tokens = batch["input_ids"].shape[1]
    logits = model(**batch).logits
    states = model.fusion_encoder(**batch, caption_mask=True).last_hidden_state
    for place in range(6):
        ids = batch["input_ids"].clone()
        ids[:, place] = (ids[:, place] + 7) % VOCABULARY
        changed = {**batch, "input_ids": ids}
        moved = (model(**changed).logits - logits).abs().amax(-1)
        assert moved[:, :place].max() <= 1e-6 if place else True
        assert moved[:, place:6].min() > 1e-4
        other = model.fusion_encoder(**changed, caption_mask=True).last_hidden_state
        torch.testing.assert_close(other[:, num_tokens - 3 :], states[:, num_tokens - 3 :], atol=1e-6, rtol=0)
    for place in range(num_tokens - 3, num_tokens):  # a tag reaches every word, and the image
        mask = batch["attention_mask"].clone()
        mask[:, place] = 0
        moved = (
            model.fusion_encoder(**{**batch, "attention_mask": mask}, caption_mask=True).last_hidden_state - states
        ).abs()
        assert moved.amax(-1)[:, :6].min() > 1e-4
        assert moved.amax(-1)[:, num_tokens].min() > 1e-4


@of_both_kinds
def test_a_longer_caption_does_not_move_tags_and_image(kind, writer):
    model = writer(kind)
    batch = captioned(kind)
    states = model.fusion_encoder(**batch, caption_mask=True).last_hidden_state[:, 7:]
    more = {
        "input_ids": torch.cat([torch.randint(4, VOCABULARY, (2, 4)), batch["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones(2, 4, dtype=torch.long), batch["attention_mask"]], 1),
        "token_type_ids": torch.cat([torch.zeros(2, 4, dtype=torch.long), batch["token_type_ids"]], 1),
    }
    longer = model.fusion_encoder(**{**batch, **more}, caption_mask=True).last_hidden_state[:, 11:]
    torch.testing.assert_close(longer, states, atol=1e-5, rtol=0)


@of_both_kinds
def test_attention_lies_where_the_pattern_says_and_nowhere_else(kind, writer):
    model = writer(kind, attn_implementation="eager")
    batch = captioned(kind)
    output = model(**batch, output_attentions=True)
    pattern = output.attention_pattern
    assert torch.equal(pattern, seq2seq_mask(batch["token_type_ids"], batch["attention_mask"], output.image_mask))
    real = torch.cat([batch["attention_mask"].bool(), output.image_mask[:, 0]], 1)
    for probs in output.attentions:
        seen = (probs > 0).all(1) & real[:, :, None]
        assert torch.equal(seen, pattern)
    # By hand: B rows, S queries, S keys.
    words = torch.cat([batch["token_type_ids"] == 0, torch.zeros_like(output.image_mask[:, 0])], 1)
    for row in range(2):
        for query in range(pattern.shape[1]):
            for key in range(pattern.shape[1]):
                allowed = not words[row, key] or (words[row, query] and key <= query)
                assert pattern[row, query, key] == (allowed and real[row, query] and real[row, key])


def test_recorded_queries_and_keys_give_the_attention_under_the_pattern(writer):
    model = writer("regions", attn_implementation="eager")
    output = model(
        **captioned("regions"), output_attentions=True, output_query_states=[0, 1],
        output_key_states=[0, 1], output_hidden_states=True,
    )  # fmt: skip
    real = output.attention_pattern.any(-1)
    for queries, keys, probs in zip(output.query_states, output.key_states, output.attentions, strict=True):
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        found = scores.masked_fill(~output.attention_pattern[:, None], torch.finfo(scores.dtype).min).softmax(-1)
        torch.testing.assert_close(found.transpose(1, 2)[real], probs.transpose(1, 2)[real], atol=1e-5, rtol=0)
    assert len(output.hidden_states) == 3


@of_both_kinds
@pytest.mark.parametrize("norm_first", [True, False])
def test_padding_and_the_batch_do_not_matter(kind, norm_first, writer):
    model = writer(kind, norm_first=norm_first)
    batch = captioned(kind)
    expected = model(**batch).logits
    keep = [0, 1, 2, 3, 4, 5, 7, 8, 9]  # without the padding between caption and tags
    text = {name: batch[name][:, keep] for name in ("input_ids", "attention_mask", "token_type_ids")}
    torch.testing.assert_close(model(**{**batch, **text}).logits, expected[:, keep], atol=1e-5, rtol=0)
    behind = {name: torch.cat([part, torch.zeros(2, 4, dtype=torch.long)], 1) for name, part in text.items()}
    torch.testing.assert_close(model(**{**batch, **behind}).logits[:, :9], expected[:, keep], atol=1e-5, rtol=0)
    for row in range(2):
        alone = {name: tensor[row : row + 1] for name, tensor in {**batch, **text}.items()}
        if kind == "regions":
            real = alone["region_mask"][0]
            alone = {name: tensor[:, real] if name.startswith("region") else tensor for name, tensor in alone.items()}
        torch.testing.assert_close(model(**alone).logits[0], expected[row, keep], atol=1e-5, rtol=0)


# Learning


def test_the_loss_is_that_of_the_masked_words_and_reaches_everything_with_and_without_checkpointing(writer):
    batch = captioned("regions")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[1, 4], labels[1, 5] = 7, 11, 59
    grads = []
    for checkpointing in (False, True):
        model = writer("regions").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        output = model(**batch, labels=labels)
        log_probs = output.logits.log_softmax(-1)
        torch.testing.assert_close(output.loss, -(log_probs[0, 2, 7] + log_probs[1, 4, 11] + log_probs[1, 5, 59]) / 3)
        output.loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert {name for name, grad in grads[0].items() if grad is None} == {
        "fusion_encoder.pooler.dense.weight",
        "fusion_encoder.pooler.dense.bias",
    }
    for name, grad in grads[0].items():
        if grad is not None:
            torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4)


def test_what_was_learnt_as_masked_words_is_written():
    """Six images, told apart by a feature and by a tag, each with a caption of its own of two to four words."""
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.1, max_caption_tokens=8, max_position_embeddings=12, **IDS, **KINDS["regions"],
    )  # fmt: skip
    model = FusionEncoderForCaptioning(config)
    words = [[10, 11], [10, 12, 11], [13, 12, 10, 11], [11, 13], [12, 10, 13], [13, 11, 12, 10]]
    captions = torch.full((6, 6), PAD)
    for row, caption in enumerate(words):
        captions[row, : len(caption) + 2] = torch.tensor([CLS, *caption, SEP])
    tags = torch.tensor([[20, SEP], [20, SEP], [20, SEP], [21, SEP], [21, SEP], [21, SEP]])
    features = torch.eye(6)[[0, 1, 2] * 2][:, None]  # only feature and tag together say which image it is
    images = {"region_features": features, "region_boxes": torch.rand(6, 1, 6)}
    text = {
        "attention_mask": torch.cat([(captions != PAD).long(), torch.ones_like(tags)], 1),
        "token_type_ids": torch.cat([torch.zeros_like(captions), torch.ones_like(tags)], 1),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        drawn = (torch.rand(6, 6) < 0.5) & (captions != PAD) & (captions != CLS)
        labels = torch.full((6, 8), -100)
        labels[:, :6][drawn] = captions[drawn]
        ids = torch.cat([captions.masked_fill(drawn, MASK), tags], 1)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, **text, **images).loss.backward()
        optimizer.step()
    model.eval()
    context = torch.cat([torch.tensor([[CLS, SEP]] * 6), tags], 1)
    segments = torch.tensor([[0, 0, 1, 1]] * 6)
    for num_beams in (1, 5):
        written = model.generate(
            context, token_type_ids=segments, num_beams=num_beams, max_new_tokens=6, **images
        ).tolist()
        assert [[word for word in row if word > MASK] for row in written] == words


# Writing


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("num_beams", [1, 5])
@of_both_kinds
def test_with_a_cache_is_without(kind, num_beams, attention, writer):
    model = writer(kind, eos_bias=3.0, attn_implementation=attention)
    inputs = {**tags_of(3), **images_of(kind, 3)}
    options = {"num_beams": num_beams, "max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(**inputs, **options)
    plain = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    assert len(cached.logits) == len(plain.logits)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert cached.past_key_values.get_seq_length() == len(cached.logits)  # [CLS] and the words, no [MASK]
    if num_beams > 1:
        torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, atol=1e-5, rtol=0)


@of_both_kinds
def test_each_word_is_what_a_mask_in_its_place_tells(kind, writer):
    model = writer(kind)
    tags, images = tags_of(2), images_of(kind, 2)
    written = model.generate(**tags, **images, max_new_tokens=5)
    assert written.shape == (2, 6)
    for length in range(1, 6):
        words = torch.cat([written[:, :length], torch.full((2, 1), MASK)], 1)
        text = {
            "input_ids": torch.cat([words, tags["input_ids"][:, 1:]], 1),
            "attention_mask": torch.cat([torch.ones_like(words), tags["attention_mask"][:, 1:]], 1),
            "token_type_ids": torch.cat([torch.zeros_like(words), tags["token_type_ids"][:, 1:]], 1),
        }
        assert torch.equal(model(**text, **images).logits[:, length].argmax(-1), written[:, length])


@of_both_kinds
def test_the_context_is_read_once_and_then_two_tokens_a_step_and_beam(kind, writer):
    model = writer(kind)
    read, shared, widened = [], [], []

    def note(module, inputs, options):
        read.append(tuple(inputs[0].shape[:2]))
        shared.append(
            [tuple(each.shape[::2]) for pair in options["by_layer"].get("shared_states", ()) for each in pair]
        )

    model.fusion_encoder.encoder.register_forward_pre_hook(note, with_kwargs=True)
    last_layer = model.fusion_encoder.encoder.layer[-1].intermediate
    last_layer.register_forward_pre_hook(lambda module, inputs: widened.append(tuple(inputs[0].shape[:2])))
    model.generate(**tags_of(2), **images_of(kind, 2), max_new_tokens=4, num_beams=3)
    tokens = 4 + (7 if kind == "patches" else 4)
    assert read == [(2, tokens), (2, 2)] + [(6, 2)] * 3  # all beams begin alike
    assert widened == [(2, 1)] * 2 + [(6, 1)] * 3  # of what the last layer gives, one token is read
    assert shared == [[]] + [[(2, tokens)] * 4] * 4  # keys and values of two layers, of two images for six beams


def test_a_caption_ends_at_its_end_and_is_padded_behind(writer):
    model = writer("regions")
    images = images_of("regions", 3)
    free = model.generate(**images, max_new_tokens=9)
    end = int(free[0, 4])
    model.generation_config.eos_token_id = end
    ended = model.generate(**images, max_new_tokens=9)
    for row in range(3):
        words = free[row].tolist()
        length = words.index(end) + 1 if end in words else len(words)
        assert ended[row, :length].tolist() == words[:length]
        assert (ended[row, length:] == PAD).all()
    model.generation_config.eos_token_id = SEP
    with torch.no_grad():
        model.mlm_score.decoder.bias[SEP] += 1e4
    assert model.generate(**images).tolist() == [[CLS, SEP]] * 3


def test_at_most_twenty_words_unless_told_otherwise(writer):
    model = writer("regions", eos_bias=-1e4, max_caption_tokens=24, max_position_embeddings=24)
    assert model.generate(**images_of("regions", 1)).shape == (1, 21)
    few = writer("regions", eos_bias=-1e4, max_caption_tokens=12)  # [CLS], 11 words, and a [MASK] for the last of them
    assert few.generate(**images_of("regions", 1)).shape == (1, 12)


@pytest.mark.parametrize("num_beams", [1, 5])
@of_both_kinds
def test_written_together_is_written_alone(kind, num_beams, writer):
    model = writer(kind, eos_bias=3.0)
    inputs = {**tags_of(3), **images_of(kind, 3)}
    together = model.generate(**inputs, num_beams=num_beams, max_new_tokens=8)
    for row in range(3):
        alone = model.generate(
            **{name: tensor[row : row + 1] for name, tensor in inputs.items()}, num_beams=num_beams, max_new_tokens=8
        )[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert set(together[row, len(alone) :].tolist()) <= {
            PAD,
            SEP,
        }  # transformers fills beams with [SEP] where [PAD] is 0


def slow_beam_search(model, images, num_beams, max_new_tokens):
    """Beam search as the books have it, a sequence at a time, over `model(words + [MASK])`; scores: means a token."""

    def log_probs(words):
        ids = torch.tensor([[*words, MASK]])
        return model(input_ids=ids, **images).logits[0, -1].log_softmax(-1)

    running, finished = [(0.0, [CLS])], []
    for length in range(1, max_new_tokens + 1):
        grown = []
        for score, words in running:
            step = log_probs(words)
            grown += [(score + step[word].item(), [*words, word]) for word in range(VOCABULARY)]
        grown = sorted(grown, reverse=True)[: 2 * num_beams]
        ends = [length == max_new_tokens or words[-1] == SEP for _, words in grown]
        finished += [
            (score / length, words) for (score, words), end in zip(grown[:num_beams], ends, strict=False) if end
        ]
        finished = sorted(finished, reverse=True)[:num_beams]
        running = [beam for beam, end in zip(grown, ends, strict=True) if not end][:num_beams]
        if not running or (len(finished) == num_beams and running[0][0] / length <= finished[-1][0]):
            break
    return finished


@pytest.mark.parametrize("eos_bias", [0.0, 2.0, 5.0])
def test_five_beams_are_those_of_a_slow_search(eos_bias, writer):
    model = writer("regions", eos_bias=eos_bias)
    images = images_of("regions", 3)
    found = model.generate(
        **images,
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        for row in range(3):
            expected = slow_beam_search(model, {name: part[row : row + 1] for name, part in images.items()}, 5, 6)
            for place, (score, words) in enumerate(expected):
                sequence = found.sequences[5 * row + place].tolist()
                assert sequence[: len(words)] == words
                assert set(sequence[len(words) :]) <= {PAD, SEP}
                assert found.sequences_scores[5 * row + place].item() == pytest.approx(score, abs=1e-4)


# Saving, pipelines, bad input


def test_saved_and_loaded_writes_the_same(writer, tmp_path):
    before = writer("regions", eos_bias=2.0)
    before.save_pretrained(tmp_path)
    after, report = FusionEncoderForCaptioning.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert after.mlm_score.decoder.weight is after.get_input_embeddings().weight
    for name, value in IDS.items():
        assert getattr(after.config, name) == value
    assert (after.generation_config.eos_token_id, after.generation_config.max_new_tokens) == (SEP, 11)
    inputs = {**tags_of(2), **images_of("regions", 2)}
    options = {"num_beams": 3, "max_new_tokens": 8}
    assert torch.equal(after.generate(**inputs, **options), before.generate(**inputs, **options))


@pytest.fixture
def processor():
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *(f"w{place}" for place in range(VOCABULARY - 5))]
    tokenizer = BertTokenizer({word: place for place, word in enumerate(words)})
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4), tokenizer)


def test_the_stock_pipeline_describes_images(writer, processor, tmp_path):
    model = writer("patches", eos_bias=-9.0, max_caption_tokens=24, **dict.fromkeys(IDS))
    model.use_tokens_of(processor.tokenizer)
    assert {name: getattr(model.config, name) for name in IDS} == IDS
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    describe = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    assert type(describe.model) is FusionEncoderForCaptioning
    pictures = [Image.new("RGB", (12, 8), "red"), Image.effect_noise((16, 8), 90).convert("RGB")]
    pictures[0].save(tmp_path / "red.png")
    written = model.generate(**processor(images=pictures), num_beams=3)
    expected = processor.tokenizer.batch_decode(written, skip_special_tokens=True)
    assert all(len(words.split()) > 9 for words in expected)
    found = describe(images=pictures, text=["", ""], generate_kwargs={"num_beams": 3})
    assert [row["generated_text"] for row in found] == expected
    found = describe(images=str(tmp_path / "red.png"), text="", generate_kwargs={"num_beams": 3, "max_new_tokens": 5})
    alone = model.generate(**processor(images=pictures[:1]), num_beams=3, max_new_tokens=5)
    assert found[0]["generated_text"] == processor.tokenizer.decode(alone[0], skip_special_tokens=True)


def test_what_is_refused(writer, processor):
    model = writer("regions")
    images = images_of("regions", 2)
    batch = captioned("regions")
    with pytest.raises(ValueError, match="row 0 of input_ids holds words beside the tags"):
        model.generate(**batch)
    with pytest.raises(ValueError, match="a caption is about an image; give pixel_values, or region_features"):
        model.generate(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids has 3 rows, the images 2"):
        model.generate(**tags_of(3), **images)
    with pytest.raises(ValueError, match="the rows have 2 images, but a caption is written about one"):
        model.generate(region_features=torch.zeros(1, 2, 4, 6), region_boxes=torch.zeros(1, 2, 4, 6))
    with pytest.raises(ValueError, match="a caption has 13 tokens, the model takes at most 12"):
        model(**captioned("regions", num_words=13))
    with pytest.raises(ValueError, match="a caption has 13 tokens, the model takes at most 12"):
        writer("regions", eos_bias=-1e4).generate(**images, max_new_tokens=12)
    with pytest.raises(ValueError, match="there are 13 tag tokens behind 12 positions for the caption"):
        model.generate(**tags_of(2, num_tags=12), **images)
    with pytest.raises(ValueError, match=r"mask_token_id None, but .* call model.use_tokens_of\(tokenizer\)"):
        writer("regions", mask_token_id=None).generate(**images)
    processor.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer has nothing for mask_token_id"):
        model.use_tokens_of(processor.tokenizer)
