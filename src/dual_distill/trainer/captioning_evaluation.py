"""Captions of the images of a split, and how good they are: written once an image, held against all of its captions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import CaptioningCollator, Task
from dual_distill.evaluation import CaptionScores


@dataclass(frozen=True)
class CaptionReport:
    """What an evaluation of captions found.

    Attributes:
        images: images described.
        captions: captions that they were held against.
        cider: CIDEr-D, as it is (1.0 is often called 100).
        bleu_4: in [0, 1].
        mean_words: mean length of what was written, in words.
    """

    images: int
    captions: int
    cider: float
    bleu_4: float
    mean_words: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON takes; `rows` are the images."""
        return {"rows": self.images, **asdict(self)}


def captions_by_image(dataset: Dataset, task: Task) -> dict[int | str, list[str]]:
    """Return the captions of each image, in the order of the rows.

    Args:
        dataset: one row a caption.
        task: names the columns.

    Raises:
        ValueError: the task does not say which rows show the same image.

    Example:
        >>> from dual_distill.data import get_task
        >>> rows = Dataset.from_dict({"caption": ["a dog", "a cat", "the dog"], "image_id": [7, 9, 7]})
        >>> captions_by_image(rows, get_task("coco_captioning"))
        {7: ['a dog', 'the dog'], 9: ['a cat']}
    """
    found: dict[int | str, list[str]] = {}
    for image_id, caption in zip(dataset[_id_column(task)], dataset[task.text_column], strict=True):
        found.setdefault(image_id, []).append(caption)
    return found


def first_rows_of_images(dataset: Dataset, task: Task) -> list[int]:
    """Return the place of the first row of each image.

    Example:
        >>> from dual_distill.data import get_task
        >>> first_rows_of_images(Dataset.from_dict({"image_id": [7, 9, 7]}), get_task("coco_captioning"))
        [0, 1]
    """
    first: dict[int | str, int] = {}
    for place, image_id in enumerate(dataset[_id_column(task)]):
        first.setdefault(image_id, place)
    return list(first.values())


@torch.inference_mode()
def describe_images(
    model: PreTrainedModel,
    dataset: Dataset,
    collator: CaptioningCollator,
    batch_size: int = 64,
    description: str = "describe",
    **generation: Any,
) -> dict[int | str, str]:
    """Write a caption for each image of a dataset.

    Args:
        model: `FusionEncoderForCaptioning`; put into eval mode.
        dataset: one row a caption, or one an image.
        collator: makes batches; its masking is left out.
        batch_size: images a batch.
        description: text of the progress bar.
        **generation: of `generate`: `num_beams=5`, `max_new_tokens=20`, and so on; none: greedy, 20 tokens.

    Returns:
        Image id -> caption, in the order of the images.
    """
    model.eval()
    rows = dataset.select(first_rows_of_images(dataset, collator.task))
    writing, tokenizer = collator.without_captions(), collator.processor.tokenizer
    captions: list[str] = []
    for batch in tqdm(DataLoader(rows, batch_size=batch_size, collate_fn=writing), desc=description, unit="batch"):
        written = model.generate(**{name: tensor.to(model.device) for name, tensor in batch.items()}, **generation)
        captions += caption_texts(tokenizer, written)
    return dict(zip(rows[_id_column(collator.task)], captions, strict=True))


def caption_texts(tokenizer: Any, written: torch.Tensor) -> list[str]:
    """Return what was written, up to its end, as text: `(B, L)` ids from [CLS] on -> B strings.

    Args:
        tokenizer: of the model.
        written: as `generate` returns it.
    """
    texts = []
    for ids in written.tolist():
        words = ids[1:]  # behind [CLS], which some tokenizers use as [SEP] too
        end = words.index(tokenizer.sep_token_id) if tokenizer.sep_token_id in words else len(words)
        texts.append(tokenizer.decode(words[:end], skip_special_tokens=True).strip())
    return texts


def report_captions(captions: Mapping[int | str, str], references: Mapping[int | str, Sequence[str]]) -> CaptionReport:
    """Score captions.

    Args:
        captions: image id -> what was written, as `describe_images` returns it.
        references: image id -> its captions, as `captions_by_image` returns them.

    Raises:
        ValueError: there is nothing, or an image has no references.
        ImportError: pycocoevalcap is not installed.
    """
    missing = [image_id for image_id in captions if not references.get(image_id)]
    if missing or not captions:
        raise ValueError(
            f"{len(missing)} of {len(captions)} described images have no references"
            + (f" (the first is {missing[0]!r})" if missing else "")
            + "; give one caption or more for each described image."
        )
    given = [list(references[image_id]) for image_id in captions]
    scores = CaptionScores().compute(predictions=list(captions.values()), references=given)
    return CaptionReport(
        images=len(captions),
        captions=sum(map(len, given)),
        cider=scores["cider"],
        bleu_4=scores["bleu_4"],
        mean_words=sum(len(caption.split()) for caption in captions.values()) / len(captions),
    )


def _id_column(task: Task) -> str:
    if task.image_id_column is None:
        raise ValueError(
            f"task {task.name!r} has no image_id_column, by which the captions of an image are known; set it to the "
            f"column."
        )
    return task.image_id_column


__all__ = [
    "CaptionReport",
    "caption_texts",
    "captions_by_image",
    "describe_images",
    "first_rows_of_images",
    "report_captions",
]
