"""Retrieval evaluated: dual alone, re-ranked and by all pairs, held against plain loops over single pairs."""

import io
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from dual_distill.data import ImageError, get_task, load_task
from dual_distill.inference import evaluate_retrieval
from dual_distill.inference.encoding import text_inputs
from dual_distill.inference.retrieval import ImagesWithCaptions, reranked
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImageTextRetrieval,
    DualEncoderForQuestionAnswering,
    FusionEncoderForImageTextRetrieval,
)

TASK = get_task("coco_retrieval")
CAPTIONS = [
    "is there a red circle?",
    "how many?",
    "xylophones",
    "blue squares",
    "red",
    "a circle there",
    "are there xylophones?",
]
OWNERS = [0, 0, 1, 2, 2, 2, 3]


def png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_rows(pictures: list[PILImage.Image], captions: list[str], owners: list[int]) -> Dataset:
    columns = {
        "image": [{"bytes": png(pictures[owner]), "path": None} for owner in owners],
        "caption": captions,
        "image_id": [100 - owner for owner in owners],
    }
    features = Features({"image": Image(decode=False), "caption": Value("string"), "image_id": Value("int64")})
    return Dataset.from_dict(columns, features=features)


@pytest.fixture
def rows(pictures) -> Dataset:
    return as_rows(pictures, CAPTIONS, OWNERS)


