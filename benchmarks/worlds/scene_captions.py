"""Captions of the generated scenes: pre-training and retrieval without a download, on the images of the questions.

What is unusual: a caption is made of *facts*, each a form with a tuple of words in its places, such as "a {} {} left of
a {} {}" with ("red", "circle", "blue", "square"). For every form there is one function that finds all word tuples that
are true of a scene; a tuple that it does not find is false. So a hard negative, the caption with one word exchanged, is
false for certain and not only unlikely.

The words mean what they mean in the questions: "left of" is the neighbouring cell in the row, "next to" any of the four
neighbouring cells. "two circles" are exactly two, "a red circle" is one or more.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any, NamedTuple

from datasets import DatasetDict, Features, Image, Value

from dual_distill.data.datasets.scene_questions import COLOURS, CORNERS, SHAPES, STEPS, SceneObject
from dual_distill.data.datasets.scenes import BOXES, NUM_SCENES, OBJECTS, draw_scenes, rows_to_splits

CHANGES = ("colour", "shape", "number", "place", "comparison")
"""The kinds of words by which a hard negative differs."""

MIN_WORDS, MAX_WORDS = 6, 16
"""Fewest and most words of a caption."""

_FEATURES = Features(
    {
        "image": Image(),
        "caption": Value("string"),
        "image_id": Value("string"),
        "hard_negative": Value("string"),
        "changed": Value("string"),
        "boxes": BOXES,
        "objects": OBJECTS,
    }
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_PLURALS = tuple(f"{shape}s" for shape in SHAPES)
_FRAMES = (
    "{}",
    "the picture shows {}",
    "a picture with {}",
    "you see {}",
    "in the picture you see {}",
    "here we have {}",
)
_MAX_ATTEMPTS = 200

Scene = tuple[SceneObject, ...]
Words = tuple[str, ...]


class _Form(NamedTuple):
    """A kind of fact: its sentence, what may stand in each place, and all word tuples that are true of a scene."""

    template: str
    kinds: tuple[str, ...]
    find: Callable[[Scene, int], set[Words]]


class _Fact(NamedTuple):
    form: _Form
    words: Words

    def text(self) -> str:
        return self.form.template.format(*self.words)


class Caption(NamedTuple):
    """A caption that is true of an image, and one that is not.

    Attributes:
        text: the caption, 6 to 16 words.
        hard_negative: the same but for one word, and false; "" where no exchange of a word makes it false.
        changed: kind of the exchanged word, one of `CHANGES`, or "".
    """

    text: str
    hard_negative: str
    changed: str


def generate_scene_captions(
    num_scenes: Mapping[str, int] | None = None,
    captions_per_scene: int = 5,
    questions_per_scene: int = 6,
    seed: int = 0,
    cells: int = 3,
    cell_px: int = 12,
) -> DatasetDict:
    """The images of `generate_scenes` with captions about colours, shapes, places and numbers.

    `num_scenes`, `questions_per_scene`, `seed`, `cells` and `cell_px` choose the images: with equal ones,
    `generate_scenes` has the same images in the same splits.

    Args:
        num_scenes: split name -> number of scenes, >= 0; None takes `scenes.NUM_SCENES`.
        captions_per_scene: captions of each image, 1 to 10, no two alike.
        questions_per_scene: as for `generate_scenes`; no question is written here.
        seed: chooses scenes and captions.
        cells: rows and columns of the grid, 2 to 8.
        cell_px: side of a cell in pixels, >= 8.

    Returns:
        A `DatasetDict`, one row a caption: `image` (PNG), `caption` (6 to 16 words), `image_id` (the `scene_id` of
        `generate_scenes`), `hard_negative` and `changed` (see `Caption`), `boxes` and `objects` as there.

    Raises:
        ValueError: an argument is out of its range, or the grid does not hold that many different scenes.

    Example:
        >>> row = generate_scene_captions({"train": 1})["train"][0]
        >>> row["image_id"], row["caption"]
        ('train-0', 'the picture shows a green triangle in the top left corner, and six shapes in all')
    """
    num_scenes = NUM_SCENES if num_scenes is None else num_scenes
    if not 1 <= captions_per_scene <= 10:
        raise ValueError(f"captions_per_scene is {captions_per_scene}, but an image has 1 to 10 captions.")
    rngs: dict[str, random.Random] = {}
    drawn = draw_scenes(num_scenes, questions_per_scene, seed, cells, cell_px)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in num_scenes}
    for split, scene in drawn:
        # A stream of its own: the images do not depend on the captions.
        rng = rngs.setdefault(split, random.Random(f"{seed} {split} captions"))
        image, objects = {"bytes": scene.png, "path": None}, [item._asdict() for item in scene.objects]
        for caption in write_captions(scene.objects, captions_per_scene, rng, cells):
            row = (image, caption.text, scene.scene_id, caption.hard_negative, caption.changed, scene.boxes, objects)
            rows[split].append(dict(zip(_FEATURES, row, strict=True)))
    return rows_to_splits(rows, _FEATURES)


def write_captions(scene: Scene, number: int, rng: random.Random, cells: int = 3) -> list[Caption]:
    """Captions of one scene.

    Args:
        scene: three or more shapes, each in a cell of its own.
        number: of captions, 1 to 10.
        rng: the same state gives the same captions.
        cells: rows and columns of the grid.

    Returns:
        The captions, no two alike.

    Raises:
        ValueError: there are not so many different captions of the scene.

    Example:
        >>> scene = tuple(SceneObject(shape, "red", 0, column) for column, shape in enumerate(SHAPES))
        >>> len(write_captions(scene, 3, random.Random(0)))
        3
    """
    true_words = {form: sorted(form.find(scene, cells)) for forms in _FAMILIES for form in forms}
    families = [[form for form in forms if true_words[form]] for forms in _FAMILIES]
    families = [forms for forms in families if forms]
    written: dict[str, Caption] = {}
    first = rng.randrange(len(families))
    for attempt in range(_MAX_ATTEMPTS):
        # Families take turns in the first place, so that each image has captions of several.
        facts = [_draw_fact(families[(first + attempt) % len(families)], true_words, rng)]
        for _ in range(rng.choice((1, 1, 2))):
            facts.append(_draw_fact(rng.choice(families), true_words, rng))
        frame = rng.choice(_FRAMES)
        text = _sentence(frame, facts)
        if text in written or _repeats_itself(facts) or not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            continue
        written[text] = Caption(text, *_hard_negative(frame, facts, true_words, rng))
        if len(written) == number:
            return list(written.values())
    raise ValueError(
        f"Only {len(written)} different captions were found of a scene of {len(scene)} shapes in {_MAX_ATTEMPTS} "
        f"attempts; ask "
        "for fewer."
    )


def _draw_fact(forms: list[_Form], true_words: Mapping[_Form, list[Words]], rng: random.Random) -> _Fact:
    form = rng.choice(forms)
    return _Fact(form, rng.choice([words for words in true_words[form] if _is_sensible(words)] or true_words[form]))


def _sentence(frame: str, facts: list[_Fact]) -> str:
    texts = [fact.text() for fact in facts]
    return frame.format(", ".join(texts[:-1]) + ", and " + texts[-1])


def _hard_negative(
    frame: str, facts: list[_Fact], true_words: Mapping[_Form, list[Words]], rng: random.Random
) -> tuple[str, str]:
    """The sentence with one word exchanged so that its fact is false, and the kind of that word."""
    # The kind is drawn before the place, or most exchanges would be of colours.
    places = [(fact, place) for fact in range(len(facts)) for place in range(len(facts[fact].words))]
    rng.shuffle(places)
    kinds = list(CHANGES)
    rng.shuffle(kinds)
    places.sort(key=lambda at: kinds.index(_EXCHANGES[facts[at[0]].form.kinds[at[1]]][0]))
    for number, place in places:
        form, words = facts[number]
        changed, exchange = _EXCHANGES[form.kinds[place]]
        candidates = exchange(words[place])
        rng.shuffle(candidates)
        for word in candidates:
            other = (*words[:place], word, *words[place + 1 :])
            if other not in true_words[form] and _is_sensible(other):
                return _sentence(frame, [*facts[:number], _Fact(form, other), *facts[number + 1 :]]), changed
    return "", ""


def _repeats_itself(facts: list[_Fact]) -> bool:
    """Whether the words of one fact all occur in another, as in "a red circle, and a red circle in the middle"."""
    said = [set(fact.words) - {"more", "fewer"} for fact in facts]
    return any(one <= two for one, two in permutations(said, 2))


def _is_sensible(words: Words) -> bool:
    """Nobody says "more circles than circles" or "as many red shapes as red shapes", be it true or false."""
    return not (len(words) in (2, 3) and words[-1] == words[-2])


# Which words may take a word's place


def _others(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    return lambda word: [other for other in words if other != word]


def _neighbours_in(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    """The words before and after: a number is exchanged for the next, which does not sound less likely."""
    return lambda word: [
        words[place] for place in (words.index(word) - 1, words.index(word) + 1) if 0 <= place < len(words)
    ]


_EXCHANGES: Mapping[str, tuple[str, Callable[[str], list[str]]]] = {
    "colour": ("colour", _others(COLOURS)),
    "shape": ("shape", _others(SHAPES)),
    "shapes": ("shape", _others(_PLURALS)),
    # "one" would need another noun: "exactly one circle" is a form of its own
    "number": ("number", _neighbours_in(("no", *_NUMBERS[2:]))),
    "total": ("number", _neighbours_in(_NUMBERS[3:])),
    "side": ("place", _others(("left", "right"))),
    "height": ("place", _others(("above", "below"))),
    "top or bottom": ("place", _others(("top", "bottom"))),
    "more or fewer": ("comparison", _others(("more", "fewer"))),
}


# What is true of a scene


def _kinds(scene: Scene, cells: int) -> set[Words]:
    return {(item.colour, item.shape) for item in scene}


def _corners(scene: Scene, cells: int) -> set[Words]:
    by_cell = {(item.row, item.column): item for item in scene}
    found = {
        tuple(corner.split()): by_cell.get((row % cells, column % cells)) for corner, (row, column) in CORNERS.items()
    }
    return {(item.colour, item.shape, *corner) for corner, item in found.items() if item is not None}


def _middle(scene: Scene, cells: int) -> set[Words]:
    return {(item.colour, item.shape) for item in scene if 2 * item.row == 2 * item.column == cells - 1}


def _beside(*directions: str) -> Callable[[Scene, int], set[Words]]:
    """(colour, shape, direction, colour, shape) of each thing and of the thing that it stands in that direction of."""

    def find(scene: Scene, cells: int) -> set[Words]:
        by_cell = {(item.row, item.column): item for item in scene}
        found: set[Words] = set()
        for direction in directions:
            row_step, column_step = STEPS[direction]
            for anchor in scene:
                item = by_cell.get((anchor.row + row_step, anchor.column + column_step))
                if item is not None:
                    found.add((item.colour, item.shape, direction.split()[0], anchor.colour, anchor.shape))
        return found

    return find


def _next_to(scene: Scene, cells: int) -> set[Words]:
    return {(*words[:2], *words[3:]) for words in _beside(*STEPS)(scene, cells)}


def _counts(key: Callable[[SceneObject], str], words: tuple[str, ...]) -> Callable[[Scene], dict[str, int]]:
    def count(scene: Scene) -> dict[str, int]:
        counts = Counter(key(item) for item in scene)
        return {word: counts[word] for word in words}

    return count


_count_colours = _counts(lambda item: item.colour, COLOURS)
_count_shapes = _counts(lambda item: f"{item.shape}s", _PLURALS)


def _numbers(count: Callable[[Scene], dict[str, int]]) -> Callable[[Scene, int], set[Words]]:
    return lambda scene, cells: {(_NUMBERS[number], word) for word, number in count(scene).items() if number != 1}


def _single_colours(scene: Scene, cells: int) -> set[Words]:
    return {(colour,) for colour, number in _count_colours(scene).items() if number == 1}


def _single_shapes(scene: Scene, cells: int) -> set[Words]:
    return {(shapes.removesuffix("s"),) for shapes, number in _count_shapes(scene).items() if number == 1}


def _total(scene: Scene, cells: int) -> set[Words]:
    return {(_NUMBERS[len(scene)],)}


def _unequal(count: Callable[[Scene], dict[str, int]]) -> Callable[[Scene, int], set[Words]]:
    def find(scene: Scene, cells: int) -> set[Words]:
        pairs = permutations(count(scene).items(), 2)
        return {("more" if one > two else "fewer", a, b) for (a, one), (b, two) in pairs if one != two}

    return find


def _equal(count: Callable[[Scene], dict[str, int]]) -> Callable[[Scene, int], set[Words]]:
    return lambda scene, cells: {(a, b) for (a, one), (b, two) in permutations(count(scene).items(), 2) if one == two}


_NOUN = ("colour", "shape")
_FAMILIES: tuple[tuple[_Form, ...], ...] = (
    (_Form("a {} {}", _NOUN, _kinds),),
    (
        _Form("a {} {} in the {} {} corner", (*_NOUN, "top or bottom", "side"), _corners),
        _Form("a {} {} in the middle", _NOUN, _middle),
    ),
    (
        _Form("a {} {} {} of a {} {}", (*_NOUN, "side", *_NOUN), _beside("left of", "right of")),
        _Form("a {} {} {} a {} {}", (*_NOUN, "height", *_NOUN), _beside("above", "below")),
        _Form("a {} {} next to a {} {}", (*_NOUN, *_NOUN), _next_to),
    ),
    (
        _Form("{} {} shapes", ("number", "colour"), _numbers(_count_colours)),
        _Form("{} {}", ("number", "shapes"), _numbers(_count_shapes)),
        _Form("exactly one {} shape", ("colour",), _single_colours),
        _Form("exactly one {}", ("shape",), _single_shapes),
        _Form("{} shapes in all", ("total",), _total),
    ),
    (
        _Form("{} {} shapes than {} shapes", ("more or fewer", "colour", "colour"), _unequal(_count_colours)),
        _Form("{} {} than {}", ("more or fewer", "shapes", "shapes"), _unequal(_count_shapes)),
        _Form("as many {} shapes as {} shapes", ("colour", "colour"), _equal(_count_colours)),
        _Form("as many {} as {}", ("shapes", "shapes"), _equal(_count_shapes)),
    ),
)
