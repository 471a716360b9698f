"""Tasks as data: which columns hold images, text and label, which head answers, and which function reads the files.

A new data set is a module in `datasets/` and an entry in the table below, which names its reader and imports nothing.
A custom dataset needs neither: `load_custom_dataset` builds its `Task` itself.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Task:
    """How a row of a data set becomes text, images and a label.

    Args:
        name: the name under which `TASKS` holds it.
        head: which model head answers: one label out of an answer vocabulary, one class for text and N images, how
            well text and image belong together, or a caption that is written.
        image_columns: one column an image, in the order in which the model sees them.
        text_column: question or sentence.
        label_column: the answer as a string; None where each row is a pair that belongs together and nothing is
            answered.
        label_names: the classes in the order of the logits; None where the vocabulary is built from the training
            answers.
        group_column: column by which accuracy is split in reports, or None.
        consistency_column: column that is equal for all rows of one sentence, or None; see `metrics.consistency`.
        answers_column: column of lists, what several people answered (normalised), or None. Where it is set, the labels
            of a batch are `vqa_answers.soft_scores` instead of one class; `label_column` holds the most common of them.
        given_answers_column: column of lists, the same answers as the annotation file has them, against which the
            official VQA score is computed; None: `answers_column`.
        min_answer_count: fewest training rows with an answer that becomes a class, where `label_names` is None.
        image_id_column: column that is equal for all rows of one image, by which retrieval knows right pairs, or None.
        reader: "module:function" in `data.datasets`, imported when `load_task` needs it; None: read elsewhere. A reader
            of files takes `path`, and its module says in `LAYOUT` what that folder holds; a generator takes no `path`.

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


_SCENE_ANSWERS = (*"0123456", "blue", "circle", "green", "no", "red", "square", "triangle", "yellow", "yes")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "scenes": Task(
            name="scenes",
            head="question_answering",
            image_columns=("image",),
            text_column="question",
            label_column="answer",
            label_names=_SCENE_ANSWERS,
            group_column="question_type",
            reader="scenes:generate_scenes",
        ),
        "easy_vqa": Task(
            name="easy_vqa",
            head="question_answering",
            image_columns=("image",),
            text_column="question",
            label_column="answer",
            reader="easy_vqa:load_easy_vqa",
        ),
        "nlvr": Task(
            name="nlvr",
            head="images_and_text_classification",
            image_columns=("image",),
            text_column="sentence",
            label_column="label",
            label_names=("false", "true"),
            consistency_column="sentence_id",
            reader="nlvr:load_nlvr",
        ),
        "vqa": Task(
            name="vqa",
            head="question_answering",
            image_columns=("image",),
            text_column="question",
            label_column="answer",
            group_column="answer_type",
            answers_column="answers",
            given_answers_column="answers_as_given",
            min_answer_count=9,
            reader="vqa_v2:load_vqa",
        ),
        "nlvr2": Task(
            name="nlvr2",
            head="images_and_text_classification",
            image_columns=("image_0", "image_1"),
            text_column="sentence",
            label_column="label",
            label_names=("False", "True"),
            consistency_column="sentence_id",
            reader="nlvr2:load_nlvr2",
        ),
        "snli_ve": Task(
            name="snli_ve",
            head="images_and_text_classification",
            image_columns=("image",),
            text_column="sentence",
            label_column="label",
            label_names=("contradiction", "entailment", "neutral"),
            group_column="label",
            reader="snli_ve:load_snli_ve",
        ),
        "coco_retrieval": Task(
            name="coco_retrieval",
            head="image_text_retrieval",
            image_columns=("image",),
            text_column="caption",
            image_id_column="image_id",
            reader="captions:load_captions",
        ),
        "image_text": Task(
            name="image_text",
            head="image_text_retrieval",
            image_columns=("image",),
            text_column="caption",
            reader="image_text:load_image_text",
        ),
        "coco_captioning": Task(
            name="coco_captioning",
            head="captioning",
            image_columns=("image",),
            text_column="caption",
            image_id_column="image_id",
            reader="captions:load_captions",
        ),
    }
)
"""Every task by its name."""

_RENAMED = {
    "captions": "coco_retrieval",
    "captioning": "coco_captioning",
    "own": "custom",
    "pairs": "image_text",
    # Worlds that are generated by benchmarks/worlds/write.py now, as ordinary folders.
    "scene_captions": "coco_retrieval",
    "scene_captioning": "coco_captioning",
    "scene_statements": "custom",
}


def get_task(name: str) -> Task:
    """The task of a name.

    Args:
        name: one of `TASKS`.

    Returns:
        The task.

    Raises:
        ValueError: there is no such task, or it has another name now; the message offers it, or the nearest.

    Example:
        >>> get_task("easyvqa")
        Traceback (most recent call last):
        ValueError: There is no task 'easyvqa'; did you mean 'easy_vqa'? Known are: coco_captioning, coco_retrieval, ...
    """
    if name in _RENAMED:
        raise ValueError(f"The task {name!r} is called {_RENAMED[name]!r} now; write the new name.")
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}{nearest_name(name, list(TASKS))}")
    return TASKS[name]


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