@pytest.fixture
def dual(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(DualEncoderForImageTextRetrieval, projection_dim=8)


@pytest.fixture
def fusion(answering_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return answering_model(FusionEncoderForImageTextRetrieval)


# Plain loops


@torch.no_grad()
def cosines(model, processor, pictures, captions) -> list[list[float]]:
    """Images by captions, each encoded alone."""
    images = [model.get_image_features(processor.prepare_image(picture)[None]).pooler_output[0] for picture in pictures]
    texts = [model.get_text_features(**processor.encode_text([caption])).pooler_output[0] for caption in captions]
    return [[cosine_similarity(image, text, dim=0).item() for text in texts] for image in images]


@torch.no_grad()
def pair_scores(model, processor, pictures, captions) -> list[list[float]]:
    return [[model(**processor(picture, caption)).logits.item() for caption in captions] for picture in pictures]


def expected(order: Callable[[int, str], list[int]], owners: list[int], num_images: int) -> dict[str, dict[str, float]]:
    """Recalls of queries whose gallery `order(query, direction)` puts in order."""
    ranks = {
        "text_to_image": [1 + order(text, "text_to_image").index(owner) for text, owner in enumerate(owners)],
        "image_to_text": [
            1 + min(order(image, "image_to_text").index(text) for text, owner in enumerate(owners) if owner == image)
            for image in range(num_images)
        ],
    }
    # An image's other captions stand in nobody's way.
    for image in range(num_images):
        found = order(image, "image_to_text")
        best = next(place for place, text in enumerate(found) if owners[text] == image)
        ranks["image_to_text"][image] = 1 + sum(owners[text] != image for text in found[:best])
    return {
        direction: {
            **{f"recall@{k}": sum(rank <= k for rank in found) / len(found) for k in (1, 5, 10)},
            "median_rank": statistics.median(found),
            "num_queries": len(found),
        }
        for direction, found in ranks.items()
    }


def descending(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def by_scores(scores: list[list[float]]) -> Callable[[int, str], list[int]]:
    return lambda query, direction: descending(
        scores[query] if direction == "image_to_text" else [row[query] for row in scores]
    )


def by_candidates(dual_scores, fusion_scores, number) -> Callable[[int, str], list[int]]:
    def order(query: int, direction: str) -> list[int]:
        first = by_scores(dual_scores)(query, direction)
        again = by_scores(fusion_scores)(query, direction)
        return [place for place in again if place in first[:number]] + first[number:]

    return order


def assert_recalls(found, wanted) -> None:
    for direction, numbers in wanted.items():
        assert found[direction] == pytest.approx(numbers), direction


def test_dual_reranked_and_fusion_alone_are_those_of_plain_loops(
    rows, dual, fusion, answering_processor, pictures
) -> None:
    similarities = cosines(dual, answering_processor, pictures[:4], CAPTIONS)
    scores = pair_scores(fusion, answering_processor, pictures[:4], CAPTIONS)
    assert len({tuple(by_scores(table)(0, "image_to_text")) for table in (similarities, scores)}) == 2, "they disagree"
    both = (rows, TASK, dual, answering_processor, fusion, answering_processor)
    report = evaluate_retrieval(*both, rerank_top=2, batch_size=3)
    assert (report.images, report.captions, report.rerank_top, report.folds) == (4, 7, 2, 0)
    assert_recalls(report.whole["dual"], expected(by_scores(similarities), OWNERS, 4))
    assert_recalls(report.whole["reranked"], expected(by_candidates(similarities, scores, 2), OWNERS, 4))
    everything = evaluate_retrieval(*both, rerank_top=50, batch_size=3)
    assert_recalls(everything.whole["reranked"], expected(by_scores(scores), OWNERS, 4))


def test_the_models_own_layers_re_rank_as_they_do_from_pixels(
    rows, answering_model, answering_processor, pictures
) -> None:
    dual = answering_model(DualEncoderForImageTextRetrieval, projection_dim=8, interaction_layers=1)
    similarities = cosines(dual, answering_processor, pictures[:4], CAPTIONS)
    with torch.no_grad():
        scores = [
            [dual.match_scores(**answering_processor(picture, caption)).item() for caption in CAPTIONS]
            for picture in pictures[:4]
        ]
    for rerank_top, order in ((2, by_candidates(similarities, scores, 2)), (50, by_scores(scores))):
        report = evaluate_retrieval(
            rows, TASK, dual, answering_processor, rerank_with_layers=True, rerank_top=rerank_top, batch_size=3
        )
        assert report.rerank_top == rerank_top
        assert_recalls(report.whole["dual"], expected(by_scores(similarities), OWNERS, 4))
        assert_recalls(report.whole["reranked"], expected(order, OWNERS, 4))
        assert [time.way for time in report.times] == ["dual", "rerank", "rerank_all"]


def test_times_say_what_was_measured(rows, dual, fusion, answering_processor) -> None:
    both = (rows, TASK, dual, answering_processor, fusion, answering_processor)
    some = {time.way: time for time in evaluate_retrieval(*both, rerank_top=1).times}
    assert {way: time.measured for way, time in some.items()} == {"dual": True, "rerank": True, "fusion": False}
    assert some["fusion"].pairs == 28
    assert some["fusion"].seconds == pytest.approx(some["rerank"].seconds * 28 / some["rerank"].pairs)
    everything = {time.way: time for time in evaluate_retrieval(*both, rerank_top=50).times}
    assert {way: time.measured for way, time in everything.items()} == {"dual": True, "rerank": True, "fusion": True}
    [alone] = evaluate_retrieval(rows, TASK, dual, answering_processor).times
    assert (alone.way, alone.pairs, alone.measured) == ("dual", 28, True)


def test_folds_are_evaluated_by_themselves(dual, fusion, answering_processor, pictures) -> None:
    """Five images in folds of two: the mean over two splits given by themselves; the fifth image is in neither."""
    owners = [0, 0, 1, 2, 3, 3, 4]
    rows = as_rows(pictures, CAPTIONS, owners)
    both = (TASK, dual, answering_processor, fusion, answering_processor)
    report = evaluate_retrieval(rows, *both, rerank_top=1, fold_images=2)
    assert (report.folds, report.fold_images, report.images) == (2, 2, 5)
    folds = [evaluate_retrieval(rows.select(part), *both, rerank_top=1).whole for part in (range(3), range(3, 6))]
    for way in ("dual", "reranked"):
        for direction, numbers in report.mean_of_folds[way].items():
            means = {name: (folds[0][way][direction][name] + folds[1][way][direction][name]) / 2 for name in numbers}
            assert numbers == pytest.approx(means)
    whole = evaluate_retrieval(rows, *both, rerank_top=1, fold_images=None)
    assert whole.whole == report.whole
    assert whole.mean_of_folds == {}


def test_each_image_is_decoded_once_a_model(rows, dual, fusion, answering_processor, monkeypatch) -> None:
    decoded: list[int] = []
    original = ImagesWithCaptions.prepared

    def counted(self, processor, places):
        for place, pixels in original(self, processor, places):
            decoded.append(place)
            yield place, pixels

    monkeypatch.setattr(ImagesWithCaptions, "prepared", counted)
    evaluate_retrieval(rows, TASK, dual, answering_processor, fusion, answering_processor, rerank_top=4, batch_size=2)
    assert decoded == [0, 1, 2, 3, 0, 1, 2, 3]


def test_layers_read_each_image_and_each_caption_once(rows, answering_model, answering_processor) -> None:
    dual = answering_model(DualEncoderForImageTextRetrieval, projection_dim=8, interaction_layers=1)
    projected: list[int] = []
    kept = dual.dual_encoder.interaction_model.project_images
    dual.dual_encoder.interaction_model.project_images = lambda tokens: projected.append(len(tokens)) or kept(tokens)
    texts: list[int] = []
    dual.dual_encoder.text_model.register_forward_pre_hook(lambda module, inputs: texts.append(len(inputs[0])))
    # Captions of unlike images in one batch: 4 images, 28 pairs.
    evaluate_retrieval(rows, TASK, dual, answering_processor, rerank_with_layers=True, rerank_top=50, batch_size=5)
    assert sum(projected) == 4
    assert sum(texts) == 2 * len(CAPTIONS)  # for their vectors, and for the layers


def test_captions_are_cut_many_at_a_time_as_alone(dual, answering_processor, monkeypatch) -> None:
    texts = [" ".join(["red"] * (1 + number % 9)) for number in range(600)]
    cut: list[int] = []
    encode_text = DualDistillProcessor.encode_text

    def counted(self, some, **more):
        cut.append(len(some))
        return encode_text(self, some, **more)

    monkeypatch.setattr(DualDistillProcessor, "encode_text", counted)
    for side in ("right", "left"):
        answering_processor.tokenizer.padding_side = side
        together = list(text_inputs(dual, answering_processor, texts))
        assert cut == [256, 256, 88]
        cut.clear()
        for text, found in zip(texts[:20], together, strict=False):
            assert torch.equal(found, encode_text(answering_processor, [text])["input_ids"][0])


def test_behind_the_candidates_the_dual_encoders_nearest_are_named(
    rows, dual, fusion, answering_processor, pictures
) -> None:
    similarities = cosines(dual, answering_processor, pictures[:4], CAPTIONS)
    order = by_candidates(similarities, pair_scores(fusion, answering_processor, pictures[:4], CAPTIONS), 2)
    both = (rows, TASK, dual, answering_processor, fusion, answering_processor)
    for number in (1, 3, 9):
        found = evaluate_retrieval(*both, rerank_top=2, nearest=number).nearest
        expected = [order(text, "text_to_image")[:number] for text in range(len(CAPTIONS))]
        assert found == [[100 - image for image in row] for row in expected]


def test_recall_does_not_depend_on_the_blocks_in_which_it_is_ranked(
    rows, dual, fusion, answering_processor, monkeypatch
) -> None:
    both = (rows, TASK, dual, answering_processor, fusion, answering_processor)
    whole = evaluate_retrieval(*both, rerank_top=2, nearest=3)
    monkeypatch.setattr("dual_distill.inference.retrieval._SCORES", 8)
    blocks = evaluate_retrieval(*both, rerank_top=2, nearest=3)
    assert (blocks.whole, blocks.nearest) == (whole.whole, whole.nearest)


def test_candidates_stand_before_the_others_in_their_own_order() -> None:
    torch.manual_seed(0)
    similarities = torch.rand(6, 40) * 2 - 1
    candidates = similarities.topk(5, dim=1).indices
    scores = torch.randn(6, 5) * 1000
    scores[0, 0] = scores[0, 1]
    order = reranked(similarities, candidates, scores).argsort(dim=1, descending=True, stable=True)
    for row in range(1, 6):
        by_hand = [place for _, place in sorted(zip((-scores[row]).tolist(), candidates[row].tolist(), strict=True))]
        by_hand += [place for place in descending(similarities[row].tolist()) if place not in by_hand]
        assert order[row].tolist() == by_hand
    values = reranked(similarities, candidates, scores)[0, candidates[0]]
    assert values[0] == values[1], "a tie stays a tie"


def test_coco_mini_goes_through(tmp_path: Path, dual, fusion, answering_processor) -> None:
    """Karpathy's file with the images of the Parquet written below it; too few to learn from, so only that it runs."""
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data")
    folder = root / "coco_mini_ccby"
    if not folder.is_dir():
        pytest.skip(
            f"needs the images and captions in {folder} (set DUAL_DISTILL_DATA to the folder that holds coco_mini_ccby)"
        )
    table = pq.read_table(folder / "images.parquet", columns=["image", "file_name", "coco_split"])
    for row in table.to_pylist():
        target = tmp_path / row["coco_split"] / row["file_name"]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(row["image"])
    document = (folder / "annotations" / "dataset_karpathy_format.json").read_text()
    (tmp_path / "dataset_coco.json").write_text(document)
    data = load_task("coco_retrieval", tmp_path)
    split = max(data, key=lambda name: data[name].num_rows)
    report = evaluate_retrieval(
        data[split], TASK, dual, answering_processor, fusion, answering_processor, rerank_top=3, fold_images=10
    )
    assert report.captions >= 4 * report.images
    assert report.folds == report.images // 10
    for way in ("dual", "reranked"):
        for numbers in report.whole[way].values():
            assert 0 <= numbers["recall@1"] <= numbers["recall@5"] <= numbers["recall@10"] <= 1


def test_each_error_by_its_message(rows, dual, fusion, answering_processor, answering_model) -> None:
    processor = answering_processor
    with pytest.raises(ValueError, match="DualEncoderForQuestionAnswering does not encode images and texts apart"):
        evaluate_retrieval(rows, TASK, answering_model(DualEncoderForQuestionAnswering), processor)
    with pytest.raises(ValueError, match="DualEncoderForImageTextRetrieval cannot re-rank; give a fusion encoder"):
        evaluate_retrieval(rows, TASK, dual, processor, dual, processor)
    with pytest.raises(ValueError, match="fusion and fusion_processor belong together"):
        evaluate_retrieval(rows, TASK, dual, processor, fusion)
    with pytest.raises(ValueError, match="rerank_with_layers is set, but the model has no interaction layers"):
        evaluate_retrieval(rows, TASK, dual, processor, rerank_with_layers=True)
    with pytest.raises(ValueError, match="rerank_with_layers is set, but a fusion encoder is given too"):
        evaluate_retrieval(rows, TASK, dual, processor, fusion, processor, rerank_with_layers=True)
    with pytest.raises(ValueError, match="rerank_top is 0, but must be at least 1"):
        evaluate_retrieval(rows, TASK, dual, processor, fusion, processor, rerank_top=0)
    with pytest.raises(ValueError, match="task 'scenes' does not say which captions are of one image"):
        evaluate_retrieval(rows, get_task("scenes"), dual, processor)
    with pytest.raises(ValueError, match="There are no rows"):
        evaluate_retrieval(rows.select([]), TASK, dual, processor)
    blank = rows.map(lambda row, place: {"caption": " " if place == 4 else row["caption"]}, with_indices=True)
    with pytest.raises(ValueError, match="row 4: its caption is empty"):
        evaluate_retrieval(blank, TASK, dual, processor)
    broken = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}], "caption": ["red"], "image_id": [1]}, features=rows.features
    )
    with pytest.raises(ImageError, match="row 0"):
        evaluate_retrieval(broken, TASK, dual, processor)
