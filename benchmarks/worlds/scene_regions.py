"""Regions of generated scenes: their known boxes, described by a small convolutional backbone, trained in seconds.

It stands for the detectors of photographs where one wants to see within minutes what distillation between region-based
models does: a light detector is boxes that are moved, missed and in another order, and a backbone of few channels; a
heavy one has the boxes as they are, and more channels.
"""

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import nn

from dual_distill.data import COLOURS, SHAPES, RegionSet, decode_image, described_fingerprint, fingerprint
from dual_distill.regions import SHARD_SIZE, RegionManifest, RegionStore, StoredImage, fill_store, roi_align

_STRIDE = 2
_POINTS = 6
_FIRST_KERNEL = 5
_LEARNING_RATE = 5e-3
_SMALLEST_PX = 1.0


class SceneBackbone(nn.Module):
    """Convolutions over a scene: `(B, 3, H, W)` pixels -> `(B, width, H / 2, W / 2)` features.

    Args:
        width: channels, which become the width of a region's features.
        depth: layers, >= 1; the first has a kernel of 5 and stride 2, the others have a kernel of 3.
        seed: draws the weights; the random numbers of others are left as they are.

    Example:
        >>> SceneBackbone(8)(torch.zeros(2, 3, 36, 36)).shape
        torch.Size([2, 8, 18, 18])
    """

    def __init__(self, width: int, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.width, self.depth, self.seed = width, depth, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Conv2d(3, width, _FIRST_KERNEL, stride=_STRIDE, padding=_FIRST_KERNEL // 2)]
            for _ in range(depth - 1):
                layers += [nn.GELU(), nn.Conv2d(width, width, 3, padding=1)]
            self.layers = nn.Sequential(*layers, nn.GELU())
            # What it is trained by; not part of the features.
            self.colour_head, self.shape_head = nn.Linear(width, len(COLOURS)), nn.Linear(width, len(SHAPES))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Describe scenes whose pixels lie in [-1, 1]."""
        features: torch.Tensor = self.layers(pixel_values)
        return features

    def describe(self, pixel_values: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Pool the features in boxes: `(R_1 + ... + R_B, width)`."""
        return roi_align(self(pixel_values), boxes, 1, 1 / _STRIDE, _POINTS)[..., 0, 0]

    def described(self) -> str:
        """Return its shape for a sentence."""
        return f"scene backbone of {self.width} channels x {self.depth} layers, seed {self.seed}"


def train_scene_backbone(
    scenes: Dataset, width: int, depth: int = 2, *, steps: int = 240, batch_size: int = 16, seed: int = 0
) -> SceneBackbone:
    """Train a backbone to tell colour and shape of what a box holds; a few seconds, by its width and the machine.

    Args:
        scenes: of `generate_scenes`, one split.
        width: channels.
        depth: layers.
        steps: of AdamW.
        batch_size: scenes a step.
        seed: draws weights and scenes.

    Returns:
        The backbone, in eval mode.
    """
    backbone = SceneBackbone(width, depth, seed).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    rows = _undecoded(scenes).select(_first_rows(scenes))
    draw = random.Random(f"{seed} backbone")
    for _ in range(steps):
        batch = [rows[index] for index in draw.sample(range(len(rows)), min(batch_size, len(rows)))]
        pixels, boxes, colours, shapes = _examples(batch)
        features = backbone.describe(pixels, boxes)
        loss = nn.functional.cross_entropy(backbone.colour_head(features), colours)
        loss = loss + nn.functional.cross_entropy(backbone.shape_head(features), shapes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return backbone.eval()


@torch.inference_mode()
def backbone_accuracy(backbone: SceneBackbone, scenes: Dataset) -> dict[str, float]:
    """Return how often colour and shape of an object are told rightly, each in [0, 1].

    Args:
        backbone: trained.
        scenes: of `generate_scenes`, one split, none of those that it was trained on.
    """
    rows = _undecoded(scenes).select(_first_rows(scenes))
    pixels, boxes, colours, shapes = _examples(list(rows))
    features = backbone.describe(pixels, boxes)
    return {
        "colour_accuracy": (backbone.colour_head(features).argmax(-1) == colours).float().mean().item(),
        "shape_accuracy": (backbone.shape_head(features).argmax(-1) == shapes).float().mean().item(),
    }


def scene_region_store(
    scenes: Dataset | DatasetDict | Mapping[str, Dataset],
    backbone: SceneBackbone,
    store: str | os.PathLike[str],
    *,
    boxes: RegionStore | None = None,
    jitter_px: float = 0.0,
    miss_rate: float = 0.0,
    shuffled: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    shard_size: int = SHARD_SIZE,
) -> RegionStore:
    """Write the regions of scenes: a box, a tag such as "red circle" and a feature vector an object.

    Each scene's boxes are drawn from the seed and its id alone. A scene whose objects were all missed has the whole
    image for a region, without a tag.

    Args:
        scenes: of `generate_scenes`, or with its columns `image, scene_id, boxes, objects`; one split or all. Rows of
            one scene count once, and `scene_id` is the id in the store.
        backbone: describes the boxes.
        store: folder; made, or continued.
        boxes: a store of the same scenes whose boxes are taken (teacher adaptation); the new one has its `boxes_id`.
        jitter_px: each side of a box is moved by up to that many pixels, in or out.
        miss_rate: share of objects that are missed, in [0, 1].
        shuffled: give the regions in an order drawn anew for each scene, instead of row by row.
        seed: of jitter, misses and order.
        batch_size: scenes a forward pass.
        shard_size: scenes a file.

    Returns:
        The store, opened.

    Raises:
        ValueError: a number is out of its range, or `boxes` lacks a scene.

    Example:
        >>> import tempfile
        >>> from dual_distill.data import generate_scenes
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = scene_region_store(generate_scenes({"train": 2}, seed=1), SceneBackbone(8), folder.name)
        >>> store.ids(), store.find("train-0").tags[:2]
        (['train-0', 'train-1'], ['yellow triangle', 'yellow triangle'])
        >>> folder.cleanup()
    """
    if jitter_px < 0 or not 0 <= miss_rate <= 1:
        raise ValueError(f"jitter_px is {jitter_px} and miss_rate {miss_rate}; expected are >= 0, and 0 to 1.")
    splits = [scenes] if isinstance(scenes, Dataset) else list(scenes.values())
    found = [(_undecoded(split), index) for split in splits for index in _first_rows(split)]
    places = {split["scene_id"][index]: (split, index) for split, index in found}
    settings = {"jitter_px": jitter_px, "miss_rate": miss_rate, "shuffled": shuffled, "seed": seed}
    weights = {
        name: [float(value) for value in tensor.flatten().tolist()]
        for name, tensor in backbone.layers.state_dict().items()
    }
    manifest = RegionManifest(
        boxes_id=_boxes_id(settings) if boxes is None else boxes.boxes_id,
        features_id=described_fingerprint(backbone.described(), weights),
        feature_size=backbone.width,
        dtype="float32",
        shard_size=shard_size,
        made_with={"batch_size": batch_size},
    )

    def describe(ids: list[str]) -> Iterator[StoredImage]:
        for start in range(0, len(ids), batch_size):
            rows = [places[name][0][places[name][1]] for name in ids[start : start + batch_size]]
            yield from _described(rows, backbone, boxes, settings)

    with torch.inference_mode():
        fill_store(store, manifest, list(places), describe)
    return RegionStore(store)


def _described(
    rows: list[dict[str, Any]], backbone: SceneBackbone, boxes: RegionStore | None, settings: dict[str, Any]
) -> Iterator[StoredImage]:
    """The regions of a batch of scenes."""
    images = [decode_image(row["image"], row["scene_id"]) for row in rows]
    regions = [
        _seen(row, image.size, **settings) if boxes is None else boxes.find(row["scene_id"])
        for row, image in zip(rows, images, strict=True)
    ]
    features = backbone.describe(_pixels(images), [each.boxes_px for each in regions])
    pieces = features.split([len(each.boxes_px) for each in regions])
    for row, image, each, piece in zip(rows, images, regions, pieces, strict=True):
        key = fingerprint(row["image"]["bytes"]) if row["image"]["bytes"] else None
        yield StoredImage(row["scene_id"], key, fingerprint(image), each._replace(features=piece.clone()))


def _seen(
    row: dict[str, Any], size: tuple[int, int], jitter_px: float, miss_rate: float, shuffled: bool, seed: int
) -> RegionSet:
    """What a detector of these settings sees of a scene."""
    draw = random.Random(f"{seed} {row['scene_id']}")
    width, height = size
    found: list[tuple[list[float], str]] = []
    for corners, item in zip(row["boxes"], row["objects"], strict=True):
        missed = draw.random() < miss_rate
        x0, y0, x1, y1 = (corner + draw.uniform(-jitter_px, jitter_px) for corner in corners)
        x0, y0 = min(max(x0, 0.0), width - _SMALLEST_PX), min(max(y0, 0.0), height - _SMALLEST_PX)
        x1, y1 = min(max(x1, x0 + _SMALLEST_PX), float(width)), min(max(y1, y0 + _SMALLEST_PX), float(height))
        if not missed:
            found.append(([x0, y0, x1, y1], f"{item['colour']} {item['shape']}"))
    if shuffled:
        draw.shuffle(found)
    whole_image = not found
    if whole_image:
        found = [([0.0, 0.0, float(width), float(height)], "")]
    corners_px = torch.tensor([corners for corners, _ in found])
    scores = torch.zeros(1) if whole_image else torch.ones(len(found))
    return RegionSet(
        torch.zeros(len(found), 0), corners_px, scores, [tag for _, tag in found], width, height, whole_image
    )


def _boxes_id(settings: dict[str, Any]) -> str:
    words = [f"moved by up to {settings['jitter_px']:g} px"] if settings["jitter_px"] else []
    words += [f"{settings['miss_rate']:.0%} missed"] if settings["miss_rate"] else []
    words += ["shuffled"] if settings["shuffled"] else []
    return described_fingerprint(
        f"boxes of scenes, {', '.join(words) or 'as they are'}, seed {settings['seed']}", settings
    )


def _first_rows(scenes: Dataset) -> list[int]:
    """The first row of each scene."""
    first: dict[str, int] = {}
    for index, name in enumerate(scenes["scene_id"]):
        first.setdefault(name, index)
    return list(first.values())


def _undecoded(scenes: Dataset) -> Dataset:
    kept = [name for name in ("image", "scene_id", "boxes", "objects") if name in scenes.column_names]
    return scenes.select_columns(kept).cast_column("image", datasets.Image(decode=False))


def _pixels(images: Iterable[Any]) -> torch.Tensor:
    """`(B, 3, H, W)` in [-1, 1]."""
    arrays = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


def _examples(rows: list[dict[str, Any]]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Pixels, boxes, and the class of each object by colour and by shape."""
    pixels = _pixels([decode_image(row["image"], row["scene_id"]) for row in rows])
    boxes = [torch.tensor(row["boxes"], dtype=torch.float32) for row in rows]
    objects = [item for row in rows for item in row["objects"]]
    colours = torch.tensor([list(COLOURS).index(item["colour"]) for item in objects])
    return pixels, boxes, colours, torch.tensor([list(SHAPES).index(item["shape"]) for item in objects])
