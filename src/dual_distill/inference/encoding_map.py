"""Encoding as a function of a batch of columns, for engines that bring workers of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from dual_distill.data import decode_image
from dual_distill.teachers import load_model

from .encoding import encode_in_order, text_inputs


class EncodeColumn:
    """A column of images or texts becomes vectors; loads its model where it runs, once a process.

    For `Dataset.map(..., batched=True, num_proc=8)`, Ray Data's `map_batches`, Spark's `mapInPandas` and their like,
    which send it to their workers: it holds names alone, until it is called. The vectors are those of a store.

    Args:
        model: folder or Hub repository of a dual encoder.
        image_column: what `decode_image` takes: bytes, a path, a PIL image, or `{"bytes": ..., "path": ...}`.
        text_column: strings, in place of images.
        output_column: of the vectors, lists of float32.
        batch_size: rows a forward pass.
        device: of the model.

    Raises:
        ValueError: both columns are given, or none.

    Example:
        >>> EncodeColumn("runs/student", image_column="photo", text_column="title")
        Traceback (most recent call last):
        ValueError: give image_column or text_column, one of them.
    """

    def __init__(
        self,
        model: str,
        image_column: str | None = None,
        text_column: str | None = None,
        output_column: str = "vector",
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        if (image_column is None) == (text_column is None):
            raise ValueError("give image_column or text_column, one of them.")
        self.model, self.image_column, self.text_column = model, image_column, text_column
        self.output_column, self.batch_size, self.device = output_column, batch_size, device
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch with one more."""
        if self._loaded is None:
            self._loaded = load_model(self.model)
            self._loaded.model.to(self.device)
        model, processor = self._loaded

        rows: Any
        if self.text_column is not None:
            rows = text_inputs(model, processor, batch[self.text_column])
        else:
            assert self.image_column is not None
            images = enumerate(batch[self.image_column])
            rows = (processor.prepare_image(decode_image(image, number)) for number, image in images)
        vectors = encode_in_order(model, rows, self.batch_size).float().cpu().numpy()
        return {**batch, self.output_column: list(vectors)}
