"""Generated images of coloured shapes with questions: a visual question answering task without a download.

Small enough that a fusion encoder learns it in minutes on a laptop, and built so that a dual encoder finds it hard:
answering "what colour is the thing above the red circle?" takes looking at the image with the question in
mind. What is unusual: test is drawn first and train last, each from a stream of its own, so that validation and test
stay the same when train grows.
"""

import io
import math
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value
from PIL import Image as PILImage

from .scene_questions import COLOURS, MAX_OBJECTS, QUESTION_TYPES, SHAPES, Question, SceneObject, SceneQuestionWriter

# Default number of scenes a split.
NUM_SCENES: Mapping[str, int] = {"train": 10_000, "validation": 500, "test": 1_000}

_MIN_OBJECTS = 3
_MAX_ATTEMPTS = 1_000
_RGB = {"red": (222, 45, 38), "green": (44, 160, 62), "blue": (49, 90, 224), "yellow": (244, 196, 20)}
BOXES = List(List(Value("int32"), length=4))
OBJECTS = List({"shape": Value("string"), "colour": Value("string"), "row": Value("int32"), "column": Value("int32")})
_TEXTS = ("question", "answer", "question_type", "scene_id")
_FEATURES = Features({"image": Image(), **dict.fromkeys(_TEXTS, Value("string")), "boxes": BOXES, "objects": OBJECTS})


def generate_scenes(
    num_scenes: Mapping[str, int] | None = None,
    questions_per_scene: int = 6,
    seed: int = 0,
    cells: int = 3,
    cell_px: int = 12,
) -> DatasetDict:
    """Images of three to six coloured shapes on a grid, with questions whose answers are balanced.

    Six question types (exist, count, colour, shape, relation, comparison) take turns; with six questions a scene, each
    scene has one of each. No two scenes, of any split, show the same shapes in the same cells. Equal arguments give
    equal bytes, in any process.

    Args:
        num_scenes: split name -> number of scenes, >= 0; None takes `NUM_SCENES`.
        questions_per_scene: questions about each scene, 1 to 12; none is asked twice about one scene.
        seed: chooses scenes and questions.
        cells: rows and columns of the grid, 2 to 8.
        cell_px: side of a cell in pixels, >= 8. The image is `cells * cell_px` pixels wide and high.

    Returns:
        A `DatasetDict`, one row a question: `image` (PNG), `question`, `answer`, `question_type`, `scene_id`
        ("train-17"), `boxes` (`[x0, y0, x1, y1]` in pixels, x1 and y1 exclusive) and `objects` (shape, colour, row,
        column), in the order of the boxes.

    Raises:
        ValueError: an argument is out of its range, or the grid does not hold that many different scenes.

    Example:
        >>> scenes = generate_scenes({"train": 2}, seed=1)
        >>> scenes["train"].num_rows, scenes["train"][0]["image"].size
        (12, (36, 36))
    """
    num_scenes = NUM_SCENES if num_scenes is None else num_scenes
    drawn = list(draw_scenes(num_scenes, questions_per_scene, seed, cells, cell_px))
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in num_scenes}
    for split, scene in drawn:
        image, objects = {"bytes": scene.png, "path": None}, [item._asdict() for item in scene.objects]
        for question in scene.questions:  # text, answer, type
            row = (image, *question, scene.scene_id, scene.boxes, objects)
            rows[split].append(dict(zip(_FEATURES, row, strict=True)))
    return rows_to_splits(rows, _FEATURES)


class DrawnScene(NamedTuple):
    """One image and what is known about it.

    Attributes:
        scene_id: "train-17".
        objects: its shapes.
        questions: about it, with their answers.
        png: the image.
        boxes: `[x0, y0, x1, y1]` in pixels of each shape, x1 and y1 exclusive.
    """

    scene_id: str
    objects: tuple[SceneObject, ...]
    questions: list[Question]
    png: bytes
    boxes: list[list[int]]


def draw_scenes(
    num_scenes: Mapping[str, int], questions_per_scene: int = 6, seed: int = 0, cells: int = 3, cell_px: int = 12
) -> Iterator[tuple[str, DrawnScene]]:
    """The images of `generate_scenes`, one by one: what else is written about them shares images and splits with it.

    Args:
        num_scenes: as for `generate_scenes`, as are the others.
        questions_per_scene: other numbers of questions go with other scenes.
        seed: chooses the scenes.
        cells: rows and columns of the grid.
        cell_px: side of a cell in pixels.

    Returns:
        An iterator of a split and one of its scenes, in order; train comes last.

    Raises:
        ValueError: as for `generate_scenes`.

    Example:
        >>> [scene.scene_id for split, scene in draw_scenes({"train": 1, "test": 2})]
        ['test-0', 'test-1', 'train-0']
    """
    if not isinstance(num_scenes, Mapping):
        raise ValueError(f"num_scenes maps split names to numbers, such as {{'train': 100}}, but it is {num_scenes!r}.")
    # A scene has so many questions without repeating one, a relation needs a neighbour, a cell room to show a shape.
    limits: dict[str, tuple[int, int, float]] = {"questions_per_scene": (questions_per_scene, 1, 12)}
    limits |= {"cells": (cells, 2, 8), "cell_px": (cell_px, 8, math.inf)}
    limits |= {f"num_scenes[{split!r}]": (number, 0, math.inf) for split, number in num_scenes.items()}
    for name, (value, fewest, most) in limits.items():
        if not fewest <= value <= most:
            raise ValueError(f"{name} is {value}, but must be from {fewest} to {most}.")

    seen: set[frozenset[SceneObject]] = set()
    for split in sorted(num_scenes, key=lambda name: (name == "train", name)):
        rng = random.Random(f"{seed} {split}")  # a string seed goes through SHA-512: no PYTHONHASHSEED in it
        writer = SceneQuestionWriter(rng, cells)
        for index in range(num_scenes[split]):
            scene, questions = _draw_scene(index, questions_per_scene, seen, writer)
            png, boxes = _paint(scene, rng, cells, cell_px)
            yield split, DrawnScene(f"{split}-{index}", scene, questions, png, boxes)


