"""Regions of images by an object detector: its boxes and tags, and what a backbone's feature map says inside them.

Two models can take part, which is *teacher adaptation* (Fang et al., ICCV 2021, arXiv 2104.02096): a light detector
finds the boxes, and the backbone of a heavy one describes the same boxes again, so that region i of a student is region
i of its teacher.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm.auto import tqdm

from dual_distill import data
from dual_distill.data import InputSource, Prepared, RegionSet

from .detectors import Detected, Detector
from .roi_align import roi_align
from .store import SHARD_SIZE, RegionManifest, RegionReport, RegionStore, RegionTable, StoredImage, report_store

MAX_REGIONS = 50
MIN_REGIONS = 10
THRESHOLD = 0.2
BATCH_SIZE = 8
# 7 x 7 bins of 2 x 2 points, and their mean: one bin of 14 x 14.
_POINTS = 14
_POOLING = "mean of RoIAlign 7 x 7"
_SMALLEST_PX = 1.0


def read_image(value: Any, identifier: str) -> tuple[Image.Image, str | None, str]:
    """Return an image, decoded, and its fingerprints by bytes and by pixels; one that came decoded has no bytes.

    Raises:
        ImageError: it cannot be read.
    """
    content, sha256 = data.image_bytes(value, identifier)
    image = data.decode_image(content, identifier)
    return image, None if isinstance(content, Image.Image) else sha256, data.fingerprint(image)


def choose_regions(
    detected: Detected,
    width: int,
    height: int,
    threshold: float = THRESHOLD,
    min_regions: int = MIN_REGIONS,
    max_regions: int = MAX_REGIONS,
) -> RegionSet:
    """Choose which boxes of a detector are regions, without their features.

    Boxes are cut to the image; what is narrower or lower than a pixel then, and a box that was there before under a
    likelier tag, is passed over. All boxes above the threshold are taken, but at least `min_regions` and at most
    `max_regions` of the likeliest. Where no box is left, the whole image is the region, with score 0 and no tag, and
    `whole_image` says so.

    Args:
        detected: the most certain first.
        width: of the image in pixels.
        height: likewise.
        threshold: lowest score, in [0, 1].
        min_regions: taken whatever their scores, >= 0.
        max_regions: >= 1.

    Returns:
        A `RegionSet` whose features are `(R, 0)`.

    Raises:
        ValueError: a score or a box is not finite.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [-4, 2, 5, 30], [3, 3, 3, 9]])
        >>> detected = Detected(boxes, torch.tensor([0.9, 0.1, 0.1]), ["cat", "dog", "dog"])
        >>> found = choose_regions(detected, 20, 10, min_regions=2)
        >>> found.boxes_px.tolist(), found.tags
        ([[0.0, 0.0, 8.0, 8.0], [0.0, 2.0, 5.0, 10.0]], ['cat', 'dog'])
    """
    if not (detected.boxes_px.isfinite().all() and detected.scores.isfinite().all()):
        raise ValueError("the detector gives a box or a score that is NaN or infinite; is the model trained and whole?")

    # Cut to the image, the likeliest first; a box that was there before is passed over.
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(detected.boxes_px.clamp(min=0), limits)
    sizes = (boxes[:, 2:] - boxes[:, :2]).min(1).values.tolist()
    chosen: dict[tuple[float, ...], int] = {}
    for index, (score, size) in enumerate(zip(detected.scores.tolist(), sizes, strict=True)):
        if (len(chosen) >= min_regions and score < threshold) or len(chosen) == max_regions:
            break
        if size >= _SMALLEST_PX:
            chosen.setdefault(tuple(boxes[index].tolist()), index)

    # A model needs one region at least.
    if not chosen:
        whole = limits[None] * torch.tensor([0, 0, 1, 1])
        return RegionSet(torch.zeros(1, 0), whole, torch.zeros(1), [""], width, height, whole_image=True)
    kept = list(chosen.values())
    tags = [detected.tags[index] for index in kept]
    return RegionSet(torch.zeros(len(kept), 0), boxes[kept], detected.scores[kept], tags, width, height)


def extract_regions(
    detector: Detector,
    images: InputSource,
    store: str | os.PathLike[str],
    *,
    boxes: RegionStore | None = None,
    threshold: float = THRESHOLD,
    min_regions: int = MIN_REGIONS,
    max_regions: int = MAX_REGIONS,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    dtype: str = "float32",
    strict: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> RegionReport:
    """Find or describe the regions of images, and store them.

    Args:
        detector: finds the boxes, and its backbone describes them.
        images: what to look at.
        store: folder; made, continued, or added to.
        boxes: a store whose boxes, scores and tags are taken instead of the detector's own, image by image; the new
            store then has its `boxes_id` (teacher adaptation). Images are found there by content, or by id where it
            knows no content.
        threshold: as in `choose_regions`; not used with `boxes`.
        min_regions: likewise.
        max_regions: likewise.
        batch_size: images a forward pass; only images that have one shape once prepared share one.
        shard_size: images a file; a killed run loses what it had of one.
        dtype: of the stored features, "float32" or "float16".
        strict: an image that cannot be read ends the run; else it is listed.
        num_workers: processes that read and decode; None: one a core, 16 at most.
        show_progress: a bar on stderr, with images/s and time left.

    Returns:
        A `RegionReport`.

    Raises:
        ValueError: a setting is out of range, the store was begun with something else, `boxes` lacks an image or knows
            another size of it, or an image cannot be read and `strict` is set.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but a score lies in 0 to 1.")
    if not 0 <= min_regions <= max_regions or max_regions < 1:
        given = f"min_regions is {min_regions} and max_regions {max_regions}"
        raise ValueError(f"{given}; expected is 0 <= min <= max and max >= 1.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")

    began = time.perf_counter()
    settings = {"threshold": threshold, "min_regions": min_regions, "max_regions": max_regions}
    extraction = _Extraction(detector, boxes, settings)
    table, prepare = RegionTable(store), partial(_prepare, detector.prepare)
    manifest = extraction.manifest(dtype, shard_size, batch_size)
    shards = table.start(manifest, images.ids, partial(data.is_readable, images, prepare))

    added, total, run = 0, sum(len(shard.ids) for shard in shards), extraction.describe
    with tqdm(total=total, unit=" images", desc="regions", disable=not show_progress) as bar, torch.inference_mode():
        for shard in data.fill_shards(shards, images, prepare, run, batch_size, strict, num_workers, bar):
            table.write_images(shard.number, list(shard.results.values()), manifest, shard.unreadable)
            added += len(shard.results)
    return report_store(store, added, time.perf_counter() - began)


