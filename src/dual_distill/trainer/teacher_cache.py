"""What a frozen teacher says about a row, kept on disk: later epochs, and later students, do not ask it again.

A row is known by its content: a fingerprint of the word pieces and pixels that the teacher reads, without padding. So
another image, text, resizing or augmentation is another row, never a wrong hit. What content cannot tell (teacher,
layers, kind, transform, seed) stands in `cache.json`; a folder that was written with anything else is refused, naming
the difference.

Attention is kept as cross-modal scores of the real tokens in float16, each query's largest at 0, where float16 is
finest: for short texts a fraction of queries and keys. What was just computed is handed out through the same rounding,
so that the loss of a row does not depend on whether it was cached.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from transformers import TrainerCallback

from dual_distill.data import ShardedTable, fingerprint
from dual_distill.objectives import DiDEObjective

KINDS = ("logits", "attention")
ROW_KEYS = "row_keys"
"""Name of the keys in a batch, `(B, 16)` uint8."""

_SHARD_BYTES = 64_000_000
_KEY_BYTES = 16

Batch = Mapping[str, torch.Tensor]


@dataclass
class CachedTeacherOutputs:
    """What an objective reads of a teacher.

    Attributes:
        logits: `(B, labels)` float32.
        cross_modal_scores: for each mapped layer text-to-image `(B * N, H, T, 1 + I)` and image-to-text
            `(B * N, H, 1 + I, T)` float32, 0 at padding; None for a cache of logits.
    """

    logits: torch.Tensor
    cross_modal_scores: list[tuple[torch.Tensor, torch.Tensor]] | None = None


def row_keys(batch: Batch) -> torch.Tensor:
    """Hash what a teacher reads of each row: its real word pieces and the real pixels of its images.

    Args:
        batch: `input_ids`, `attention_mask` `(B, T)`, `pixel_values` `(B, N, 3, H, W)`, `pixel_mask` `(B, N, H, W)`.

    Returns:
        `(B, 16)` uint8; padding does not change it.

    Example:
        >>> pixels, mask = torch.zeros(1, 1, 3, 4, 4), torch.ones(1, 1, 4, 4)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]]),
        ...          "pixel_values": pixels, "pixel_mask": mask}
        >>> shorter = batch | {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]])}
        >>> row_keys(batch).shape, torch.equal(row_keys(batch), row_keys(shorter))
        (torch.Size([1, 16]), True)
    """
    keys = []
    ids, real = batch["input_ids"].cpu(), batch["attention_mask"].cpu().bool()
    for row in range(len(ids)):
        parts = [ids[row][real[row]]]
        for pixels, mask in zip(batch["pixel_values"][row].cpu(), batch["pixel_mask"][row].cpu().bool(), strict=True):
            height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
            parts.append(pixels[:, :height, :width].float())
        keys.append(list(bytes.fromhex(fingerprint(*parts))[:_KEY_BYTES]))
    return torch.tensor(keys, dtype=torch.uint8)


def row_names(keys: torch.Tensor) -> list[str]:
    """Names of rows by their keys `(B, 16)`."""
    return [bytes(key.tolist()).hex() for key in keys.cpu()]


class KeyedCollator:
    """A collator whose batches know their rows' keys, so that data-loading processes do the hashing.

    Args:
        collator: rows -> batch.
    """

    def __init__(self, collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate, and add `row_keys`."""
        batch = self.collator(rows)
        return {**batch, ROW_KEYS: row_keys(batch)}


class CacheTable(ShardedTable):
    """The files of a teacher cache: shards without a plan, of the rows that came in a process's way."""

    kind = "teacher cache"
    made_by = "training with cache_teacher"
    manifest_name = "cache.json"


Row = dict[str, torch.Tensor]
_TYPES = {torch.float16: pa.float16(), torch.float32: pa.float32(), torch.int32: pa.int32()}


