"""Generated pictures in NLVR's style, with statements that are true or false and questions that have an answer.

A fusion encoder trained from nothing on people's 12,000 sentences does not learn to see; here it can. Three grey boxes
hold towers of square blocks or scattered shapes, at coordinates like those of NLVR v1. What is unusual:

* Each statement stands beside one scene for which it is true and one for which it is false, so the words alone tell
  nothing. The two can be near copies, the same items in other boxes or one item changed, so neither does the amount of
  ink.
* Beside the statements stand questions about colours and numbers, whose answers say more about a picture than true or
  false.
"""

import io
import os
import random
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, Value, concatenate_datasets
from PIL import Image as PILImage
from PIL import ImageDraw

from .nlvr import load_nlvr
from .nlvr_statements import COLOURS, SHAPES, Box, Boxes, BoxItem, draw_question, draw_statement, question_answers

NUM_NLVR_SCENES = {"train": 20_000, "validation": 500, "test": 1_000}
BOX_PX, GAP_PX = 100, 50
_STEP_PX = 21
_RGB = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
_GREY, _GAP = (211, 211, 211), (128, 128, 128)
_MAX_ATTEMPTS, _MAX_TRIED = 60, 30
_MAX_STATEMENTS = 100
_ITEM = [
    {
        "box": Value("int8"),
        "shape": Value("string"),
        "colour": Value("string"),
        "size": Value("int8"),
        "x": Value("int8"),
        "y": Value("int8"),
    }
]
_FEATURES = Features(
    {
        "image": Image(decode=False),
        "sentence": Value("string"),
        "label": Value("string"),
        "identifier": Value("string"),
        "sentence_id": Value("string"),
        "permutation": Value("int8"),
        "directory": Value("int16"),
        "family": Value("string"),
        "objects": _ITEM,
    }
)


def generate_nlvr_scenes(
    num_scenes: Mapping[str, int] | None = None,
    statements_per_scene: int = 6,
    questions_per_scene: int = 0,
    tower_share: float = 0.65,
    near_copies: bool = True,
    seed: int = 0,
    nlvr: str | os.PathLike[str] | None = None,
    nlvr_rows: int | None = None,
) -> DatasetDict:
    """Pictures of three boxes with balanced statements, and questions if asked for, always the same for one seed.

    Args:
        num_scenes: scenes in each split; None: `NUM_NLVR_SCENES`. No scene is in two splits or twice in one.
        statements_per_scene: statements for each scene in the mean, an even number >= 2; half of them are true.
        questions_per_scene: questions for each scene, >= 0; their labels are numbers and colours.
        tower_share: share of scenes with towers, in [0, 1]; the others hold scattered shapes. NLVR has about two
            thirds.
        near_copies: whether the two scenes of a statement are near copies of each other (hard, as people's examples
            are) or any two scenes (easy: often the number of blocks gives the answer away).
        seed: of everything that is drawn.
        nlvr: folder of NLVR v1, as `load_nlvr` reads it; its train rows then join train, and its validation, dev and
            test rows take the place of the generated ones. So generated and human sentences are mixed, and one
            tokenizer is trained on both.
        nlvr_rows: at most so many of its train rows, drawn by `seed`; None: all.

    Returns:
        The columns of `load_nlvr`, and family (of the statement; "question"; "people") and objects (box, shape, colour,
        size, x, y). The two rows of one statement share their sentence_id. `label` is "true" or "false", for questions
        one of `question_answers()`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> scenes = generate_nlvr_scenes({"train": 4}, statements_per_scene=2)
        >>> scenes["train"]["label"][:2], scenes["train"].num_rows
        (['true', 'false'], 8)
    """
    num_scenes = NUM_NLVR_SCENES if num_scenes is None else num_scenes
    _check_arguments(num_scenes, statements_per_scene, questions_per_scene, tower_share)
    seen: set[Boxes] = set()
    splits = {}
    for split in sorted(num_scenes, key=lambda name: (name == "train", name)):
        rng = random.Random(f"{seed} {split}")  # a string seed goes through SHA-512: no PYTHONHASHSEED in it
        draw_groups = _draw_groups if near_copies else _draw_two_groups
        groups = draw_groups(rng, num_scenes[split], tower_share, seen)
        splits[split] = _write_split(split, groups, near_copies, statements_per_scene, questions_per_scene, rng)
    if nlvr is not None:
        people = load_nlvr(nlvr)
        if nlvr_rows is not None and nlvr_rows < len(people["train"]):
            people["train"] = people["train"].shuffle(seed=seed).select(range(nlvr_rows))
        people = DatasetDict({split: _as_people(rows) for split, rows in people.items()})
        splits = {**people, "train": concatenate_datasets([splits["train"], people["train"]])}
    return DatasetDict({split: splits[split] for split in ("train", *sorted(splits)) if split in splits})


