"""Raw rows in a Trainer: which columns of a `datasets.Dataset` are images, text and label, and the collator of them."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from dual_distill.data import CustomDataset, DistillationCollator, Task
from dual_distill.teachers import load_processor

_TEXT_COLUMNS = ("question", "text", "sentence")
_LABEL_COLUMNS = ("answer", "label")
# What a model reads of a text: rows with one of these are batches already.
_PREPARED = {"input_ids", "text_pooler_output", "text_embeds", "text_token_embeds"}


def raw_image_columns(num_images: int) -> tuple[str, ...]:
    """Return the names of the columns with the images of a row."""
    return ("image",) if num_images == 1 else tuple(f"image_{index}" for index in range(num_images))


def raw_collator(
    dataset: Any, config: PreTrainedConfig, processor: Any, checkpoint: str | None
) -> DistillationCollator | None:
    """Return the collator of the task that the columns of raw rows name; None of rows that are prepared.

    Args:
        dataset: what is trained on.
        config: of a model with labels.
        processor: of the model; None: that of `checkpoint`.
        checkpoint: where the teacher or the model came from; None: nowhere.

    Raises:
        ValueError: there are several splits, an image or the text has no column, or there is no processor.
    """
    splits = dataset.data if isinstance(dataset, CustomDataset) else dataset
    if isinstance(splits, Mapping):
        way_out = "give train_dataset=data['train'], eval_dataset=data['validation']"
        raise ValueError(f"train_dataset is a {type(dataset).__name__} of {', '.join(splits)}; {way_out}.")

    if isinstance(dataset, list) and dataset and not _PREPARED & {*dataset[0]}:
        raise ValueError("the rows to train on are a list; give datasets.Dataset.from_list(rows).")

    columns, num_images = getattr(dataset, "column_names", None) or [], config.num_images
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom" and len(dataset):
        columns = list(dataset[0])  # what a transform makes of a row
    images = raw_image_columns(num_images)
    has_images = set(images) <= set(columns)
    if not columns or (_PREPARED & set(columns) and not has_images):
        return None
    text = next((column for column in _TEXT_COLUMNS if column in columns), None)
    if text is None or not has_images:
        wanted = f"a trainer looks for {', '.join(images)} and {', '.join(_TEXT_COLUMNS[:2])} or {_TEXT_COLUMNS[2]}"
        way_out = "rename them, give distill what load_custom_dataset returns, or give data_collator="
        raise ValueError(f"the columns are {', '.join(columns)}, but {wanted}; {way_out}.")

    label = next((column for column in _LABEL_COLUMNS if column in columns), None)
    names = [config.id2label[index] for index in range(len(config.id2label))]
    processor = processor or (load_processor(checkpoint) if checkpoint else None)
    if processor is None:
        way_out = "give processing_class=DualDistillProcessor.from_pretrained(...), or data_collator="
        raise ValueError(f"the rows are raw images and texts, and no checkpoint says how to process them; {way_out}.")

    head = "question_answering" if num_images == 1 else "images_and_text_classification"
    answers = "answers" if "answers" in columns else None
    task = Task("custom", head, images, text, label, answers_column=answers)
    positions: int = config.max_position_embeddings
    longest = min(positions, processor.tokenizer.model_max_length)
    return DistillationCollator(processor, task, names, max_text_length=longest)
