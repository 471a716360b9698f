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
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl

from dual_distill import teachers
from dual_distill.data import ShardedTable, fingerprint
from dual_distill.objectives import DiDEObjective

KINDS = ("logits", "attention")
ROW_KEYS = "row_keys"
"""Name of the keys in a batch, `(B, 16)` uint8."""

_SHARD_BYTES = 64_000_000
_KEY_BYTES = 16
_DIRECTIONS = ("text_to_image", "image_to_text")

Batch = Mapping[str, torch.Tensor]


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
            unknown = sorted(settings.keys() - self.settings.keys())
            if unknown and self.settings.get("kind") == settings.get("kind"):
                begun = f"The teacher cache {str(folder)!r} was begun by a former version, which did not note"
                raise ValueError(f"{begun} {', '.join(unknown)}; give another folder, and it is made again.")
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
        super().__init__(folder, {"kind": kind, "patch_size": patch_size, **settings}, shard_bytes)

    def outputs(self, batch: Batch, teacher: Callable[[Batch], Any], objective: DiDEObjective) -> SimpleNamespace:
        """Return the teacher's outputs, from the disk where they are there; the rest is computed and kept.

        Args:
            batch: with `row_keys` (`KeyedCollator`), or they are computed here.
            teacher: called with the rows that are missing; returns what the objective reads.
            objective: says which layers are kept.

        Returns:
            `logits` `(B, labels)` float32 and `cross_modal_scores`, as an objective takes them.

        Raises:
            ValueError: the objective compares attention but the cache holds logits, or a kept row does not fit the
                batch.
        """
        if objective.teacher_layers and self.kind != "attention":
            keeps = "the teacher cache keeps logits alone; cache attention, or set attention_weight to 0"
            raise ValueError(f"the objective compares attention, but {keeps}.")
        rows = {name: value for name, value in batch.items() if name not in (ROW_KEYS, "labels")}
        names = row_names(batch[ROW_KEYS] if ROW_KEYS in batch else row_keys(rows))
        # Of each row the pairs of its text with an image.
        pairs = [[f"{name}-{number}" for number in range(rows["pixel_mask"].shape[1])] for name in names]

        missing = {name: row for row, name in enumerate(names) if pairs[row][0] not in self}
        if missing:
            chosen = torch.tensor(list(missing.values()), device=rows["input_ids"].device)
            part = {name: value[chosen] for name, value in rows.items()}
            with torch.no_grad():
                view = self._view(part, teacher(part), objective)
            for index, pair in enumerate(pair for row in missing.values() for pair in pairs[row]):
                self.keep(pair, row_of(view, index))

        # What was just computed goes the same way as what is read, rounding and all.
        kept, num_layers = [self.row(pair) for of_row in pairs for pair in of_row], len(objective.teacher_layers)
        if wrong := [row for row in kept if len(row["heads"]) != 2 * num_layers]:
            holds = f"holds scores of {len(wrong[0]['heads']) // 2} layers, the batch asks for those of {num_layers}"
            raise ValueError(f"the teacher cache {str(self._table.path)!r} {holds}; give the cache of this objective.")
        found = view_of(kept, range(num_layers), rows["input_ids"].device, self._masks(rows))
        self.write_full()

        # Both models have the same tokens.
        sides = (found.text_spans, found.text_mask), (found.image_boxes, found.image_mask)
        tokens = [teachers.Tokens.of(*side) for side in sides]
        scores = teachers.align_view(found, *tokens) if num_layers else []
        logits: Any = found.logits
        return SimpleNamespace(logits=logits[:: len(pairs[0])], cross_modal_scores=scores)

    def _view(self, batch: Batch, outputs: Any, objective: DiDEObjective) -> teachers.TeacherView:
        """What the teacher says of each pair of text and image."""
        text, image = self._masks(batch)
        layers = []
        if self.kind == "attention":
            num_tokens = text.shape[1] + image.shape[1]
            for ways in objective.teacher_scores(outputs, batch["attention_mask"], num_tokens):
                probs = []
                for scores, keys in zip(ways, (image, text), strict=True):
                    real = scores.detach().float().cpu().masked_fill(~keys[:, None, None], -torch.inf)
                    probs.append(teachers.DirectionAttention(given_probs=real.softmax(-1)))
                layers.append(teachers.LayerAttention(*probs))

        # Only where tokens stand is asked, not what they cover.
        spans, boxes = torch.tensor([0, 1]).expand(*text.shape, 2), torch.tensor([0, 0, 1, 1]).expand(*image.shape, 4)
        logits = outputs.logits.detach().repeat_interleave(batch["pixel_mask"].shape[1], dim=0)
        return teachers.TeacherView(spans, text, boxes, image, layers, logits)

    def _masks(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Real tokens of each pair, `(B * N, T)` and CLS token first `(B * N, 1 + I)`; none where logits are kept."""
        pixels, size = batch["pixel_mask"].cpu().bool(), self.patch_size
        # A patch counts by its top left pixel, as in the models.
        patches = pixels[:, :, ::size, ::size].flatten(0, 1).flatten(1)
        text = batch["attention_mask"].cpu().bool().repeat_interleave(pixels.shape[1], dim=0)
        image = torch.cat([patches.new_ones(len(patches), 1), patches], dim=1)
        has_attention = self.kind == "attention"
        return text & has_attention, image & has_attention


class TeacherCacheCallback(TrainerCallback):
    """Writes the rows that wait before each checkpoint, after each evaluation and at the end of training.

    Before: a run that is killed behind a checkpoint goes on from there, and would not ask for those rows again.

    Args:
        cache: what is written.
    """

    def __init__(self, cache: RowCache):
        self.cache = cache

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Write where a checkpoint follows."""
        if control.should_save:
            self.cache.flush()

    on_epoch_end = on_step_end

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Write."""
        self.cache.flush()

    on_train_end = on_evaluate


def _is_finite(row: Row) -> bool:
    return all(bool(each.isfinite().all()) for each in row.values())


def row_of(view: teachers.TeacherView, row: int, relation_heads: int | None = None, top_k: int | None = None) -> Row:
    """What is kept of a row: its real tokens, and the scores of each layer and direction, block behind block.

    Where the `top_k` largest of each query alone are kept, so are the indices of their keys.
    """
    real = {"text_to_image": view.text_mask[row], "image_to_text": view.image_mask[row]}
    heads, pieces, indices = [], [torch.zeros(0, dtype=torch.float16)], [torch.zeros(0, dtype=torch.int32)]
    for layer in view.layers:
        for direction, other in zip(_DIRECTIONS, reversed(_DIRECTIONS), strict=True):
            attention: teachers.DirectionAttention | None = getattr(layer, direction)
            heads.append(0)
            if attention is not None:
                own = teachers.over_heads(teachers.of_rows(attention, slice(row, row + 1)), relation_heads)
                scores = own.scores()[0][:, real[direction]][..., real[other]]
                heads[-1] = len(scores)
                if top_k is not None:
                    scores, largest = scores.topk(min(top_k, scores.shape[-1]))
                    indices.append(largest.int().flatten().cpu())
                # Each query's largest at 0, which a softmax does not see.
                scores = (scores - scores.amax(-1, keepdim=True)).clamp(min=torch.finfo(torch.float16).min)
                pieces.append(scores.half().flatten().cpu())
    logits = torch.zeros(0) if view.logits is None else view.logits[row].float().cpu()
    return {
        "logits": logits,
        "spans": view.text_spans[row][view.text_mask[row]].int().flatten().cpu(),
        "boxes": view.image_boxes[row][view.image_mask[row]].float().flatten().cpu(),
        "heads": torch.tensor(heads, dtype=torch.int32),
        "scores": torch.cat(pieces),
        **({} if top_k is None else {"indices": torch.cat(indices)}),
    }


def view_of(
    rows: Sequence[Row],
    layers: Sequence[int],
    device: torch.device,
    masks: Sequence[torch.Tensor] | None = None,
    top_k: int | None = None,
) -> teachers.TeacherView:
    """Rows laid out as one batch: at the real tokens of text and image that `masks` name; None: from the first on."""
    sides = [[row[name].view(-1, width) for row in rows] for name, width in (("spans", 2), ("boxes", 4))]
    if masks is None:
        masks = [pad_sequence([torch.ones(len(each)).bool() for each in side], batch_first=True) for side in sides]
    real, covered = [[row.nonzero()[:, 0] for row in mask] for mask in masks], []
    for side, mask in zip(sides, masks, strict=True):
        covered.append(side[0].new_zeros(*mask.shape, side[0].shape[1]))
        covered[-1][mask] = torch.cat(side)

    shown = []
    for layer in layers:
        ways = []
        for way in (0, 1):
            heads = int(rows[0]["heads"][2 * layer + way])
            probs = torch.zeros(len(rows), heads, masks[way].shape[1], masks[1 - way].shape[1])
            for row, kept in enumerate(rows):
                queries, keys = real[way][row], real[1 - way][row]
                # Each query of a direction has as many scores.
                of_each = [min(top_k or len(side[row]), len(side[row])) for side in reversed(real)]
                sizes = [int(n) * len(real[i % 2][row]) * of_each[i % 2] for i, n in enumerate(kept["heads"])]
                block = kept["scores"].split(sizes)[2 * layer + way].float().exp()
                block = block.view(heads, len(queries), of_each[way])
                if top_k is not None:
                    at = kept["indices"].split(sizes)[2 * layer + way].long().view(block.shape)
                    block = torch.zeros(heads, len(queries), len(keys)).scatter(-1, at, block)
                probs[row][:, queries[:, None], keys] = block
            ways.append(teachers.DirectionAttention(given_probs=probs.to(device)) if heads else None)
        shown.append(teachers.LayerAttention(*ways))

    logits = torch.stack([row["logits"] for row in rows]).to(device)
    spans, boxes, text_mask, image_mask = (each.to(device) for each in (*covered, *masks))
    return teachers.TeacherView(spans.long(), text_mask, boxes, image_mask, shown, logits)
