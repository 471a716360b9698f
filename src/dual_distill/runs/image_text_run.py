"""Runs on image-text pairs, for `recipe` to put together like any other: their data, batches, and which trainer takes
them.

The same pairs serve two heads: "image_text_retrieval", which is a task's own, and "pretraining", which a recipe asks
for.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value
from transformers import PreTrainedModel

from dual_distill.data import (
    Head,
    ImageTextStream,
    IndexedDataset,
    PreTrainingCollator,
    RandAugment,
    Task,
    WholeWordMasker,
    load_image_text_stream,
)
from dual_distill.evaluation import recall_of_vectors
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig
from dual_distill.trainer import DistillationTrainingArguments, ImageTextTrainer, PreTrainingTrainer, RetrievalTrainer

from .arguments import DataArguments

IMAGE_TEXT_HEADS = frozenset({"pretraining", "image_text_retrieval"})
"""Heads that learn from pairs which belong together, and from no labels."""

STREAMED_PAIRS = Task("pairs", head="image_text_retrieval", image_columns=("image",), text_column="caption")
"""Pairs that are read as a stream, from `data_options`."""

_HELD_OUT_ROWS = 1000
_TOKENIZER_ROWS = 20_000
_FEATURES = Features({"image": Image(decode=False), "caption": Value("string")})


def configure_head(task: Task, head: Head) -> Task:
    """Return a task with the head that a run asks for: pairs may be learned from in two ways, answers in one.

    Args:
        task: with pairs or with labels.
        head: of the arguments; a word that is none of `IMAGE_TEXT_HEADS` leaves the task its own.

    Raises:
        ValueError: a head that learns from pairs, and a task with labels.

    Example:
        >>> configure_head(STREAMED_PAIRS, "pretraining").head, configure_head(STREAMED_PAIRS, "question_answering").head
        ('pretraining', 'image_text_retrieval')
    """
    if head not in IMAGE_TEXT_HEADS:
        return task
    if task.head not in IMAGE_TEXT_HEADS:
        raise ValueError(
            f"head is {head!r}, which learns from pairs, but task {task.name!r} has the head {task.head!r}; choose a "
            f"task of "
            "pairs (coco_retrieval, or pairs), or leave head out."
        )
    return replace(task, head=head)


def load_streamed_pairs(arguments: DataArguments, options: Mapping[str, Any]) -> dict[str, Any]:
    """Open the stream of task pairs, and read the rows that are held out.

    Args:
        arguments: `data`, the folder that relative paths of sources lie in; None: the working directory.
        options: `sources` and `validation`, lists of sources (`data.ImageTextSource`); `validation_rows`, at most so many
            are held out (1,000); and further arguments of `load_image_text_stream`.

    Returns:
        `train`, a `ImageTextStream`, and `validation`, a `Dataset`.

    Raises:
        ValueError: sources are missing, or an option is unknown.
    """
    options = dict(options)
    known = [*inspect.signature(load_image_text_stream).parameters, "validation", "validation_rows"]
    known.remove("repeat")
    for name in options:
        if name not in known:
            raise ValueError(f"task 'pairs' has no option {name!r}; its data_options are {', '.join(known)}.")
    for name in ("sources", "validation"):
        if not options.get(name):
            raise ValueError(
                f"task 'pairs' needs data_options with sources (to train on) and validation (to be evaluated on), but "
                f"{name} "
                "is missing; give a list such as [{'path': 'cc3m/*.tar', 'kind': 'webdataset'}]."
            )
    held_out, count = options.pop("validation"), int(options.pop("validation_rows", _HELD_OUT_ROWS))
    train = load_image_text_stream(_below(arguments.data, options.pop("sources")), **options)
    once = {name: options[name] for name in ("skip_bad", "max_pixels") if name in options}
    rows = load_image_text_stream(_below(arguments.data, held_out), shuffle_buffer=0, repeat=False, **once)
    kept = [{"image": row["image"], "caption": row["caption"]} for row in itertools.islice(iter(rows), count)]
    return {"train": train, "validation": Dataset.from_list(kept, features=_FEATURES)}


def _below(folder: str | None, sources: Any) -> Any:
    """Sources with their relative paths below a folder; addresses and absolute paths stay."""
    if folder is None or not isinstance(sources, list | tuple):
        return sources
    return [
        {
            name: str(Path(folder, value)) if name in ("path", "images") and "://" not in str(value) else value
            for name, value in source.items()
        }
        if isinstance(source, Mapping)
        else source
        for source in sources
    ]


def first_rows(split: Any, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a split, table or stream; of a stream nothing is used up.

    Args:
        split: a `Dataset` or a `ImageTextStream`.
        count: at most so many.
    """
    if isinstance(split, ImageTextStream):
        return list(itertools.islice(iter(split.split(0, 1)), count))
    return [split[index] for index in range(min(count, len(split)))]


