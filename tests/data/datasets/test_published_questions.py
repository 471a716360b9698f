"""GQA, VQA-RAD and DAQUAR in the layouts that their authors publish, with what goes wrong in them."""

import json
import os
from pathlib import Path

import pytest

from dual_distill.data import ReadingReport, load_task


def gqa_question(image, question="Is the sky blue?", answer="yes"):
    """As the official files have it, with fields that nobody reads."""
    types = {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"}
    full = {"semantic": [], "entailed": [], "isBalanced": True, "groups": {"global": None}, "types": types}
    return full | {"imageId": image, "question": question, "answer": answer, "fullAnswer": "Yes, it is."}


@pytest.fixture
def gqa(tmp_path, png):
    (tmp_path / "images").mkdir()
    for name in ("2405722", "n161313"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(png())
    for part in ("train", "val", "testdev"):
        questions = {"05515938": gqa_question("2405722"), f"{part}1": gqa_question("n161313", "How tall?", "tall")}
        (tmp_path / f"{part}_balanced_questions.json").write_text(json.dumps(questions))
    return tmp_path


def test_gqa(gqa):
    data = load_task("gqa", gqa)
    assert data.num_rows == {"train": 2, "validation": 2, "test": 2}
    row = data["train"][0]
    assert row.pop("image")["path"] == str(gqa / "images" / "2405722.jpg")
    assert row == {
        "question": "Is the sky blue?", "answer": "yes", "question_type": "verify", "question_id": "05515938",
        "image_id": "2405722",
    }  # fmt: skip


def test_gqas_questions_for_its_server_have_no_answers(gqa):
    questions = {"201": {"imageId": "n161313", "question": "What is it?", "isBalanced": True}}
    (gqa / "submission_all_questions.json").write_text(json.dumps(questions))
    data = load_task("gqa", gqa, test_questions=gqa / "submission_all_questions.json")
    assert (data["test"]["question_id"][:], data["test"]["answer"][:]) == (["201"], [None])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (gqa_question("7"), r"question x1: the image is missing: .*images' holds no 7;"),
        (gqa_question("n161313", question=" "), "question x1: question is empty"),
        (gqa_question("n161313", answer=3), "question x1: answer is 3, but expected is a text"),
        ("what?", r"question x1: the question is 'what\?', but expected is an object"),
    ],
)
def test_a_bad_question_of_gqa_is_named_or_skipped(gqa, record, message):
    file = gqa / "train_balanced_questions.json"
    file.write_text(json.dumps({"good": gqa_question("n161313"), "x1": record}))
    with pytest.raises(ValueError, match=rf"train_balanced_questions\.json, {message}"):
        load_task("gqa", gqa)
    report = ReadingReport()
    assert load_task("gqa", gqa, skip_bad=True, report=report)["train"]["question_id"][:] == ["good"]
    assert sum(map(len, report.bad.values())) == 1
    file.write_text("[]")
    with pytest.raises(ValueError, match="is a list, but expected is one object of questions by id"):
        load_task("gqa", gqa)


@pytest.fixture
def rad(tmp_path, png):
    """Eight freeform questions about four images, paraphrases, and two of test."""
    (tmp_path / "VQA_RAD Image Folder").mkdir()
    records = []
    for number in range(10):
        name = f"synpic{number % 4}.jpg"
        (tmp_path / "VQA_RAD Image Folder" / name).write_bytes(png())
        phrase = "test_freeform" if number == 8 else "test_para" if number == 9 else ["freeform", "para"][number % 2]
        answer = ["Yes", "yes ", "No", "no", 3, "3", "left", "Left", "YES", "pons"][number]
        records.append({
            "qid": str(number), "phrase_type": phrase, "image_name": name, "question": f"Is it {number}?",
            "answer": answer, "answer_type": "CLOSED", "image_organ": "HEAD",
        })  # fmt: skip
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(records))
    return tmp_path


def test_vqa_rad(rad):
    report = ReadingReport()
    data = load_task("vqa_rad", rad, validation_share=0.25, report=report)
    assert data.num_rows == {"train": 6, "validation": 2, "test": 2}
    assert {*data["train"]["answer"], *data["validation"]["answer"]} == {"Yes", "No", "3", "left"}
    assert data["test"]["answer"][:] == ["Yes", "pons"]
    assert data["test"]["question_id"][:] == ["8", "9"]
    assert data["test"][0]["image"]["path"] == str(rad / "VQA_RAD Image Folder" / "synpic0.jpg")
    paths = [{image["path"] for image in data[split]["image"]} for split in ("train", "validation")]
    assert (len(paths[1]), paths[0] & paths[1]) == (1, set())
    (rad / "VQA_RAD Image Folder" / "synpic1.jpg").unlink()
    with pytest.raises(ValueError, match=r"Public\.json, record 2: the image is missing"):
        load_task("vqa_rad", rad)


@pytest.fixture
def daquar(tmp_path, png):
    (tmp_path / "nyu_depth_images").mkdir()
    for number in range(1, 5):
        (tmp_path / "nyu_depth_images" / f"image{number}.png").write_bytes(png())
    lines = ["what is on the right side of the table in the image3 ?", "chair", "how many doors in the image4 ?", "2"]
    lines += ["what is in front of the wall divider in the image1 ?", "knife, spoon"]
    (tmp_path / "qa.894.raw.train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "qa.894.raw.test.txt").write_text("what colour is it in the image2 ?\nred\n")
    return tmp_path


def test_daquar(daquar):
    data = load_task("daquar", daquar, validation_share=0.34)
    rows = sorted((*data["train"], *data["validation"]), key=lambda row: row["image"]["path"])
    assert [Path(row["image"]["path"]).name for row in rows] == ["image1.png", "image3.png", "image4.png"]
    assert rows[0]["question"] == "what is in front of the wall divider ?"
    assert [row["answer"] for row in rows] == ["knife, spoon", "chair", "2"]
    assert data["test"][0]["question"] == "what colour is it ?"
    (daquar / "qa.894.raw.test.txt").write_text("what colour is it ?\nred\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 1: the question names no image: 'what colour is it \?'"):
        load_task("daquar", daquar)
    (daquar / "qa.894.raw.test.txt").write_text("what colour is it in the image2 ?\n")
    with pytest.raises(ValueError, match=r"test\.txt, line 1: answer is empty"):
        load_task("daquar", daquar)


def test_daquar_of_real_photographs():
    folder = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[4] / "shared" / "data") / "daquar"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder} (or set DUAL_DISTILL_DATA to the folder that holds daquar)")
    data = load_task("daquar", folder)
    assert data["test"].num_rows == 5_673
    assert data["train"].num_rows + data["validation"].num_rows == 6_795
    assert not {*data["train"]["image_id"]} & {*data["validation"]["image_id"]}
