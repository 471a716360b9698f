r"""Region features that others published as TSV files (base64 of float32 numbers) become a region store.

| columns | known from | what they hold |
|---|---|---|
| 6 | bottom-up attention | image_id, image_w, image_h, num_boxes, boxes (base64), features (base64) |
| 2 | VinVL's extractor | image_id, `{"image_w", "image_h", "objects": [{"rect", "class", "conf", "feature"}]}` |
| 2 | Oscar | image_id, `{"num_boxes", "features" (base64)}`, with a file of labels and one of sizes beside it |
| 3 | Oscar | image_id, num_boxes, features (base64), likewise |
| 10 | LXMERT | img_id, img_h, img_w, four of objects and attributes, num_boxes, boxes, features (base64) |

A file of labels has image_id and `[{"rect", "class", "conf"}]` (or an object with these under "objects"; conf may be
missing), one of sizes image_id and `[{"height", "width"}]`. An id may have a file extension in one file and none in
another. A published file has tens of gigabytes: it is run through once for
where its lines begin, then read line by line, and every error names file and line.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dual_distill.data import FilePath, InputSource, RegionSet, described_fingerprint, existing_file, other_names

from .extraction import read_image
from .store import SHARD_SIZE, RegionManifest, RegionStore, StoredImage, fill_store

_BOX_NUMBERS = 6
# The names of the columns behind the id; one alone is JSON.
_TEN = ("image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")
_COLUMNS = {9: _TEN, 5: ("image_w", "image_h", "num_boxes", "boxes", "features"), 2: ("num_boxes", "features")}


def read_region_tsv(
    file: FilePath,
    store: FilePath,
    *,
    made_by: str,
    labels: FilePath | None = None,
    sizes: FilePath | None = None,
    images: InputSource | None = None,
    cut_box_numbers: bool = False,
    dtype: str = "float32",
    shard_size: int = SHARD_SIZE,
) -> RegionStore:
    """Read a TSV file of region features into a region store; a call that was killed is continued by the same call.

    Where the file has certainties, regions are sorted by them, the highest first; else they keep the file's order, and
    their score is 1. Where it has no classes, tags are "".

    Args:
        file: of a layout above; the number of columns says which.
        store: folder; made, or continued.
        made_by: the detector, in words, for `boxes_id` and `features_id`; their digests are of the content.
        labels: file of boxes, classes and certainties, for features without.
        sizes: file of image sizes, for files without.
        images: the images, under the ids of the file; the store then knows their content, by which `find_image` (and
            so training) finds their regions. None: they are found by id alone.
        cut_box_numbers: the last six numbers of each vector are its box once more (2,054 = 2,048 + 6), and are left
            out.
        dtype: of the stored features, "float32" or "float16".
        shard_size: images a file.

    Returns:
        The store, opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not of its layout, is truncated, has another width, holds NaN, or a box outside its
        image.

    Example:
        >>> read_region_tsv("no/such/file.tsv", "store", made_by="bottom-up attention")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.tsv'; relative paths start at the current folder.
    """
    lines = _TsvLines(file)
    label_lines, size_lines = (None if other is None else _TsvLines(other) for other in (labels, sizes))

    def regions_of(identifier: str) -> RegionSet:
        regions = _regions(identifier, lines, label_lines, size_lines)
        return regions._replace(features=regions.features[:, : -_BOX_NUMBERS if cut_box_numbers else None])

    # All lines must be as wide as the first.
    feature_size = regions_of(lines.ids[0]).features.shape[1]
    named = {identifier: identifier for identifier in ([] if images is None else images.ids)}
    called = {identifier: _named(identifier, named) for identifier in lines.ids}
    if images is not None and (absent := sorted(identifier for identifier in lines.ids if called[identifier] is None)):
        found = f"{len(absent):,} images of {str(lines.path)!r} are not among the images given, such as {absent[0]!r}"
        raise ValueError(f"{found}; their ids are like {images.ids[0]!r}: name the file's column of ids, or no images.")

    digests = [other.digest for other in (label_lines, size_lines) if other is not None]
    features = {"features": [lines.digest, *digests], "cut_box_numbers": cut_box_numbers}
    features_id = described_fingerprint(made_by, features)
    boxes_id = described_fingerprint(made_by, {"boxes": [lines.boxes_digest, *digests]})
    manifest = RegionManifest(boxes_id, features_id, feature_size, dtype, shard_size, made_with={})

    def describe(ids: list[str]) -> Iterator[StoredImage]:
        for identifier in ids:
            regions = regions_of(identifier).checked(lines.where(identifier), feature_size)
            if images is None:
                yield StoredImage(identifier, None, None, regions)
                continue

            image, of_bytes, of_pixels = read_image(images.value(str(called[identifier])), identifier)
            if image.size != (regions.width, regions.height):
                said = f"{lines.where(identifier)}: it says {regions.width} x {regions.height} pixels"
                found = f"the image {identifier!r} has {image.width} x {image.height}"
                raise ValueError(f"{said}, but {found}; give the images that the features are of.")
            yield StoredImage(identifier, of_bytes, of_pixels, regions)

    fill_store(store, manifest, lines.ids, describe)
    return RegionStore(store)


class _TsvLines:
    """The lines of a file by the id in their first column; run through once, then read where they lie."""

    def __init__(self, file: FilePath) -> None:
        self.path = existing_file(file)
        # Where a line begins, and its number from 1.
        self._lines: dict[str, tuple[int, int]] = {}
        content, boxes = hashlib.sha256(), hashlib.sha256()
        offset = 0
        self._source = self.path.open("rb")

        for number, line in enumerate(self._source, start=1):
            content.update(line)
            identifier, tab, rest = line.partition(b"\t")
            name, where = identifier.decode("utf-8", "replace").strip(), f"{self.path}, line {number}"
            if tab and name in self._lines:
                before = f"the image {name!r} was there before, in line {self._lines[name][1]}"
                raise ValueError(f"{where}: {before}; leave one of the two out.")
            if tab:
                self._lines[name] = offset, number
                # Without the last column, which of the six or ten holds the features.
                boxes.update(identifier + (rest.rpartition(b"\t")[0] if rest.count(b"\t") in (4, 8) else b""))
            elif line.strip():
                raise ValueError(f"{where}: there is no tab in it, which should part its columns.")
            offset += len(line)

        if not self._lines:
            raise ValueError(f"{str(self.path)!r} holds no line; is it the right file?")
        self.ids = list(self._lines)
        self.digest, self.boxes_digest = content.hexdigest(), boxes.hexdigest()

    def where(self, identifier: str) -> str:
        """File and line, for errors."""
        return f"{self.path}, line {self._line(identifier)[1]}"

    def _line(self, identifier: str) -> tuple[int, int]:
        if (found := _named(identifier, self._lines)) is None:
            problem = f"{str(self.path)!r} has no line for the image {identifier!r}"
            raise ValueError(f"{problem}; give the file that belongs to the features.")
        return found

    @contextmanager
    def columns(self, identifier: str) -> Iterator[list[str]]:
        """What stands behind an image's id; errors of whoever reads it get file and line, bad UTF-8 among them."""
        where = self.where(identifier)
        self._source.seek(self._line(identifier)[0])
        try:
            yield self._source.readline().decode().rstrip("\r\n").split("\t")[1:]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _named(identifier: str, known: Mapping[str, Any]) -> Any:
    """What is known of an image under its id, or under one with or without a file extension; None: nothing."""
    return next((known[name] for name in (identifier, *other_names(identifier)) if name in known), None)


