"""The data of a run: read, held to what the run needs, and its rows as the trainer takes them."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from dual_distill import data
from dual_distill.regions import RegionStore
from dual_distill.trainer import raw_image_columns

from .arguments import DataArguments
from .heads import HEADS, HeadSpec, choose_head

_COLUMNS = ("image_column", "text_column", "label_column", "answers_column")


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        task: its columns and head.
        splits: as they were read; `train` may be an `ImageTextStream`.
        train_rows: what is trained on, at most as many rows as were asked for.
        eval_rows: what is evaluated on.
        regions: keyword arguments of a collator about regions.
    """

    task: data.Task
    splits: Mapping[str, Any]
    train_rows: Any
    eval_rows: Any
    regions: dict[str, Any]

    @property
    def head(self) -> HeadSpec:
        """What the task is learned with."""
        return HEADS[self.task.head]

    @property
    def store(self) -> RegionStore | None:
        """Regions that the model reads in place of pixels."""
        return self.regions.get("regions")

    @property
    def tag_tokens(self) -> int:
        """Tokens that a model must have room for beside the text."""
        return self.regions["max_tag_length"] if self.regions.get("num_tags") else 0


def asked_head(arguments: DataArguments) -> HeadSpec:
    """Return the head that a task is learned with, before its data is read.

    Raises:
        ValueError: there is no such task or head, or they do not go together.

    Example:
        >>> asked_head(DataArguments(task="nlvr2")).name
        'images_and_text_classification'
    """
    if arguments.task != "custom":
        return HEADS[choose_head(data.get_task(arguments.task), arguments.head).head]
    labelled = [name for name, head in HEADS.items() if head.has_labels]
    name = arguments.head or labelled[0]
    if name not in labelled:
        way_out = f"for captions take task image_text, else give {' or '.join(labelled)}"
        raise ValueError(f"head is {name!r}, but task custom has labels; {way_out}.")
    return HEADS[name]


def prepare_data(
    arguments: DataArguments,
    seed: int,
    splits: Mapping[str, Any] | None = None,
    data_seed: int | None = None,
    label_names: Sequence[str] | None = None,
) -> RunData:
    """Read the data of a run, unless its splits are at hand already, and choose the rows that are used.

    A stream that is read here is shuffled by `data_seed`, or by `seed`, unless the reader's options name one. Labels of
    a custom dataset are spelled as `label_names`, those of a checkpoint.

    Raises:
        FileNotFoundError: there is no such data or region store.
        ValueError: the data cannot be read or trained on, or the arguments do not fit it.
    """
    is_read_here = splits is None
    if splits is None:
        task, splits = load_data(arguments, label_names)
    else:
        task = choose_head(data.get_task(arguments.task), arguments.head)
    for split in ("train", "validation"):
        if split not in splits or num_rows(splits[split]) == 0:
            found = f"{'has no rows' if split in splits else 'is missing'} (there are {', '.join(splits)})"
            raise ValueError(f"the split {split!r} {found}; a run needs rows to train on and to evaluate.")

    # Masks, negatives and augmentation are drawn in each epoch by a row's index; what a model writes itself is not.
    train_rows = _used_rows(splits["train"], task, arguments.max_train_rows, seed)
    is_drawn = arguments.augmentation != "none" or not HEADS[task.head].has_labels
    if isinstance(train_rows, data.ImageTextStream) and is_read_here and "seed" not in (arguments.data_options or {}):
        # A copy, so that a tokenizer learns from the same rows with every seed.
        train_rows = train_rows.split(0, 1)
        train_rows.seed = seed if data_seed is None else data_seed
    if isinstance(train_rows, Dataset) and is_drawn and arguments.caption_training == "masked_words":
        train_rows = data.IndexedDataset(train_rows)
    eval_rows = _used_rows(splits["validation"], task, arguments.max_eval_rows, seed)

    paths = {"regions": arguments.regions, "teacher_regions": arguments.teacher_regions}
    regions: dict[str, Any] = {name: RegionStore(path) for name, path in paths.items() if path is not None}
    if regions:
        regions |= {"num_tags": arguments.num_tags, "max_tag_length": arguments.max_tag_length}
    return RunData(task, splits, train_rows, eval_rows, regions)


