"""What a frozen teacher says about a row, kept on disk: later epochs, and later students, do not ask it again.

A row is known by its content: a hash of the word pieces and pixels that the teacher reads, without padding. So another
picture, text, resizing or augmentation is another row, never a wrong hit. What content cannot tell (teacher, layers,
kind, transform, seed) stands in `cache.json`; a folder that was written with anything else is refused, naming the
difference.

Attention is kept as cross-modal scores of the real tokens in float16, each query's largest at 0, where float16 is
finest: for short texts a fraction of queries and keys. What was just computed is handed out through the same rounding,
so that the loss of a row does not depend on whether it was cached.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from dual_distill.objectives import DiDEObjective

KINDS = ("logits", "attention")
MANIFEST = "cache.json"
ROW_KEYS = "row_keys"
"""Name of the keys in a batch, `(B, 16)` uint8."""

_FORMAT = 1
_SHARD_BYTES = 64_000_000
_HEADER_BYTES = 120  # of one tensor in a safetensors header, about
_SHARDS = "rows-*.safetensors"

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
        digest = hashlib.blake2b(digest_size=16)
        digest.update(_bytes(ids[row][real[row]]))
        for pixels, mask in zip(batch["pixel_values"][row].cpu(), batch["pixel_mask"][row].cpu().bool(), strict=True):
            height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
            digest.update(f"/{height}x{width}/".encode())
            digest.update(_bytes(pixels[:, :height, :width].float()))
        keys.append(torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8))
    return torch.stack(keys)


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


def teacher_digest(teacher: nn.Module) -> str:
    """Hash every weight of a teacher: what identifies it, wherever it was loaded from.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> teacher_digest(one) == teacher_digest(one), teacher_digest(one) == teacher_digest(other)
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight.cpu()))
    return digest.hexdigest()


def estimate_bytes(
    batch: Batch, num_rows: int, num_labels: int, num_layers: int = 0, num_heads: int = 0, patch_size: int = 1
) -> int:
    """How much a cache will take on disk, from a batch of typical rows.

    Args:
        batch: as for `row_keys`.
        num_rows: rows that will be kept; with augmentation each epoch's are rows of their own.
        num_labels: logits a row.
        num_layers: layers of attention; 0 for a cache of logits.
        num_heads: heads (or relation heads) of a layer.
        patch_size: pixels along a side of a patch.

    Returns:
        Bytes.

    Example:
        >>> batch = {"attention_mask": torch.ones(2, 10), "pixel_mask": torch.ones(2, 1, 64, 64)}
        >>> estimate_bytes(batch, num_rows=1000, num_labels=30) / 1000   # bytes a row: 30 float32 and a header entry
        240.0
    """
    tokens = batch["attention_mask"].bool().sum(1)
    patches = _image_mask(batch, patch_size).sum(2)
    scores = 2 * num_layers * num_heads * (tokens[:, None] * patches).sum(1).double().mean().item()
    entries = 1 + 2 * num_layers * patches.shape[1]
    return int(num_rows * (4 * num_labels + 2 * scores + entries * _HEADER_BYTES))


