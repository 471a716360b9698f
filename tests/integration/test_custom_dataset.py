"""A custom dataset through its recipes: CSV, JSON lines, Parquet and a folder of images, answers and classes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoConfig

RECIPES = Path(__file__).parents[2] / "recipes"
COLUMNS = ("--image_column", "photo", "--text_column", "question", "--label_column", "colour")


@pytest.fixture(scope="module")
def tables(picture: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """The same 24 rows about 12 pictures in four formats, each with the options that name its columns."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number in range(24):
        colour = ("red", "blue")[number // 2 % 2]
        file = folder / "photos" / f"{number // 2}.png"
        picture(file, colour)
        # No two alike: equal images of a table are held out together.
        with Image.open(file) as drawn:
            drawn.load()
        drawn.putpixel((0, 0), (number // 2, 0, 0))
        drawn.save(file)
        rows.append({"photo": f"photos/{file.name}", "question": "what color is it?", "colour": colour})
    with (folder / "shop.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = [{"bytes": (folder / row["photo"]).read_bytes(), "path": None} for row in rows]
    columns = {"photo": pictures, **{name: [row[name] for row in rows] for name in ("question", "colour")}}
    pq.write_table(pa.table(columns), folder / "shop.parquet")
    metadata = [
        {"file_name": Path(row["photo"]).name, "question": row["question"], "colour": row["colour"]} for row in rows
    ]
    (folder / "photos" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metadata))
    image_folder = ("--image_column", "image", *COLUMNS[2:])
    return {
        "csv": (folder / "shop.csv", COLUMNS),
        "jsonl": (folder / "shop.jsonl", COLUMNS),
        "parquet": (folder / "shop.parquet", COLUMNS),
        "image_folder": (folder / "photos", image_folder),
    }


def train(dual_distill: Callable, role: str, *words: object) -> dict:
    printed = dual_distill("train", RECIPES / "custom.yaml", "--role", role, *words, "--json")
    assert printed.code == 0, printed.err
    return json.loads(printed.out)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "image_folder"])
def test_a_table_becomes_a_teacher_and_a_student_with_its_answers(
    kind: str, tables: dict, vilts: dict, tiny_training: list[str], dual_distill: Callable, tmp_path: Path
) -> None:
    data, columns = tables[kind]
    words = ["--data", data, *columns, *tiny_training]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    results = train(dual_distill, "teacher", *words, "--init_from", vilts["mlm"], "--output_dir", teacher)
    assert results["steps"] == 2
    starts = ["--init_from", teacher, "--teacher", teacher, "--max_train_rows", "20"]
    results = train(dual_distill, "distilled", *words, *starts, "--output_dir", student)
    assert results["eval_attention_loss"] > 0
    assert set(AutoConfig.from_pretrained(student).id2label.values()) == {"red", "blue"}

    names = [word.replace("_column", "-column") for word in map(str, columns)]
    printed = dual_distill(
        *("evaluate", student, "--task", "custom", "--data", data, *names),
        *("--split", "validation", "--json", "--device", "cpu", "--no-baselines"),
    )
    assert printed.code == 0, printed.err
    report = json.loads(printed.out)
    assert report["rows"] == 2  # a tenth of 24
    assert report["accuracy"] == results["eval_accuracy"]
    # By which an evaluation of another file is told from one of the run's own, whatever part of it was used.
    known = json.loads((student / "run.json").read_text())["data"]
    assert (report["data"], known["rows"]["train"]) == (known["content"], 20)

    image = next(tables["csv"][0].parent.glob("photos/*.png"))
    printed = dual_distill("predict", student, "--image", image, "what color is it?", "--json", "--device", "cpu")
    assert printed.code == 0, printed.err
    [prediction] = json.loads(printed.out)["predictions"]
    assert {answer["answer"] for answer in prediction["answers"]} == {"red", "blue"}
    assert sum(answer["score"] for answer in prediction["answers"]) == pytest.approx(1)


def test_classes_over_two_pictures(
    picture: Callable, vilts: dict, tiny_training: list[str], dual_distill: Callable, tmp_path: Path
) -> None:
    """Two image columns and whole numbers as classes: the head has them in order, the checkpoint reads two pictures."""
    for colour in ("red", "blue"):
        picture(tmp_path / f"{colour}.png", colour)
    lines = [
        f"{('red', 'blue')[n % 2]}.png,{('red', 'blue')[n // 2 % 2]}.png,both images show a shape,{n % 4}"
        for n in range(16)
    ]
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["left,right,text,score", *lines]))
    words = [
        "--data",
        tmp_path,
        "--head",
        "images_and_text_classification",
        "--text_column",
        "text",
        "--label_column",
        "score",
    ]
    words += ["--image_column", "left", "right", *tiny_training]
    results = train(dual_distill, "teacher", *words, "--init_from", vilts["mlm"], "--output_dir", tmp_path / "teacher")
    assert results["steps"] == 2
    config = AutoConfig.from_pretrained(tmp_path / "teacher")
    assert (config.id2label, config.num_images) == ({0: "0", 1: "1", 2: "2", 3: "3"}, 2)
    assert config.architectures == ["FusionEncoderForImagesAndTextClassification"]

    one_picture = [*words, "--image_column", "left", "--init_from", tmp_path / "teacher", "--new_head", "false"]
    printed = dual_distill("train", RECIPES / "custom.yaml", "--role", "teacher", *one_picture, "--dry-run")
    assert printed.code == 2
    assert "a row of the data has 1 images (left), but the model reads 2" in printed.err


def test_several_answers_a_question_are_soft_labels(
    picture: Callable, vilts: dict, tiny_training: list[str], dual_distill: Callable, tmp_path: Path
) -> None:
    """Three people answered: soft scores in training, and no official score, which needs four."""
    picture(tmp_path / "a.png", "red")
    row = {"photo": "a.png", "question": "what color is it?", "people": ["red", "red", "blue"]}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    words = ["--data", tmp_path, "--image_column", "photo", "--label_column", "most", "--answers_column", "people"]
    words += [
        "--init_from",
        vilts["mlm"],
        "--output_dir",
        tmp_path / "teacher",
        "--min_answer_count",
        "8",
        *tiny_training,
    ]
    results = train(dual_distill, "teacher", *words)
    assert results["eval_soft_accuracy"] == pytest.approx(0.6)  # the one class: red, said by two
    config = AutoConfig.from_pretrained(tmp_path / "teacher")
    assert (config.problem_type, config.id2label) == ("multi_label_classification", {0: "red"})
    printed = dual_distill(
        *("evaluate", tmp_path / "teacher", "--task", "custom", "--data", tmp_path, "--image-column", "photo"),
        *("--label-column", "most", "--answers-column", "people", "--split", "validation", "--json", "--device", "cpu"),
    )
    assert printed.code == 0, printed.err
    report = json.loads(printed.out)
    assert (report["vqa_score"], report["accuracy"]) == (None, 1.0)


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one(
    tables: dict, vilts: dict, tiny_training: list[str], dual_distill: Callable, check_resume: Callable, tmp_path: Path
) -> None:
    data, columns = tables["csv"]
    words = ["--data", data, *columns, *tiny_training]
    teacher = tmp_path / "teacher"
    train(dual_distill, "teacher", *words, "--init_from", vilts["mlm"], "--output_dir", teacher)
    starts = ["--init_from", teacher, "--teacher", teacher]
    check_resume([str(RECIPES / "custom.yaml"), "--role", "distilled", *words, *starts])
