"""Tasks as data: which columns hold images, text and label, and which head answers.

A new data set is a reader that returns a `DatasetDict` and one entry in each of the two tables below. Pictures stay
undecoded (`datasets.Image(decode=False)`): decoding happens in the collator, through the one safe decoder that names
the row when it fails.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from datasets import DatasetDict, Image

from .easy_vqa import EASY_VQA_LAYOUT, load_easy_vqa
from .nlvr import NLVR_LAYOUT, load_nlvr
from .nlvr_scenes import generate_nlvr_scenes, nlvr_scene_labels
from .scenes import generate_scenes

Head = Literal["question_answering", "images_and_text_classification"]


@dataclass(frozen=True)
class Task:
    """How a row of a data set becomes text, images and a label.

    Args:
        name: the name under which `TASKS` holds it.
        head: which model head answers: one label out of an answer vocabulary, or one class for text and N images.
        image_columns: one column an image, in the order in which the model sees them.
        text_column: question or sentence.
        label_column: the answer as a string.
        label_names: the classes in the order of the logits; None where the vocabulary is built from the training
            answers.
        group_column: column by which accuracy is split in reports, or None.
        consistency_column: column that is equal for all rows of one sentence, or None; see `metrics.consistency`.

    Example:
        >>> TASKS["scenes"].text_column, TASKS["nlvr"].label_names
        ('question', ('false', 'true'))
    """

    name: str
    head: Head
    image_columns: tuple[str, ...]
    text_column: str
    label_column: str
    label_names: tuple[str, ...] | None = None
    group_column: str | None = None
    consistency_column: str | None = None


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "scenes": Task(
            name="scenes",
            head="question_answering",
            image_columns=("image",),
            text_column="question",
            label_column="answer",
            group_column="question_type",
        ),
        "easy_vqa": Task(
            name="easy_vqa",
            head="question_answering",
            image_columns=("image",),
            text_column="question",
            label_column="answer",
        ),
        "nlvr": Task(
            name="nlvr",
            head="images_and_text_classification",
            image_columns=("image",),
            text_column="sentence",
            label_column="label",
            label_names=("false", "true"),
            consistency_column="sentence_id",
        ),
        "nlvr_scenes": Task(
            name="nlvr_scenes",
            head="images_and_text_classification",
            image_columns=("image",),
            text_column="sentence",
            label_column="label",
            label_names=tuple(nlvr_scene_labels()),
            group_column="family",
        ),
    }
)
"""Every task by its name."""

_GENERATORS: Mapping[str, Callable[..., DatasetDict]] = {"scenes": generate_scenes, "nlvr_scenes": generate_nlvr_scenes}
# name -> reader, and the sentence about the files that it expects
_READERS: Mapping[str, tuple[Callable[..., DatasetDict], str]] = {
    "easy_vqa": (load_easy_vqa, EASY_VQA_LAYOUT),
    "nlvr": (load_nlvr, NLVR_LAYOUT),
}


def load_task(name: str, path: str | os.PathLike[str] | None = None, **options: Any) -> DatasetDict:
    """The data of a task, with the splits train, validation and test (and dev, where the task has one).

    Args:
        name: one of `TASKS`.
        path: the folder with the files of the data set; None for a task that is generated (scenes).
        **options: keywords of the task's generator or reader: `generate_scenes`, `load_easy_vqa`, `load_nlvr`.

    Returns:
        A `DatasetDict` whose image columns are undecoded: `{"bytes": ..., "path": ...}`.

    Raises:
        ValueError: unknown name or option, `path` missing where files are needed or given where none are, or a file
            that lacks a column.
        FileNotFoundError: `path` does not hold the expected files.

    Example:
        >>> load_task("scenes", num_scenes={"train": 1})["train"].num_rows
        6
    """
    task = get_task(name)
    load = _GENERATORS[name] if name in _GENERATORS else _READERS[name][0]
    known = [parameter for parameter in inspect.signature(load).parameters if parameter != "path"]
    for option in options:
        if option not in known:
            raise ValueError(f"Task {name!r} has no option {option!r}{_suggestion(option, known)}")
    if name in _READERS:
        if path is None:
            raise ValueError(f"Task {name!r} is read from files: pass path=, a folder that holds {_READERS[name][1]}")
        data = load(path, **options)
    else:
        if path is not None:
            raise ValueError(f"Task {name!r} is generated, not read: leave path out (it is {os.fspath(path)!r}).")
        data = load(**options)
    for column in task.image_columns:
        data = data.cast_column(column, Image(decode=False))
    return data


def get_task(name: str) -> Task:
    """The task of a name.

    Args:
        name: one of `TASKS`.

    Returns:
        The task.

    Raises:
        ValueError: there is no such task; the message offers the nearest name.

    Example:
        >>> get_task("easyvqa")
        Traceback (most recent call last):
        ValueError: There is no task 'easyvqa'; did you mean 'easy_vqa'? Known are: easy_vqa, nlvr, nlvr_scenes, scenes.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}{_suggestion(name, list(TASKS))}")
    return TASKS[name]


def _suggestion(given: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"{hint} Known are: {', '.join(sorted(known))}."
