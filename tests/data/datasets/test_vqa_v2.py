import json
import re

import pytest
from datasets import Image

from dual_distill.data import ReadingReport, load_task
from dual_distill.data.datasets.vqa_v2 import load_vqa

PEOPLE = ["Red"] * 5 + ["the red", "red.", "pink", "Pink", "rose"]


def write_part(folder, part, questions, images=True, annotated=True, content=b""):
    """Official files of `questions` questions about images 0, 0, 1, 1, ... of one part of COCO."""
    number = {"train2014": 1, "val2014": 2, "test2015": 3}[part]
    asked = [
        {"image_id": 1000 * number + i // 2, "question": f"What colour is {i}?", "question_id": 10_000 * number + i}
        for i in range(questions)
    ]
    document = {"info": {}, "data_type": "mscoco", "data_subtype": part, "questions": asked}
    (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps(document))
    if annotated:
        annotations = [
            {
                "question_id": question["question_id"],
                "image_id": question["image_id"],
                "question_type": "what color",
                "answer_type": "other",
                "multiple_choice_answer": "Red",
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                    for place, answer in enumerate(PEOPLE)
                ],
            }
            for question in asked
        ]
        document = {"info": {}, "data_subtype": part, "annotations": annotations}
        (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps(document))
    (folder / part).mkdir(exist_ok=True)
    for question in asked if images else []:
        (folder / part / f"COCO_{part}_{question['image_id']:012}.jpg").write_bytes(content)


@pytest.fixture
def folder(tmp_path, png):
    write_part(tmp_path, "train2014", 4, content=png())
    write_part(tmp_path, "val2014", 3, content=png())
    return tmp_path


def change(folder, name, edit):
    """Edits the list of one of the two files of train2014."""
    file = next(folder.glob(f"*train2014_{name}.json"))
    document = json.loads(file.read_text())
    edit(document[name])
    file.write_text(json.dumps(document))


def files(folder, part="train2014"):
    return {
        "questions": folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
        "annotations": folder / f"v2_mscoco_{part}_annotations.json",
        "images": folder,
    }


def test_train_and_val_follow_one_another_and_the_last_rows_validate(folder):
    data = load_vqa(folder, validation_rows=2)
    assert data["train"]["question_id"][:] == [10_000, 10_001, 10_002, 10_003, 20_000]
    assert data["validation"]["question_id"][:] == [20_001, 20_002]
    assert data["train"].features["image"] == Image(decode=False)


def test_a_row_is_normalised_and_keeps_what_people_said(folder):
    row = load_task("vqa", **files(folder), validation_rows=1)["train"][2]
    image = folder / "train2014" / "COCO_train2014_000000001001.jpg"
    assert row == {
        "image": {"bytes": None, "path": str(image)},
        "question": "What colour is 2?",
        "answer": "red",
        "answers": ["red"] * 7 + ["pink"] * 2 + ["rose"],
        "answers_as_given": PEOPLE,
        "question_type": "what color",
        "answer_type": "other",
        "question_id": 10_002,
        "image_id": 1001,
    }


def test_images_may_lie_in_a_folder_itself_or_below_it(folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for image in (folder / "train2014").iterdir():
        image.rename(flat / image.name)
    (folder / "val2014").rename(flat / "val2014")
    pairs = [files(folder), files(folder, "val2014")]
    arguments = {name: [pair[name] for pair in pairs] for name in ("questions", "annotations")}
    data = load_vqa(**arguments, images=flat, validation_rows=0)
    assert load_vqa(folder, images=flat, validation_rows=0)["train"].to_list() == data["train"].to_list()
    assert list(data) == ["train"]
    assert data["train"].num_rows == 7
    assert data["train"][0]["image"]["path"].startswith(str(flat))


def test_test_questions_have_no_answers(folder):
    write_part(folder, "test2015", 2, annotated=False)
    questions = folder / "v2_OpenEnded_mscoco_test2015_questions.json"
    data = load_vqa(folder, validation_rows=1, test_questions=questions)
    assert data.num_rows == {"train": 6, "validation": 1, "test": 2}
    assert (data["test"][1]["answer"], data["test"][1]["answers"], data["test"][1]["question_id"]) == (None, [], 30_001)
    document = json.loads(questions.read_text()) | {"data_subtype": "test-dev2015"}  # asks about images of test2015
    questions.write_text(json.dumps(document))
    assert load_vqa(folder, validation_rows=1, test_questions=questions)["test"].num_rows == 2


def test_a_file_that_is_named_takes_the_place_of_the_folders(folder):
    """Questions alone, or annotations alone, were left out for those of the folder."""
    named = {"annotations": files(folder)["annotations"], "questions": files(folder)["questions"]}
    for part in ("questions", "annotations"):
        with pytest.raises(ValueError, match=r"There are . files of questions, . of annotations; give as many"):
            load_vqa(folder, **{part: named[part]}, validation_rows=1)
    for file in folder.glob("v2_*val2014*.json"):
        file.unlink()
    document = json.loads(named["questions"].read_text())
    document["questions"][0]["question"] = "Which colour is it?"
    (folder / "mine.json").write_text(json.dumps(document))
    data = load_vqa(folder, questions=folder / "mine.json", validation_rows=1)
    assert data["train"][0]["question"] == "Which colour is it?"


def test_a_bom_is_no_trouble(folder):
    for file in folder.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b", ", b",\r\n"))
    assert load_vqa(folder, validation_rows=1)["train"].num_rows == 6


