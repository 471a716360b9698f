"""Images of a model with interaction layers: their tokens are stored, and answer as their pixels do."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, pipeline

from dual_distill.inference import ANSWERING_TASK, FeatureStore, FeatureStoreVQA, encode_images, encode_texts
from dual_distill.inference.feature_store import stored_columns
from dual_distill.modeling import DualEncoderForImageTextRetrieval, DualEncoderForQuestionAnswering

QUESTIONS = ["is there a red circle?", "how many blue squares are there?", "xylophones"]


@pytest.fixture
def model(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(DualEncoderForQuestionAnswering, interaction_layers=1)


@pytest.fixture
def images(pictures: list[Image.Image]) -> dict[str, Image.Image]:
    return {f"image {number}": picture for number, picture in enumerate(pictures)}


@pytest.fixture
def encode(model, answering_processor, images, tmp_path) -> Callable[..., FeatureStore]:
    def encode(name: str = "store", **settings: object) -> FeatureStore:
        settings = {"batch_size": 2, "shard_size": 2, **settings}
        encode_images(model, answering_processor, images, tmp_path / name, **settings)
        return FeatureStore(tmp_path / name)

    return encode


def tokens_of(model, processor, image) -> torch.Tensor:
    with torch.no_grad():
        return model.get_image_features(processor(images=image)["pixel_values"]).image_token_embeds[0, 0]


def read(store, indices) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(store.image_inputs(indices, None).values())


def test_an_image_has_its_own_tokens_whatever_its_batch(encode, model, answering_processor, images) -> None:
    store = encode()
    expected = [tokens_of(model, answering_processor, image) for image in images.values()]
    assert len({len(tokens) for tokens in expected}) > 1
    padded, mask = read(store, range(5))
    assert mask.sum(-1).tolist() == [len(tokens) for tokens in expected]
    for found, real, tokens in zip(padded, mask, expected, strict=True):
        torch.testing.assert_close(found[real], tokens, atol=1e-5, rtol=0)
        assert not found[~real].any()
    alone, _ = read(store, [3])
    assert torch.equal(alone[0], padded[3][mask[3]])
    again, again_mask = read(store, [3, 0, 3])
    assert torch.equal(again[0][again_mask[0]], alone[0])


@pytest.mark.parametrize("keys_values, rows", [(False, None), (False, 1), (False, 2), (True, None), (True, 2)])
def test_answers_are_those_from_pixels(encode, model, answering_processor, images, keys_values, rows) -> None:
    ask = FeatureStoreVQA(model, answering_processor, encode(keys_values=keys_values))
    answer = pipeline(ANSWERING_TASK, model=model, processor=answering_processor, device="cpu")
    expected = {name: answer(image, QUESTIONS, top_k=5) for name, image in images.items()}

    def assert_same(found: list[dict], wanted: list[dict]) -> None:
        assert [one["answer"] for one in found] == [one["answer"] for one in wanted]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-5)

    for name in images:
        for found, wanted in zip(ask.answer(name, QUESTIONS), expected[name], strict=True):
            assert_same(found, wanted)
    pairs = [(name, question) for question in QUESTIONS for name in images]
    for (name, question), found in zip(pairs, ask.answer_pairs(pairs, rows=rows), strict=True):
        assert_same(found, expected[name][QUESTIONS.index(question)])
    for place, question in enumerate(QUESTIONS):
        best = {name: expected[name][place][0] for name in images}
        ranking = ask.rank(question, rows=rows)
        assert [ranked.image for ranked in ranking.best] == sorted(best, key=lambda name: -best[name]["score"])
        for ranked in ranking.best:
            assert (ranked.answer, ranked.score) == (
                best[ranked.image]["answer"],
                pytest.approx(best[ranked.image]["score"], abs=1e-5),
            )


def test_keys_and_values_are_those_that_the_layers_make(
    encode, answering_model, answering_processor, images, tmp_path
) -> None:
    """Two layers, images of unequal sizes, each by itself from pixels."""
    model = answering_model(DualEncoderForQuestionAnswering, interaction_layers=2)
    encode_images(model, answering_processor, images, tmp_path / "two", batch_size=2, shard_size=2, keys_values=True)
    store = FeatureStore(tmp_path / "two")
    assert (store.manifest.vectors, store.manifest.width) == ("keys_values", 16)
    found = store.image_inputs([4, 0, 4], model.config)
    for row, name in enumerate(("image 4", "image 0", "image 4")):
        with torch.no_grad():
            pixels = answering_processor(images=images[name])["pixel_values"]
            expected = model.get_image_features(pixels, output_token_states=True)
        real = found["image_token_mask"][row]
        assert real.sum() == expected.image_token_states.shape[-2]
        states = found["image_token_states"][row][..., real, :]
        torch.testing.assert_close(states, expected.image_token_states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["image_pooler_output"][row], expected.pooler_output[0, 0], atol=1e-5, rtol=0)
    for name in images:
        [found] = FeatureStoreVQA(model, answering_processor, store).answer(name, QUESTIONS[:1])
        answer = pipeline(ANSWERING_TASK, model=model, processor=answering_processor, device="cpu")
        scores = {one["answer"]: one["score"] for one in answer(images[name], QUESTIONS[0], top_k=5)}
        assert {one["answer"]: one["score"] for one in found} == pytest.approx(scores, abs=1e-5)


def test_a_store_of_keys_and_values_stays_one(encode, model, answering_model, answering_processor, images, tmp_path):
    encode("store", keys_values=True, dtype="int8")
    (tmp_path / "store" / "shard-00001.arrow").unlink()
    assert encode("store").manifest.vectors == "keys_values"
    with pytest.raises(ValueError, match=r"other settings \(vectors: 'keys_values' there, 'tokens' now\)"):
        encode("store", keys_values=False)
    encode("tokens")
    with pytest.raises(ValueError, match=r"other settings \(vectors: 'tokens' there, 'keys_values' now\)"):
        encode("tokens", keys_values=True)
    with pytest.raises(ValueError, match="holds keys and values, not one vector an image"):
        FeatureStore(tmp_path / "store").read([0])
    for cls in (DualEncoderForQuestionAnswering, DualEncoderForImageTextRetrieval):
        with pytest.raises(
            ValueError, match="keys_values is set, but the model has no interaction layers that read them"
        ):
            encode_images(answering_model(cls), answering_processor, images, tmp_path / "none", keys_values=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("keys_values, name", [(False, "image_token_embeds"), (True, "image_token_states")])
def test_one_image_is_read_once_for_many_questions(encode, model, answering_processor, keys_values, name) -> None:
    ask = FeatureStoreVQA(model, answering_processor, encode(keys_values=keys_values))
    given = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: given.append((inputs[name].shape[0], len(inputs["input_ids"]))), with_kwargs=True
    )
    ask.answer("image 2", QUESTIONS)
    list(ask.probabilities(QUESTIONS[0], rows=2))
    assert given == [(1, 3), (2, 1), (2, 1), (1, 1)]
    given.clear()
    found = ask.answer_pairs([(f"image {number}", QUESTIONS[0]) for number in range(5)])
    assert given == [(5, 1)], "one question is encoded once for all images"
    assert len(ask.answer("image 2", QUESTIONS[:1] * 3)) == 3
    for number, answers in enumerate(found):
        [alone] = ask.answer(f"image {number}", QUESTIONS[:1])
        assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in alone], abs=1e-5)


def test_int8_has_one_scale_a_token_and_errs_by_half_a_step(encode, model, answering_processor) -> None:
    tokens = torch.randn(50, 16) * torch.logspace(-6, 3, 50)[:, None]
    tokens[7] = 0
    columns = stored_columns("tokens", tokens, "int8")
    assert (columns["tokens"].dtype, columns["scales"].shape) == (torch.int8, (50, 1))
    largest = tokens.abs().amax(-1, keepdim=True)
    assert ((columns["tokens"] * columns["scales"] - tokens).abs() <= largest / 254 * (1 + 1e-5)).all()

    exact, mask = read(encode("float32"), range(5))
    small = encode("int8", dtype="int8")
    found, found_mask = read(small, range(5))
    assert (found.dtype, torch.equal(mask, found_mask)) == (torch.float32, True)
    assert ((found - exact).abs() <= exact.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-5)).all()
    [answers] = FeatureStoreVQA(model, answering_processor, small).answer("image 0", QUESTIONS[:1])
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
    half, _ = read(encode("float16", dtype="float16"), range(5))
    assert torch.equal(half, exact.half())

    exact = encode("states", keys_values=True).image_inputs(range(5), model.config)["image_token_states"]
    found = encode("int8 states", keys_values=True, dtype="int8").image_inputs(range(5), model.config)
    # One scale a token's key or value, of all its heads.
    largest = exact.abs().amax(dim=(-3, -1), keepdim=True)
    assert ((found["image_token_states"] - exact).abs() <= largest / 254 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype, keys_values", [("float32", False), ("int8", False), ("float16", True)])
def test_a_run_that_continues_leaves_the_same_bytes(encode, tmp_path, dtype, keys_values) -> None:
    def contents(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    encode("whole", dtype=dtype, keys_values=keys_values)
    encode("store", dtype=dtype, keys_values=keys_values)
    (tmp_path / "store" / "shard-00001.arrow").unlink()
    encode("store")
    assert contents("store") == contents("whole")


def test_the_report_says_bytes_an_image(model, answering_processor, images, tmp_path) -> None:
    report = encode_images(model, answering_processor, images, tmp_path / "store")
    numbers = sum(tokens_of(model, answering_processor, image).numel() for image in images.values())
    assert 4 * numbers / 5 < report.bytes_per_row < 4 * numbers / 5 + 1000
    assert FeatureStore(tmp_path / "store").manifest.shard_size == 128
    larger = encode_images(model, answering_processor, images, tmp_path / "states", keys_values=True)
    assert 2 * report.bytes_per_row - 1000 < larger.bytes_per_row < 2 * report.bytes_per_row + 1000


def test_a_disk_that_is_too_small_is_refused_before_the_first_image(
    model, answering_processor, images, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    # 4 patches and [CLS], 16 numbers of 4 bytes each
    with pytest.raises(ValueError, match=r"5 images take at least 0.0 GB \(320 bytes each\), but the disk of "):
        encode_images(model, answering_processor, images, tmp_path / "store")
    assert not list((tmp_path / "store").glob("shard-*"))
    encode_images(model, answering_processor, images, tmp_path / "small", dtype="int8")


def test_what_does_not_fit_is_refused(encode, answering_model, model, answering_processor, images, tmp_path) -> None:
    store = encode()
    with pytest.raises(ValueError, match="holds tokens, not one vector an image; read them with image_inputs"):
        store.read([0])
    with pytest.raises(ValueError, match="holds tokens"):
        next(store.pieces())
    with pytest.raises(
        ValueError, match="projected is set, which is about pooled vectors of images, but tokens vectors are stored"
    ):
        encode("projected", projected=True)
    with pytest.raises(ValueError, match="no text can be encoded ahead; store images alone"):
        encode_texts(model, answering_processor, QUESTIONS, tmp_path / "texts")
    assert not (tmp_path / "texts").exists()

    plain = answering_model(DualEncoderForQuestionAnswering)
    with pytest.raises(ValueError, match="was made with the model"):
        FeatureStoreVQA(plain, answering_processor, store)
    encode_images(plain, answering_processor, images, tmp_path / "pooled")
    pooled = FeatureStore(tmp_path / "pooled")
    with pytest.raises(ValueError, match="holds pooled vectors and no tokens"):
        pooled.image_inputs([0], plain.config)
    encode_texts(plain, answering_processor, QUESTIONS, tmp_path / "texts")
    with pytest.raises(ValueError, match="was made with the model"):
        FeatureStoreVQA(model, answering_processor, store, FeatureStore(tmp_path / "texts"))


def test_a_store_of_pooled_vectors_of_the_same_model_is_refused(
    encode, model, answering_processor, images, tmp_path
) -> None:
    layers, model.config.interaction_layers = model.config.interaction_layers, 0
    encode_images(model, answering_processor, images, tmp_path / "pooled")
    model.config.interaction_layers = layers
    with pytest.raises(
        ValueError, match=r"was made with|reads? an image's tokens, but the store .* holds pooled vectors"
    ):
        FeatureStoreVQA(model, answering_processor, FeatureStore(tmp_path / "pooled"))


def test_a_model_that_searches_stores_its_projections(answering_model, answering_processor, images, tmp_path) -> None:
    model = answering_model(DualEncoderForImageTextRetrieval, interaction_layers=1)
    encode_images(model, answering_processor, images, tmp_path / "store")
    assert FeatureStore(tmp_path / "store").manifest.vectors == "normalised"
