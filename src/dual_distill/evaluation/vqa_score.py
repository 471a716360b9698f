"""The VQA score as the official evaluation computes it, slips included, for a published number is made of them."""

from collections.abc import Sequence
from typing import Any

from datasets import Features, Value
from datasets import Sequence as SequenceOf

from dual_distill.vqa_answers import normalise_answer, process_punctuation

from .streaming import GroupedMean, StreamedMetric, plain

FEWEST_ANSWERS = 4
"""Fewest answers to a question; with three, full agreement would score below 1."""


class VQAScore(StreamedMetric):
    """Mean VQA score, overall, by answer type and by question type, as an `evaluate.Metric`.

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
        script of GT-Vision-Lab/VQA, commit c4e6a0e.

    Example:
        >>> metric = VQAScore()
        >>> people = [["red"] * 10, ["2"] * 3 + ["3"] * 7]
        >>> result = metric.compute(predictions=["Red!", "two"], references=people, answer_types=["other", "number"])
        >>> result["vqa_score"], result["vqa_score_by_answer_type"]
        (0.95, {'number': 0.9, 'other': 1.0})
    """

    row_features = Features({"predictions": Value("string"), "references": SequenceOf(Value("string"))})
    optional_columns = ("answer_types", "question_types")

    def _start(self) -> None:
        self._sum = 0.0
        self._by_type = {name: GroupedMean() for name in self.optional_columns}

    def _update(self, predictions: Any, references: Any, **types: Any) -> None:
        rows = zip(plain(predictions), plain(references), strict=True)
        scores = [vqa_score(answer, people) for answer, people in rows]
        self._sum += sum(scores)
        for name, column in types.items():
            self._by_type[name].add(scores, column)

    def _result(self) -> dict[str, Any]:
        by_type = {f"vqa_score_by_{name.removesuffix('s')}": mean.means() for name, mean in self._by_type.items()}
        return {"vqa_score": self._sum / len(self), "num_questions": len(self)} | {
            name: means for name, means in by_type.items() if means
        }


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """How right an answer is, by what people said: mean over the people of min(1, matches among the others / 3).

    As the official script has it: the prediction goes through the whole normalisation (`normalise_answer`). Of the
    people's answers only punctuation is taken out, and only where they are not all the same, letter by letter: number
    words, articles, contractions and capitals of theirs stay as they are.

    Args:
        prediction: the model's answer.
        answers: four or more answers of people, ten in VQA v2, as the annotation file has them.

    Returns:
        Share in [0, 1]. With ten people 0, 0.3, 0.6, 0.9 and 1 for an answer of none, one, two, three, and more.

    Raises:
        ValueError: something is no string, or there are fewer than four answers, where even full agreement stays below
        1.

    Note:
        So a unanimous "2:00 p.m." cannot be met by any prediction, for its full stops stay and the prediction's go; nor
        can a unanimous "none", which in the prediction is the number 0. In VQA v2 both are rare.

    Example:
        >>> vqa_score("hot dog", ["hot-dog"] * 2 + ["sausage"] * 8)
        0.6
        >>> vqa_score("hot-dog", ["hot-dog"] * 10)   # they agree: "hot-dog" stays, the prediction becomes "hot dog"
        0.0
    """
    if len(answers) < FEWEST_ANSWERS:
        needed = f"but the VQA score needs {FEWEST_ANSWERS} or more"
        raise ValueError(f"A question has {len(answers)} answers, {needed}; with one there is GroupedAccuracy.")
    for text in (prediction, *answers):
        if not isinstance(text, str):
            raise ValueError(f"An answer is {text!r} of type {type(text).__name__}, but answers are strings.")

    answer = normalise_answer(prediction)
    if len(set(answers)) > 1:
        answers = [process_punctuation(text) for text in answers]
    matches = sum(text == answer for text in answers)
    # Of the people, `matches` see one match fewer among the others. One division: shares of ten come out as 0.3, not
    # 0.29...
    thirds = matches * min(3, matches - 1) + (len(answers) - matches) * min(3, matches)
    return thirds / (3 * len(answers))
