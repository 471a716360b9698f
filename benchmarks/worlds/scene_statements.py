"""Statements about two generated images, true or false, as in NLVR2: two-image reasoning without a download.

What is unusual is how the rows are balanced. Each statement stands in four rows: twice with the same left image, once
true and once false, and twice with the same right image, once true and once false. So the words alone say nothing, in
any family; and whoever looks at one of the two images only cannot do better than about three in four.

The images are those of `generate_scenes`, split by split: an image of the test split is in no row of train.
"""

import operator
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.datasets.scene_questions import COLOURS, CORNERS, SHAPES, SceneObject
from dual_distill.data.datasets.scenes import NUM_SCENES, OBJECTS, DrawnScene, draw_scenes, rows_to_splits

ROWS_PER_STATEMENT = 4
"""Rows in which one statement stands; it is true in half of them."""

_FEATURES = Features(
    {
        "image_0": Image(),
        "image_1": Image(),
        "sentence": Value("string"),
        "label": Value("string"),
        "family": Value("string"),
        "sentence_id": Value("string"),
        "image_0_id": Value("string"),
        "image_1_id": Value("string"),
        "objects_0": OBJECTS,
        "objects_1": OBJECTS,
    }
)
_MIN_SCENES = 10
_MAX_STATEMENTS, _MAX_IMAGES, _MAX_SECOND_ANCHORS = 200, 30, 3
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


class SceneImage:
    """What statements ask of one image.

    Args:
        objects: its shapes.
        cells: rows and columns of the grid.
    """

    def __init__(self, objects: Sequence[SceneObject], cells: int) -> None:
        by_cell = {(item.row, item.column): item for item in objects}
        self.corners = {corner: by_cell.get((row % cells, column % cells)) for corner, (row, column) in CORNERS.items()}
        self._counts: Counter[Noun] = Counter()
        for item in objects:
            for colour in (item.colour, None):
                for shape in (item.shape, None):
                    self._counts[Noun(colour, shape)] += 1

    def count(self, noun: "Noun") -> int:
        """Number of shapes that a noun fits."""
        return self._counts[noun]


class Noun(NamedTuple):
    """A colour, a shape, both, or (neither) any shape."""

    colour: str | None
    shape: str | None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.colour, self.shape or "shape")))


class Statement(NamedTuple):
    """A sentence and when it is true.

    Attributes:
        text: the sentence.
        family: what kind of reasoning it asks for.
        holds: whether it is true of a left and a right image.
    """

    text: str
    family: str
    holds: Callable[[SceneImage, SceneImage], bool]