def _prepare(resize: Callable[[Image.Image, str], torch.Tensor], identifier: str, value: Any) -> Prepared:
    image, of_bytes, of_pixels = read_image(value, identifier)
    return Prepared(resize(image, identifier), (identifier, image.size, of_bytes, of_pixels))


class _Extraction(NamedTuple):
    """The boxes of a detector, or those of another store, described by the detector's backbone."""

    detector: Detector
    boxes: RegionStore | None
    settings: dict[str, Any]

    def manifest(self, dtype: str, shard_size: int, batch_size: int) -> RegionManifest:
        """What the store says of itself; the width of features is that of a blank image's map."""
        identity, words = {"detector": self.detector.identity()}, self.detector.described
        features_id = data.described_fingerprint(f"backbone of {words}, {_POOLING}", identity | {"pooling": _POOLING})
        made_with: dict[str, Any] = {"batch_size": batch_size}
        if self.boxes is not None:
            boxes_id = self.boxes.boxes_id
        else:
            made_with |= self.settings
            counts = "{min_regions} to {max_regions} boxes above {threshold:g}".format_map(self.settings)
            boxes_id = data.described_fingerprint(f"detector {words}, {counts}", identity | self.settings)

        blank = self.detector.prepare(Image.new("RGB", (64, 64)), "blank")
        feature_size = self.detector(blank[None], [(64, 64)]).feature_maps.shape[1]
        return RegionManifest(boxes_id, features_id, feature_size, dtype, shard_size, made_with)

    def describe(self, batch: list[Prepared]) -> list[StoredImage]:
        """The regions of one batch of images."""
        output = self.detector(torch.stack([image.values for image in batch]), [image.known[1] for image in batch])
        images = zip(batch, output.detected, strict=True)
        found = [self._regions(detected, *image.known) for image, detected in images]

        # Boxes are in pixels of the image, the stride in pixels of the resized one.
        height, width = batch[0].values.shape[-2:]
        resized = [one.boxes_px * torch.tensor([width / one.width, height / one.height] * 2) for one in found]
        pooled = roi_align(output.feature_maps.float(), resized, 1, 1 / output.stride, _POINTS)[..., 0, 0].cpu()
        pieces = pooled.split([len(regions.boxes_px) for regions in found])

        stored = []
        for image, regions, features in zip(batch, found, pieces, strict=True):
            identifier, _, of_bytes, of_pixels = image.known
            # Copied, so that one image does not keep its batch in memory.
            stored.append(StoredImage(identifier, of_bytes, of_pixels, regions._replace(features=features.clone())))
        return stored

    def _regions(self, detected: Detected, name: str, size: tuple[int, int], *fingerprints: str | None) -> RegionSet:
        """The regions of one image without their features."""
        if self.boxes is None:
            try:
                return choose_regions(detected, *size, **self.settings)
            except ValueError as error:
                raise ValueError(f"image {name!r}: {error}") from error

        known = [key for key in fingerprints if key is not None and key in self.boxes]
        regions = self.boxes.find(known[0]) if known else self.boxes.find_unseen(name)
        if (regions.width, regions.height) != size:
            found = f"the boxes in {self.boxes.path!r} are of one of {regions.width} x {regions.height}"
            sizes = f"the image is {size[0]} x {size[1]} pixels, but {found}"
            raise ValueError(f"image {name!r}: {sizes}; give the same images.")
        return regions
