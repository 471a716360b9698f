"""The clock, the peak of memory and the arithmetic, each against what is known beforehand."""

import time

import pytest
import torch
from _training_steps import peak_memory
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dual_distill.inference import PairShape, alternate, measure_answering, multiply_adds, random_pairs
from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)

TINY = {
    "vocab_size": 60,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": [16, 24],
    "patch_size": 8,
    "num_labels": 5,
}
SHAPE = PairShape(batch_size=3, text_tokens=9, real_tokens=4, image_size=(24, 16))


def encoders(images=1, **settings):
    if images == 1:
        classes = FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering
    else:
        classes = FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification
    fusion = classes[0]._from_config(FusionEncoderConfig(**TINY, num_images=images), attn_implementation="eager").eval()
    return fusion, classes[1].from_fusion_encoder(fusion, **settings).eval()


def counted(call):
    """Multiply-adds by torch's own count of matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("images", [1, 2])
def test_multiply_adds_are_those_that_torch_counts(images):
    """Eager attention, no pixel mask and the table's own grid: then only matrix products of the model are counted."""
    fusion, dual = encoders(images)
    shape = PairShape(3, 9, 9, (16, 24))
    batch = random_pairs(fusion.config, shape)
    del batch["pixel_mask"]
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    image_pooler_output, text_pooler_output = torch.zeros(3, images, 16), torch.zeros(3, 16)
    ways = {
        "fusion_encoder": lambda: fusion(**batch),
        "dual_encoder": lambda: dual(**batch),
        "image_stored": lambda: dual(**text, image_pooler_output=image_pooler_output),
        "both_stored": lambda: dual(text_pooler_output=text_pooler_output, image_pooler_output=image_pooler_output),
        "both_projected": lambda: dual.logits_of_projections(torch.zeros(3, 32), torch.zeros(3, images, 32)),
    }
    for way, call in ways.items():
        config = fusion.config if way == "fusion_encoder" else dual.config
        assert multiply_adds(config, way, shape) * 3 == counted(call), way


@pytest.mark.parametrize("images", [1, 2])
def test_multiply_adds_of_interaction_layers(images):
    fusion, dual = encoders(images, interaction_layers=2)
    shape = PairShape(3, 9, 9, (16, 24))
    batch = random_pairs(fusion.config, shape)
    del batch["pixel_mask"]
    with torch.no_grad():
        found = dual.get_image_features(batch["pixel_values"], output_token_states=True)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = {"image_pooler_output": found.pooler_output, "image_token_states": found.image_token_states}
    ways = {
        "dual_encoder": batch,
        "image_stored": text | {"image_token_embeds": found.image_token_embeds},
        "keys_values_stored": text | states,
        "one_image_stored": text | {"image_token_embeds": found.image_token_embeds[:1]},
        "one_image_keys_values_stored": text | {name: tensor[:1] for name, tensor in states.items()},
    }
    for way, inputs in ways.items():
        # A text's share of what is computed once for all of them is rounded.
        total = counted(lambda inputs=inputs: dual(**inputs))
        assert multiply_adds(dual.config, way, shape) == round(total / 3), way


def test_ways_of_interaction_layers_are_timed():
    fusion, dual = encoders(interaction_layers=1)
    rows = measure_answering({"teacher": fusion, "student": dual}, SHAPE, warmup=1, repeats=3)
    ways = ["fusion_encoder", "dual_encoder", "image_stored", "keys_values_stored"]
    assert [row["way"] for row in rows] == [*ways, "one_image_stored", "one_image_keys_values_stored"]
    fewer = [row["times_fewer_multiply_adds"] for row in rows]
    assert fewer[1:4] == sorted(fewer[1:4])
    assert fewer[2] < fewer[4]
    assert fewer[3] < fewer[5]


def test_calls_run_in_turn_and_each_begins_a_round():
    order = []
    ways = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = alternate(ways, warmup=1, repeats=3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert [timing.runs for timing in timings.values()] == [3, 3, 3]


def test_a_short_call_is_repeated_in_a_row_until_it_fills_its_round():
    order = []
    pauses = {"a": 0.02, "b": 0.0}
    ways = {name: lambda name=name: (order.append(name), time.sleep(pauses[name])) for name in pauses}
    timings = alternate(ways, warmup=1, repeats=2, min_round_ms=100)
    calls = timings["a"].calls
    assert 2 <= calls <= 5  # ceil(100 / 20), fewer where sleep overslept
    assert timings["b"].calls > calls
    assert order.count("a") == 1 + 2 * calls
    assert timings["a"].median_ms >= 19.9  # of one call, not of the round


def test_a_pause_takes_its_time():
    timing = alternate({"pause": lambda: time.sleep(0.01)}, warmup=0, repeats=3)["pause"]
    assert timing.low_ms >= 9.9
    assert timing.low_ms <= timing.median_ms <= timing.high_ms
    with pytest.raises(ValueError, match="repeats is 1; give 2 or more"):
        alternate({"pause": lambda: None}, repeats=1)


def test_the_peak_counts_what_lives_at_once():
    def one_after_another():
        for _ in range(5):
            torch.zeros(1000)

    assert peak_memory(one_after_another) == 4000
    assert peak_memory(lambda: [torch.zeros(1000) for _ in range(5)]) == 20000
    inner = nn.Linear(10, 10, bias=False)
    peak_memory(lambda: inner(torch.ones(1, 10)).sum().backward())
    assert inner.weight.grad is not None


def test_every_way_is_timed_beside_its_arithmetic():
    fusion, dual = encoders()
    rows = measure_answering({"teacher": fusion, "student": dual}, SHAPE, warmup=1, repeats=3)
    assert [(row["model"], row["way"]) for row in rows] == [
        ("teacher", "fusion_encoder"),
        ("student", "dual_encoder"),
        ("student", "image_stored"),
        ("student", "both_stored"),
        ("student", "both_projected"),
    ]
    assert rows[0]["times_faster"] == rows[0]["times_fewer_multiply_adds"] == 1.0
    for row in rows:
        low, high = row["latency_quartiles_ms"]
        assert 0 < low <= row["latency_ms"] <= high
        assert (row["batch_size"], row["text_tokens"], row["real_tokens"], row["runs"]) == (3, 9, 4, 3)
    fewer = [row["times_fewer_multiply_adds"] for row in rows]
    assert fewer == sorted(fewer)


def test_pairs_have_the_tokens_asked_for_and_the_same_seed_gives_the_same():
    fusion, _ = encoders()
    batch = random_pairs(fusion.config, SHAPE, seed=4)
    assert batch["attention_mask"].sum(1).tolist() == [4, 4, 4]
    assert batch["pixel_values"].shape == (3, 1, 3, 24, 16)
    assert all(torch.equal(tensor, random_pairs(fusion.config, SHAPE, seed=4)[name]) for name, tensor in batch.items())
    with pytest.raises(ValueError, match="10 real of 9 text tokens were asked for; the model takes 1 to 12"):
        random_pairs(fusion.config, PairShape(3, 9, 10, (16, 24)))
    with pytest.raises(ValueError, match="images of 20 x 24 pixels do not divide into patches of 8"):
        random_pairs(fusion.config, PairShape(3, 9, 4, (20, 24)))


def test_latency_is_per_pair_and_storing_images_is_not_slower_than_encoding_them():
    _, dual = encoders()
    rows = measure_answering({"student": dual}, PairShape(32, 6, 6, (160, 160)), warmup=1, repeats=5)
    latency = {row["way"]: row["latency_ms"] for row in rows}
    assert 0 < latency["image_stored"] < latency["dual_encoder"]