def generate_scene_statements(
    num_scenes: Mapping[str, int] | None = None,
    statements_per_scene: int = 1,
    questions_per_scene: int = 6,
    seed: int = 0,
    cells: int = 3,
    cell_px: int = 12,
) -> DatasetDict:
    """Pairs of the images of `generate_scenes` with balanced statements that need both.

    `num_scenes`, `questions_per_scene`, `seed`, `cells` and `cell_px` choose the images: with equal ones,
    `generate_scenes` has the same images in the same splits.

    Args:
        num_scenes: split name -> number of scenes, 0 or at least 10; None takes `scenes.NUM_SCENES`.
        statements_per_scene: statements for each scene in the mean, 1 to 12; each gives four rows, two of them true.
        questions_per_scene: as for `generate_scenes`; no question is written here.
        seed: chooses scenes and statements.
        cells: rows and columns of the grid, 2 to 8.
        cell_px: side of a cell in pixels, >= 8.

    Returns:
        A `DatasetDict` with the columns `image_0` (left) and `image_1` (right), `sentence`, `label` ("True" or
        "False"), `family` (one of `statement_families()`), `sentence_id` (equal for the four rows of a statement),
        `image_0_id`, `image_1_id` (the `scene_id` of `generate_scenes`), `objects_0`, `objects_1`.

    Raises:
        ValueError: an argument is out of its range, or the grid does not hold that many different scenes.

    Example:
        >>> rows = generate_scene_statements({"train": 10})["train"]
        >>> rows.num_rows, sorted(rows["label"][:4])
        (40, ['False', 'False', 'True', 'True'])
    """
    num_scenes = NUM_SCENES if num_scenes is None else num_scenes
    if not 1 <= statements_per_scene <= 12:
        raise ValueError(f"statements_per_scene is {statements_per_scene}, but a scene has 1 to 12 statements.")
    scenes_of: dict[str, list[DrawnScene]] = {}
    for split, scene in draw_scenes(num_scenes, questions_per_scene, seed, cells, cell_px):
        scenes_of.setdefault(split, []).append(scene)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in num_scenes}
    for split, scenes in scenes_of.items():
        if len(scenes) < _MIN_SCENES:
            raise ValueError(
                f"num_scenes[{split!r}] is {len(scenes)}, but statements about two images need {_MIN_SCENES} scenes "
                "to choose from (or none)."
            )
        # A stream of its own: the images do not depend on the statements, nor one split on another.
        rng = random.Random(f"{seed} {split} statements")
        images = [SceneImage(scene.objects, cells) for scene in scenes]
        for index in range(len(scenes) * statements_per_scene):
            family = _FAMILIES[index % len(_FAMILIES)]
            statement, four = _four_rows(family, index // statements_per_scene, images, rng)
            for left, right, truth in four:
                values: dict[str, Any] = {
                    "sentence": statement.text,
                    "label": str(truth),
                    "family": statement.family,
                    "sentence_id": f"{split}-{index}",
                }
                for number, scene in enumerate((scenes[left], scenes[right])):
                    values[f"image_{number}"] = {"bytes": scene.png, "path": None}
                    values[f"image_{number}_id"] = scene.scene_id
                    values[f"objects_{number}"] = [item._asdict() for item in scene.objects]
                rows[split].append(values)
    return rows_to_splits(rows, _FEATURES)


def statement_families() -> list[str]:
    """Every family of statements.

    Example:
        >>> statement_families()[:2]
        ['more', 'same number']
    """
    rng, image = random.Random(0), SceneImage([], 3)
    return [draw(rng, image, image).family for draw in _FAMILIES]


_Rows = list[tuple[int, int, bool]]
_Draw = Callable[[random.Random, SceneImage, SceneImage], Statement]


def _four_rows(draw: _Draw, anchor: int, images: list[SceneImage], rng: random.Random) -> tuple[Statement, _Rows]:
    """A statement of a family with (left, right, truth): two rows share the left image, two the right one."""
    for attempt in range(_MAX_STATEMENTS):
        if attempt >= _MAX_STATEMENTS // 10:  # such as corners of an image whose corners are empty
            anchor = rng.randrange(len(images))
        other = rng.randrange(len(images))
        # Numbers of the sentence come from images, so that few statements are never true.
        statement = draw(rng, images[anchor], images[other])
        shares_left = _true_and_false(statement, "left", anchor, images, rng)
        if shares_left is None:
            continue
        for _ in range(_MAX_SECOND_ANCHORS):
            shares_right = _true_and_false(statement, "right", rng.randrange(len(images)), images, rng)
            if shares_right is not None:
                rows = shares_left + shares_right
                rng.shuffle(rows)
                return statement, rows
    raise ValueError(
        f"In {_MAX_STATEMENTS} attempts no statement of a family was true of some pairs of {len(images)} scenes and "
        "false of others; ask for more scenes."
    )


def _true_and_false(
    statement: Statement, side: str, shared: int, images: list[SceneImage], rng: random.Random
) -> _Rows | None:
    """A pair that makes the statement true and one that makes it false, one image shared; None where none is met."""
    found: dict[bool, tuple[int, int]] = {}
    for _ in range(_MAX_IMAGES):
        other = rng.randrange(len(images))
        if other != shared:
            left, right = (shared, other) if side == "left" else (other, shared)
            found.setdefault(statement.holds(images[left], images[right]), (left, right))
            if len(found) == 2:
                return [(*pair, truth) for truth, pair in found.items()]
    return None


# Families: each draws one statement. The images given are examples from which a number may be taken.


def _noun(rng: random.Random) -> Noun:
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    return rng.choice((Noun(colour, shape), Noun(colour, None), Noun(None, shape)))


def _plural(noun: Noun) -> str:
    return f"{noun}s"


def _counted(number: int, noun: Noun) -> str:
    return f"{_NUMBERS[number]} {noun if number == 1 else _plural(noun)}"


def _more(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
    noun = rng.choice((_noun(rng), _noun(rng), Noun(None, None)))
    here, there = rng.choice((("left", "right"), ("right", "left")))
    how, verb = rng.choice(("more", "fewer")), rng.choice(("has", "shows", "holds"))

    left_has_more = (here == "left") == (how == "more")

    def holds(left: SceneImage, right: SceneImage) -> bool:
        one, two = left.count(noun), right.count(noun)
        return one > two if left_has_more else one < two

    return Statement(f"the {here} picture {verb} {how} {_plural(noun)} than the {there} one", "more", holds)


def _same_number(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
    noun = _noun(rng)
    wording, same = rng.choice(
        (
            ("both pictures have the same number of {}", True),
            ("there are as many {} on the left as on the right", True),
            ("one picture has more {} than the other", False),
            ("the two pictures differ in the number of {}", False),
        )
    )
    return Statement(
        wording.format(_plural(noun)),
        "same number",
        lambda left, right: (left.count(noun) == right.count(noun)) == same,
    )


def _how_many_images(family: str, numbers: tuple[int, ...], wordings: tuple[str, ...]) -> _Draw:
    """Statements that are true when so many of the two images hold a thing."""

    def draw(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
        noun = _noun(rng)
        return Statement(
            rng.choice(wordings).format(noun),
            family,
            lambda left, right: (left.count(noun) > 0) + (right.count(noun) > 0) in numbers,
        )

    return draw


def _one_each(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
    one, two = _noun(rng), _noun(rng)
    if rng.random() < 0.5:
        two = one
    first, second = left.count(one), right.count(two)
    if one == two:
        last = "none" if second == 0 else _NUMBERS[second]
        text = f"the left picture holds {_counted(first, one)} and the right one {last}"
    else:
        verb = "is" if first == 1 else "are"
        text = f"there {verb} {_counted(first, one)} on the left and {_counted(second, two)} on the right"
    return Statement(text, "one each", lambda left, right: left.count(one) == first and right.count(two) == second)


def _together(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
    noun = _noun(rng)
    number = min(left.count(noun) + right.count(noun), len(_NUMBERS) - 1)
    bound, rule = rng.choice(_BOUNDS) if number else ("", operator.eq)
    text = f"together the pictures show {bound}{_counted(number, noun)}"
    return Statement(text, "together", lambda left, right: rule(left.count(noun) + right.count(noun), number))


_BOUNDS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("exactly ", operator.eq),
    ("at least ", operator.ge),
    ("at most ", operator.le),
)
_KEYS: tuple[tuple[str, Callable[[SceneObject], str]], ...] = (
    ("colour", operator.attrgetter("colour")),
    ("shape", operator.attrgetter("shape")),
)


def _corner(rng: random.Random, left: SceneImage, right: SceneImage) -> Statement:
    corner = rng.choice(tuple(CORNERS))
    what, key = rng.choice(_KEYS)
    same = rng.random() < 0.5

    def holds(left: SceneImage, right: SceneImage) -> bool:
        one, two = left.corners[corner], right.corners[corner]
        return one is not None and two is not None and (key(one) == key(two)) == same

    text = f"both {corner} corners hold things {f'of the same {what}' if same else f'that differ in {what}'}"
    return Statement(text, "corner", holds)


_FAMILIES: tuple[_Draw, ...] = (
    _more,
    _same_number,
    _how_many_images(
        "both", (2,), ("both pictures show a {}", "there is a {} in each picture", "each picture holds a {}")
    ),
    _how_many_images(
        "exactly one",
        (1,),
        (
            "exactly one of the pictures shows a {}",
            "only one picture holds a {}",
            "there is a {} in one picture but not in both",
        ),
    ),
    _how_many_images("neither", (0,), ("neither picture shows a {}", "there is no {} in the two pictures")),
    _how_many_images(
        "either",
        (1, 2),
        ("at least one of the pictures shows a {}", "one picture or both hold a {}", "there is a {} somewhere"),
    ),
    _one_each,
    _together,
    _corner,
)
