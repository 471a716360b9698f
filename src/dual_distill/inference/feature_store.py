"""A feature store: what a dual encoder made of images or texts, read by id, by index, or all of it in pieces.

| part of a `ShardedTable` | content |
|---|---|
| `store.json` | the manifest: what is stored, with which model, processor and settings |
| rows | `id` and `sha256` of the content |
| vectors | `pooled` `(rows, C)`, and `projected` `(rows, 2C)` on request |

Of a model that searches by cosine, the vectors are `normalised` `(rows, P)`, its projections of length 1, in place of
both; on request beside the tokens, by which its interaction layers order the nearest anew.

Of a model that answers by interaction layers, each image has a list of `tokens` `(L, C)` of its own length; all are
real, so that length is the mask. Or a list of `keys_values` `(1 + 2 L layers, C)`: the pooled vector, then of each
token the key and the value of each layer. As int8, lists stand beside their `scales`, one a vector, in float32.
Searched vectors as int8 have one scale a shard, which is repeated for each row, and 128 added, so that a kernel
compares them as they lie there.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedConfig

from dual_distill.data import ShardedTable, TableStore, tensor_column
from dual_distill.sealed import write_file

from .model_identity import check_same_model

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
PROJECTED = "projected"
POOLED, NORMALISED, TOKENS, KEYS_VALUES = "pooled", "normalised", "tokens", "keys_values"
LISTS = (TOKENS, KEYS_VALUES)
"""What an image has many vectors of."""
SCALES = "scales"
_INT8_MAX, INT8_ZERO = 127, 128
_NAMED = 3


@dataclass(frozen=True)
class FeatureManifest:
    """What a store says of itself.

    Attributes:
        kind: "image" or "text", what was encoded.
        dtype: of what is stored, "float32" or "float16"; of tokens and of searched vectors also "int8", beside which
            other vectors are float16.
        width: C of pooled vectors and tokens, P of normalised ones.
        projected: whether the `2C`-wide halves of the interaction are stored too.
        shard_size: ids a shard.
        batch_size: rows a forward pass.
        model: name, revision, digests of weights and configuration, and the dtype that it computed in.
        processor: settings of the image processor, or the digest of the tokenizer and its limit.
        vectors: what is stored of each row: "pooled" to be asked questions ("tokens" or "keys_values" where interaction
            layers read them), "normalised" to be searched by cosine.
        tokens: whether images have their tokens beside normalised vectors.

    Raises:
        ValueError: a size is below 1, or the dtype is unknown.
    """

    kind: str
    dtype: str
    width: int
    projected: bool
    shard_size: int
    batch_size: int
    model: dict[str, Any]
    processor: dict[str, Any]
    vectors: str = POOLED
    tokens: bool = False

    @property
    def lists(self) -> str | None:
        """The column in which an image has many vectors, if there is one."""
        return TOKENS if self.tokens else self.vectors if self.vectors in LISTS else None

    def dtype_of(self, column: str) -> str:
        """How a column is stored: as `dtype` says, but float16 beside tokens of int8."""
        is_small = column == self.lists or (column == NORMALISED and not self.tokens)
        return self.dtype if is_small or self.dtype != "int8" else "float16"

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but vectors are stored as {' or '.join(DTYPES)}.")


class FeatureTable(ShardedTable):
    """The files of a feature store."""

    kind = "feature store"
    made_by = "`dual-distill encode`"
    manifest_name = "store.json"

    def write_features(
        self,
        number: int,
        ids: Sequence[str],
        hashes: Sequence[str],
        features: Mapping[str, torch.Tensor],
        unreadable: Mapping[str, str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Write one shard: vectors by name, `(rows, width)` each on the CPU, with id and content hash of each row.

        With `lengths`, each row has as many tokens, one behind the other.
        """
        rows = pa.table({"id": pa.array(ids, pa.large_string()), "sha256": pa.array(hashes, pa.string())})
        # Vectors apart from ids, so that looking for an id reads no vector.
        many = dict.fromkeys((*LISTS, SCALES), lengths)
        columns = {name: tensor_column(tensor, many.get(name)) for name, tensor in features.items()}
        self.write(number, rows, pa.table(columns), unreadable)

    def check_made_with(
        self, manifest: FeatureManifest, kind: str, model: dict[str, Any], processor: dict[str, Any]
    ) -> None:
        """Refuse what the store is not of: the other kind, another model, another processor; the message names both."""
        if manifest.kind != kind:
            raise ValueError(f"{str(self.path)!r} is a store of {manifest.kind}s, but one of {kind}s is needed.")
        check_same_model(str(self.path), manifest.model, model)
        self.check_settings({"processor": manifest.processor}, {"processor": processor})