def load_data(arguments: DataArguments, label_names: Sequence[str] | None = None) -> tuple[data.Task, Any]:
    """Read the data of a run, and the task that it is.

    Args:
        arguments: which data.
        label_names: classes that a custom dataset must keep to, such as those of a checkpoint; None: those of its train
            split.

    Raises:
        ValueError: the task is unknown or has another head than asked for, or the data cannot be read.
    """
    assert not isinstance(arguments.data_options, str)  # JSON has been read by now
    options = (arguments.data_options or {}) | ({"skip_bad": True} if arguments.skip_bad else {})
    if arguments.task != "custom":
        task = choose_head(data.get_task(arguments.task), arguments.head)
        return task, data.load_task(arguments.task, arguments.data, **options)

    if arguments.data is None:
        raise ValueError("task custom needs data=, a file, a folder, or the name of a data set on the Hub.")
    own = {name: getattr(arguments, name) for name in _COLUMNS} | {"head": asked_head(arguments).name}
    own["min_answer_count"] = arguments.min_answer_count or 1
    if taken := ", ".join(sorted(own.keys() & options)):
        way_out = "give it beside them, or leave it out where there is no such option"
        raise ValueError(f"data_options name {taken}, which is no option of the reader; {way_out}.")
    asked = options.get("label_names")
    if label_names is not None and asked is not None and list(asked) != list(label_names):
        other = f"label_names in data_options are {asked!r}, but the checkpoint's are {list(label_names)!r}"
        raise ValueError(f"{other}, the order of its logits; leave them out, or set new_head.")
    # Those of a checkpoint are the order of its logits.
    options |= own | ({} if label_names is None else {"label_names": label_names})
    custom = data.load_custom_dataset(arguments.data, **options)
    return custom.task, custom.data


def list_labels(task: data.Task, rows: Any, fewest: int | None, labelled: PreTrainedConfig | None = None) -> list[str]:
    """Return the labels of a checkpoint, or of a task, or those that stand at least so often in rows to train on."""
    if labelled is not None:
        return [labelled.id2label[index] for index in range(len(labelled.id2label))]
    if task.label_names is not None:
        return list(task.label_names)
    return data.build_answer_vocabulary(rows, str(task.label_column), fewest or task.min_answer_count)


def splits_of(dataset: Any, label_names: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Return the splits of a dataset: of rows, of splits of rows, or of a custom dataset, read or by its name.

    Answers of one that is read here are spelled as `label_names`.
    """
    splits = dataset
    if isinstance(dataset, str | Path):
        splits = data.load_custom_dataset(dataset, label_names=label_names)
    if isinstance(splits, data.CustomDataset):
        # Under the names by which a trainer knows rows that come without a task.
        task, images = splits.task, raw_image_columns(len(splits.task.image_columns))
        named = {**dict(zip(task.image_columns, images, strict=True)), task.text_column: "question"}
        named |= {str(task.label_column): "answer"} | ({task.answers_column: "answers"} if task.answers_column else {})
        splits = splits.data.rename_columns(named)
    if not isinstance(splits, Mapping):
        splits = {"train": splits}
    if "train" not in splits:
        way_out = "but a student learns from one named train; name it so"
        raise ValueError(f"the dataset has the splits {', '.join(splits)}, {way_out}.")
    return splits


def _used_rows(rows: Any, task: data.Task, limit: int | None, seed: int) -> Any:
    """At most `limit` rows, without the columns (boxes, objects) that training only would decode and throw away."""
    if not isinstance(rows, Dataset):
        if limit is not None:
            raise ValueError(f"max_train_rows is {limit}, but a stream is trained on for max_steps; leave it out.")
        return rows
    wanted = {*task.image_columns, task.text_column, task.label_column, task.answers_column, *data.ID_COLUMNS}
    rows = rows.select_columns([column for column in rows.column_names if column in wanted])
    return rows if limit is None or limit >= len(rows) else rows.shuffle(seed=seed).select(range(limit))


def num_rows(split: Any) -> int | None:
    """Return how many rows a split has; None for a stream that does not say."""
    return len(split) if isinstance(split, Sized) else getattr(split, "num_rows", None)
