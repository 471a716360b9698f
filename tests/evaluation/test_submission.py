import json

import pytest

from dual_distill.evaluation import write_submission


def test_the_file_is_the_list_that_evalai_takes(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_submission(path, [458752000, 262148000], ["net", "café au lait"])
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"question_id": 458752000, "answer": "net"},
        {"question_id": 262148000, "answer": "café au lait"},
    ]


def test_gqas_server_has_other_words_and_ids_that_are_strings(tmp_path):
    path, keys = tmp_path / "results.json", ("questionId", "prediction")
    write_submission(path, ["05515938", "2"], ["yes", "no"], keys)
    rows = [{"questionId": "05515938", "prediction": "yes"}, {"questionId": "2", "prediction": "no"}]
    assert json.loads(path.read_text()) == rows
    with pytest.raises(ValueError, match="The question id in row 0 is 5 of type int, but the server knows strings"):
        write_submission(path, [5], ["yes"], keys)


def test_nlvrs_script_reads_lines_of_two_fields(tmp_path):
    path, keys = tmp_path / "results.csv", ("identifier", "prediction")
    write_submission(path, ["dev-850-0-0", "dev-850-1-0"], ["True", "False"], keys)
    assert path.read_text() == "dev-850-0-0,True\ndev-850-1-0,False\n"


@pytest.mark.parametrize(
    ("question_ids", "answers", "message"),
    [
        ([1, 2, 1], ["a", "b", "c"], "Question 1 occurs in rows 0 and 2"),
        ([1, 2], ["a"], "There are 2 question ids and 1 answers"),
        ([], [], "There are 0 question ids and 0 answers"),
        (["1"], ["a"], "The question id in row 0 is '1' of type str, but the server knows integers"),
        ([True], ["a"], "The question id in row 0 is True"),
        ([1], [3], "The answer to question 1 is 3, but an answer is a string"),
    ],
)
def test_what_is_refused_leaves_no_file(tmp_path, question_ids, answers, message):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match=message):
        write_submission(path, question_ids, answers)
    assert not path.exists()
