"""What an evaluation of retrieval computes with: images and captions by their places, their vectors, scores of pairs.

Images are decoded as they are needed, a few ahead, and are not kept. What is unusual: the pairs that a
fusion encoder is to read are given all at once, and read sorted by image, so that each image is decoded once for all
its pairs.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dual_distill.data import ImageError, Prepared, ShapedBatches, Task, decode_ahead, decode_image
from dual_distill.modeling import DualDistillProcessor

from .encoding import longest_text


class ImagesWithCaptions:
    """The rows of a split as images and captions, by their places.

    Args:
        rows: one row a caption.
        task: names the columns; with the head "image_text_retrieval".

    Attributes:
        captions: one string a caption.
        image_of_caption: for each caption the place of its image; images are in the order of their first captions.

    Raises:
        ValueError: the task has no pairs, there are no rows, or a caption is empty.

    Example:
        >>> from dual_distill.data import get_task
        >>> rows = Dataset.from_dict({"image": ["a.png"] * 2 + ["b.png"], "caption": ["x", "y", "z"], "image_id": [7, 7, 3]})
        >>> pairs = ImagesWithCaptions(rows, get_task("coco_retrieval"))
        >>> pairs.num_images, pairs.image_of_caption
        (2, [0, 0, 1])
    """

    def __init__(self, rows: Dataset, task: Task) -> None:
        if task.head != "image_text_retrieval" or task.image_id_column is None:
            raise ValueError(f"task {task.name!r} has no images with captions to search; choose one such as captions.")
        if not len(rows):
            raise ValueError("There are no rows, but retrieval needs one caption or more.")
        [self._column] = task.image_columns
        if isinstance(rows.features[self._column], ImageFeature):
            rows = rows.cast_column(self._column, ImageFeature(decode=False))
        self._images = rows.select_columns([self._column])
        self.captions = [str(caption) for caption in rows[task.text_column]]
        for row, caption in enumerate(self.captions):
            if not caption.strip():
                raise ValueError(f"row {row}: its caption is empty; leave the row out or give it words.")
        places: dict[Any, int] = {}
        self._rows: list[int] = []
        self.image_of_caption = []
        for row, identifier in enumerate(rows[task.image_id_column]):
            if identifier not in places:
                places[identifier] = len(places)
                self._rows.append(row)
            self.image_of_caption.append(places[identifier])

        self.ids = [str(index) for index in range(len(self._rows))]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self._rows)

    def value(self, identifier: str) -> Any:
        """Return an image by its index, undecoded."""
        return self._images[self._rows[int(identifier)]][self._column]

    def prepared(self, processor: DualDistillProcessor, indices: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield indices and prepared images `(3, H, W)`, in the order given; a few are decoded ahead.

        Raises:
            ImageError: an image cannot be read.
        """
        prepare = partial(_prepare, processor, self._rows)
        for index, image in zip(indices, decode_ahead(self, list(map(str, indices)), prepare), strict=False):
            if isinstance(image, ImageError):
                raise image
            yield index, image.values


def _prepare(processor: DualDistillProcessor, rows: list[int], identifier: str, value: Any) -> Prepared:
    return Prepared(processor.prepare_image(decode_image(value, rows[int(identifier)])))


