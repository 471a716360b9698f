"""Accuracy: overall, by group (one number hides what a model cannot answer), and of whole sentences (consistency)."""

from typing import Any

import numpy as np
from datasets import Features, Value
from transformers import EvalPrediction

from .streaming import LABELS, GroupedMean, StreamedMetric, plain


class GroupedAccuracy(StreamedMetric):
    """Share of predictions that equal their reference, overall and in each group, as an `evaluate.Metric`.

    `compute(predictions=, references=, groups=None)` takes labels as strings or as integers, both of one kind, and
    returns `{"accuracy": share}`, with `"accuracy_by_group": {group: share}` where groups are given, groups in sorted
    order. Shares are in [0, 1]. A reference that no class stands for (-100) counts as wrong, as it is for the user who
    asks. `groups=references` gives the accuracy of each class, as SNLI-VE reports it: of the rows of a class, the share
    that was found. Memory grows with the groups, not with the rows.

    Raises:
        ValueError: the lengths differ, or a prediction and its reference are of two kinds.

    Example:
        >>> accuracy = GroupedAccuracy()
        >>> accuracy.compute(predictions=[1, 0, 1, 1], references=[1, 1, 1, 1], groups=["a", "a", "b", "b"])
        {'accuracy': 0.75, 'accuracy_by_group': {'a': 0.5, 'b': 1.0}}
        >>> labels = ["neutral", "entailment", "entailment"]
        >>> accuracy.compute(predictions=["entailment"] * 3, references=labels, groups=labels)["accuracy_by_group"]
        {'entailment': 1.0, 'neutral': 0.0}
    """

    row_features = LABELS
    optional_columns: tuple[str, ...] = ("groups",)

    def _start(self) -> None:
        self._num_right = 0
        self._by_group = GroupedMean()

    def _update(self, predictions: Any, references: Any, groups: Any = ()) -> None:
        is_right = _right_answers(predictions, references)
        self._num_right += sum(is_right)
        if len(groups):
            self._by_group.add(is_right, groups)

    def _result(self) -> dict[str, Any]:
        by_group = self._by_group.means()
        return {"accuracy": self._num_right / len(self)} | ({"accuracy_by_group": by_group} if by_group else {})


class Consistency(GroupedAccuracy):
    """Accuracy, and the share of sentences all of whose images are right, as an `evaluate.Metric`.

    `compute(predictions=, references=, sentence_ids=)` takes labels as strings or as integers and returns
    `{"accuracy": share, "consistency": share, "num_sentences": count}`, shares in [0, 1]. A model that ignores the
    image answers a sentence alike everywhere, so its consistency falls far below its accuracy. Memory grows with the
    sentences, not with the rows.

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

    row_features = [Features({**labels, "sentence_ids": Value("string")}) for labels in LABELS]
    optional_columns = ()

    def _update(self, predictions: Any, references: Any, sentence_ids: Any = ()) -> None:
        super()._update(predictions, references, sentence_ids)

    def _result(self) -> dict[str, Any]:
        found = super()._result()
        # One wrong image spoils its sentence.
        whole = [share == 1 for share in found["accuracy_by_group"].values()]
        consistency = sum(whole) / len(whole)
        return {"accuracy": found["accuracy"], "consistency": consistency, "num_sentences": len(whole)}


def accuracy_of_logits(prediction: EvalPrediction) -> dict[str, float]:
    """Return how right predicted classes `(B,)` are, as Trainer's `compute_metrics`.

    Against `label_ids` `(B,)` the accuracy; a label of -100 (an answer that the vocabulary lacks) counts as wrong.
    Against soft scores `(B, labels)` the mean score of the predicted answers, `soft_accuracy`: unlike the official VQA
    score over the vocabulary's answers and by the scores that are trained on. `evaluate` computes the official score.

    Example:
        >>> accuracy_of_logits(EvalPrediction(np.array([1, 0]), np.array([1, -100])))
        {'accuracy': 0.5}
        >>> accuracy_of_logits(EvalPrediction(np.array([1, 0]), np.array([[0.0, 1.0], [0.5, 0.0]])))
        {'soft_accuracy': 0.75}
    """
    chosen, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)

    # Soft scores, one a label: the score of the predicted one counts.
    if labels.ndim == 2:
        return {"soft_accuracy": float(labels[np.arange(len(labels)), chosen].mean())}
    return {"accuracy": float(np.mean(chosen == labels))}


def _right_answers(predictions: Any, references: Any) -> list[bool]:
    """One truth value a row; labels of two kinds are refused, since they would count as wrong silently."""
    is_right = []
    for row, (prediction, reference) in enumerate(zip(plain(predictions), plain(references), strict=True)):
        if not any(isinstance(prediction, kind) and isinstance(reference, kind) for kind in (str, int)):
            wrong = f"Row {row} predicts {prediction!r} where the reference is {reference!r}"
            raise ValueError(f"{wrong}, but both must be integers or both strings; translate by the model's id2label.")
        is_right.append(prediction == reference)
    return is_right
