import pytest
from datasets import Dataset

from dual_distill.data import answer_coverage, build_answer_vocabulary

ANSWERS = ["no"] * 3 + ["yes"] * 3 + ["b", "a", "c", "c"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ["no", "yes", "c", "a", "b"]),
        ({"min_answer_count": 2}, ["no", "yes", "c"]),
        ({"min_answer_count": 3}, ["no", "yes"]),
    ],
)
def test_most_frequent_first_then_alphabetical(limits, expected):
    for answers in (ANSWERS, ANSWERS[::-1]):
        assert build_answer_vocabulary(Dataset.from_dict({"answer": answers}), "answer", **limits) == expected


def test_lists_count_each_answer():
    data = Dataset.from_dict({"answers": [["x", "y", "y"], [], ["y", "x", "z"]]})
    assert build_answer_vocabulary(data, "answers") == ["y", "x", "z"]
    assert answer_coverage(data, "answers", ["y"]) == 0.5
    assert answer_coverage(data, "answers", ["x", "y", "z", "w"]) == 1.0


def test_a_format_of_the_data_set_does_not_matter():
    data = Dataset.from_dict({"answer": ANSWERS}).with_format("numpy")
    assert build_answer_vocabulary(data, "answer")[:2] == ["no", "yes"]


def test_coverage():
    data = Dataset.from_dict({"answer": ANSWERS})
    assert answer_coverage(data, "answer", ["no", "c"]) == 0.5
    assert answer_coverage(data, "answer", []) == 0.0
    assert answer_coverage(data.select([]), "answer", ["no"]) == 0.0


@pytest.mark.parametrize(
    ("answers", "column", "limits", "message"),
    [
        (["a"], "answer", {"min_answer_count": 0}, "min_answer_count is 0, but must be at least 1"),
        (
            ["a", "b", "a"],
            "answer",
            {"min_answer_count": 3},
            r"No answer in column 'answer' occurs 3 times or more \(the most frequent: 2\)",
        ),
        ([1, 2], "answer", {}, "Row 0 of column 'answer' holds 1, but answers are strings"),
        (["a", None], "answer", {}, "Row 1 of column 'answer' holds None"),
    ],
)
def test_each_error_by_its_message(answers, column, limits, message):
    with pytest.raises(ValueError, match=message):
        build_answer_vocabulary(Dataset.from_dict({"answer": answers}), column, **limits)
