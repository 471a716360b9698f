r"""Region features that others published as TSV files (base64 of float32 numbers) become a region store.

| columns | known from | what they hold |
|---|---|---|
| 6 | bottom-up attention | image_id, image_w, image_h, num_boxes, boxes (base64), features (base64) |
| 2 | VinVL's extractor | image_id, `{"image_w", "image_h", "objects": [{"rect", "class", "conf", "feature" (base64)}]}` |
| 2 | Oscar | image_id, `{"num_boxes", "features" (base64)}`, with a file of labels and one of sizes beside it |
| 3 | Oscar | image_id, num_boxes, features (base64), likewise |

A file of labels has image_id and `[{"rect", "class", "conf"}]` (or an object with these under "objects"), one of sizes
image_id and `[{"height", "width"}]`. A published file has tens of gigabytes: it is run through once for the
places of its lines, then read line by line, and every error names file and line.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dual_distill.data import FilePath, RegionSet, existing_file, fingerprint

from .extraction import ImageCollection, read_image
from .files import SHARD_SIZE, RegionManifest, StoredImage, fill_store
from .store import RegionStore

_BOX_NUMBERS = 6


def read_region_tsv(
    file: FilePath,
    store: FilePath,
    *,
    made_by: str,
    labels: FilePath | None = None,
    sizes: FilePath | None = None,
    images: ImageCollection | None = None,
    feature_size: int | None = None,
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
        images: the pictures, under the ids of the file; the store then knows their content, by which `find_image` (and
            so training) finds their regions. None: they are found by id alone.
        feature_size: width that is expected; None: that of the first line.
        cut_box_numbers: the last six numbers of each vector are its box once more (2,054 = 2,048 + 6), and are left
            out.
        dtype: of the stored features, "float32" or "float16".
        shard_size: images a file.

    Returns:
        The store, opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not of its layout, is truncated, has another width, holds NaN, or a box outside its
        picture.

    Example:
        >>> read_region_tsv("no/such/file.tsv", "store", made_by="bottom-up attention")
        Traceback (most recent call last):
        FileNotFoundError: There is no file 'no/such/file.tsv'; relative paths start at the current folder.
    """
    lines = _TsvLines(file)
    reader = _Reader(
        lines,
        None if labels is None else _TsvLines(labels),
        None if sizes is None else _TsvLines(sizes),
        cut_box_numbers,
    )
    if feature_size is None:
        feature_size = reader.regions(lines.ids[0]).features.shape[1]
    others = [other.digest for other in (reader.labels, reader.sizes) if other is not None]
    boxes_digest = [lines.boxes_digest, *others]
    manifest = RegionManifest(
        boxes_id=fingerprint(made_by, {"boxes": boxes_digest}),
        features_id=fingerprint(made_by, {"features": [lines.digest, *others], "cut_box_numbers": cut_box_numbers}),
        feature_size=feature_size,
        dtype=dtype,
        shard_size=shard_size,
        made_with={},
    )

    def describe(ids: list[str]) -> Iterator[StoredImage]:
        for identifier in ids:
            regions = reader.regions(identifier).checked(lines.place(identifier), feature_size)
            if images is None:
                yield StoredImage(identifier, None, None, regions)
                continue
            image, sha256, pixel_sha256 = read_image(images, identifier)
            if image.size != (regions.width, regions.height):
                raise ValueError(
                    f"{lines.place(identifier)}: it says {regions.width} x {regions.height} pixels, but the picture "
                    f"{identifier!r} has {image.width} x {image.height}; give the pictures that the features are of."
                )
            yield StoredImage(identifier, sha256, pixel_sha256, regions)

    if images is not None and (absent := sorted(set(lines.ids).difference(images.ids))):
        raise ValueError(
            f"{len(absent):,} images of {str(lines.path)!r} are not among the pictures given, such as {absent[0]!r}; "
            f"their ids "
            f"are like {images.ids[0]!r}: name the column of ids that belongs to the file, or give no pictures."
        )

    fill_store(store, manifest, lines.ids, describe)
    return RegionStore(store)


class _Line(NamedTuple):
    """Where a line begins, and its number from 1."""

    offset: int
    number: int