def nlvr_scene_labels() -> list[str]:
    """Every label: false, true, and the answers of questions.

    Example:
        >>> nlvr_scene_labels()[:3]
        ['false', 'true', '0']
    """
    return ["false", "true", *question_answers()]


def _check_arguments(num_scenes: Any, statements_per_scene: int, questions_per_scene: int, tower_share: float) -> None:
    if not isinstance(num_scenes, Mapping):
        raise ValueError(f"num_scenes maps split names to numbers, such as {{'train': 100}}, but it is {num_scenes!r}.")
    for split, number in num_scenes.items():
        if number < 4:
            raise ValueError(
                f"num_scenes[{split!r}] is {number}, but a split has 4 scenes or more: each statement needs one for "
                "which it is true and one for which it is false."
            )
    if statements_per_scene < 2 or statements_per_scene % 2:
        raise ValueError(f"statements_per_scene is {statements_per_scene}, but it is an even number, 2 or more.")
    if questions_per_scene < 0:
        raise ValueError(f"questions_per_scene is {questions_per_scene}, but it is 0 (none) or more.")
    if not 0 <= tower_share <= 1:
        raise ValueError(f"tower_share is {tower_share}, but a share is a number from 0 to 1.")


# Scenes


def _draw_groups(
    rng: random.Random, number: int, tower_share: float, seen: set[Boxes]
) -> list[tuple[bool, list[Boxes]]]:
    """Groups of near copies, `number` scenes in all: a scene, its items in other boxes, and each of both with one change."""
    groups = []
    while number > 0:
        towers = rng.random() < tower_share
        anew = partial(_draw_boxes, rng, towers)
        base = _new(anew, anew, seen)
        shuffled = _new(partial(_rearrange, rng, base, towers), anew, seen)
        group = [base, shuffled, *(_new(partial(_change_one, rng, boxes), anew, seen) for boxes in (base, shuffled))]
        groups.append((towers, group[:number]))
        number -= len(group)
    return groups


def _draw_two_groups(
    rng: random.Random, number: int, tower_share: float, seen: set[Boxes]
) -> list[tuple[bool, list[Boxes]]]:
    """All towers, and all scattered scenes; each drawn by itself."""
    kinds = [rng.random() < tower_share for _ in range(number)]
    groups = []
    for towers in sorted(set(kinds)):
        draw = partial(_draw_boxes, rng, towers)
        groups.append((towers, [_new(draw, draw, seen) for _ in range(kinds.count(towers))]))
    return groups


def _new(draw: Callable[[], Boxes], otherwise: Callable[[], Boxes], seen: set[Boxes]) -> Boxes:
    """A scene that is not there yet: by `draw`, or, where its few results are used up, by `otherwise`."""
    for attempt in range(1_000):
        boxes = draw() if attempt < 20 else otherwise()
        if boxes not in seen:
            seen.add(boxes)
            return boxes
    raise ValueError(f"no new scene in 1,000 attempts after {len(seen):,} scenes; ask for fewer.")


def _draw_boxes(rng: random.Random, towers: bool) -> Boxes:
    draw = _draw_tower if towers else _draw_scattered
    return draw(rng), draw(rng), draw(rng)


