"""What a report says of answers, against figures worked out by hand."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from transformers import EvalPrediction

from dual_distill.data import Task, get_task
from dual_distill.evaluation import accuracy_of_logits
from dual_distill.trainer import prediction_records, report_answers

# Ten people each: all say red; seven say 2 (three two); five say yes.
PEOPLE = [["red"] * 10, ["2"] * 7 + ["3"] * 3, ["yes"] * 5 + ["no"] * 5, ["no"] * 10]
GIVEN = [["Red"] * 10, *PEOPLE[1:]]  # capitals stay where all agree, so that red meets none of them


@pytest.fixture
def vqa_rows():
    return Dataset.from_dict(
        {
            "question": ["what color?", "how many?", "is it?", "is it red?"],
            "answer": ["red", "2", "yes", "no"],
            "answers": PEOPLE,
            "answers_as_given": GIVEN,
            "answer_type": ["other", "number", "yes/no", "yes/no"],
        }
    )


def test_vqa_score_is_against_the_answers_as_given(vqa_rows):
    """By hand: 0 for red (the ten said Red), 0.9 for "3" of three people, 1 for yes and no."""
    report = report_answers(["red", "3", "yes", "no"], vqa_rows, get_task("vqa"))
    assert report.vqa_score == pytest.approx((0 + 0.9 + 1 + 1) / 4)
    assert report.vqa_score_by_group == {"number": pytest.approx(0.9), "other": 0, "yes/no": 1}
    assert report.accuracy == 0.75  # against the most common answer
    assert report.accuracy_by_group == {"number": 0, "other": 1, "yes/no": 1}
    assert (report.text_only, report.majority, report.consistency) == (None, None, None)


def test_baselines_of_several_answers_are_scored_as_the_model_is(vqa_rows):
    """The most frequent training answer is no: 1 on the last row, 1 on the row where five say so, 0 elsewhere."""
    train = Dataset.from_dict({"question": ["is it?"] * 3 + ["what color?"], "answer": ["no", "no", "no", "red"]})
    report = report_answers(["red", "2", "yes", "no"], vqa_rows, get_task("vqa"), train)
    assert report.majority == pytest.approx(0.5)
    assert 0 <= report.text_only <= 1


def test_fewer_than_four_people_have_no_official_score(vqa_rows):
    few = vqa_rows.map(lambda row: {"answers_as_given": row["answers_as_given"][:3]})
    report = report_answers(["red", "3", "yes", "no"], few, get_task("vqa"))
    assert (report.vqa_score, report.vqa_score_by_group) == (None, {})
    assert report.accuracy == 0.75


def test_consistency_and_classes():
    """Two of three pairs right, one of two sentences right on all of its pairs."""
    rows = Dataset.from_dict(
        {"sentence": ["a", "a", "b"], "label": ["True", "False", "True"], "sentence_id": ["s-0-0", "s-0-0", "s-1-0"]}
    )
    report = report_answers(["True", "True", "True"], rows, get_task("nlvr2"))
    assert (report.accuracy, report.consistency) == (pytest.approx(2 / 3), 0.5)
    assert report.to_dict()["vqa_score"] is None


def test_numbered_classes_are_compared_by_their_names():
    """Of "no", "yes", "yes" the first and the last are right; a number without a name is compared with nothing."""
    numbers = Dataset.from_dict({"question": ["a", "b", "c"], "answer": [1, 1, 0]})
    rows, task, said = (
        numbers.cast_column("answer", ClassLabel(names=["yes", "no"])),
        Task("own", "question_answering", ("image",), "question", "answer"),
        ["no", "yes", "yes"],
    )
    report = report_answers(said, rows, task, rows)
    assert (report.accuracy, report.majority) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    ranked = [[{"answer": answer, "score": 1.0}] for answer in said]
    records = prediction_records(ranked, rows, task)
    assert [(one["label"], one["right"]) for one in records] == [("no", True), ("no", False), ("yes", True)]
    with pytest.raises(ValueError, match="column 'answer' holds 1, which no answer is compared with; cast it"):
        report_answers(said, numbers, task)


def test_a_task_without_labels_is_refused():
    pairs = Task("pairs", "image_text_retrieval", ("image",), "caption")
    with pytest.raises(ValueError, match="task 'pairs' has image-text rows without labels"):
        report_answers([], Dataset.from_dict({"caption": []}), pairs)


def test_logits_against_soft_scores_and_classes():
    chosen = np.array([1, 0, 2])
    scores = np.array([[0.0, 0.6, 0.0], [1.0, 0.3, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    assert accuracy_of_logits(EvalPrediction(chosen, scores)) == {"soft_accuracy": pytest.approx(1.6 / 3)}
    assert accuracy_of_logits(EvalPrediction(chosen, np.array([1, 1, -100]))) == {"accuracy": pytest.approx(1 / 3)}
