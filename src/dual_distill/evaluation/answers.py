"""How right answers are: accuracy overall, by group and of whole sentences, and the VQA score of the official script.

One number hides what a model cannot answer, so there are groups. The VQA score is computed as the official evaluation
computes it, slips included, for a published number is made of them.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from datasets import Features, Value
from datasets import Sequence as SequenceOf
from transformers import EvalPrediction

from dual_distill.vqa_answers import normalise_answer, process_punctuation, strip_answer

from .streaming import LABELS, GroupedMean, StreamedMetric, plain

VQAEdition = Literal["2021", "2017"]
"""The official evaluation script of VQA before and since 2021-03-11; they differ in what is normalised."""
_EDITIONS = get_args(VQAEdition)

FEWEST_ANSWERS = 4
"""Fewest answers to a question; with three, full agreement would score below 1."""


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
        is_right.append(_composed(prediction) == _composed(reference))
    return is_right


def _composed(label: Any) -> Any:
    return unicodedata.normalize("NFC", label) if isinstance(label, str) else label


class VQAScore(StreamedMetric):
    """Mean VQA score, overall, by answer type and by question type, as an `evaluate.Metric`.

    `VQAScore(edition="2017")` scores as papers before 2021 were scored, see `vqa_score`.
    `compute(predictions=, references=, answer_types=None, question_types=None)` takes one answer a question and the
    people's answers to it (ten in VQA v2) and returns `{"vqa_score": share, "num_questions": count}`, with
    `"vqa_score_by_answer_type"` and `"vqa_score_by_question_type"`, name -> share, where those are given. Shares are in
    [0, 1]; the official script prints them in per cent with two decimals. Memory does not grow with the questions.

    Raises:
        ValueError: the lengths differ, an answer is no string, or a question has fewer than four answers.

    Note:
        `references` are the answers as the annotation file has them, not normalised: see `vqa_score`.

    References:
        Antol et al., ICCV 2015; Goyal et al., CVPR 2017 (VQA v2); visualqa.org/evaluation.html and the evaluation
        script of GT-Vision-Lab/VQA, commits a013f00 (2021) and c4e6a0e (2017).

    Example:
        >>> metric = VQAScore()
        >>> people = [["red"] * 10, ["2"] * 3 + ["3"] * 7]
        >>> result = metric.compute(predictions=["red", "two"], references=people, answer_types=["other", "number"])
        >>> result["vqa_score"], result["vqa_score_by_answer_type"]
        (0.95, {'number': 0.9, 'other': 1.0})
    """

    row_features = Features({"predictions": Value("string"), "references": SequenceOf(Value("string"))})
    optional_columns = ("answer_types", "question_types")

    def __init__(self, *, edition: VQAEdition = "2021", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._edition = edition

    def _start(self) -> None:
        self._sum = 0.0
        self._by_type = {name: GroupedMean() for name in self.optional_columns}

    def _update(self, predictions: Any, references: Any, **types: Any) -> None:
        rows = zip(plain(predictions), plain(references), strict=True)
        scores = [vqa_score(answer, people, self._edition) for answer, people in rows]
        self._sum += sum(scores)
        for name, column in types.items():
            self._by_type[name].add(scores, column)

    def _result(self) -> dict[str, Any]:
        by_type = {f"vqa_score_by_{name.removesuffix('s')}": mean.means() for name, mean in self._by_type.items()}
        return {"vqa_score": self._sum / len(self), "num_questions": len(self)} | {
            name: means for name, means in by_type.items() if means
        }


def vqa_score(prediction: str, answers: Sequence[str], edition: VQAEdition = "2021") -> float:
    """How right an answer is, by what people said: mean over the people of min(1, matches among the others / 3).

    The official script compares differently since 2021-03-11. Where all people agree, letter by letter, both sides stay
    as they are; elsewhere both go through the whole normalisation (`normalise_answer`). Until then the prediction
    always did, and of people's answers that differ only punctuation was taken out: their number words, articles,
    contractions and capitals stayed.

    Args:
        prediction: the model's answer.
        answers: four or more answers of people, ten in VQA v2, as the annotation file has them.
        edition: "2021", today's script, or "2017", by which papers up to then were scored.

    Returns:
        Share in [0, 1]. With ten people 0, 0.3, 0.6, 0.9 and 1 for an answer of none, one, two, three, and more.

    Raises:
        ValueError: something is no string, there is no such edition, or there are fewer than four answers, where even
        full agreement stays below 1.

    Note:
        By the edition of 2017 no prediction meets a unanimous "2:00 p.m.", for its full stops stay and the prediction's
        go; nor a unanimous "none", which in the prediction is the number 0. By today's, a prediction "hot dog" does not
        meet a unanimous "hot-dog". Both are rare in VQA v2.

    Example:
        >>> vqa_score("hot dog", ["hot-dog"] * 2 + ["sausage"] * 8)
        0.6
        >>> vqa_score("hot-dog", ["hot-dog"] * 10), vqa_score("hot-dog", ["hot-dog"] * 10, edition="2017")
        (1.0, 0.0)
        >>> vqa_score("2", ["two"] * 9 + ["2"]), vqa_score("2", ["two"] * 9 + ["2"], edition="2017")
        (1.0, 0.3)
    """
    if edition not in _EDITIONS:
        raise ValueError(f"edition is {edition!r}; give one of {', '.join(_EDITIONS)}.")
    if len(answers) < FEWEST_ANSWERS:
        needed = f"but the VQA score needs {FEWEST_ANSWERS} or more"
        raise ValueError(f"A question has {len(answers)} answers, {needed}; with one there is GroupedAccuracy.")
    try:
        all_agree, counts = _people(tuple(answers), edition)
        answer = strip_answer(prediction) if all_agree and edition == "2021" else normalise_answer(prediction)
    except TypeError as error:
        text = next(text for text in (*answers, prediction) if not isinstance(text, str))
        wrong = f"An answer is {text!r} of type {type(text).__name__}"
        raise ValueError(f"{wrong}, but answers are strings.") from error
    matches = counts.get(answer, 0)
    # Of the people, `matches` see one match fewer among the others. One division: shares of ten come out as 0.3, not
    # 0.29...
    thirds = matches * min(3, matches - 1) + (len(answers) - matches) * min(3, matches)
    return thirds / (3 * len(answers))


@lru_cache(maxsize=2**18)
def _people(answers: tuple[str, ...], edition: VQAEdition) -> tuple[bool, Counter[str]]:
    """Whether people agree, and how many gave each answer, as an edition compares them.

    Remembered, for one split is scored again and again (the model, baselines, every evaluation of a run).
    """
    # Each edition strips what it compares: that of 2017 the prediction alone, so that a blank is disagreement.
    people = [unicodedata.normalize("NFC", text) if edition == "2017" else strip_answer(text) for text in answers]
    all_agree = len(set(people)) == 1
    if not all_agree:
        people = list(map(process_punctuation if edition == "2017" else normalise_answer, people))
    return all_agree, Counter(people)
