"""Ranks by hand, and blocks against the whole matrix."""

import numpy as np
import pytest
import torch

from dual_distill.evaluation import RetrievalRecall, retrieval_recall
from dual_distill.evaluation.retrieval import retrieval_ranks

# Three images; captions 0 and 1 belong to image 0, 2 to image 1, 3 and 4 to image 2.
IMAGE_OF_CAPTION = [0, 0, 1, 2, 2]
SIMILARITIES = torch.tensor(
    [
        [0.9, 0.1, 0.3, 0.2, 0.0],  # its caption 0 is first: rank 1
        [0.8, 0.7, 0.6, 0.5, 0.4],  # captions 0 and 1 stand before its caption 2: rank 3
        [0.3, 0.6, 0.5, 0.2, 0.4],  # captions 1 and 2 stand before its caption 4: rank 3
    ]
)
# Text to image, columns: 0: 0.9 first, rank 1; 1: 0.1 behind 0.7 and 0.6, rank 3; 2: 0.6 first, rank 1;
# 3: 0.2 behind 0.5 and level with 0.2 of image 0, rank 3; 4: 0.4 level with 0.4 of image 1, rank 2.


def test_both_directions_by_hand():
    result = retrieval_recall(SIMILARITIES, IMAGE_OF_CAPTION)
    assert result["image_to_text"] == {
        "recall@1": 1 / 3,
        "recall@5": 1.0,
        "recall@10": 1.0,
        "median_rank": 3.0,
        "num_queries": 3,
    }
    assert result["text_to_image"] == {
        "recall@1": 2 / 5,
        "recall@5": 1.0,
        "recall@10": 1.0,
        "median_rank": 2.0,
        "num_queries": 5,
    }


def test_ranks_by_hand():
    ranks = retrieval_ranks(SIMILARITIES.T.contiguous(), [[image] for image in IMAGE_OF_CAPTION])
    assert ranks.tolist() == [1, 3, 1, 3, 2]


def test_recall_at_each_k():
    """Twelve queries whose right entry has rank 1, 2, ..., 12."""
    scores = torch.zeros(12, 12)
    for query in range(12):
        scores[query, :query] = 1.0
        scores[query, query] = 0.5
    result = RetrievalRecall().compute(predictions=scores, references=[[query] for query in range(12)])
    assert result == {
        "recall@1": 1 / 12,
        "recall@5": 5 / 12,
        "recall@10": 10 / 12,
        "median_rank": 6.5,
        "num_queries": 12,
    }


def test_five_captions_an_image_in_blocks_equal_a_slow_reference(monkeypatch):
    monkeypatch.setattr("dual_distill.evaluation.retrieval._BLOCK", 4)
    random = np.random.default_rng(0)
    similarities = random.normal(size=(23, 115)).round(1)  # ties are many
    owner = np.repeat(np.arange(23), 5)
    result = retrieval_recall(torch.tensor(similarities), owner.tolist())
    for name, scores, right in (
        ("image_to_text", similarities, [set(np.flatnonzero(owner == image)) for image in range(23)]),
        ("text_to_image", similarities.T, [{image} for image in owner]),
    ):
        ranks = []
        for row, places in zip(scores, right, strict=True):
            best = max(row[place] for place in places)
            ranks.append(1 + sum(score >= best for place, score in enumerate(row) if place not in places))
        assert result[name]["median_rank"] == np.median(ranks)
        for k in (1, 5, 10):
            assert result[name][f"recall@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))


def test_a_model_that_scores_everything_alike_finds_nothing():
    result = retrieval_recall(torch.zeros(20, 20), list(range(20)))
    assert result["image_to_text"]["recall@10"] == 0.0
    assert result["text_to_image"]["median_rank"] == 20.0


def test_what_is_kept_does_not_grow_with_the_queries():
    metric = RetrievalRecall()
    for _ in range(100):
        metric.add_batch(predictions=SIMILARITIES, references=[[0, 1], [2], [3, 4]])
    assert (len(metric), dict(metric._ranks)) == (300, {1: 100, 3: 200})


def test_each_error_by_its_message():
    metric = RetrievalRecall()
    with pytest.raises(ValueError, match=r"scores has shape \(3,\); expected \(queries, gallery\)"):
        metric.add_batch(predictions=[0.1, 0.2, 0.3], references=[[0], [0], [0]])
    with pytest.raises(ValueError, match="The scores of query 1 of this block hold NaN"):
        metric.add_batch(predictions=[[0.1], [float("nan")]], references=[[0], [0]])
    with pytest.raises(ValueError, match="Query 0 of this block has no right entry"):
        metric.add_batch(predictions=[[0.1]], references=[[]])
    with pytest.raises(ValueError, match="names entry 1 as right, but the gallery has entries 0 to 0"):
        metric.add_batch(predictions=[[0.1]], references=[[1]])
    metric.add_batch(predictions=[[0.1]], references=[[0]])
    with pytest.raises(ValueError, match="scores a gallery of 2, an earlier one of 1"):
        metric.add_batch(predictions=[[0.1, 0.2]], references=[[0]])
    with pytest.raises(ValueError, match=r"similarities has shape \(3, 5\) and there are 4 captions"):
        retrieval_recall(SIMILARITIES, [0, 0, 1, 2])
    with pytest.raises(ValueError, match="names entry 3 as right, but the gallery has entries 0 to 2"):
        retrieval_recall(SIMILARITIES, [0, 0, 1, 2, 3])
