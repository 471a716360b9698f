"""Regions of images by an object detector: its boxes and tags, and what a backbone's feature map says inside them.

Two models can take part, which is *teacher adaptation* (Fang et al., ICCV 2021, arXiv 2104.02096): a light detector
finds the boxes, and the backbone of a heavy one describes the same boxes again, so that region i of a student is region
i of its teacher.

What is unusual: the batches of a shard follow from its plan alone, and a shard is written whole. A run that was killed
comes out the same, bit for bit.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from tqdm.auto import tqdm

from dual_distill.data import ImageError, RegionSet, content_key, decode_image, fingerprint, image_source, pixel_key

from .detectors import Detected, Detector
from .files import SHARD_SIZE, RegionFolder, RegionManifest, StoredImage, UnreadableImage, fill_store
from .roi_align import roi_align
from .store import RegionStore

MAX_REGIONS = 50
MIN_REGIONS = 10
THRESHOLD = 0.2
BATCH_SIZE = 8
# 7 x 7 bins of 2 x 2 points, and their mean: one bin of 14 x 14.
_POINTS = 14
_POOLING = "mean of RoIAlign 7 x 7"
_WAITING_BATCHES = 4
_MOST_THREADS = 16
_SMALLEST_PX = 1.0


class ImageCollection(Protocol):
    """Images by id, undecoded, such as `open_images` returns them."""

    ids: list[str]

    def value(self, identifier: str) -> Any:
        """Return what `decode_image` accepts."""


@dataclass(frozen=True)
class RegionReport:
    """What a call of `extract_regions` did.

    Attributes:
        store: its folder.
        images: in the store.
        added: images that were added now.
        whole_images: images of the store whose one region is the whole image, since the detector found nothing.
        regions: in the store.
        feature_size: F.
        boxes_id: what made the boxes.
        features_id: what made the features.
        seconds: duration, without loading the model.
        unreadable: id -> problem.
    """

    store: str
    images: int
    added: int
    whole_images: int
    regions: int
    feature_size: int
    boxes_id: str
    features_id: str
    seconds: float
    unreadable: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return asdict(self)


class _Prepared(NamedTuple):
    """What threads make of an image."""

    pixels: torch.Tensor
    width: int
    height: int
    sha256: str | None
    pixel_sha256: str


def read_image(images: ImageCollection, identifier: str) -> tuple[Image.Image, str | None, str]:
    """Return an image of a collection, decoded, and its two content keys; one that came decoded has no key of bytes.

    Raises:
        ImageError: it cannot be read.
    """
    return _read_value(images.value(identifier), identifier)


def _read_value(value: Any, identifier: str) -> tuple[Image.Image, str | None, str]:
    name, source = image_source(value, identifier)
    if isinstance(source, Image.Image):
        image, sha256 = decode_image(source, identifier), None
    else:
        image, sha256 = decode_image({"bytes": source, "path": name}, identifier), content_key(source)
    return image, sha256, pixel_key(image)


def choose_regions(
    detected: Detected,
    width: int,
    height: int,
    threshold: float = THRESHOLD,
    min_regions: int = MIN_REGIONS,
    max_regions: int = MAX_REGIONS,
) -> RegionSet:
    """Choose which boxes of a detector are regions, without their features.

    Boxes are cut to the picture; what is narrower or lower than a pixel then, and a box that was there before under a
    likelier tag, is passed over. All boxes above the threshold are taken, but at least `min_regions` and at most
    `max_regions` of the likeliest. Where no box is left, the whole image is the region, with score 0 and no tag, and
    `whole_image` says so.

    Args:
        detected: the most certain first.
        width: of the picture in pixels.
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
        >>> found = choose_regions(Detected(boxes, torch.tensor([0.9, 0.1, 0.1]), ["cat", "dog", "dog"]), 20, 10, min_regions=2)
        >>> found.boxes_px.tolist(), found.tags
        ([[0.0, 0.0, 8.0, 8.0], [0.0, 2.0, 5.0, 10.0]], ['cat', 'dog'])
    """
    if not (detected.boxes_px.isfinite().all() and detected.scores.isfinite().all()):
        raise ValueError("the detector gives a box or a score that is NaN or infinite; is the model trained and whole?")
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(detected.boxes_px.clamp(min=0), limits)
    chosen: list[int] = []
    seen: set[tuple[float, ...]] = set()
    sizes = (boxes[:, 2:] - boxes[:, :2]).min(1).values.tolist()
    for place, (score, size) in enumerate(zip(detected.scores.tolist(), sizes, strict=True)):
        enough = len(chosen) >= min_regions and score < threshold
        if enough or len(chosen) == max_regions:
            break
        corners = tuple(boxes[place].tolist())
        if size >= _SMALLEST_PX and corners not in seen:
            seen.add(corners)
            chosen.append(place)
    if not chosen:
        return RegionSet(
            torch.zeros(1, 0), limits[None] * torch.tensor([0, 0, 1, 1]), torch.zeros(1), [""], width, height, True
        )
    tags = [detected.tags[place] for place in chosen]
    return RegionSet(torch.zeros(len(chosen), 0), boxes[chosen], detected.scores[chosen], tags, width, height)


def extract_regions(
    detector: Detector,
    images: ImageCollection,
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
    threads: int | None = None,
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
        threads: that read and decode; None: one a core, 16 at most.
        show_progress: a bar on stderr, with images/s and time left.

    Returns:
        A `RegionReport`.

    Raises:
        ValueError: a setting is out of range, the store was begun with something else, `boxes` lacks an image or knows
            another size of it, or an image cannot be read and `strict` is set.
    """
    _check_settings(threshold, min_regions, max_regions, batch_size)
    start = time.perf_counter()
    folder = RegionFolder(store)
    settings = {"threshold": threshold, "min_regions": min_regions, "max_regions": max_regions}
    run = _Extraction(detector, images, boxes, settings, batch_size, strict, threads)
    manifest = _manifest(run, dtype, shard_size)
    mended = [identifier for identifier in folder.all_unreadable() if run.is_readable(identifier)]
    done = sum(len(shard.ids) for shard in folder.planned_shards() if folder.features(shard.number).is_file())
    with (
        tqdm(
            total=max(0, len(images.ids) - done), unit=" images", desc="regions", disable=not show_progress
        ) as run.bar,
        torch.inference_mode(),
    ):
        added = fill_store(store, manifest, images.ids, run, mended)
    return report_store(store, added, time.perf_counter() - start)