class TeacherCache:
    """Teacher outputs on disk, by row.

    Args:
        folder: new, empty, or a cache that was written with the same settings.
        kind: one of `KINDS`.
        settings: what the outputs depend on beside a row's content, as JSON values: the teacher's digest, its layers,
            relation heads, transform, seed. Compared with those of the folder.
        patch_size: pixels along a side of a patch.
        rank: of this process among those that write to the folder.
        shard_bytes: size at which rows are written out.

    Raises:
        ValueError: the folder is no cache, was written with other settings, or holds a damaged file.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        settings: Mapping[str, Any],
        patch_size: int,
        rank: int = 0,
        shard_bytes: int = _SHARD_BYTES,
    ):
        if kind not in KINDS:
            raise ValueError(f"a teacher cache of kind {kind!r} was asked for; give one of {', '.join(KINDS)}.")
        self.folder = Path(folder)
        self.kind = kind
        self.patch_size = patch_size
        self.rank = rank
        self.shard_bytes = shard_bytes
        self.computed_rows = 0
        self._where: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}
        self._waiting: dict[str, dict[str, torch.Tensor]] = {}
        self._waiting_bytes = 0
        self._open({"format": _FORMAT, "kind": kind, **settings})
        self.refresh()

    def __len__(self) -> int:
        return len(self._where) + len(self._waiting)

    def check_space(self, estimated_bytes: int) -> None:
        """Refuse to begin what will not fit on the disk.

        Raises:
            ValueError: less is free than estimated, beyond what the cache holds already.
        """
        held = sum(file.stat().st_size for file in self.folder.glob(_SHARDS))
        free = shutil.disk_usage(self.folder).free
        if estimated_bytes - held > free:
            raise ValueError(
                f"the teacher cache will take about {estimated_bytes / 1e9:.1f} GB, of which {held / 1e9:.1f} GB are "
                f"there, "
                f"but {str(self.folder)!r} has {free / 1e9:.1f} GB left; cache logits alone, fewer layers, or give "
                f"another "
                "disk."
            )

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
        if objective.attention_weight and self.kind != "attention":
            raise ValueError(
                "the objective compares attention, but the teacher cache keeps logits alone; cache attention, or set "
                "attention_weight to 0."
            )
        rows = {name: value for name, value in batch.items() if name not in (ROW_KEYS, "labels")}
        keys = batch[ROW_KEYS] if ROW_KEYS in batch else row_keys(rows)
        names = [bytes(key.tolist()).hex() for key in keys.cpu()]
        missing = {
            name: place for place, name in enumerate(names) if name not in self._where and name not in self._waiting
        }
        if missing:
            places = torch.tensor(list(missing.values()), device=rows["input_ids"].device)
            part = {name: value[places] for name, value in rows.items()}
            with torch.no_grad():
                self._keep(list(missing), part, teacher(part), objective)
        layers = len(objective.teacher_layers) if self.kind == "attention" else 0
        found = self._assemble(names, rows, layers)
        if self._waiting_bytes >= self.shard_bytes:
            self.flush()
        return found

    def flush(self) -> None:
        """Write the rows that wait, as one file that appears whole; call it at the end and with each checkpoint."""
        if self._waiting:
            mine = [
                int(file.stem.rsplit("-", 1)[1]) for file in self.folder.glob(f"rows-{self.rank:03d}-*.safetensors")
            ]
            file = self.folder / f"rows-{self.rank:03d}-{max(mine, default=-1) + 1:06d}.safetensors"
            aside = file.with_suffix(".part")
            tensors = {f"{name}/{part}": value for name, row in self._waiting.items() for part, value in row.items()}
            save_file(tensors, aside)
            aside.replace(file)
            self._waiting.clear()
            self._waiting_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Take in files that this or another process has written since."""
        for file in sorted(self.folder.glob(_SHARDS)):
            if file not in self._files:
                try:
                    self._files[file] = safe_open(file, framework="pt")
                except SafetensorError as error:
                    raise ValueError(
                        f"{str(file)!r} of the teacher cache is damaged ({error}); delete this file, its rows are "
                        "computed anew."
                    ) from error
                self._where |= {key.split("/")[0]: file for key in self._files[file].keys()}  # noqa: SIM118 - no mapping

    def _open(self, settings: Mapping[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))  # as they will be read: tuples are lists, keys are strings
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            found = json.loads(manifest.read_text(encoding="utf-8"))
            unequal = [key for key in sorted({*found, *settings}) if found.get(key) != settings.get(key)]
            if unequal:
                differences = "; ".join(
                    f"{key}: {found.get(key)!r} there, {settings.get(key)!r} now" for key in unequal
                )
                raise ValueError(
                    f"the teacher cache {str(self.folder)!r} was written with other settings ({differences}); give "
                    f"another "
                    "folder, or the settings of this one."
                )
            return
        # Another process may be writing the same manifest at this moment.
        if self.folder.exists() and (
            not self.folder.is_dir() or any(not file.name.startswith(MANIFEST) for file in self.folder.iterdir())
        ):
            raise ValueError(f"{str(self.folder)!r} is there already and no teacher cache; name a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{MANIFEST}.{self.rank}.part"
        aside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        aside.replace(manifest)

    def _keep(self, names: list[str], batch: Batch, outputs: Any, objective: DiDEObjective) -> None:
        logits = outputs.logits.detach().float().cpu()
        scores = []
        text_mask, image_mask = batch["attention_mask"].bool().cpu(), _image_mask(batch, self.patch_size).cpu()
        if self.kind == "attention":
            num_tokens = text_mask.shape[1] + image_mask.shape[2]
            scores = objective.teacher_scores(outputs, batch["attention_mask"], num_tokens)
        images = image_mask.shape[1]
        for row, name in enumerate(names):
            kept = {"logits": logits[row].clone()}
            for layer, blocks in enumerate(scores):
                for image in range(images):
                    text, real = text_mask[row], image_mask[row, image]
                    to_image, to_text = (block[row * images + image].detach().float().cpu() for block in blocks)
                    kept[f"{layer}.{image}.text_to_image"] = _rounded(to_image[:, text][:, :, real])
                    kept[f"{layer}.{image}.image_to_text"] = _rounded(to_text[:, real][:, :, text])
            self._waiting[name] = kept
            self._waiting_bytes += sum(value.numel() * value.element_size() for value in kept.values())
        self.computed_rows += len(names)

    def _tensor(self, name: str, part: str) -> torch.Tensor:
        if name in self._waiting:
            return self._waiting[name][part]
        try:
            tensor: torch.Tensor = self._files[self._where[name]].get_tensor(f"{name}/{part}")
        except SafetensorError as error:
            raise ValueError(
                f"{str(self._where[name])!r} of the teacher cache lacks {part} of a row ({error}); delete this file, "
                f"its rows "
                "are computed anew."
            ) from error
        return tensor

    def _assemble(self, names: list[str], batch: Batch, num_layers: int) -> CachedTeacherOutputs:
        """Lay the rows out with the batch's own padding."""
        device = batch["input_ids"].device
        logits = torch.stack([self._tensor(name, "logits") for name in names]).to(device)
        if self.kind == "logits":
            return CachedTeacherOutputs(logits)
        text_mask, image_mask = batch["attention_mask"].bool().cpu(), _image_mask(batch, self.patch_size).cpu()
        rows, images, tokens = image_mask.shape
        layers = []
        for layer in range(num_layers):
            heads = self._tensor(names[0], f"{layer}.0.text_to_image").shape[0]
            to_image = torch.zeros(rows * images, heads, text_mask.shape[1], tokens)
            to_text = torch.zeros(rows * images, heads, tokens, text_mask.shape[1])
            for row, name in enumerate(names):
                for image in range(images):
                    text, real = text_mask[row].nonzero()[:, 0], image_mask[row, image].nonzero()[:, 0]
                    block = self._tensor(name, f"{layer}.{image}.text_to_image")
                    if block.shape != (heads, len(text), len(real)):
                        raise ValueError(
                            f"row {name} of the teacher cache {str(self.folder)!r} has attention of shape "
                            f"{tuple(block.shape)}, the batch asks for {(heads, len(text), len(real))}; the cache is "
                            "damaged, delete it."
                        )
                    place = row * images + image
                    to_image[place, :, text[:, None], real] = block.float()
                    to_text[place, :, real[:, None], text] = self._tensor(
                        name, f"{layer}.{image}.image_to_text"
                    ).float()
            layers.append((to_image.to(device), to_text.to(device)))
        return CachedTeacherOutputs(logits, layers)


class TeacherCacheCallback(TrainerCallback):
    """Writes the rows that wait with each checkpoint, after each evaluation and at the end of training.

    Args:
        cache: what is written.
    """

    def __init__(self, cache: TeacherCache):
        self.cache = cache

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Write, so that a run that is resumed asks no more than it must."""
        self.cache.flush()

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Write."""
        self.cache.flush()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Write."""
        self.cache.flush()


def _image_mask(batch: Batch, patch_size: int) -> torch.Tensor:
    """Real image tokens `(B, N, 1 + I)`, CLS token first: a patch counts by its top left pixel, as in the models."""
    patches = batch["pixel_mask"][:, :, ::patch_size, ::patch_size].bool().flatten(2)
    return torch.cat([patches.new_ones(*patches.shape[:2], 1), patches], dim=2)


def _rounded(scores: torch.Tensor) -> torch.Tensor:
    """Scores in float16, each query's largest at 0, which a softmax does not see."""
    return (scores - scores.amax(-1, keepdim=True)).clamp(min=torch.finfo(torch.float16).min).half().contiguous()


def _bytes(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data


__all__ = [
    "KINDS",
    "ROW_KEYS",
    "CachedTeacherOutputs",
    "KeyedCollator",
    "TeacherCache",
    "TeacherCacheCallback",
    "estimate_bytes",
    "row_keys",
    "teacher_digest",
]