class _TsvLines:
    """The lines of a file by the id in their first column; run through once, then read where they lie."""

    def __init__(self, file: FilePath) -> None:
        self.path = existing_file(file)
        self._lines: dict[str, _Line] = {}
        content, boxes = hashlib.sha256(), hashlib.sha256()
        with self.path.open("rb") as source:
            offset = 0
            for number, line in enumerate(source, start=1):
                content.update(line)
                identifier, tab, rest = line.partition(b"\t")
                if tab:
                    name = identifier.decode("utf-8", "replace").strip()
                    if name in self._lines:
                        raise ValueError(
                            f"{self.path}, line {number}: the image {name!r} was there before, in line "
                            f"{self._lines[name].number}; leave one of the two out."
                        )
                    self._lines[name] = _Line(offset, number)
                    # Without the last column, which of the six holds the features.
                    boxes.update(identifier + (rest.rpartition(b"\t")[0] if rest.count(b"\t") == 4 else b""))
                elif line.strip():
                    raise ValueError(
                        f"{self.path}, line {number}: there is no tab in it, but expected are columns with tabs "
                        f"between."
                    )
                offset += len(line)
        if not self._lines:
            raise ValueError(f"{str(self.path)!r} holds no line; is it the right file?")
        self.ids = list(self._lines)
        self.digest, self.boxes_digest = content.hexdigest(), boxes.hexdigest()
        self._source = self.path.open("rb")

    def place(self, identifier: str) -> str:
        """File and line, for errors."""
        return f"{self.path}, line {self._lines[identifier].number}" if identifier in self._lines else str(self.path)

    def columns(self, identifier: str) -> list[str]:
        """The columns of an image's line, behind its id."""
        if identifier not in self._lines:
            raise ValueError(
                f"{str(self.path)!r} has no line for the image {identifier!r}; give the file that belongs to the "
                f"features."
            )
        self._source.seek(self._lines[identifier].offset)
        try:
            return self._source.readline().decode("utf-8").rstrip("\r\n").split("\t")[1:]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.place(identifier)}: the line is not UTF-8 ({error}); download the file again."
            ) from error