class _Extraction:
    """Describes the images of one shard after the other."""

    bar: tqdm

    def __init__(
        self,
        detector: Detector,
        images: ImageCollection,
        boxes: RegionStore | None,
        settings: dict[str, Any],
        batch_size: int,
        strict: bool,
        threads: int | None,
    ) -> None:
        self.detector, self.images, self.boxes, self.settings = detector, images, boxes, settings
        self.batch_size, self.strict = batch_size, strict
        self.threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
        self._given = set(images.ids)

    def __call__(self, ids: list[str]) -> Iterator[StoredImage | UnreadableImage]:
        """Describe the images of a shard, in order; they go through the detector by shape."""
        rows: dict[str, StoredImage | UnreadableImage] = {}
        waiting: dict[torch.Size, list[tuple[str, _Prepared]]] = {}
        for identifier, future in self._ahead(ids):
            try:
                prepared = future.result()
            except ImageError as error:
                if self.strict:
                    raise ValueError(f"{error} Without strict, it is listed and the run goes on.") from error
                rows[identifier] = UnreadableImage(identifier, str(error))
                self.bar.update()
                continue
            waiting.setdefault(prepared.pixels.shape, []).append((identifier, prepared))
            if len(waiting[prepared.pixels.shape]) == self.batch_size:
                rows |= self._described(waiting.pop(prepared.pixels.shape))
            elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * self.batch_size:
                rows |= self._described(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
        for batch in waiting.values():
            rows |= self._described(batch)
        return (rows[identifier] for identifier in ids)

    def _ahead(self, ids: Sequence[str]) -> Iterator[tuple[str, Future[_Prepared]]]:
        """Yield ids and what threads make of them, in order, a few batches ahead."""
        ahead: deque[tuple[str, Future[_Prepared]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            for identifier in ids:
                future: Future[_Prepared] = Future()
                if identifier in self._given:
                    # A data set is read in this thread, a file in the other.
                    future = pool.submit(self._prepare, identifier, self.images.value(identifier))
                else:
                    future.set_exception(
                        ImageError(f"row {identifier}: it was planned, but is not among those given now.")
                    )
                ahead.append((identifier, future))
                if len(ahead) > 2 * self.batch_size + self.threads:
                    yield ahead.popleft()
            yield from ahead
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, identifier: str, value: Any) -> _Prepared:
        image, sha256, pixel_sha256 = _read_value(value, identifier)
        pixels = self.detector.prepare(image, identifier)
        return _Prepared(pixels, image.width, image.height, sha256, pixel_sha256)

    def _described(self, batch: list[tuple[str, _Prepared]]) -> dict[str, StoredImage]:
        """Run one batch."""
        pixel_values = torch.stack([prepared.pixels for _, prepared in batch])
        output = self.detector(pixel_values, [(prepared.width, prepared.height) for _, prepared in batch])
        found = [
            self._regions(identifier, prepared, detected)
            for (identifier, prepared), detected in zip(batch, output.detected, strict=True)
        ]
        # Boxes are in pixels of the image, the stride in pixels of the resized one.
        height, width = pixel_values.shape[-2:]
        resized = [
            regions.boxes_px * torch.tensor([width / regions.width, height / regions.height] * 2) for regions in found
        ]
        pooled = roi_align(output.feature_maps.float(), resized, 1, 1 / output.stride, _POINTS)[..., 0, 0].cpu()
        pieces = pooled.split([len(regions.boxes_px) for regions in found])
        self.bar.update(len(batch))
        return {
            identifier: StoredImage(
                identifier, prepared.sha256, prepared.pixel_sha256, regions._replace(features=features.clone())
            )
            for (identifier, prepared), regions, features in zip(batch, found, pieces, strict=True)
        }

    def _regions(self, identifier: str, prepared: _Prepared, detected: Detected) -> RegionSet:
        if self.boxes is None:
            try:
                return choose_regions(detected, prepared.width, prepared.height, **self.settings)
            except ValueError as error:
                raise ValueError(f"image {identifier!r}: {error}") from error
        keys = [
            key for key in (prepared.sha256, prepared.pixel_sha256, identifier) if key is not None and key in self.boxes
        ]
        regions = self.boxes.find(keys[0] if keys else identifier)
        if (regions.width, regions.height) != (prepared.width, prepared.height):
            raise ValueError(
                f"image {identifier!r}: the picture is {prepared.width} x {prepared.height} pixels, but the boxes in "
                f"{self.boxes.path!r} are of one of {regions.width} x {regions.height}; give the same pictures."
            )
        return regions

    def is_readable(self, identifier: str) -> bool:
        """Whether an image that could not be read can be now."""
        try:
            return identifier in self._given and bool(self._prepare(identifier, self.images.value(identifier)))
        except ImageError:
            return False


def _check_settings(threshold: float, min_regions: int, max_regions: int, batch_size: int) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but a score lies in 0 to 1.")
    if not 0 <= min_regions <= max_regions or max_regions < 1:
        raise ValueError(
            f"min_regions is {min_regions} and max_regions {max_regions}; expected is 0 <= min <= max and max >= 1."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it counts 1 or more.")


def _manifest(run: _Extraction, dtype: str, shard_size: int) -> RegionManifest:
    """What the store says of itself; the width of features is that of a blank picture's map."""
    identity = run.detector.identity()
    words = run.detector.described()
    blank = run.detector.prepare(Image.new("RGB", (64, 64)), "blank")
    feature_size = run.detector(blank[None], [(64, 64)]).feature_maps.shape[1]
    if run.boxes is None:
        counts = (
            f"{run.settings['min_regions']} to {run.settings['max_regions']} boxes above {run.settings['threshold']:g}"
        )
        boxes_id = fingerprint(f"detector {words}, {counts}", {"detector": identity, **run.settings})
    else:
        boxes_id = run.boxes.boxes_id
    return RegionManifest(
        boxes_id=boxes_id,
        features_id=fingerprint(f"backbone of {words}, {_POOLING}", {"detector": identity, "pooling": _POOLING}),
        feature_size=feature_size,
        dtype=dtype,
        shard_size=shard_size,
        made_with={"batch_size": run.batch_size, **({} if run.boxes is not None else run.settings)},
    )


def report_store(store: str | os.PathLike[str], added: int = 0, seconds: float = 0.0) -> RegionReport:
    """Return what a store holds.

    Args:
        store: its folder.
        added: images that were added just now.
        seconds: that this took.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is not finished, or damaged.

    Example:
        >>> report_store("no/such/store")
        Traceback (most recent call last):
        FileNotFoundError: There is no region store 'no/such/store'; `dual-distill regions` makes one.
    """
    found = RegionStore(store)
    whole_images, regions = found.counts()
    return RegionReport(
        store=str(store),
        images=len(found),
        added=added,
        whole_images=whole_images,
        regions=regions,
        feature_size=found.feature_size,
        boxes_id=found.boxes_id,
        features_id=found.features_id,
        seconds=seconds,
        unreadable=found.unreadable(),
    )


__all__ = [
    "BATCH_SIZE",
    "MAX_REGIONS",
    "MIN_REGIONS",
    "THRESHOLD",
    "ImageCollection",
    "RegionReport",
    "choose_regions",
    "extract_regions",
    "read_image",
    "report_store",
]
