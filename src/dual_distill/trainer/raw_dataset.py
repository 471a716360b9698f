"""Raw rows in a Trainer: which columns of a `datasets.Dataset` are images, text and label, and the collator of them."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from dual_distill.data import DistillationCollator, Task
from dual_distill.teachers import load_processor

_TEXT_COLUMNS = ("question", "text", "sentence")
_LABEL_COLUMNS = ("answer", "label")


def raw_collator(
    dataset: Any, config: PreTrainedConfig, processor: Any, checkpoint: str | None
) -> DistillationCollator | None:
    """Return the collator of the task that the columns of raw rows name; None where there is no column for each image.

    Args:
        dataset: what is trained on.
        config: of a model with labels.
        processor: of the model; None: that of `checkpoint`.
        checkpoint: where the teacher or the model came from; None: nowhere.

    Raises:
        ValueError: there are several splits, no text, or there is no processor.
    """
    if isinstance(dataset, Mapping):
        way_out = "give train_dataset=data['train'], eval_dataset=data['validation']"
        raise ValueError(f"train_dataset is a {type(dataset).__name__} of {', '.join(dataset)}; {way_out}.")

    columns, num_images = getattr(dataset, "column_names", None) or [], config.num_images
    images = ("image",) if num_images == 1 else tuple(f"image_{index}" for index in range(num_images))
    if not set(images) <= set(columns):
        return None
    text = next((column for column in _TEXT_COLUMNS if column in columns), None)
    if text is None:
        has = f"the columns are {', '.join(columns)}, none of them {', '.join(_TEXT_COLUMNS)}"
        raise ValueError(f"{has}; rename the one with the text, or give data_collator=.")

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