class _Reader:
    """Turns the lines of one image into its regions."""

    def __init__(
        self, lines: _TsvLines, labels: _TsvLines | None, sizes: _TsvLines | None, cut_box_numbers: bool
    ) -> None:
        self.lines, self.labels, self.sizes = lines, labels, sizes
        self._cut = cut_box_numbers

    def regions(self, identifier: str) -> RegionSet:
        """The regions of an image, unchecked but for their layout."""
        columns, place = self.lines.columns(identifier), self.lines.place(identifier)
        if len(columns) == 5:
            width, height, number = (_whole_number(text, place) for text in columns[:3])
            boxes = _numbers(columns[3], number, "boxes", place)
            features = _numbers(columns[4], number, "features", place)
            return self._made(features, boxes, torch.ones(number), [""] * number, width, height)
        if len(columns) == 2:
            number = _whole_number(columns[0], place)
            return self._with_labels(identifier, _numbers(columns[1], number, "features", place))
        if len(columns) != 1:
            raise ValueError(
                f"{place}: it has {len(columns) + 1} columns, but expected are 6, 3 or 2; see the layouts that can be "
                f"read."
            )
        entry = _json(columns[0], dict, place)
        if "objects" in entry:
            rows = [
                _numbers(_value(item, "feature", str, place), 1, "feature", place) for item in _objects(entry, place)
            ]
            widths = {row.shape[1] for row in rows}
            if len(widths) > 1:
                raise ValueError(f"{place}: its features are {sorted(widths)} wide, but expected is one width.")
            features = torch.cat(rows) if rows else torch.zeros(0, 0)
            width, height = self._size(identifier, entry, place)
            return self._sorted(features, _objects(entry, place), width, height, place)
        number = _value(entry, "num_boxes", int, place)
        return self._with_labels(identifier, _numbers(_value(entry, "features", str, place), number, "features", place))

    def _with_labels(self, identifier: str, features: torch.Tensor) -> RegionSet:
        """Features of one file, boxes and classes of another."""
        if self.labels is None:
            raise ValueError(
                f"{self.lines.place(identifier)}: it holds features and no boxes; give the file of labels that "
                f"belongs to it "
                "(labels=, --labels)."
            )
        place = self.labels.place(identifier)
        entry = _json(self.labels.columns(identifier)[-1], (dict, list), place)
        objects = _objects(entry if isinstance(entry, dict) else {"objects": entry}, place)
        if len(objects) != len(features):
            raise ValueError(
                f"{place}: it has {len(objects)} objects, but {self.lines.place(identifier)} features of "
                f"{len(features)}; give "
                "files of one extraction."
            )
        width, height = self._size(identifier, entry if isinstance(entry, dict) else {}, place)
        return self._sorted(features, objects, width, height, place)

    def _size(self, identifier: str, entry: dict[str, Any], place: str) -> tuple[int, int]:
        """Width and height in pixels: of the entry, else of the file of sizes."""
        if "image_w" in entry or "image_h" in entry:
            return _value(entry, "image_w", int, place), _value(entry, "image_h", int, place)
        if self.sizes is None:
            raise ValueError(
                f"{place}: it does not say how large the picture is; give the file of sizes (sizes=, --sizes)."
            )
        place = self.sizes.place(identifier)
        found = _json(self.sizes.columns(identifier)[-1], (dict, list), place)
        size = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else found
        if not isinstance(size, dict):
            raise ValueError(f'{place}: a size is [{{"height": ..., "width": ...}}], but it holds {found!r}.')
        return _value(size, "width", int, place), _value(size, "height", int, place)

    def _sorted(
        self, features: torch.Tensor, objects: list[dict[str, Any]], width: int, height: int, place: str
    ) -> RegionSet:
        """Regions of objects, the most certain first."""
        boxes = [_value(item, "rect", list, place) for item in objects]
        if any(len(box) != 4 or not all(isinstance(corner, int | float) for corner in box) for box in boxes):
            raise ValueError(f"{place}: a rect is [x0, y0, x1, y1], but one holds something else.")
        scores = torch.tensor(
            [float(_value(item, "conf", (int, float), place)) for item in objects], dtype=torch.float32
        )
        tags = [_value(item, "class", str, place) for item in objects]
        order = scores.argsort(descending=True, stable=True)
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return self._made(
            features[order], corners[order], scores[order], [tags[i] for i in order.tolist()], width, height
        )

    def _made(
        self,
        features: torch.Tensor,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        tags: list[str],
        width: int,
        height: int,
    ) -> RegionSet:
        return RegionSet(features[:, :-_BOX_NUMBERS] if self._cut else features, boxes, scores, tags, width, height)


def _numbers(text: str, rows: int, name: str, place: str) -> torch.Tensor:
    """`(rows, any)` float32 numbers of a base64 text."""
    try:
        content = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"{place}: the base64 of its {name} is truncated or damaged ({error}); download the file again."
        ) from error
    if rows < 0 or len(content) % (4 * max(rows, 1)) or (rows == 0 and content):
        raise ValueError(
            f"{place}: its {name} are {len(content):,} bytes, which is not {rows} rows of float32 numbers; the line is "
            "truncated or num_boxes is wrong."
        )
    return torch.from_numpy(np.frombuffer(content, dtype="<f4").astype(np.float32).reshape(rows, -1 if rows else 0))


def _whole_number(text: str, place: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"{place}: {text[:40]!r} should be a whole number; is it of the layout that its columns say?"
        ) from error


def _json(text: str, kind: type | tuple[type, ...], place: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{place}: its last column is not JSON ({error}); the line is truncated or of another layout."
        ) from error
    if not isinstance(found, kind):
        raise ValueError(f"{place}: its last column is a {type(found).__name__}, but expected is an object.")
    return found


def _objects(entry: dict[str, Any], place: str) -> list[dict[str, Any]]:
    objects = _value(entry, "objects", list, place)
    if not all(isinstance(item, dict) for item in objects):
        raise ValueError(f"{place}: its objects should be {{...}} each.")
    return list(objects)


def _value(entry: dict[str, Any], name: str, kind: type | tuple[type, ...], place: str) -> Any:
    if name not in entry or not isinstance(entry[name], kind) or isinstance(entry[name], bool):
        raise ValueError(
            f"{place}: {name} is {str(entry.get(name, 'missing'))[:40]}, but expected is "
            f"{' or '.join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))}."
        )
    return entry[name]


__all__ = ["read_region_tsv"]