class RowCache:
    """Rows of flat tensors on disk, by name: what waits to be written, and what this or another process has written.

    Args:
        folder: new, empty, or a cache that was begun with the same settings; several processes may write to it.
        settings: what the rows depend on beside their names, as JSON values; None: those that are there.
        shard_bytes: size at which rows are written out.

    Raises:
        ValueError: the folder is no cache, was begun with other settings, or holds a damaged file.
        FileNotFoundError: there is none, and no settings were given.
    """

    def __init__(self, folder: Any, settings: Mapping[str, Any] | None, shard_bytes: int = _SHARD_BYTES):
        self.shard_bytes = shard_bytes
        self._waiting_bytes = 0
        self._where: dict[str, tuple[int, int]] = {}
        self._waiting: dict[str, Row] = {}
        self._table = CacheTable(folder)
        if settings is None and self._table.read_manifest() is None:
            raise FileNotFoundError(f"There is no teacher cache {str(folder)!r}; dual-distill teach makes one.")
        self.settings = self._table.begin(settings or {})
        if settings is not None:
            self._table.check_settings(self.settings, settings)
        self.refresh()

    def __len__(self) -> int:
        return len(self._where) + len(self._waiting)

    def __contains__(self, name: str) -> bool:
        return name in self._where or name in self._waiting

    def keep(self, name: str, row: Row) -> None:
        """Let a row that was just computed wait to be written."""
        if not _is_finite(row):
            raise ValueError(f"the teacher's outputs for row {name} are not finite, and are not kept; load it again.")
        self._waiting[name] = row
        self._waiting_bytes += sum(each.nbytes for each in row.values())

    def row(self, name: str) -> Row:
        """Return a row, from memory or from the disk."""
        if name in self._waiting:
            return self._waiting[name]
        number, inside = self._where[name]
        vectors = self._table.vectors(number)
        row = {column: torch.tensor(vectors[column][inside].values.to_numpy()) for column in vectors.column_names}
        if not _is_finite(row):
            way_out = "remove the folder, and let the run ask its teacher again"
            raise ValueError(f"row {name} of the teacher cache {str(self._table.path)!r} is not finite; {way_out}.")
        return row

    def write_full(self) -> None:
        """Write what waits, if it makes a shard."""
        if self._waiting_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, as one shard that appears whole; call it at the end and with each checkpoint."""
        if self._waiting:
            rows = list(self._waiting.values())
            columns = {
                name: pa.array([row[name].numpy() for row in rows], pa.large_list(_TYPES[each.dtype]))
                for name, each in rows[0].items()
            }
            # Under the next free number: other processes write too.
            self._table.write(None, pa.table({"id": list(self._waiting)}), pa.table(columns))
            self._waiting.clear()
            self._waiting_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that this or another process has written since."""
        known = {number for number, _ in self._where.values()}
        for number in {int(file.stem.removeprefix("shard-")) for file in self._table.path.glob("shard-*")} - known:
            # Ids alone; what is kept of them stays on the disk.
            ids = self._table.rows(number)["id"].to_pylist()
            self._where |= {name: (number, inside) for inside, name in enumerate(ids)}


