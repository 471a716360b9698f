"""Encoding as a function of a batch of columns, for engines that bring workers of their own, and back into a store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dual_distill import data
from dual_distill.data import ImageError, Prepared
from dual_distill.teachers import content_of, load_model

from .encoding import Encoding, EncodingReport, StoreSettings, encode_prepared, prepare_image, prepared_texts, searches
from .model_identity import model_identity, processor_settings
from .sources import Inputs, check_text, row_ids

_NO_VECTOR = np.zeros(0, np.float32)


@dataclass(eq=False)
class EncodeColumn:
    """A column of images or texts becomes vectors; loads its model where it runs, once a process.

    For `Dataset.map(..., batched=True, num_proc=8)`, Ray Data's `map_batches`, Spark's `mapInPandas` and their like,
    which send it to their workers: it holds names alone, and what the model's folder
    holds or its commit, until it is called. The vectors are those of a store, which
    `write_store` makes of them: to 1e-6, and bit by bit with a batch size of 1, since a row's last bits depend on those
    that share its forward pass.

    Args:
        model: folder or Hub repository of a dual encoder.
        image_column: what `decode_image` takes: bytes, a path, a PIL image, or `{"bytes": ..., "path": ...}`.
        text_column: strings, in place of images.
        output_column: of the vectors, lists of float32; empty for what cannot be read.
        batch_size: rows a forward pass.
        device: of the model.
        id_column: of images, by which problems name them and a store knows them; None: the number in its batch, and
            of the row. A text is its own id.

    Raises:
        ValueError: both columns are given, or none.

    Example:
        >>> EncodeColumn("runs/student", image_column="photo", text_column="title")
        Traceback (most recent call last):
        ValueError: give image_column or text_column, one of them.
    """

    model: str
    image_column: str | None = None
    text_column: str | None = None
    output_column: str = "vector"
    batch_size: int = 32
    device: str = "cpu"
    id_column: str | None = None
    _loaded: Any = field(default=None, init=False, repr=False)
    _content: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.image_column is None) == (self.text_column is None):
            raise ValueError("give image_column or text_column, one of them.")

    def __getstate__(self) -> dict[str, Any]:
        # Under equal names `datasets` would return what another content of the folder gave before.
        if (content := content_of(self.model)) != self._content:
            self._content, self._loaded = content, None
        return {**vars(self), "_loaded": None}

    def _load(self) -> Any:
        """The model, its processor, and the fingerprint of what vectors depend on."""
        if self._loaded is None:
            model, processor = load_model(self.model)
            # A copy elsewhere is the same model.
            identity = model_identity(model.to(self.device).eval()) | {"name": None, "revision": None}
            settings = processor_settings("image" if self.text_column is None else "text", model, processor)
            self._loaded = model, processor, data.fingerprint(identity, settings)
        return self._loaded

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the columns of a batch with four more: vectors, `sha256` of what was encoded, `problem`, `made_with`.

        A problem is empty, or says why an image cannot be read; the last is a fingerprint of model and processor.
        """
        model, _, made_with = self._load()
        values = list(batch[self.text_column or self.image_column or ""])
        found: list[Prepared | ImageError] = list(self._prepared(batch, values))
        readable = [(number, one) for number, one in enumerate(found) if isinstance(one, Prepared)]
        encoded = encode_prepared(model, readable, self.batch_size)
        vectors = {number: vector.float().cpu().numpy() for number, vector in encoded}
        return {
            **batch,
            # Nothing is None: engines take the types of a column from the first rows.
            self.output_column: [vectors.get(number, _NO_VECTOR) for number in range(len(values))],
            "sha256": [one.known if isinstance(one, Prepared) else "" for one in found],
            "problem": [str(one) if isinstance(one, ImageError) else "" for one in found],
            "made_with": [made_with] * len(values),
        }

    def _prepared(self, batch: Mapping[str, Sequence[Any]], values: list[Any]) -> Iterator[Prepared | ImageError]:
        model, processor, _ = self._load()
        if self.text_column is not None:
            for text in values:
                check_text("A text", text)
            yield from prepared_texts(model, processor, values)
            return
        names = range(len(values)) if self.id_column is None else batch[self.id_column]
        for name, value in zip(names, values, strict=True):
            try:
                yield prepare_image(processor, str(name), value)
            except ImageError as error:
                yield error

    def write_store(
        self,
        rows: Any,
        store: data.FilePath,
        *,
        dtype: str | None = None,
        shard_size: int | None = None,
        show_progress: bool = False,
    ) -> EncodingReport:
        """Write what workers made of all rows into a store, in their order; a killed call is repeated.

        Args:
            rows: a `datasets.Dataset`, a Parquet file, or a folder of such, with what workers added.
            store: folder, new or to be continued.
            dtype: as in `encode_images`.
            shard_size: likewise.
            show_progress: a bar on stderr.

        Returns:
            An `EncodingReport`, with what could not be read.

        Raises:
            ValueError: as `encode_images`; rows are of another model or processor; the model's stores hold tokens.
        """
        model, processor, made_with = self._load()
        if model.config.interaction_layers and not searches(model):
            holds = "A store of a model with interaction layers holds tokens, not one vector an image"
            raise ValueError(f"{holds}; encode it by `dual-distill encode` in the processes of torchrun.")
        kind, found = "image" if self.text_column is None else "text", data.table_rows(rows, made_with)
        ids = row_ids(found, self.output_column, self.text_column or self.id_column, repeats=kind == "text")
        numbers = {identifier: number for number, identifier in reversed(list(enumerate(ids)))}
        found = found.select_columns([self.output_column, "sha256", "problem"]).with_format("numpy")
        settings: StoreSettings = {"dtype": dtype, "shard_size": shard_size, "batch_size": self.batch_size}
        joined = _Joined(kind, model, processor, store, settings)

        def prepare(identifier: str, row: Any) -> Prepared:
            if row["problem"]:
                raise ImageError(str(row["problem"]))
            vector, width = torch.tensor(row[self.output_column]), joined.manifest.width
            if vector.shape != (width,):
                has = f"The vector of {identifier!r} has the shape {tuple(vector.shape)}, not ({width},)"
                raise ValueError(f"{has} as those of {self.model!r}; encode it with this model.")
            return Prepared(vector.float(), str(row["sha256"]))

        source = Inputs(list(dict.fromkeys(ids)), lambda identifier: found[numbers[identifier]])
        return joined.fill(source, prepare, num_workers=0, show_progress=show_progress)


class _Joined(Encoding):
    """Vectors on their way into a store, encoded elsewhere."""

    def _run(self, batch: list[Prepared]) -> list[tuple[dict[str, torch.Tensor], str]]:
        return [({self.manifest.vectors: one.values}, one.known) for one in batch]