def _rearrange(rng: random.Random, boxes: Boxes, towers: bool) -> Boxes:
    """The same items, dealt out anew; a few fall away where scattered ones find no room, or all are of one colour."""
    items = [item for box in boxes for item in box]
    rng.shuffle(items)
    if not towers:
        dealt: list[list[BoxItem]] = [[], [], []]
        for item in items:
            _put_down(rng, dealt[rng.randrange(3)], item)
        return tuple(dealt[0]), tuple(dealt[1]), tuple(dealt[2])
    if len({item.colour for item in items}) == 1 or len(items) in (3, 12):
        return _change_one(rng, boxes)
    while True:
        heights = rng.choices((1, 2, 3, 4), k=3)
        if sum(heights) == len(items):
            break
    piles = iter([items[: heights[0]], items[heights[0] : -heights[2]], items[-heights[2] :]])
    restacked = [tuple(item._replace(y=80 - _STEP_PX * level) for level, item in enumerate(pile)) for pile in piles]
    return restacked[0], restacked[1], restacked[2]


def _change_one(rng: random.Random, boxes: Boxes) -> Boxes:
    """One item gets another colour; a scattered one may get another shape or place instead."""
    index = rng.choice([index for index in range(3) if boxes[index]] or [0])
    if not boxes[index]:
        return _draw_boxes(rng, towers=False)
    place = rng.randrange(len(boxes[index]))
    item, others = boxes[index][place], [*boxes[index][:place], *boxes[index][place + 1 :]]
    is_block = item.x == 40 and item.y in (80, 59, 38, 17) and item.size == 20
    kind = "colour" if is_block else rng.choice(("colour", "shape", "place"))
    if kind == "place":
        _put_down(rng, others, item)
        changed = tuple(others)
    else:
        if kind == "colour":
            item = item._replace(colour=rng.choice([colour for colour in COLOURS if colour != item.colour]))
        else:
            item = item._replace(shape=rng.choice([shape for shape in SHAPES if shape != item.shape]))
        changed = (*boxes[index][:place], item, *boxes[index][place + 1 :])
    new = [*boxes]
    new[index] = changed
    return new[0], new[1], new[2]


def _draw_tower(rng: random.Random) -> Box:
    colours = list(COLOURS)
    blocks = []
    for level in range(rng.randint(1, 4)):
        colours.append(rng.choice(colours))  # an urn that grows: towers of one colour are common enough
        blocks.append(BoxItem("square", colours[-1], 20, 40, 80 - _STEP_PX * level))
    return tuple(blocks)


def _draw_scattered(rng: random.Random) -> Box:
    items: list[BoxItem] = []
    palette = rng.sample(COLOURS, rng.choice((1, 2, 3, 3, 3)))
    for _ in range(rng.randint(1, 7)):
        _put_down(rng, items, BoxItem(rng.choice(SHAPES), rng.choice(palette), rng.choice((10, 20, 30)), 0, 0))
    return tuple(items)


def _put_down(rng: random.Random, items: list[BoxItem], item: BoxItem) -> None:
    """Add the item at a free place; leave it out if there is none to be found."""
    free = BOX_PX - item.size
    for _ in range(30):
        item = item._replace(x=_draw_place(rng, free), y=_draw_place(rng, free))
        if all(_gap(item, other) >= 1 for other in items):
            items.append(item)
            return


def _draw_place(rng: random.Random, free: int) -> int:
    chance = rng.random()
    return free if chance < 0.25 else 0 if chance < 0.3 else rng.randint(1, free - 1)


def _gap(one: BoxItem, other: BoxItem) -> int:
    return max(
        one.x - other.x - other.size,
        other.x - one.x - one.size,
        one.y - other.y - other.size,
        other.y - one.y - one.size,
    )