def rows_to_splits(rows: Mapping[str, list[dict[str, Any]]], features: Features) -> DatasetDict:
    """The rows of each split as data sets.

    Example:
        >>> rows_to_splits({"train": [{"caption": "a red circle"}]}, Features({"caption": Value("string")}))["train"][0]
        {'caption': 'a red circle'}
    """
    tables = {split: pa.Table.from_pylist(values, schema=features.arrow_schema) for split, values in rows.items()}
    info = DatasetInfo(features=features)
    return DatasetDict({split: Dataset(table, info=info.copy(), split=split) for split, table in tables.items()})


def _draw_scene(
    index: int, questions_per_scene: int, seen: set[frozenset[SceneObject]], writer: SceneQuestionWriter
) -> tuple[tuple[SceneObject, ...], list[Question]]:
    """A scene that no split has yet and that allows the questions whose turn it is."""
    for _ in range(_MAX_ATTEMPTS):
        scene = _draw_objects(writer.rng, writer.cells)
        if frozenset(scene) in seen:
            continue

        asked: set[tuple[str, ...]] = set()
        turns = range(index * questions_per_scene, (index + 1) * questions_per_scene)
        questions = [writer.write(scene, QUESTION_TYPES[turn % len(QUESTION_TYPES)], asked) for turn in turns]
        found = [question for question in questions if question is not None]
        if len(found) == questions_per_scene:
            seen.add(frozenset(scene))
            return scene, found

    found_none = f"No new scene in {_MAX_ATTEMPTS:,} attempts after {len(seen):,} scenes on a grid of"
    way_out = "ask for fewer scenes or questions, or for more cells"
    raise ValueError(f"{found_none} {writer.cells} x {writer.cells} cells: {way_out}.")


def _draw_objects(rng: random.Random, cells: int) -> tuple[SceneObject, ...]:
    number = rng.randint(_MIN_OBJECTS, min(MAX_OBJECTS, cells * cells))
    indices = sorted(rng.sample(range(cells * cells), number))

    # An urn that grows: each draw makes its own colour (shape) likelier, so that counts of 0 to 3 are all common.
    colours, shapes = list(COLOURS), list(SHAPES)
    scene = []
    for index in indices:
        colour, shape = rng.choice(colours), rng.choice(shapes)
        colours.append(colour)
        shapes.append(shape)
        scene.append(SceneObject(shape, colour, *divmod(index, cells)))
    return tuple(scene)


def _paint(
    scene: tuple[SceneObject, ...], rng: random.Random, cells: int, cell_px: int
) -> tuple[bytes, list[list[int]]]:
    """PNG bytes and one box a shape. Place, size and tint vary a little, so that a image cannot be looked up."""
    paper = float(rng.randint(236, 255))
    # In float32, rounded once at the end.
    canvas = np.full((cells * cell_px, cells * cell_px, 3), paper, dtype=np.float32)
    boxes = []

    for item in scene:
        size_and_shift = rng.randrange(3), rng.randint(-1, 1), rng.randint(-1, 1)
        mask, (left, top, right, bottom) = _shape_mask(item.shape, *size_and_shift, cell_px)
        tint = np.array([channel + rng.randint(-14, 14) for channel in _RGB[item.colour]], dtype=np.float32)
        x, y = item.column * cell_px, item.row * cell_px
        canvas[y : y + cell_px, x : x + cell_px] += mask * (tint - paper)
        boxes.append([x + left, y + top, x + right, y + bottom])

    buffer = io.BytesIO()
    PILImage.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue(), boxes


@lru_cache(maxsize=4096)
def _shape_mask(
    shape: str, size: int, shift_x: int, shift_y: int, cell_px: int
) -> tuple[npt.NDArray[np.float32], tuple[int, int, int, int]]:
    """How much of each pixel of a cell a shape covers, `(cell_px, cell_px, 1)` in [0, 1], and its box in the cell."""
    oversampling = 8
    points = (np.arange(cell_px * oversampling) + 0.5) / (cell_px * oversampling) * 12.0  # a cell is 12 units wide
    x, y = points[None, :] - 6.0 - shift_x / 2, points[:, None] - 6.0 - shift_y / 2
    radius = (4.0, 4.3, 4.6)[size]
    if shape == "circle":
        inside = x**2 + y**2 <= radius**2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.86 * radius
    else:  # an upright triangle: tip at -radius, base at 0.8 radius
        inside = (y <= 0.8 * radius) & (abs(x) <= (y + radius) / 1.8)

    cover = inside.reshape(cell_px, oversampling, cell_px, oversampling).mean(axis=(1, 3)).astype(np.float32)
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    return cover[:, :, None], (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
