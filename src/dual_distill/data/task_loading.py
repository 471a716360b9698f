"""The data of a task by its name: a generator, or a reader of the official files.

Pictures stay undecoded (`datasets.Image(decode=False)`): decoding happens in the collator, through the one safe decoder
that names the row when it fails.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from datasets import DatasetDict, Image

from dual_distill.data.datasets.captions import CAPTIONS_LAYOUT, load_captions
from dual_distill.data.datasets.easy_vqa import EASY_VQA_LAYOUT, load_easy_vqa
from dual_distill.data.datasets.nlvr import NLVR_LAYOUT, load_nlvr
from dual_distill.data.datasets.nlvr2 import NLVR2_LAYOUT, load_nlvr2
from dual_distill.data.datasets.nlvr_scenes import generate_nlvr_scenes
from dual_distill.data.datasets.scene_captions import generate_scene_captions
from dual_distill.data.datasets.scene_statements import generate_scene_statements
from dual_distill.data.datasets.scenes import generate_scenes
from dual_distill.data.datasets.snli_ve import SNLI_VE_LAYOUT, load_snli_ve
from dual_distill.data.datasets.vqa_v2 import VQA_LAYOUT, load_vqa

from .tasks import get_task, nearest_name

_GENERATORS: Mapping[str, Callable[..., DatasetDict]] = {
    "scenes": generate_scenes,
    "nlvr_scenes": generate_nlvr_scenes,
    "scene_captions": generate_scene_captions,
    "scene_captioning": generate_scene_captions,
    "scene_statements": generate_scene_statements,
}
# name -> reader, and the sentence about the files that it expects
_READERS: Mapping[str, tuple[Callable[..., DatasetDict], str]] = {
    "easy_vqa": (load_easy_vqa, EASY_VQA_LAYOUT),
    "nlvr": (load_nlvr, NLVR_LAYOUT),
    "vqa": (load_vqa, VQA_LAYOUT),
    "nlvr2": (load_nlvr2, NLVR2_LAYOUT),
    "snli_ve": (load_snli_ve, SNLI_VE_LAYOUT),
    "captions": (load_captions, CAPTIONS_LAYOUT),
    "captioning": (load_captions, CAPTIONS_LAYOUT),
}


def load_task(name: str, path: str | os.PathLike[str] | None = None, **options: Any) -> DatasetDict:
    """The data of a task, with the splits train, validation and test (and dev, where the task has one).

    `load_task("vqa", questions=..., annotations=..., images=...)` reads files by their names; `load_task("vqa", path)`
    a folder in which they have their official names. One's own data is read by `load_custom_dataset`.

    Args:
        name: one of `TASKS`.
        path: the folder with the files of the data set; None for a task that is generated (scenes), or whose files are
            named in the options.
        **options: keywords of the task's generator or reader: `generate_scenes`, `generate_nlvr_scenes`,
            `generate_scene_captions`, `generate_scene_statements`, `load_easy_vqa`, `load_nlvr`, `load_vqa`,
            `load_nlvr2`, `load_snli_ve`, `load_captions`.

    Returns:
        A `DatasetDict` whose image columns are undecoded: `{"bytes": ..., "path": ...}`.

    Raises:
        ValueError: unknown name or option, `path` missing where files are needed or given where none are, or a file
            that lacks a column or holds a bad entry; the message names file and line.
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
            raise ValueError(f"Task {name!r} has no option {option!r}{nearest_name(option, known)}")
    if name in _READERS:
        needs_path = inspect.signature(load).parameters["path"].default is inspect.Parameter.empty
        if path is None and needs_path:
            raise ValueError(f"Task {name!r} is read from files: pass path=, a folder that holds {_READERS[name][1]}")
        data = load(path, **options)
    else:
        if path is not None:
            raise ValueError(f"Task {name!r} is generated, not read: leave path out (it is {os.fspath(path)!r}).")
        data = load(**options)
    for column in task.image_columns:
        data = data.cast_column(column, Image(decode=False))
    return data