def paint_boxes(boxes: Boxes) -> bytes:
    """Paint three boxes side by side as a PNG of 400 x 100 pixels, as NLVR's pictures are.

    Example:
        >>> paint_boxes(((), (), ()))[1:4]
        b'PNG'
    """
    canvas = PILImage.new("RGB", (3 * BOX_PX + 2 * GAP_PX, BOX_PX), _GAP)
    for index, box in enumerate(boxes):
        left = index * (BOX_PX + GAP_PX)
        canvas.paste(_GREY, (left, 0, left + BOX_PX, BOX_PX))
        for item in box:
            canvas.paste(_RGB[item.colour], (left + item.x, item.y), _shape_mask(item.shape, item.size))
    buffer = io.BytesIO()
    canvas.quantize(64).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@lru_cache(maxsize=16)
def _shape_mask(shape: str, size: int) -> PILImage.Image:
    big = 8 * size
    mask = PILImage.new("L", (big, big), 0)
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "triangle":
        pen.polygon(((0, big - 1), (big - 1, big - 1), (big // 2, 0)), fill=255)
    else:
        pen.rectangle((0, 0, big, big), fill=255)
    return mask.reduce(8)


# Rows


def _write_split(
    split: str,
    groups: list[tuple[bool, list[Boxes]]],
    near_copies: bool,
    statements: int,
    questions: int,
    rng: random.Random,
) -> Dataset:
    rows: list[tuple[int, str, str, str, str]] = []  # scene, sentence, label, sentence_id, family
    scenes = [(towers, boxes) for towers, group in groups for boxes in group]
    starts = list(accumulate((len(group) for _, group in groups), initial=0))
    of_kind = {kind: [index for index, (towers, _) in enumerate(groups) if towers == kind] for kind in (True, False)}
    for _ in range(_MAX_STATEMENTS * statements * len(scenes)):
        if len(rows) >= statements * len(scenes):
            break
        towers = rng.choice(groups if near_copies else scenes)[0]
        statement = draw_statement(rng, towers)
        for _ in range(_MAX_ATTEMPTS if near_copies else 1):
            index = rng.choice(of_kind[towers])
            size = len(groups[index][1])
            order = rng.sample(range(size), min(size, _MAX_TRIED))
            found = {statement.holds(groups[index][1][place]): starts[index] + place for place in order}
            if len(found) == 2:
                number = f"{split}{len(rows) // 2}"
                rows += [
                    (found[truth], statement.text, str(truth).lower(), number, statement.family)
                    for truth in (True, False)
                ]
                break
    for index, (towers, boxes) in enumerate(scenes):
        for turn in range(questions):
            question = draw_question(rng, towers)
            answer = question.answer(boxes)
            if answer is not None:
                rows.append((index, question.text, answer, f"{split}-question{index}.{turn}", question.family))
    return _as_dataset(split, scenes, rows)


def _as_dataset(split: str, scenes: list[tuple[bool, Boxes]], rows: list[tuple[int, str, str, str, str]]) -> Dataset:
    pictures = [{"bytes": paint_boxes(boxes), "path": None} for _, boxes in scenes]
    objects = [
        [{"box": number, **item._asdict()} for number, box in enumerate(boxes) for item in box] for _, boxes in scenes
    ]
    columns: dict[str, list[Any]] = {
        "image": [pictures[row[0]] for row in rows],
        "sentence": [row[1] for row in rows],
        "label": [row[2] for row in rows],
        "identifier": [f"{row[3]}-{row[2]}" for row in rows],
        "sentence_id": [row[3] for row in rows],
        "permutation": [0] * len(rows),
        "directory": [0] * len(rows),
        "family": [row[4] for row in rows],
        "objects": [objects[row[0]] for row in rows],
    }
    schema = _FEATURES.arrow_schema
    table = pa.table([pa.array(columns[name], type=schema.field(name).type) for name in columns], schema=schema)
    return Dataset(table, info=DatasetInfo(features=_FEATURES.copy()), split=split)


def _as_people(rows: Dataset) -> Dataset:
    table = rows.with_format("arrow")[:]
    schema = _FEATURES.arrow_schema
    table = table.append_column(schema.field("family"), pa.array(["people"] * len(table), pa.string()))
    table = table.append_column(schema.field("objects"), pa.array([[]] * len(table), type=schema.field("objects").type))
    return Dataset(table.cast(schema), info=DatasetInfo(features=_FEATURES.copy()), split=rows.split)