def _regions(identifier: str, lines: _TsvLines, labels: _TsvLines | None, sizes: _TsvLines | None) -> RegionSet:
    """The regions of an image, unchecked but for their layout."""
    with lines.columns(identifier) as columns:
        names = _COLUMNS.get(len(columns), ())
        if not names and len(columns) != 1:
            raise ValueError(f"it has {len(columns) + 1} columns, but expected are 10, 6, 3 or 2 (read_region_tsv).")
        entry = dict(zip(names, columns, strict=True)) if names else _json(columns[0], dict)

        if "boxes" in names:
            number, width, height = (_value(entry, name, int) for name in ("num_boxes", "image_w", "image_h"))
            boxes, features = (_numbers(entry[name], number, name) for name in ("boxes", "features"))
            certain = entry.get("objects_conf")
            scores = torch.ones(number) if certain is None else _numbers(certain, number, "objects_conf").flatten()
            order = scores.argsort(descending=True, stable=True)
            return RegionSet(features[order], boxes[order], scores[order], [""] * number, width, height)
        if "objects" in entry:
            rows = [_numbers(_value(item, "feature", str), 1, "feature") for item in _objects(entry)]
            if len(widths := {row.shape[1] for row in rows}) > 1:
                raise ValueError(f"its features are {sorted(widths)} wide, but expected is one width.")
            return _with_objects(identifier, torch.cat(rows) if rows else torch.zeros(0, 0), entry, sizes)

        # Features of one file, boxes and classes of another.
        number, text = _value(entry, "num_boxes", int), _value(entry, "features", str)
        features = _numbers(text, number, "features")
        if labels is None:
            raise ValueError("it holds features and no boxes; give the file of labels beside it (labels=, --labels).")

    with labels.columns(identifier) as columns:
        found = _json(columns[-1], (dict, list))
        entry = found if isinstance(found, dict) else {"objects": found}
        if (count := len(_objects(entry))) != number:
            others = f"{lines.where(identifier)} features of {number}"
            raise ValueError(f"it has {count} objects, but {others}; give files of one extraction.")
        return _with_objects(identifier, features, entry, sizes)


