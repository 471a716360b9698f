"""A feature store's folder: a `ShardedFolder` whose vectors are what a dual encoder made of images or texts.

| file | content |
|---|---|
| `store.json` | the manifest: what is stored, with which model, processor and settings |
| `shard-00000.arrow` | `id` and `sha256` of the rows of that shard |
| `shard-00000.safetensors` | `pooled` `(rows, C)`, and `projected` `(rows, 2C)` on request |

Of a model that searches by cosine, the vectors are `normalised` `(rows, P)`, its projections of length 1, in place of
both. The other files are those of every sharded folder.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from dual_distill.data import ShardedFolder

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PROJECTED = "projected"
Vectors = Literal["pooled", "normalised"]
POOLED: Vectors = "pooled"
NORMALISED: Vectors = "normalised"


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        kind: what was encoded.
        dtype: of the stored vectors, "float16" or "float32".
        width: C of the pooled vectors, P of normalised ones.
        projected: whether the `2C`-wide halves of the interaction are stored too.
        shard_size: ids a shard.
        batch_size: rows a forward pass.
        model: name, revision, digests of weights and configuration, and the dtype that it computed in.
        processor: settings of the image processor, or the digest of the tokenizer and its limit.
        vectors: what is stored of each row: "pooled" to be asked questions, "normalised" to be searched by cosine.
        format: version of this layout.
    """

    kind: Literal["image", "text"]
    dtype: str
    width: int
    projected: bool
    shard_size: int
    batch_size: int
    model: dict[str, Any]
    processor: dict[str, Any]
    vectors: Vectors = POOLED
    format: int = FORMAT


class StoreFolder(ShardedFolder):
    """Reads and writes the files of one feature store.

    Example:
        >>> StoreFolder("no/such/store").manifest() is None
        True
    """

    kind = "feature store"
    made_by = "dual-distill encode"
    manifest_name = "store.json"
    version = FORMAT

    def manifest(self) -> Manifest | None:
        """Return the manifest, None where there is no store.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        content = self.read_manifest()
        try:
            return None if content is None else Manifest(**content)
        except TypeError as error:
            raise ValueError(self.no_manifest(error)) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Make the folder and its manifest.

        Raises:
            ValueError: the folder holds other things.
        """
        self.create(asdict(manifest))

    def write_shard(
        self,
        number: int,
        ids: Sequence[str],
        hashes: Sequence[str],
        features: dict[str, torch.Tensor],
        unreadable: list[dict],
    ) -> None:
        """Write one shard, the vectors last; what a killed run left of it is replaced.

        Args:
            number: of the shard.
            ids: one a row.
            hashes: likewise.
            features: the manifest's `vectors` `(rows, width)` and perhaps `projected` `(rows, 2C)`, contiguous, on the
                CPU.
            unreadable: `id`, `problem` and `sha256` (None where there were no bytes) of what could not be read.
        """
        table = pa.table({"id": pa.array(ids, pa.large_string()), "sha256": pa.array(hashes, pa.string())})
        self.write_files(number, table, features, unreadable)

    def read(self, number: int, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows `start` to `stop` of a shard's vectors of that name, in the stored dtype; the rest is not read.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(self.features(number), "pt") as file:
                return file.get_slice(name)[start:stop]
        except (SafetensorError, OSError) as error:
            raise ValueError(self._damaged(number, error)) from error

    def num_rows(self, number: int) -> int:
        """Return the rows of a finished shard; reads its header alone.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with safe_open(self.features(number), "pt") as file:
                return file.get_slice(next(iter(file.keys()))).get_shape()[0]
        except (SafetensorError, OSError) as error:
            raise ValueError(self._damaged(number, error)) from error

    def _damaged(self, number: int, error: Exception) -> str:
        return (
            f"{str(self.features(number))!r} is damaged ({error}); remove it and run the encode command again, which "
            f"makes "
            "that shard anew."
        )


__all__ = ["DTYPES", "NORMALISED", "POOLED", "PROJECTED", "Manifest", "StoreFolder", "Vectors"]