def texts_of(split: Any, task: Task, files: Sequence[str] = ()) -> Any:
    """Return the texts that a tokenizer is trained on.

    Args:
        split: a `Dataset`, of which all texts are taken, or a `ImageTextStream`, of which the first 20,000.
        task: names the column.
        files: more texts, one a line.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(split, ImageTextStream):
        texts: Any = [row[task.text_column] for row in first_rows(split, _TOKENIZER_ROWS)]
    else:
        texts = split[task.text_column]
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"tokenizer_texts names {file!r}, but there is no such file; write it first.")
        texts = [*texts, *Path(file).read_text().splitlines()]
    return texts


def num_rows(split: Any) -> int | None:
    """Return how many rows a split has; None for a stream that does not say."""
    return split.num_rows if isinstance(split, ImageTextStream) else len(split)


def image_text_collator(
    processor: DualDistillProcessor,
    task: Task,
    max_text_length: int,
    data_arguments: DataArguments,
    training_arguments: DistillationTrainingArguments,
) -> PreTrainingCollator:
    """Return what makes batches of pairs: with masked words for pre-training, without for retrieval."""
    seed = training_arguments.seed
    masks = task.head == "pretraining"
    return PreTrainingCollator(
        processor,
        task,
        WholeWordMasker(processor.tokenizer, training_arguments.masking_share, seed) if masks else None,
        max_text_length,
        data_arguments.image_cache_mb,
        augmentation=RandAugment(seed=seed) if data_arguments.augmentation == "randaugment" else None,
    )


def make_image_text_trainer(
    model: PreTrainedModel,
    training_arguments: DistillationTrainingArguments,
    task: Task,
    teacher: PreTrainedModel | None,
    train_rows: Any,
    **kwargs: Any,
) -> ImageTextTrainer:
    """Put the trainer of a head together.

    Args:
        model: with the head.
        training_arguments: everything the trainer takes.
        task: names the head.
        teacher: frozen; None: none.
        train_rows: a `Dataset`, whose rows are masked anew in each epoch, or a `ImageTextStream`.
        **kwargs: `data_collator`, `eval_dataset` and `processing_class` of Trainer.
    """
    rows = train_rows if isinstance(train_rows, ImageTextStream) else IndexedDataset(train_rows)
    if task.head == "pretraining":
        return PreTrainingTrainer(model, training_arguments, teacher=teacher, train_dataset=rows, **kwargs)
    # Recall over a whole split takes one vector a text and a picture; a fusion encoder has none.
    has_vectors = model.config.model_type == DualEncoderConfig.model_type
    return RetrievalTrainer(
        model,
        training_arguments,
        teacher=teacher,
        train_dataset=rows,
        compute_metrics=recall_of_vectors if has_vectors else None,
        **kwargs,
    )


__all__ = [
    "IMAGE_TEXT_HEADS",
    "STREAMED_PAIRS",
    "configure_head",
    "first_rows",
    "image_text_collator",
    "load_streamed_pairs",
    "make_image_text_trainer",
    "num_rows",
    "texts_of",
]
