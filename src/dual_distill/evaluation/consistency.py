"""Consistency: the share of sentences that are judged right on every one of their pictures (NLVR, NLVR2)."""

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value

from .streaming import StreamedMetric, plain, right_answers


class Consistency(StreamedMetric):
    """Accuracy, and the share of sentences all of whose pictures are right, as an `evaluate.Metric`.

    `compute(predictions=, references=, sentence_ids=)` takes labels as strings or as integers and returns
    `{"accuracy": share, "consistency": share, "num_sentences": count}`, shares in [0, 1]. A model that ignores the
    picture answers a sentence alike everywhere, so its consistency falls far below its accuracy. Memory grows with the
    sentences (one truth value each), not with the rows.

    Raises:
        ValueError: nothing to average, the lengths differ, or a prediction and its reference are of two kinds.

    Note:
        What a sentence is: in NLVR v1 (`sentence-box`) the first number, so all boxes and their six permutations; in
        NLVR2 (`split-set-pair-sentence`) everything but the third part, so all image pairs of the set. Both are the
        grouping of the official scripts (lil-lab/nlvr); these compare labels in lower case, ours as they are.

    References:
        Suhr et al., ACL 2019, "A Corpus for Reasoning about Natural Language Grounded in Photographs" (NLVR2),
        consistency.

    Example:
        >>> metric = Consistency()
        >>> metric.compute(predictions=[1, 0, 1], references=[1, 1, 1], sentence_ids=["7", "7", "8"])["consistency"]
        0.5
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Accuracy, and the share of sentences all of whose pictures are right.",
            citation="",
            inputs_description="predictions and references: labels; sentence_ids: equal for all rows of one sentence.",
            features=[
                Features({"predictions": Value(kind), "references": Value(kind), "sentence_ids": Value("string")})
                for kind in ("int64", "string")
            ],
        )

    def _start(self) -> None:
        self._num_right = 0
        self._by_sentence: dict[Any, bool] = {}

    def _update(self, predictions: Any, references: Any, sentence_ids: Any) -> None:
        is_right = right_answers(predictions, references)
        self._num_right += sum(is_right)
        _judge_sentences(is_right, plain(sentence_ids), self._by_sentence)

    def _result(self) -> dict[str, Any]:
        return {
            "accuracy": self._num_right / len(self),
            "consistency": sum(self._by_sentence.values()) / len(self._by_sentence),
            "num_sentences": len(self._by_sentence),
        }


def consistency(is_right: Sequence[bool], sentence_ids: Sequence[Any]) -> float:
    """Share of sentences all of whose rows are right.

    Args:
        is_right: one truth value a row.
        sentence_ids: one id a row, equal for all rows of a sentence.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: there is no row, or the lengths differ.

    Example:
        >>> consistency([True, True, True, False], ["1-a", "1-a", "2-a", "2-a"])
        0.5
    """
    if len(sentence_ids) != len(is_right):
        raise ValueError(
            f"There are {len(is_right)} predictions and {len(sentence_ids)} sentence ids, but each prediction has one."
        )
    if not is_right:
        raise ValueError("Consistency needs one prediction or more, but there is none.")
    by_sentence: dict[Any, bool] = {}
    _judge_sentences(is_right, sentence_ids, by_sentence)
    return sum(by_sentence.values()) / len(by_sentence)


def _judge_sentences(is_right: Sequence[bool], sentence_ids: Sequence[Any], by_sentence: dict[Any, bool]) -> None:
    """Add rows to what is known of their sentences."""
    for right, sentence_id in zip(is_right, sentence_ids, strict=True):
        by_sentence[sentence_id] = by_sentence.get(sentence_id, True) and right


__all__ = ["Consistency", "consistency"]
