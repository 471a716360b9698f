import dataclasses
import importlib

import pytest
from datasets import Image

from dual_distill.data import TASKS, DistillationCollator, build_answer_vocabulary, get_task, load_task, scene_answers


def test_tasks_are_data_that_cannot_be_changed():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["nlvr"].text_column = "question"
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["nlvr"]


def test_scenes_load_undecoded_with_the_columns_of_their_task():
    data = load_task("scenes", num_scenes={"train": 2, "validation": 1, "test": 1}, seed=4)
    task = TASKS["scenes"]
    assert list(data) == ["train", "validation", "test"]
    assert data["train"].features["image"] == Image(decode=False)
    assert data["train"][0]["image"]["bytes"].startswith(b"\x89PNG")
    assert {*task.image_columns, task.text_column, task.label_column, task.group_column} <= set(
        data["test"].column_names
    )


@pytest.mark.parametrize(
    ("name", "folder", "rows"),
    [
        ("easy_vqa", "easy_vqa", {"train": 34_743, "validation": 3_832, "test": 9_673}),
        ("nlvr", "nlvr1", {"train": 69_744, "validation": 4_704, "dev": 5_934, "test": 5_940}),
    ],
)
def test_real_data_loads_with_the_columns_of_its_task(name, folder, rows, data_folder):
    data = load_task(name, data_folder(folder))
    task = TASKS[name]
    assert data.num_rows == rows
    columns = {*task.image_columns, task.text_column, task.label_column, task.consistency_column} - {None}
    assert columns <= set(data["train"].column_names)
    names = task.label_names or build_answer_vocabulary(data["train"], task.label_column)
    assert set(data["test"].unique(task.label_column)) <= set(names)
    assert DistillationCollator(None, task, names).label_names == tuple(names)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "nlvr1",
            {},
            r"There is no task 'nlvr1'; did you mean 'nlvr2?'\? Known are: coco_captioning, coco_retrieval, custom",
        ),
        ("Scene", {}, "There is no task 'Scene'; did you mean 'scenes'"),
        ("cifar", {}, r"There is no task 'cifar'\. Known are"),
        ("nlvr", {}, r"Give path= .data= of a recipe., a folder that holds train/train\.json, train/images/"),
        ("easy_vqa", {}, "Give path= .data= of a recipe., a folder that holds images.parquet .image, image_id, split."),
        ("scenes", {"path": "x"}, "Task 'scenes' has no option 'path'. Known are: cell_px, "),
        ("scenes", {"cels": 4}, "Task 'scenes' has no option 'cels'; did you mean 'cells'"),
        ("vqa", {}, "Give path= .data= of a recipe., a folder that holds v2_OpenEnded"),
        ("nlvr2", {}, r"Give path= .data= of a recipe., a folder that holds train\.json"),
        ("vqa", {"path": "x", "question": "y"}, "Task 'vqa' has no option 'question'; did you mean 'questions'"),
    ],
)
def test_each_error_by_its_message(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, **arguments)


def test_a_task_by_its_name():
    assert get_task("nlvr") is TASKS["nlvr"]


@pytest.mark.parametrize("name", TASKS)
def test_each_task_names_a_reader_that_is_there(name):
    module, _, function = TASKS[name].reader.partition(":")
    module = importlib.import_module(f"dual_distill.data.datasets.{module}")
    assert callable(getattr(module, function))


def test_the_labels_of_the_scenes_are_their_answers():
    assert list(TASKS["scenes"].label_names) == scene_answers()


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "snli_ve", "coco_retrieval"])
def test_a_folder_that_is_not_there_is_named_with_what_it_should_hold(name):
    with pytest.raises(FileNotFoundError, match="There is no folder 'nowhere'; it should hold "):
        load_task(name, "nowhere")
