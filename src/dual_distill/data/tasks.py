"""Tasks as data: which columns hold images, text and label, which head answers, and which function reads the files.

A new data set is a module in `datasets/` and an entry in the table below, which names its reader and imports nothing.
A custom dataset needs neither: `load_custom_dataset` builds its `Task` itself. Images stay undecoded: decoding happens
in the collator, through the one safe decoder that names the row when it fails.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, get_args

from datasets import DatasetDict, Image


@dataclass(frozen=True)
class Task:
    """How a row of a data set becomes text, images and a label.

    Args:
        name: the name under which `TASKS` holds it.
        head: which model head answers: one label out of an answer vocabulary, one class for text and N images, how
            well text and image belong together, or a caption that is written.
        image_columns: one column an image, in the order in which the model sees them.
        text_column: question or sentence.
        label_column: the answer as a string; None where text and image belong together and nothing is answered.
        label_names: the classes in the order of the logits; None where the vocabulary is built from the training
            answers.
        group_column: column by which accuracy is split in reports, or None.
        consistency_column: column that is equal for all rows of one sentence, or None; see `evaluation.Consistency`.
        answers_column: column of lists, what several people answered (normalised), or None. Where it is set, the labels
            of a batch are `vqa_answers.soft_scores` instead of one class; `label_column` holds the most common of them.
        given_answers_column: column of lists, the same answers as the annotation file has them, against which the
            official VQA score is computed; None: `answers_column`.
        min_answer_count: fewest training rows with an answer that becomes a class, where `label_names` is None.
        image_id_column: column that is equal for all rows of one image, by which its captions are found, or None.
        reader: "module:function" in `data.datasets`, imported when `load_task` needs it; None: read elsewhere. A reader
            of files takes `path`; a generator takes none.
        submission_keys: what the data set's server calls a question's id and its answer; None: there is no server.
        fixed_labels: a label that is none of `label_names` is an error; False: it is an answer that counts as wrong.

    Example:
        >>> TASKS["scenes"].text_column, TASKS["nlvr"].label_names
        ('question', ('false', 'true'))
    """

    name: str
    head: str
    image_columns: tuple[str, ...]
    text_column: str
    label_column: str | None = None
    label_names: tuple[str, ...] | None = None
    group_column: str | None = None
    consistency_column: str | None = None
    answers_column: str | None = None
    given_answers_column: str | None = None
    min_answer_count: int = 1
    image_id_column: str | None = None
    reader: str | None = None
    fixed_labels: bool = False
    submission_keys: tuple[str, str] | None = None


_ONE: dict[str, Any] = {"image_columns": ("image",)}
_QUESTIONS = _ONE | {"head": "question_answering", "text_column": "question", "label_column": "answer"}
_SENTENCES = _ONE | {"text_column": "sentence", "label_column": "label"}
_SENTENCES |= {"head": "images_and_text_classification", "fixed_labels": True}
_TRUTH = _SENTENCES | {"consistency_column": "sentence_id", "submission_keys": ("identifier", "prediction")}
_TRUTH_OF_TWO = _TRUTH | {"image_columns": ("image_0", "image_1")}
_CAPTIONS = _ONE | {"text_column": "caption"}
_COCO = _CAPTIONS | {"image_id_column": "image_id", "reader": "captions:load_captions"}
_SCENE_ANSWERS = (*"0123456", "blue", "circle", "green", "no", "red", "square", "triangle", "yellow", "yes")
_SCENES: dict[str, Any] = {"label_names": _SCENE_ANSWERS, "group_column": "question_type"}
_TEN_ANSWERS: dict[str, Any] = {"answers_column": "answers", "given_answers_column": "answers_as_given"}
_TEN_ANSWERS |= {"submission_keys": ("question_id", "answer")}
_GQA: dict[str, Any] = {"submission_keys": ("questionId", "prediction")}
_SNLI_VE_LABELS = ("contradiction", "entailment", "neutral")

_TABLE = (
    Task("scenes", **_QUESTIONS, **_SCENES, reader="scenes:generate_scenes"),
    Task("easy_vqa", **_QUESTIONS, reader="easy_vqa:load_easy_vqa"),
    Task("vqa", **_QUESTIONS, **_TEN_ANSWERS, group_column="answer_type", min_answer_count=9, reader="vqa_v2:load_vqa"),
    Task("gqa", **_QUESTIONS, **_GQA, group_column="question_type", reader="published_questions:load_gqa"),
    Task("vqa_rad", **_QUESTIONS, reader="published_questions:load_vqa_rad"),
    Task("daquar", **_QUESTIONS, reader="published_questions:load_daquar"),
    Task("nlvr", **_TRUTH, label_names=("false", "true"), reader="nlvr:load_nlvr"),
    Task("nlvr2", **_TRUTH_OF_TWO, label_names=("False", "True"), reader="nlvr:load_nlvr2"),
    Task("snli_ve", **_SENTENCES, label_names=_SNLI_VE_LABELS, group_column="label", reader="snli_ve:load_snli_ve"),
    Task("coco_retrieval", head="image_text_retrieval", **_COCO),
    Task("image_text", head="image_text_retrieval", **_CAPTIONS, reader="image_text:load_image_text"),
    Task("coco_captioning", head="captioning", **_COCO),
)
# Every task by its name.
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _TABLE})


def get_task(name: str) -> Task:
    """The task of a name.

    Args:
        name: one of `TASKS`.

    Returns:
        The task.

    Raises:
        ValueError: there is no such task; the message offers the nearest, and names all.

    Example:
        >>> get_task("easyvqa")
        Traceback (most recent call last):
        ValueError: There is no task 'easyvqa'; did you mean 'easy_vqa'? Known are: coco_captioning, coco_retrieval, ...
    """
    if name == "custom":
        raise ValueError("A custom dataset is read by `load_custom_dataset`, or by a recipe with `task: custom`.")
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}{nearest_name(name, [*TASKS, 'custom'])}")
    return TASKS[name]


def load_task(name: str, path: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """The data of a task, with the splits train, validation and test (and dev, where the task has one).

    `load_task("vqa", questions=..., annotations=..., images=...)` reads files by their names; `load_task("vqa", path)`
    a folder in which they have their official names. A custom dataset is read by `load_custom_dataset`.

    Args:
        name: one of `TASKS`.
        path: the folder with the files of the data set; None for a task that is generated (scenes), or whose files are
            named in the options.
        **options: keywords of the task's generator or reader, such as `generate_scenes`, `load_vqa`, `load_captions`.

    Returns:
        A `DatasetDict` whose image columns are undecoded: `{"bytes": ..., "path": ...}`; of task image_text a dict
        with an `ImageTextStream`.

    Raises:
        ValueError: unknown name or option (`path` where the task is generated), `path` missing, or a file that lacks a
            column or holds a bad record; the message names file and line.
        FileNotFoundError: `path` does not hold the expected files.

    Example:
        >>> load_task("scenes", num_scenes={"train": 1})["train"].num_rows
        6
    """
    task = get_task(name)
    module, _, function = str(task.reader).partition(":")
    read = getattr(import_module(f"dual_distill.data.datasets.{module}"), function)

    # A generator has no path.
    options |= {} if path is None else {"path": path}
    check_options(name, read, options)
    data = read(**options)
    if not isinstance(data, DatasetDict):  # a stream and the rows held out of it
        return data
    for column in task.image_columns:
        data = data.cast_column(column, Image(decode=False))
    return data


def check_options(name: str, read: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse options that the signature of a task's reader does not name."""
    known: dict[str, Any] = dict(inspect.signature(read).parameters)
    if reading := known.pop("reading", None):
        known |= get_args(reading.annotation)[0].__annotations__
    for option in options:
        if option not in known:
            raise ValueError(f"Task {name!r} has no option {option!r}{nearest_name(option, list(known))}")


def nearest_name(given: str, known: list[str]) -> str:
    """The end of a sentence about a name that does not exist: the nearest that does, and all of them.

    Args:
        given: the name.
        known: those that exist.

    Returns:
        The end of the sentence, with its full stop.

    Example:
        >>> nearest_name("seeds", ["seed", "path"])
        "; did you mean 'seed'? Known are: path, seed."
    """
    nearest = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"{hint} Known are: {', '.join(sorted(known))}."
