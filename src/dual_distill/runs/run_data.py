"""The data of a run: read, held to what the run needs, and its labels in the order of the logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from datasets import Dataset

from dual_distill.data import (
    ID_COLUMNS,
    Task,
    answer_coverage,
    build_answer_vocabulary,
    get_task,
    load_custom_dataset,
    load_task,
)
from dual_distill.teachers import load_config

from .arguments import DataArguments, ModelArguments
from .image_text_run import IMAGE_TEXT_HEADS, STREAMED_PAIRS, configure_head, first_rows, load_streamed_pairs, num_rows

UNLABELLED_HEADS = IMAGE_TEXT_HEADS | {"captioning"}
"""Heads that learn from texts and images, and from no labels of their own."""

_CHECKED_ROWS = 16
_PIECE = 10_000


def load_data(arguments: DataArguments, label_names: Sequence[str] | None = None) -> tuple[Task, Any]:
    """Read the data of a run, and the task that it is.

    Args:
        arguments: which data.
        label_names: classes that a custom dataset must keep to, such as those of a checkpoint; None: those of its train
            split.

    Raises:
        ValueError: the task is unknown or has another head than asked for, or the data cannot be read.
    """
    options = dict(cast("dict[str, Any]", arguments.data_options or {}))  # JSON has been read by now
    if arguments.skip_bad:
        options["skip_bad"] = True
    if arguments.task != "custom":
        if arguments.task == STREAMED_PAIRS.name:
            return configure_head(STREAMED_PAIRS, arguments.head), load_streamed_pairs(arguments, options)
        task = configure_head(get_task(arguments.task), arguments.head)
        return task, load_task(arguments.task, arguments.data, **options)
    if arguments.head in IMAGE_TEXT_HEADS:
        raise ValueError(
            f"head is {arguments.head!r}, but task custom has labels; for image-text pairs choose task pairs."
        )
    if arguments.data is None:
        raise ValueError("task custom needs data=, a file, a folder, or the name of a data set on the Hub.")
    custom = load_custom_dataset(
        arguments.data,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        answers_column=arguments.answers_column,
        head=arguments.head,
        label_names=label_names,
        min_answer_count=arguments.min_answer_count or 1,
        **options,
    )
    return custom.task, custom.data


def label_names_of(
    model_arguments: ModelArguments, data_arguments: DataArguments, task: Task, data: Mapping[str, Any]
) -> list[str]:
    """The labels of the checkpoint whose head is used, else the teacher's, else the task's, else those of the data."""
    source, revision = model_arguments.teacher, model_arguments.teacher_revision
    if model_arguments.init_from is not None and not model_arguments.new_head:
        source, revision = model_arguments.init_from, model_arguments.init_revision
    if source is not None:
        id2label = load_config(source, revision, head=task.head).id2label
        return [id2label[index] for index in range(len(id2label))]
    if task.label_names is not None:
        return list(task.label_names)
    return build_answer_vocabulary(
        data["train"], _label_column(task), data_arguments.min_answer_count or task.min_answer_count
    )


def _label_column(task: Task) -> str:
    assert task.label_column is not None  # tasks without have another head
    return task.label_column


def check_splits(data: Mapping[str, Any]) -> None:
    """Refuse data that cannot be trained on, or not be evaluated after it."""
    for split in ("train", "validation"):
        if split not in data or num_rows(data[split]) == 0:
            state = "has no rows" if split in data else "is missing"
            raise ValueError(
                f"the split {split!r} {state} (there are {', '.join(data)}), but a run needs rows to train on and "
                f"rows to be "
                "evaluated on; give files that hold some, or hold more rows out (data_options)."
            )


def check_rows(data: Mapping[str, Any], collator: Callable[[Sequence[Mapping[str, Any]]], object]) -> None:
    """Put the first rows of each split through the collator: columns, pictures and labels are looked at before any model."""
    for split in ("train", "validation"):
        collator(first_rows(data[split], _CHECKED_ROWS))


def check_labels(task: Task, data: Mapping[str, Any], label_names: Sequence[str]) -> None:
    """Refuse data none of whose labels the head can give: a checkpoint for other answers."""
    column = task.answers_column or _label_column(task)
    rows = data["train"]
    # In pieces, the first of which says yes in any data that fits: all of VQA v2 would take ten seconds.
    starts = range(0, len(rows), _PIECE)
    pieces = (rows.select(range(start, min(start + _PIECE, len(rows)))) for start in starts)
    if not any(answer_coverage(piece, column, label_names) for piece in pieces):
        names = ", ".join(repr(name) for name in list(label_names)[:3])
        raise ValueError(
            f"none of the labels in column {column!r} is among the {len(label_names):,} that the head gives ({names}, "
            f"...); "
            "give an init_from and a teacher for this data, or set new_head and leave the teacher out."
        )


def rows_of(dataset: Any, task: Task, limit: int | None, seed: int) -> Any:
    """At most `limit` rows, without the columns (boxes, objects) that training only would decode and throw away."""
    if not isinstance(dataset, Dataset):
        if limit is not None:
            raise ValueError(
                f"max_train_rows is {limit}, but a stream of pairs is trained on for max_steps; leave it out."
            )
        return dataset
    wanted = {*task.image_columns, task.text_column, task.label_column, task.answers_column, *ID_COLUMNS}
    dataset = dataset.select_columns([column for column in dataset.column_names if column in wanted])
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(limit))


__all__ = ["UNLABELLED_HEADS", "check_labels", "check_rows", "check_splits", "label_names_of", "load_data", "rows_of"]
