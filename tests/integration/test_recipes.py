"""Every recipe, run through the command on tiny data in the official format, from tiny ViLTs of transformers.

Of each run: the checkpoint loads tensor by tensor through the Auto class, the pipeline and `predict` answer with it,
and `evaluate` prints what its task is judged by.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForVisualQuestionAnswering, pipeline

from dual_distill.cli.recipe_parser import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ANSWERS = {"no", "yes", "red", "blue"}
HELD_OUT = {"vqa": {"validation_rows": 20}, "easy_vqa": {"validation_images": 4}, "nlvr": {"validation_rows": 6}}
# "recipe/role" -> what replaces the checkpoints that it names: a ViLT of that name, or the run of another role.
STARTS = {
    "vqa_v2/teacher": {"init_from": "mlm"},
    "vqa_v2/hard_labels": {"init_from": "mlm"},
    "vqa_v2/distilled": {"init_from": "mlm", "teacher": "vqa"},
    "nlvr2/teacher": {"init_from": "mlm"},
    "nlvr2/hard_labels": {"init_from": "mlm"},
    "nlvr2/distilled": {"init_from": "mlm", "teacher": "nlvr2"},
    "snli_ve/teacher": {"init_from": "mlm"},
    "snli_ve/hard_labels": {"init_from": "mlm"},
    "snli_ve/distilled": {"init_from": "mlm", "teacher": "snli_ve/teacher"},
    "easy_vqa/teacher": {},
    "easy_vqa/hard_labels": {"init_from": "easy_vqa/teacher"},
    "easy_vqa/soft_labels": {"init_from": "easy_vqa/teacher", "teacher": "easy_vqa/teacher"},
    "easy_vqa/distilled": {"init_from": "easy_vqa/teacher", "teacher": "easy_vqa/teacher"},
    "nlvr/teacher": {},
    "nlvr/hard_labels": {"init_from": "nlvr/teacher"},
    "nlvr/soft_labels": {"init_from": "nlvr/teacher", "teacher": "nlvr/teacher"},
    "nlvr/distilled": {"init_from": "nlvr/teacher", "teacher": "nlvr/teacher"},
}
STUDENTS = ("teacher", "hard_labels", "distilled")
CUSTOM = {"custom/teacher", "custom/distilled"}  # tested in test_custom_dataset.py
IMAGE_TEXT = {  # tested in test_pair_recipes.py
    *(f"{recipe}/{role}" for recipe in ("pretrain", "retrieval") for role in ("teacher", "distilled")),
    *(f"{recipe}/{role}" for recipe in ("pretrain_scenes", "retrieval_scenes") for role in STUDENTS),
    *(f"{recipe}/{role}" for recipe in ("scenes", "scene_statements") for role in STUDENTS),
}
REGIONS = {  # tested in test_region_recipes.py
    *(
        f"{recipe}/{role}"
        for recipe in ("scenes_regions", "scene_captioning_regions", "vqa_v2_regions", "coco_captions")
        for role in ("adapted", *STUDENTS)
    ),
    *("coco_captions/self_critical", "coco_captions/patches"),
}


@pytest.fixture(scope="module")
def words_of(
    files: Callable, vilts: dict, tiny_training: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable:
    """The words after `dual-distill train` for a recipe; runs that it starts from are made on the way."""
    root = tmp_path_factory.mktemp("runs")

    def words(name: str, trained: Callable) -> list[str]:
        recipe, role = name.split("/")
        task = read_recipe(RECIPES / f"{recipe}.yaml", role)["task"]
        starts = [[f"--{field}", vilts.get(start) or trained(start)[0]] for field, start in STARTS[name].items()]
        options = HELD_OUT.get(task, {})
        pairs = [
            *starts,
            ["--data", files(task)],
            ["--data_options", json.dumps(options)],
            ["--output_dir", root / name],
        ]
        return [
            str(RECIPES / f"{recipe}.yaml"),
            "--role",
            role,
            *(str(word) for pair in pairs for word in pair),
            *tiny_training,
        ]

    return words


@pytest.fixture(scope="module")
def trained(words_of: Callable, dual_distill: Callable) -> Callable[[str], tuple[str, dict]]:
    """The folder and the printed results of a recipe, which is run once."""
    done: dict[str, tuple[str, dict]] = {}

    def run(name: str) -> tuple[str, dict]:
        if name not in done:
            printed = dual_distill("train", *words_of(name, run), "--json")
            assert printed.code == 0, printed.err
            results = json.loads(printed.out)
            done[name] = results["output_dir"], results
        return done[name]

    return run


def test_every_recipe_is_run() -> None:
    found = {
        f"{file.stem}/{role}" for file in RECIPES.glob("*.yaml") for role in yaml.safe_load(file.read_text())["roles"]
    }
    assert found == {*STARTS, *CUSTOM, *IMAGE_TEXT, *REGIONS}
    # Each file has the role whose run is resumed.
    assert {f"{file.stem}/distilled" for file in RECIPES.glob("*.yaml")} <= found


def test_every_recipe_opens_with_its_commands_and_whether_it_was_run() -> None:
    for file in RECIPES.glob("*.yaml"):
        head = file.read_text().partition("\nbase:")[0]
        for role in yaml.safe_load(file.read_text())["roles"]:
            assert re.search(rf"train recipes/{file.stem}.yaml --role {role}\b", head), (file.name, role)
        assert re.search("^# (Needs|Not run|The teacher was not run|One thread)", head, re.MULTILINE), file.name
        assert re.search("Not run by us|not run in this form|One thread", head), file.name


@pytest.mark.parametrize("name", STARTS)
def test_a_recipe_runs_and_its_model_loads(name: str, trained: Callable) -> None:
    folder, results = trained(name)
    assert results["steps"] == 2
    metric = "eval_soft_accuracy" if name.startswith("vqa_v2") else "eval_accuracy"
    assert 0 <= results[metric] <= 1
    if name.endswith("distilled"):
        assert results["eval_attention_loss"] > 0
    assert ("eval_soft_label_loss" in results) == ("teacher" in STARTS[name])
    is_answering = name.startswith(("vqa_v2", "easy_vqa"))
    auto = AutoModelForVisualQuestionAnswering if is_answering else AutoModelForSequenceClassification
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    is_fusion = name.endswith("teacher")
    assert type(model).__name__.startswith("Fusion" if is_fusion else "Dual")
    saved = load_file(Path(folder, "model.safetensors"))
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in model.state_dict().items())
    assert not [file.name for file in Path(folder).iterdir() if file.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize(
    ("name", "labels", "images"),
    [
        (
            "vqa_v2/teacher",
            ["blue", "no", "red", "yes"],
            1,
        ),  # those with 9 or more occurrences, by number, then alphabet
        ("vqa_v2/distilled", ["no", "dog", "yes", "blue", "red"], 1),  # the teacher's, in its order
        ("nlvr2/distilled", ["False", "True"], 2),
        ("snli_ve/distilled", ["contradiction", "entailment", "neutral"], 1),
    ],
)
def test_the_pipeline_and_predict_answer(
    name: str, labels: list[str], images: int, trained: Callable, files: Callable, dual_distill: Callable
) -> None:
    folder, _ = trained(name)
    config = json.loads(Path(folder, "config.json").read_text())
    found = [config["id2label"][str(place)] for place in range(len(labels))]
    assert (sorted(found), found) == (sorted(labels), found if name == "vqa_v2/teacher" else labels)
    text = "is it red?" if name.startswith("vqa") else "both images show a red shape."
    pictures = sorted(files("vqa").glob("val2014/*.jpg"))[:images]
    answer = pipeline("dual-visual-question-answering", model=folder, device="cpu")
    answers = answer([str(file) for file in pictures], text, top_k=len(labels))
    assert {one["answer"] for one in answers} == set(labels)
    total = sum(one["score"] for one in answers)
    # One sigmoid an answer, or one softmax over the classes.
    assert (total == pytest.approx(1)) != name.startswith("vqa")
    printed = dual_distill(
        "predict", folder, *(word for file in pictures for word in ("--image", file)), text, "--json", "--device", "cpu"
    )
    assert printed.code == 0, printed.err
    [prediction] = json.loads(printed.out)["predictions"]
    assert [one["answer"] for one in prediction["answers"]] == [one["answer"] for one in answers]
    assert [one["score"] for one in prediction["answers"]] == pytest.approx([one["score"] for one in answers], abs=1e-5)


def test_vqa_is_evaluated_by_the_official_score_and_a_submission_is_written(
    trained: Callable, files: Callable, dual_distill: Callable, tmp_path: Path
) -> None:
    """By hand: eight of ten people agree, two say Teal; so an answer scores 1, 0.6 for teal, or 0."""
    folder, _ = trained("vqa_v2/distilled")
    data, file = files("vqa"), tmp_path / "sub" / "answers.json"
    options = {"validation_rows": 20, "test_questions": str(data / "v2_OpenEnded_mscoco_test2015_questions.json")}
    words = (
        "evaluate",
        folder,
        "--task",
        "vqa",
        "--data",
        data,
        "--data-options",
        json.dumps(options),
        "--device",
        "cpu",
    )
    written = tmp_path / "rows.jsonl"
    also = ["--submission", file, "--predictions", written, "--top-k", "2"]
    printed = dual_distill(*words, "--split", "validation", *also, "--json")
    assert printed.code == 0, printed.err
    report = json.loads(printed.out)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert sum(row["vqa_score"] for row in rows) / 20 == pytest.approx(report["vqa_score"])
    assert sum(row["right"] for row in rows) / 20 == pytest.approx(report["accuracy"])
    assert all(len(row["top_k"]) == 2 and row["top_k"][0]["answer"] == row["prediction"] for row in rows)
    submitted = json.loads(file.read_text())
    assert submitted == [{"question_id": row["question_id"], "answer": row["prediction"]} for row in rows]
    answers = {row["question_id"]: row["answer"] for row in json.loads(file.read_text())}
    people = json.loads((data / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    assert list(answers) == [entry["question_id"] for entry in people]
    right = [answers[entry["question_id"]] == entry["multiple_choice_answer"] for entry in people]
    assert report["vqa_score"] == pytest.approx(sum(right) / 20)
    assert report["accuracy"] == pytest.approx(sum(right) / 20)
    assert set(report["vqa_score_by_group"]) == {"other", "yes/no"}
    assert report["vqa_score_edition"] == "2021"
    assert 0 <= report["majority"] <= report["text_only"] <= 1

    table = dual_distill(*words, "--split", "validation", "--no-baselines").out
    assert f"VQA score (edition 2021), 20 rows  {100 * report['vqa_score']:5.1f} %" in table
    # test has no answers: nothing to hold against, everything to send in.
    printed = dual_distill(*words, "--split", "test", "--submission", tmp_path / "test.json")
    assert printed.code == 0, printed.err
    assert [row["question_id"] for row in json.loads((tmp_path / "test.json").read_text())] == [
        30000,
        30001,
        30010,
        30011,
    ]
    printed = dual_distill(*words, "--split", "test")
    assert (printed.code, printed.out) == (2, "")
    assert (
        "split 'test' has no labels to hold answers against; give --submission PATH or --predictions PATH"
        in printed.err
    )


@pytest.mark.parametrize(("task", "rows"), [("nlvr", 6), ("nlvr2", 6), ("snli_ve", 9)])
def test_classes_are_evaluated(
    task: str, rows: int, trained: Callable, files: Callable, dual_distill: Callable, tmp_path: Path
) -> None:
    folder, _ = trained(f"{task}/distilled")
    words = ["evaluate", folder, "--task", task, "--data", files(task), "--json", "--device", "cpu"]
    words += ["--data-options", json.dumps(HELD_OUT.get(task, {}))]
    if is_nlvr := task.startswith("nlvr"):
        words += ["--submission", tmp_path / "sent.csv", "--predictions", tmp_path / "rows.jsonl"]
    printed = dual_distill(*words)
    assert printed.code == 0, printed.err
    if is_nlvr:
        given = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        ids = [f"test-{row['identifier']}-{row['permutation']}.png" for row in given] if task == "nlvr" else None
        sent = [line.split(",") for line in (tmp_path / "sent.csv").read_text().splitlines()]
        assert [row[0] for row in sent] == (ids or [row["identifier"] for row in given])
        assert [row[1] for row in sent] == [row["prediction"] for row in given]
    report = json.loads(printed.out)
    assert report["rows"] == rows
    assert 0 <= report["accuracy"] <= 1
    if is_nlvr:
        assert 0 <= report["consistency"] <= report["accuracy"]
    else:
        assert set(report["accuracy_by_group"]) == {"contradiction", "entailment", "neutral"}
        assert report["accuracy"] == pytest.approx(sum(report["accuracy_by_group"].values()) / 3)
        assert "left out 3: gold_label '-'" in printed.err
    assert report["vqa_score"] is None


@pytest.mark.parametrize("name", ["vqa_v2/distilled", "nlvr2/distilled", "snli_ve/teacher"])
def test_dry_runs_say_what_the_run_does_and_write_nothing(
    name: str, words_of: Callable, trained: Callable, dual_distill: Callable, tmp_path: Path
) -> None:
    _, results = trained(name)
    words = [*words_of(name, trained), "--output_dir", tmp_path / "never"]
    printed = dual_distill("train", *words, "--dry-run", "--json")
    assert printed.code == 0, printed.err
    plan = json.loads(printed.out)
    assert plan["steps"] == results["steps"]
    assert plan["rows_per_step"] == 4
    assert plan["teacher"] == ({"vqa_v2/distilled": "FusionEncoderForQuestionAnswering"}.get(name, plan["teacher"]))
    assert (plan["teacher"] is None) == (name == "snli_ve/teacher")
    if name == "vqa_v2/distilled":
        assert plan["rows"] == {"train": 82, "validation": 20}
        assert plan["label_coverage"] == pytest.approx(0.8)  # two of ten people say Teal, which is no class
    assert not (tmp_path / "never").exists()


def test_a_recipe_in_a_process_of_its_own(words_of: Callable, trained: Callable, tmp_path: Path, command) -> None:
    """With two processes that load and augment, and half precision as the recipe has it."""
    words = words_of("vqa_v2/distilled", trained)
    words += ["--output_dir", str(tmp_path / "student"), "--dataloader_num_workers", "2", "--bf16", "true"]
    words += ["--dataloader_persistent_workers", "true"]
    done = command("train", *words)
    assert done.returncode == 0, done.stderr
    results = dict(line.split() for line in done.stdout.splitlines())
    assert results["steps"] == "2"
    assert json.loads((tmp_path / "student" / "results.json").read_text())["task"] == "vqa"
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "student")
    assert set(model.config.id2label.values()) == {*ANSWERS, "dog"}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STARTS if name.endswith("/distilled")])
def test_a_resumed_run_is_the_whole_one(
    name: str, words_of: Callable, trained: Callable, check_resume: Callable
) -> None:
    check_resume(words_of(name, trained))