def _with_objects(identifier: str, features: torch.Tensor, entry: dict[str, Any], sizes: _TsvLines | None) -> RegionSet:
    """The regions of the objects of an entry, the most certain first."""
    objects, size = _objects(entry), entry
    boxes = [_value(item, "rect", list) for item in objects]
    if any(len(box) != 4 or not all(isinstance(corner, int | float) for corner in box) for box in boxes):
        raise ValueError("a rect is [x0, y0, x1, y1], but one holds something else.")
    if sizes is not None and "image_w" not in entry:
        with sizes.columns(identifier) as columns:
            found = _json(columns[-1], (dict, list))
            listed = found[0] if isinstance(found, list) and found else found
            if not isinstance(listed, dict):
                raise ValueError(f'a size is [{{"height": ..., "width": ...}}], but it holds {found!r}.')
            size = {f"image_{name[0]}": _value(listed, name, int) for name in ("width", "height")}
    elif "image_w" not in entry:
        raise ValueError("it does not say how large the image is; give the file of sizes (sizes=, --sizes).")

    # The most certain first, as a detector gives them.
    scores = torch.tensor([float(_value({"conf": 1.0, **item}, "conf", (int, float))) for item in objects])
    order = scores.argsort(descending=True, stable=True)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)[order]
    tags = [_value(objects[index], "class", str) for index in order.tolist()]
    width, height = _value(size, "image_w", int), _value(size, "image_h", int)
    return RegionSet(features[order], corners, scores[order], tags, width, height)


def _numbers(text: str, rows: int, name: str) -> torch.Tensor:
    """`(rows, any)` float32 numbers of a base64 text."""
    try:
        content = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        problem = f"the base64 of its {name} is truncated or damaged ({error})"
        raise ValueError(f"{problem}; download the file again.") from error
    if rows < 0 or len(content) % (4 * max(rows, 1)) or (rows == 0 and content):
        problem = f"its {name} are {len(content):,} bytes, which is not {rows} rows of float32 numbers"
        raise ValueError(f"{problem}; the line is truncated or num_boxes is wrong.")
    return torch.from_numpy(np.frombuffer(content, dtype="<f4").astype(np.float32).reshape(rows, -1 if rows else 0))


def _json(text: str, kind: type | tuple[type, ...]) -> Any:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"its last column is not JSON ({error}); it is truncated or of another layout.") from error
    if not isinstance(found, kind):
        raise ValueError(f"its last column is a {type(found).__name__}, but expected is an object.")
    return found


def _objects(entry: dict[str, Any]) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = _value(entry, "objects", list)
    if not all(isinstance(item, dict) for item in objects):
        raise ValueError("its objects should be {...} each.")
    return objects


def _value(entry: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A value of an entry; a whole number may be written as text, as columns have it."""
    value = entry.get(name)
    if kind is int and isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name} is {str(entry.get(name, 'missing'))[:40]}, but expected is {kinds}.")
    return value