@torch.inference_mode()
def encode_both_sides(
    data: ImagesWithCaptions,
    model: PreTrainedModel,
    processor: DualDistillProcessor,
    batch_size: int,
    show_progress: bool,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Encode all images and captions with a dual encoder.

    Args:
        data: what is encoded.
        model: a `DualEncoderForImageTextRetrieval` in eval mode.
        processor: its processor.
        batch_size: images or texts a forward pass.
        show_progress: bars on stderr.

    Returns:
        Vectors of length 1, `(images, P)` and `(captions, P)` float32 on the model's device, and the seconds.
    """
    start = time.perf_counter()
    max_tokens = longest_text(model, processor)

    def encode_images(batch: list[Prepared]) -> torch.Tensor:
        rows = torch.stack([image.values for image in batch])
        return model.get_image_features(rows.to(model.device, model.dtype)).pooler_output

    def encode_texts(batch: list[Prepared]) -> torch.Tensor:
        return model.get_text_features(torch.stack([text.values for text in batch]).to(model.device)).pooler_output

    images, texts = ShapedBatches(encode_images, batch_size), ShapedBatches(encode_texts, batch_size)
    everything = range(data.num_images)
    prepared = data.prepared(processor, everything)
    for place, pixels in tqdm(
        prepared, total=len(everything), desc="encode images", unit=" images", disable=not show_progress
    ):
        images.add(place, Prepared(pixels))
    for place, caption in enumerate(tqdm(data.captions, desc="encode texts", unit=" texts", disable=not show_progress)):
        texts.add(place, Prepared(processor.encode_text([caption], max_length=max_tokens)["input_ids"][0]))
    found = [batches.finish() for batches in (images, texts)]
    vectors = [normalize(torch.stack([rows[place] for place in sorted(rows)]).float(), dim=-1) for rows in found]
    vectors[0].sum().item()  # a GPU is waited for
    return vectors[0], vectors[1], time.perf_counter() - start


class FusionScores:
    """The fusion encoder's scores of pairs, each computed once.

    Args:
        data: images and captions.
        model: a `FusionEncoderForImageTextRetrieval` in eval mode.
        processor: its processor.
        batch_size: pairs a forward pass.
        show_progress: a bar on stderr.
    """

    def __init__(
        self,
        data: ImagesWithCaptions,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        batch_size: int,
        show_progress: bool,
    ) -> None:
        self._data, self._model, self._processor, self._batch_size = data, model, processor, batch_size
        self._show_progress = show_progress
        self._max_tokens = min(processor.tokenizer.model_max_length, model.config.max_position_embeddings)
        self._keys: torch.Tensor | None = None
        self._scores = torch.empty(0)
        self._seconds = 0.0

    @property
    def num_scored(self) -> int:
        """Number of pairs that were scored."""
        return len(self._scores)

    @property
    def pairs_s(self) -> float:
        """Pairs a second, with reading and decoding the images."""
        return self.num_scored / self._seconds

    def score(self, pairs: torch.Tensor) -> None:
        """Score pairs (image * captions + caption), in any order and some perhaps twice."""
        self._keys = pairs.unique()
        self._fill(
            len(self._keys), (self._keys[start : start + self._batch_size] for start in self._starts(len(self._keys)))
        )

    def score_all(self) -> None:
        """Score every pair."""
        number = self._data.num_images * len(self._data.captions)
        self._fill(
            number, (torch.arange(start, min(start + self._batch_size, number)) for start in self._starts(number))
        )

    def _starts(self, number: int) -> range:
        return range(0, number, self._batch_size)

    def of(self, pairs: torch.Tensor) -> torch.Tensor:
        """Scores of pairs, in their shape."""
        return self._scores[pairs if self._keys is None else torch.searchsorted(self._keys, pairs)]

    @torch.inference_mode()
    def _fill(self, number: int, blocks: Iterable[torch.Tensor]) -> None:
        """Score blocks of ascending pairs, in which an image's pairs stand together."""
        start = time.perf_counter()
        num_texts = len(self._data.captions)
        places = range(self._data.num_images) if self._keys is None else (self._keys // num_texts).unique().tolist()
        prepared = self._data.prepared(self._processor, places)
        held: dict[int, torch.Tensor] = {}
        self._scores = torch.empty(number)
        done = 0
        with tqdm(total=number, desc="fusion encoder", unit=" pairs", disable=not self._show_progress) as bar:
            for block in blocks:
                images, texts = (block // num_texts).tolist(), (block % num_texts).tolist()
                while images[-1] not in held:
                    place, pixels = next(prepared)
                    held[place] = pixels
                held = {place: held[place] for place in dict.fromkeys(images)}
                row_of = {place: row for row, place in enumerate(held)}
                rows = torch.tensor([row_of[image] for image in images])
                # Moved once an image, repeated on the device.
                padded = self._processor.pad_images([[pixels] for pixels in held.values()])
                inputs = {name: tensor.to(self._model.device) for name, tensor in padded.items()}
                inputs = {name: tensor[rows.to(tensor.device)] for name, tensor in inputs.items()}
                inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
                words = self._processor.encode_text(
                    [self._data.captions[text] for text in texts], max_length=self._max_tokens
                )
                inputs |= {name: tensor.to(self._model.device) for name, tensor in words.items()}
                self._scores[done : done + len(block)] = self._model(**inputs).logits[:, 0].float().cpu()
                done += len(block)
                bar.update(len(block))
        self._seconds = time.perf_counter() - start


__all__ = ["FusionScores", "ImagesWithCaptions", "encode_both_sides"]
