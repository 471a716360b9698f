"""Consistency: the share of sentences that are judged right on every one of their pictures (NLVR, NLVR2)."""

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value


class Consistency(evaluate.Metric):
    """Accuracy, and the share of sentences all of whose pictures are right, as an `evaluate.Metric`.

    `compute(predictions=, references=, sentence_ids=)` takes labels as strings or as integers and returns
    `{"accuracy": share, "consistency": share, "num_sentences": count}`, shares in [0, 1]. A model that ignores the
    picture answers a sentence alike everywhere, so its consistency falls far below its accuracy.

    Raises:
        ValueError: nothing to average, or the three lengths differ.

    Note:
        In NLVR v1 a sentence has up to four pictures, each in six permutations; here all of these rows have to be
        right.

    References:
        Suhr et al., ACL 2019, "A Corpus for Reasoning about Natural Language Grounded in Photographs" (NLVR2),
        consistency.

    Example:
        >>> metric = Consistency(keep_in_memory=True)
        >>> metric.compute(predictions=[1, 0, 1], references=[1, 1, 1], sentence_ids=["7", "7", "8"])["consistency"]
        0.5
    """

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description="Accuracy, and the share of sentences all of whose pictures are right.",
            citation="",
            inputs_description="predictions and references: labels; sentence_ids: equal for all rows of one sentence.",
            features=[Features({"predictions": Value(kind), "references": Value(kind)}) for kind in ("int64", "string")],
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any], sentence_ids: Sequence[Any]) -> dict[str, Any]:
        is_right = [prediction == reference for prediction, reference in zip(predictions, references, strict=True)]
        by_sentence = _all_right(is_right, sentence_ids)
        return {
            "accuracy": sum(is_right) / len(is_right),
            "consistency": sum(by_sentence.values()) / len(by_sentence),
            "num_sentences": len(by_sentence),
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
    by_sentence = _all_right(is_right, sentence_ids)
    return sum(by_sentence.values()) / len(by_sentence)


def _all_right(is_right: Sequence[bool], sentence_ids: Sequence[Any]) -> dict[Any, bool]:
    if len(sentence_ids) != len(is_right):
        raise ValueError(
            f"There are {len(is_right)} predictions and {len(sentence_ids)} sentence ids, but each prediction has one."
        )
    if not is_right:
        raise ValueError("Consistency needs one prediction or more, but there is none.")
    by_sentence: dict[Any, bool] = {}
    for right, sentence_id in zip(is_right, sentence_ids, strict=True):
        by_sentence[sentence_id] = by_sentence.get(sentence_id, True) and right
    return by_sentence
