"""The data of a task by its name: the reader, or the generator, that the table of tasks names.

Images stay undecoded (`datasets.Image(decode=False)`): decoding happens in the collator, through the one safe decoder
that names the row when it fails.
"""

import inspect
import os
from importlib import import_module
from typing import Any

from datasets import DatasetDict, Image

from .tasks import get_task, nearest_name


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
        ValueError: unknown name or option, `path` missing where files are needed or given where none are, or a file
            that lacks a column or holds a bad record; the message names file and line.
        FileNotFoundError: `path` does not hold the expected files.

    Example:
        >>> load_task("scenes", num_scenes={"train": 1})["train"].num_rows
        6
    """
    task = get_task(name)
    assert task.reader is not None  # every entry of the table names one
    module_name, _, function_name = task.reader.partition(":")
    module = import_module(f"dual_distill.data.datasets.{module_name}")
    read = getattr(module, function_name)

    parameters = inspect.signature(read).parameters
    known = [parameter for parameter in parameters if parameter != "path"]
    for option in options:
        if option not in known:
            raise ValueError(f"Task {name!r} has no option {option!r}{nearest_name(option, known)}")

    if path is not None:
        if "path" not in parameters:
            raise ValueError(f"Task {name!r} is generated, not read: leave path out (it is {os.fspath(path)!r}).")
        options["path"] = path
    elif "path" in parameters and parameters["path"].default is inspect.Parameter.empty:
        raise ValueError(f"Task {name!r} is read from files: pass path=, a folder that holds {module.LAYOUT}")

    data = read(**options)
    if not isinstance(data, DatasetDict):  # a stream and the rows held out of it
        return data
    for column in task.image_columns:
        data = data.cast_column(column, Image(decode=False))
    return data