BAD = [
    (
        "questions",
        lambda q: q[1].update(question=" "),
        r"questions\.json, question 2 \(question_id 10001\): question is empty",
    ),
    (
        "questions",
        lambda q: q[1].update(image_id=77),
        r"question 2 \(.*\): the image is missing: .* COCO_train2014_000000000077",
    ),
    ("questions", lambda q: q[1].update(question_id=10_000), r"question 2 \(.*\): question_id 10000 occurs twice"),
    (
        "questions",
        lambda q: q[1].update(question_id=5),
        r"question 2 \(question_id 5\): .*annotations\.json has no answers",
    ),
    ("questions", lambda q: q.pop(1), r"annotation 2 \(question_id 10001\): .*questions\.json has no question 10001"),
    (
        "questions",
        lambda q: q[1].pop("image_id"),
        r"question 2 \(.*\): there is no 'image_id' among question, question_id",
    ),
    (
        "questions",
        lambda q: q[1].update(image_id="1000"),
        r"question 2 \(.*\): image_id is '1000', but expected is a whole",
    ),
    ("questions", lambda q: q.insert(1, "what?"), r"question 2: the question is 'what\?', but expected is an object"),
    (
        "questions",
        lambda q: q[1].update(question_id=[1]),
        r"question 2 \(.*\): question_id is \[1\], but expected is a whole",
    ),
    (
        "annotations",
        lambda a: a[1].update(question_id={}),
        r"annotation 2 \(.*\): question_id is {}, but expected is a whole number",
    ),
    ("annotations", lambda a: a.pop(1), r"question 2 \(question_id 10001\): .*annotations\.json has no answers"),
    ("annotations", lambda a: a.append(a[1]), r"annotation 5 \(question_id 10001\): question_id 10001 occurs twice"),
    (
        "annotations",
        lambda a: a[1].update(image_id=9),
        r"question 2 \(.*\): its image_id is 1000, that of its annotation 9",
    ),
    ("annotations", lambda a: a[1].update(answers=[]), r"question 2 \(.*\): its annotation holds no answer"),
    ("annotations", lambda a: a[1].update(answers=["red"]), r"question 2 \(.*\): an answer of its annotation is 'red'"),
    ("annotations", lambda a: a[1].pop("answer_type"), r"question 2 \(.*\): there is no 'answer_type'"),
]


@pytest.mark.parametrize(("name", "edit", "message"), BAD)
def test_a_bad_entry_is_named_or_listed(folder, name, edit, message, capsys):
    change(folder, name, edit)
    with pytest.raises(ValueError, match=message):
        load_vqa(folder, validation_rows=1)
    report = ReadingReport()
    data = load_vqa(folder, validation_rows=1, skip_bad=True, report=report)
    sentences = [sentence for kind in report.bad.values() for sentence in kind]
    assert any(re.search(message, sentence) for sentence in sentences)
    kept = {question_id for split in data.values() for question_id in split["question_id"]}
    assert {10_000, 10_002, 10_003, 20_000, 20_001, 20_002} <= kept
    printed = capsys.readouterr().err
    assert all(sentence in printed for sentence in sentences)


def test_skipping_a_question_of_a_wrong_id_lists_both_sides(folder):
    change(folder, "questions", lambda questions: questions[1].update(question_id=5))
    report = ReadingReport()
    load_vqa(folder, validation_rows=1, skip_bad=True, report=report)
    assert {kind: len(sentences) for kind, sentences in report.bad.items()} == {
        "question without annotation": 1,
        "annotation without question": 1,
    }
    assert report.rows == {"train": 5, "validation": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: {}, "Give path= .data= of a recipe., a folder that holds v2_OpenEnded"),
        (
            lambda folder: files(folder) | {"images": None},
            "Give path= .data= of a recipe., a folder that holds v2_OpenEnded",
        ),
        (lambda folder: {"path": folder, "validation_rows": -1}, "validation_rows is -1"),
        (lambda folder: {"path": folder, "validation_rows": 7}, "validation_rows is 7, but there are 7 rows"),
        (lambda folder: {"path": folder}, "validation_rows is 1,000, but there are 7 rows"),
        (
            lambda folder: files(folder) | {"questions": [files(folder)["questions"]] * 2},
            "There are 2 files of questions, 1 of annotations; give as many",
        ),
        (
            lambda folder: files(folder) | {"questions": files(folder)["annotations"]},
            r"annotations\.json' holds no list 'questions': expected questions, found info, data_subtype, annotations",
        ),
    ],
)
def test_wrong_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_vqa(**arguments(folder))


def test_missing_files_and_files_that_are_no_json(folder):
    with pytest.raises(FileNotFoundError, match="There is no folder 'nowhere' for images"):
        load_vqa(**files(folder) | {"images": "nowhere"})
    annotations = folder / "v2_mscoco_train2014_annotations.json"
    annotations.write_text(annotations.read_text()[:-20])
    with pytest.raises(ValueError, match=r"annotations\.json' is not one JSON document \(.* line 1 column"):
        load_vqa(folder, validation_rows=1)
    annotations.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*v2_mscoco_train2014_annotations\.json'"):
        load_vqa(folder, validation_rows=1)


def test_no_rows_at_all_is_refused(folder):
    change(folder, "questions", list.clear)
    change(folder, "annotations", list.clear)
    with pytest.raises(ValueError, match="The split 'train' of 'vqa' has no rows"):
        load_vqa(**files(folder))
