"""Asking a store: the pipeline's own answers, and a ranking that a plain loop gives too."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, pipeline

from dual_distill.inference import ANSWERING_TASK, FeatureStore, FeatureStoreVQA, encode_images, encode_texts
from dual_distill.inference.feature_store import FeatureManifest, FeatureTable
from dual_distill.inference.model_identity import model_identity, processor_settings
from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
)

QUESTIONS = ["is there a red circle?", "how many blue squares are there?", "xylophones"]


@pytest.fixture
def model(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(DualEncoderForQuestionAnswering)


@pytest.fixture
def images(pictures: list[Image.Image]) -> dict[str, Image.Image]:
    return {f"image {number}": picture for number, picture in enumerate(pictures)}


@pytest.fixture
def make_asker(answering_processor, images, tmp_path) -> Callable[..., FeatureStoreVQA]:
    def make(model: PreTrainedModel, texts: tuple[str, ...] = (), **settings: object) -> FeatureStoreVQA:
        encode_images(model, answering_processor, images, tmp_path / "images", shard_size=3, **settings)
        if texts:
            encode_texts(model, answering_processor, texts, tmp_path / "texts", shard_size=2)
        stored_texts = FeatureStore(tmp_path / "texts") if texts else None
        return FeatureStoreVQA(model, answering_processor, FeatureStore(tmp_path / "images"), stored_texts)

    return make


def expected_answers(model, processor, images, top_k=5) -> dict[tuple[str, str], list[dict]]:
    answer = pipeline(ANSWERING_TASK, model=model, processor=processor, device="cpu")
    found = {name: answer(image, QUESTIONS, top_k=top_k) for name, image in images.items()}
    return {(name, question): found[name][place] for name in images for place, question in enumerate(QUESTIONS)}


def assert_same(answers: list[dict], expected: list[dict]) -> None:
    assert [answer["answer"] for answer in answers] == [answer["answer"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("texts", [(), tuple(QUESTIONS[:2])], ids=["no texts stored", "two texts stored"])
def test_answers_are_those_of_the_pipeline(
    texts, projected, problem_type, answering_model, make_asker, answering_processor, images
) -> None:
    model = answering_model(DualEncoderForQuestionAnswering, problem_type=problem_type)
    expected = expected_answers(model, answering_processor, images)
    asker = make_asker(model, texts, projected=projected)
    for place, answers in enumerate(asker.answer("image 3", QUESTIONS)):
        assert_same(answers, expected["image 3", QUESTIONS[place]])
    pairs = list(expected)[::-1]
    for rows in (1, 4, 100):
        for pair, answers in zip(pairs, asker.answer_pairs(pairs, rows=rows), strict=True):
            assert_same(answers, expected[pair])


def test_a_class_head_answers_too(answering_model, make_asker, answering_processor, images) -> None:
    model = answering_model(DualEncoderForImagesAndTextClassification)
    [answers] = make_asker(model).answer("image 1", QUESTIONS[:1])
    assert_same(answers, expected_answers(model, answering_processor, images)["image 1", QUESTIONS[0]])


def test_ranking_by_one_answer(model, make_asker, answering_processor, images) -> None:
    expected = expected_answers(model, answering_processor, images)
    scores = {
        name: next(answer["score"] for answer in expected[name, QUESTIONS[0]] if answer["answer"] == "red")
        for name in images
    }
    order = sorted(scores, key=scores.get, reverse=True)
    asker = make_asker(model)
    ranking = asker.rank(QUESTIONS[0], answer="red")
    assert [ranked.image for ranked in ranking.best] == order
    assert [ranked.score for ranked in ranking.best] == pytest.approx([scores[name] for name in order], abs=1e-5)
    assert {ranked.answer for ranked in ranking.best} == {"red"}
    assert ranking.matches == 5
    between = (scores[order[2]] + scores[order[3]]) / 2
    cut = asker.rank(QUESTIONS[0], answer="red", top_k=2, threshold=between)
    assert [ranked.image for ranked in cut.best] == order[:2]
    assert cut.matches == 3
    assert asker.rank(QUESTIONS[0], answer="red", threshold=1.0).best == []


@pytest.mark.parametrize("projected", [False, True])
def test_many_questions_bring_each_image_to_them_once(model, make_asker, monkeypatch, projected) -> None:
    asker = make_asker(model, projected=projected)
    alone = [asker.rank(question, rows=2) for question in QUESTIONS]

    rows, passes, project = [], [], type(model).project_images
    monkeypatch.setattr(
        type(model), "project_images", lambda self, vectors: rows.append(len(vectors)) or project(self, vectors)
    )
    model.dual_encoder.text_model.register_forward_hook(lambda *_: passes.append(1))
    together = asker.rankings(QUESTIONS, rows=2)
    assert sum(rows) == (0 if projected else len(asker.images))
    assert len(passes) == 1
    for one, other in zip(alone, together, strict=True):
        assert [ranked[:2] for ranked in other.best] == [ranked[:2] for ranked in one.best]
        assert [ranked.score for ranked in other.best] == pytest.approx([r.score for r in one.best], abs=1e-6)
        assert other.matches == one.matches
    with pytest.raises(ValueError, match="A text is ' '"):
        asker.rankings(["red", " "])


def test_ranking_by_the_most_probable_answer(model, make_asker, answering_processor, images) -> None:
    expected = expected_answers(model, answering_processor, images)
    for question in QUESTIONS:
        best = {name: expected[name, question][0] for name in images}
        order = sorted(best, key=lambda name: best[name]["score"], reverse=True)
        ranking = make_asker(model).rank(question, rows=2)
        assert [(ranked.image, ranked.answer) for ranked in ranking.best] == [
            (name, best[name]["answer"]) for name in order
        ]


def synthetic(model, processor, path: Path, vectors: torch.Tensor, shard_size: int) -> FeatureStore:
    folder = FeatureTable(path)
    settings = processor_settings("image", model, processor)
    manifest = FeatureManifest("image", "float32", 16, False, shard_size, 1, model_identity(model), settings)
    folder.begin(asdict(manifest))
    for shard in folder.plan([str(number) for number in range(len(vectors))], shard_size):
        rows = vectors[[int(identifier) for identifier in shard.ids]]
        folder.write_features(shard.number, shard.ids, shard.ids, {"pooled": rows})
    return FeatureStore(path)


def test_many_rows_in_pieces_are_ranked_as_at_once(model, answering_processor, tmp_path) -> None:
    vectors = torch.randn(300, 16).tanh()
    vectors[200:] = vectors[:100]  # equal scores: the earlier image comes first
    asker = FeatureStoreVQA(
        model, answering_processor, synthetic(model, answering_processor, tmp_path / "store", vectors, 70)
    )
    with torch.no_grad():
        text = model.get_text_features(**answering_processor(text=QUESTIONS[0])).pooler_output
        probs = model(text_pooler_output=text.expand(300, -1), image_pooler_output=vectors).logits.softmax(-1)
    torch.testing.assert_close(
        torch.cat([piece for _, piece in asker.probabilities(QUESTIONS[0], rows=7)]), probs, atol=1e-5, rtol=0
    )
    order = sorted(range(300), key=lambda row: (-round(probs[row, 3].item(), 5), row))
    for rows in (7, 64, 1000):
        ranking = asker.rank(QUESTIONS[0], "blue", top_k=250, rows=rows)
        scores = [ranked.score for ranked in ranking.best]
        assert scores == pytest.approx([probs[row, 3].item() for row in order[:250]], abs=1e-4)
        assert scores == sorted(scores, reverse=True)
        assert len({ranked.image for ranked in ranking.best}) == 250
    one_piece = [int(ranked.image) for ranked in asker.rank(QUESTIONS[0], "blue", top_k=300, rows=300).best]
    places = {row: place for place, row in enumerate(one_piece)}
    assert sum(places[row] < places[row + 200] for row in range(100)) >= 90  # equal up to the product's last bit


def test_a_store_of_another_model_is_refused(model, make_asker, answering_processor, answering_model, tmp_path) -> None:
    model.name_or_path = "cache/models--runs--a/snapshots/feedbeef"
    make_asker(model, texts=("red?",))
    images, texts = FeatureStore(tmp_path / "images"), FeatureStore(tmp_path / "texts")
    other = answering_model(DualEncoderForQuestionAnswering)
    other.name_or_path = "cache/models--runs--b/snapshots/c0ffee"
    with pytest.raises(
        ValueError, match=r"was made with the model 'runs/a' at feedbeef \(.*not with 'runs/b' at c0ffee"
    ):
        FeatureStoreVQA(other, answering_processor, images)
    with pytest.raises(ValueError, match="is a store of texts, but one of images is needed"):
        FeatureStoreVQA(model, answering_processor, texts)
    with pytest.raises(ValueError, match="is a store of images, but one of texts is needed"):
        FeatureStoreVQA(model, answering_processor, images, images)
    answering_processor.tokenizer.model_max_length = 3
    FeatureStoreVQA(model, answering_processor, images)
    with pytest.raises(ValueError, match=r"processor\.max_tokens: 20 there, 3 now"):
        FeatureStoreVQA(model, answering_processor, images, texts)
    with pytest.raises(ValueError, match="DualEncoderModel does not answer about one image"):
        FeatureStoreVQA(answering_model(DualEncoderModel), answering_processor, images)


@pytest.mark.parametrize("layers", [0, 1])
def test_answers_that_are_all_sure_are_ranked_by_their_logits(
    answering_model, make_asker, answering_processor, images, layers
) -> None:
    model = answering_model(
        DualEncoderForQuestionAnswering, problem_type="multi_label_classification", interaction_layers=layers
    )
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.copy_(torch.tensor([20.0, 40, 30, 60, 50]))  # sigmoids of 1 in float32
    asker, name = make_asker(model), next(iter(images))
    answering = pipeline(ANSWERING_TASK, model=model, processor=answering_processor, device="cpu")
    for best in (asker.answer(name, ["red?"])[0], answering(images[name], "red?")):
        assert [row["answer"] for row in best] == ["blue", "two", "no", "red", "yes"]
    assert {hit.answer for hit in asker.rank("red?").best} == {"blue"}


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
@pytest.mark.parametrize("rows", [2, 100])
def test_images_of_one_sure_answer_are_ranked_by_how_sure(model, make_asker, monkeypatch, problem_type, rows) -> None:
    asker = make_asker(model)
    model.config.problem_type = problem_type
    of_red = torch.tensor([30.0, 50.0, -90.0, 40.0, 0.0])  # 30 and more: probabilities of 1 in float32
    each = torch.zeros(5, 5).index_copy(1, torch.tensor([2]), of_red[:, None])
    pieces = [(start, each[start : start + rows]) for start in range(0, 5, rows)]
    monkeypatch.setattr(asker, "_asked", lambda *_: ((start, [piece]) for start, piece in pieces))
    ids = asker.images.ids([1, 3, 0, 4, 2])
    for answer in ("red", None):
        ranking = asker.rank("is it?", answer)
        assert [hit.image for hit in ranking.best][:3] == ids[:3]
        assert [hit.score for hit in ranking.best][:3] == [1.0] * 3
    ranking = asker.rank("is it?", "red")
    assert [hit.image for hit in ranking.best] == ids
    assert ranking.best[3].score == pytest.approx(0.2 if problem_type is None else 0.5, abs=1e-6)
    assert asker.rank("is it?", "red", top_k=2).best == ranking.best[:2]
    sure = asker.rank("is it?", "red", threshold=1.0)
    assert (sure.best, sure.matches) == (ranking.best[:3], 3)


def test_a_string_in_place_of_questions_is_refused_where_tokens_are_stored(answering_model, make_asker) -> None:
    asker = make_asker(answering_model(DualEncoderForQuestionAnswering, interaction_layers=1))
    with pytest.raises(ValueError, match="questions is the string 'red'; give a list"):
        asker.rankings("red")


def test_questions_that_cannot_be_asked(model, make_asker) -> None:
    asker = make_asker(model)
    with pytest.raises(ValueError, match="A text is ' '"):
        asker.rank(" ")
    with pytest.raises(ValueError, match="There are no questions"):
        asker.answer("image 1", [])
    with pytest.raises(ValueError, match=r"questions is the string 'red\?'; give a list"):
        asker.answer("image 1", "red?")
    with pytest.raises(ValueError, match=r"The answer 'green' is none of the model's 5 \(yes, no, red, blue, two\)"):
        asker.rank("red?", answer="green")
    with pytest.raises(ValueError, match="top_k is 0"):
        asker.rank("red?", top_k=0)
    with pytest.raises(ValueError, match="threshold is 50"):
        asker.rank("red?", threshold=50)
    with pytest.raises(ValueError, match="lacks 1 of the images asked for: 'image 7'"):
        asker.answer("image 7", ["red?"])