class TeacherCache(RowCache):
    """Outputs of a teacher that reads a student's tokens, on disk, by row.

    Args:
        folder: as for `RowCache`.
        kind: one of `KINDS`.
        settings: what the outputs depend on beside a row's content, as JSON values: the teacher's digest, its layers,
            relation heads, transform, seed. Compared with those of the folder.
        patch_size: pixels along a side of a patch.
        shard_bytes: size at which rows are written out.

    Raises:
        ValueError: as `RowCache`.
    """

    def __init__(
        self, folder: Any, kind: str, settings: Mapping[str, Any], patch_size: int, shard_bytes: int = _SHARD_BYTES
    ):
        self.kind, self.patch_size = kind, patch_size
        super().__init__(folder, {"kind": kind, **settings}, shard_bytes)

    def outputs(self, batch: Batch, teacher: Callable[[Batch], Any], objective: DiDEObjective) -> CachedTeacherOutputs:
        """Return the teacher's outputs, from the disk where they are there; the rest is computed and kept.

        Args:
            batch: with `row_keys` (`KeyedCollator`), or they are computed here.
            teacher: called with the rows that are missing; returns what the objective reads.
            objective: says which layers are kept.

        Raises:
            ValueError: the objective compares attention but the cache holds logits, or a kept row does not fit the
                batch.
        """
        if objective.teacher_layers and self.kind != "attention":
            keeps = "the teacher cache keeps logits alone; cache attention, or set attention_weight to 0"
            raise ValueError(f"the objective compares attention, but {keeps}.")
        rows = {name: value for name, value in batch.items() if name not in (ROW_KEYS, "labels")}
        keys = batch[ROW_KEYS] if ROW_KEYS in batch else row_keys(rows)
        names = row_names(keys)

        missing = {name: row for row, name in enumerate(names) if name not in self}
        if missing:
            chosen = torch.tensor(list(missing.values()), device=rows["input_ids"].device)
            part = {name: value[chosen] for name, value in rows.items()}
            with torch.no_grad():
                self._keep(list(missing), part, teacher(part), objective)

        # What was just computed goes the same way as what is read, rounding and all.
        found = self._assemble(names, rows, len(objective.teacher_layers))
        self.write_full()
        return found

    def _keep(self, names: list[str], batch: Batch, outputs: Any, objective: DiDEObjective) -> None:
        """Let rows that were just computed wait to be written."""
        logits = outputs.logits.detach().float().cpu()
        layers = []
        if self.kind == "attention":
            num_tokens = batch["attention_mask"].shape[1] + _image_mask(batch["pixel_mask"], self.patch_size).shape[2]
            both_ways = objective.teacher_scores(outputs, batch["attention_mask"], num_tokens)
            layers = [[way.detach().float().cpu() for way in layer] for layer in both_ways]

        for row, name in enumerate(names):
            pieces = [
                rounded(layer[way][image][:, queries[:, None], keys])
                for layer in layers
                for way, image, queries, keys in self._blocks(batch, row)
            ]
            scores = torch.cat([torch.zeros(0, dtype=torch.float16), *pieces])
            heads = torch.tensor([layer[0].shape[1] for layer in layers], dtype=torch.int32)
            self.keep(name, {"logits": logits[row].clone(), "heads": heads, "scores": scores})

    def _assemble(self, names: list[str], batch: Batch, num_layers: int) -> CachedTeacherOutputs:
        """Lay the rows out with the batch's own padding."""
        device = batch["input_ids"].device
        rows = [self.row(name) for name in names]
        logits = torch.stack([row["logits"] for row in rows]).to(device)
        if self.kind == "logits":
            return CachedTeacherOutputs(logits)

        images, tokens = _image_mask(batch["pixel_mask"], self.patch_size).shape[1:]
        count, length = len(rows) * images, batch["attention_mask"].shape[1]
        layers = [
            (torch.zeros(count, heads, length, tokens), torch.zeros(count, heads, tokens, length))
            for heads in rows[0]["heads"].tolist()
        ]
        for index, row in enumerate(rows):
            all_heads, scores = row["heads"].tolist(), row["scores"]
            places = [(layer, *block) for layer in range(len(all_heads)) for block in self._blocks(batch, index)]
            sizes = [all_heads[layer] * len(queries) * len(keys) for layer, _, _, queries, keys in places]
            if len(all_heads) != num_layers or sum(sizes) != len(scores):
                holds = f"holds {len(scores):,} scores of {len(all_heads)} layers"
                asked = f"the batch asks for {sum(sizes):,} of {num_layers}; give the cache of this objective"
                raise ValueError(f"row {names[index]} of the teacher cache {str(self._table.path)!r} {holds}, {asked}.")

            for (layer, way, image, queries, keys), piece in zip(places, scores.float().split(sizes), strict=True):
                layers[layer][way][image][:, queries[:, None], keys] = piece.view(-1, len(queries), len(keys))
        return CachedTeacherOutputs(logits, [(to_image.to(device), to_text.to(device)) for to_image, to_text in layers])

    def _blocks(self, batch: Batch, row: int) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """Where the scores of a layer of a row belong, in the order in which they are kept: way, image, query, key."""
        text = batch["attention_mask"][row].cpu().nonzero()[:, 0]
        patches = [
            real.nonzero()[:, 0] for real in _image_mask(batch["pixel_mask"][row, None], self.patch_size)[0].cpu()
        ]
        images = enumerate(patches, row * len(patches))
        return [block for image, real in images for block in ((0, image, text, real), (1, image, real, text))]


class TeacherCacheCallback(TrainerCallback):
    """Writes the rows that wait with each checkpoint, after each evaluation and at the end of training.

    Args:
        cache: what is written.
    """

    def __init__(self, cache: RowCache):
        self.cache = cache

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Write, so that a run that is resumed asks no more than it must."""
        self.cache.flush()

    on_evaluate = on_train_end = on_save


def _is_finite(row: Row) -> bool:
    return all(bool(each.isfinite().all()) for each in row.values())


def _image_mask(pixel_mask: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Real image tokens `(B, N, 1 + I)`, CLS token first: a patch counts by its top left pixel, as in the models."""
    patches = pixel_mask[:, :, ::patch_size, ::patch_size].bool().flatten(2)
    return torch.cat([patches.new_ones(*patches.shape[:2], 1), patches], dim=2)


def rounded(scores: torch.Tensor) -> torch.Tensor:
    """Scores in float16, flat, each query's largest at 0, which a softmax does not see."""
    return (scores - scores.amax(-1, keepdim=True)).clamp(min=torch.finfo(torch.float16).min).half().flatten()