class FeatureStore(TableStore):
    """The vectors that `encode_images` or `encode_texts` wrote; read-only.

    Rows are in the order of the plans: as they were given, later additions behind. A store of millions opens in a
    fraction of a second and takes no memory of its own: its files are memory-mapped, and what was read once stays in
    the system's cache as long as that has room.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: shards are missing, since the encoding was not finished, or a file is damaged.

    Example:
        >>> FeatureStore("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no feature store 'no/such/store'; `dual-distill encode` makes one.
    """

    table: FeatureTable

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.table = FeatureTable(path)
        self.manifest = FeatureManifest(**self.table.open())
        # A text is its own id: one that ends in ".jpg" is another text.
        self.table.names_images = self.manifest.kind == "image"

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"FeatureStore({self.path!r}, {len(self):,} {manifest.kind}s, {manifest.width} x {manifest.dtype})"

    def pieces(self, name: str | None = None, rows: int = 1024) -> Iterator[tuple[int, torch.Tensor]]:
        """Run through all vectors in constant memory.

        Args:
            name: "pooled", or "projected" where the store has it; "normalised" where a retrieval head made it. None:
                what `manifest.vectors` says.
            rows: most rows a piece.

        Yields:
            The index of the first row, and `(rows, width)` (twice that for projected) in the stored dtype (int8:
            float32).

        Raises:
            ValueError: the store has no such vectors.
        """
        name = self._checked_name(name)
        starts = self.table.starts

        for number, start in enumerate(starts[:-1]):
            shard_rows = starts[number + 1] - start
            for first in range(0, shard_rows, rows):
                yield start + first, self._vectors(number, name, first, min(first + rows, shard_rows))

    def batches(self, name: str | None = None, rows: int = 1024) -> pa.RecordBatchReader:
        """Run through ids and vectors as Arrow, which other tools take as it is: Lance, DuckDB, polars, datasets.

        Args:
            name: as in `pieces`.
            rows: most rows a batch.

        Returns:
            A reader of batches with `id` (string) and `vector` (float32, a fixed-size list as wide as the vectors), in
            the order of the store; read once, in constant memory.

        Raises:
            ValueError: the store has no such vectors, or holds many an image.
        """
        name = self._checked_name(name)
        width = self.manifest.width * (2 if name == PROJECTED else 1)
        fields = [pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32(), width))]
        schema = pa.schema(fields, {"vectors": name, "kind": self.manifest.kind})

        def batch(start: int, vectors: torch.Tensor) -> pa.RecordBatch:
            ids = pa.array(self.ids(range(start, start + len(vectors))), pa.string())
            flat = pa.array(vectors.float().flatten().numpy())
            return pa.record_batch([ids, pa.FixedSizeListArray.from_arrays(flat, width)], schema)

        return pa.RecordBatchReader.from_batches(schema, (batch(*piece) for piece in self.pieces(name, rows)))

    def to_parquet(self, file: str | os.PathLike[str], name: str | None = None) -> None:
        """Write ids and vectors, as `batches` gives them, into one Parquet file, which is there whole or not at all.

        Raises:
            ValueError: as `batches`.
        """

        def write(stream: Any) -> None:
            reader = self.batches(name, rows=8192)
            with pq.ParquetWriter(stream, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)

        write_file(Path(file), write)

    def read(self, indices: Sequence[int], name: str | None = None) -> torch.Tensor:
        """Return the vectors at some indices, `(indices, width)`, in their order, also repeatedly, as `pieces` does.

        Raises:
            IndexError: there is no such row.
            ValueError: the store has no such vectors.
        """
        name = self._checked_name(name)
        width = self.manifest.width * (2 if name == PROJECTED else 1)
        rows = [self._vectors(number, name, inside, inside + 1) for number, inside in map(self.table.locate, indices)]
        return torch.cat(rows) if rows else torch.empty(0, width)

    def _vectors(self, number: int, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a shard in the stored dtype; int8, back in float32."""
        vectors = self.table.tensor(number, name, start, stop)
        if vectors.dtype != torch.uint8:
            return vectors
        return (vectors.float() - INT8_ZERO) * self.table.tensor(number, SCALES, start, stop)

    def image_inputs(self, indices: Sequence[int], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Return what a model with interaction layers takes in place of the images at some indices.

        Args:
            indices: in any order, also repeatedly.
            config: the model's.

        Returns:
            Arguments of `DualEncoderModel.forward`, one row an image, in the stored dtype (int8: float32): tokens, or
            pooled vectors beside keys and values; and the mask.

        Raises:
            IndexError: there is no such row.
            ValueError: the store holds one vector an image.
        """
        found, name = [], self.manifest.lists
        if name is None:
            raise ValueError(f"The store {self.path!r} holds {self.manifest.vectors} vectors and no tokens.")
        for number, inside in map(self.table.locate, indices):
            vectors = self.table.tensor(number, name, inside, inside + 1)
            if vectors.dtype == torch.int8:
                vectors = vectors * self.table.tensor(number, SCALES, inside, inside + 1)
            found.append(vectors)
        padded = pad_tokens(found)
        if name == TOKENS:
            return padded

        vectors, mask = padded.values()
        layers, heads = config.interaction_layers, config.joint_config.num_attention_heads
        states = vectors[:, 1:].unflatten(1, (-1, layers, 2)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 4, 1, 5)
        # All vectors of a token are real or none.
        real = {"image_token_mask": mask[:, 1 :: 2 * layers]}
        return {"image_pooler_output": vectors[:, 0], "image_token_states": states[:, None]} | real

    def indices(self, ids: Sequence[str]) -> list[int]:
        """Return the indices of some ids; the first look for an id runs through the ids of the store.

        Raises:
            ValueError: ids are not in the store; the message names some, and says of the unreadable ones why.
        """
        found = {identifier: self.table.find(identifier) for identifier in ids}
        # Said of some that are absent: why, where it is known, and what ids look like.
        if absent := [identifier for identifier, index in found.items() if index is None]:
            problems = self.unreadable()
            known = ", ".join(map(repr, self.ids(range(min(_NAMED, len(self))))))
            named = "; ".join(problems.get(identifier, repr(identifier)) for identifier in absent[:_NAMED])
            lacks = f"lacks {len(absent)} of the {self.manifest.kind}s asked for: {named}"
            raise ValueError(f"The store {self.path!r} {lacks}. Its ids are like {known}; encode the missing first.")
        return [index for identifier in ids if (index := found[identifier]) is not None]

    def __getitem__(self, identifier: str) -> torch.Tensor:
        return self.read(self.indices([identifier]))[0]

    def _checked_name(self, name: str | None) -> str:
        names = [self.manifest.vectors, *([PROJECTED] if self.manifest.projected else [])]
        if self.manifest.vectors in LISTS:
            held = f"{self.manifest.vectors.replace('_', ' and ')}, not one vector an image"
            raise ValueError(f"The store {self.path!r} holds {held}; read them with image_inputs.")
        if name is not None and name not in names:
            how = "encode with projected=True" if name == PROJECTED and POOLED in names else "encode with another head"
            raise ValueError(f"The store {self.path!r} holds {' and '.join(names)} vectors, not {name!r}; {how}.")
        return name or names[0]


def pad_tokens(tokens: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return images' tokens `(L, C)` as `image_token_embeds` `(images, L, C)`, zeros behind the shorter, and a mask."""
    each = list(tokens)
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
    lengths = torch.tensor([len(one) for one in each], device=padded.device)
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return {"image_token_embeds": padded, "image_token_mask": mask}


def stored_columns(name: str, vectors: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Return the columns of `(rows, width)` of a shard in the stored dtype; int8 is symmetric, with a scale a row."""
    if dtype != "int8":
        return {name: vectors.to(DTYPES[dtype])}

    scales = vectors.float().abs().amax(-1, keepdim=True) / _INT8_MAX
    # Those of searched vectors are compared as they are, so they share one.
    if name == NORMALISED:
        scales = scales.amax().expand(len(vectors), 1)
    # A row of zeros has scale 0.
    rounded = (vectors / scales.clamp_min(torch.finfo(torch.float32).tiny)).round()
    codes = (rounded + INT8_ZERO).to(torch.uint8) if name == NORMALISED else rounded.to(torch.int8)
    return {name: codes, SCALES: scales}
