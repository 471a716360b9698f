"""Questions about generated scenes: six types, one unambiguous answer each, answers as flat as the scenes allow.

A question is first a *key*, such as `("relation_colour", "left of", "red circle")`, and its answer; only then a
sentence, one of a few paraphrases. Among all keys that fit a scene, the writer takes the answer it has given least
often so far, and for it the key it has used least often, so that reading a question tells almost nothing about its
answer: the image has to be looked at.

Meaning of the words: "the thing left of X" is in the neighbouring cell in X's row, "the thing above X" in the
neighbouring cell in X's column, and "the thing next to X" is the only one in the up to four neighbouring cells. X is
always the only thing of its colour and shape in the image.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
QUESTION_TYPES = ("exist", "count", "colour", "shape", "relation", "comparison")
# Most shapes in one scene, and so the largest number that is an answer.
MAX_OBJECTS = 6

_VALUES = {"colour": COLOURS, "shape": SHAPES}
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
CORNERS = {"top left": (0, 0), "top right": (0, -1), "bottom left": (-1, 0), "bottom right": (-1, -1)}

# form -> paraphrases. {0} and {1} are noun phrases written by the form's finder.
_SENTENCES = {
    "exist": ("is there a {0} in the picture?", "does the picture show a {0}?", "do you see a {0}?"),
    "count": ("how many {0} are there?", "how many {0} does the picture show?", "what is the number of {0}?"),
    "colour": ("what colour is the {0}?", "which colour does the {0} have?", "what is the colour of the {0}?"),
    "shape": ("what shape is the {0}?", "which shape does the {0} have?", "what is the shape of the {0}?"),
    "relation_colour": ("what colour is the thing {0} the {1}?", "which colour does the thing {0} the {1} have?"),
    "relation_shape": ("what shape is the thing {0} the {1}?", "which shape does the thing {0} the {1} have?"),
    "more": ("are there more {0} than {1}?", "does the picture show more {0} than {1}?"),
    "fewer": ("are there fewer {0} than {1}?", "does the picture show fewer {0} than {1}?"),
    "same": ("are there as many {0} as {1}?", "does the picture show as many {0} as {1}?"),
}


class SceneObject(NamedTuple):
    """One coloured shape and its cell, rows and columns counted from 0 at the top left."""

    shape: str
    colour: str
    row: int
    column: int


class Question(NamedTuple):
    """A question text, its answer and its type (one of `QUESTION_TYPES`)."""

    text: str
    answer: str
    question_type: str


class _Candidate(NamedTuple):
    form: str
    words: tuple[str, ...]
    answer: str


class SceneQuestionWriter:
    """Writes questions about one scene after another and keeps their answers balanced.

    Args:
        rng: source of paraphrases and ties; the same state gives the same questions.
        cells: rows and columns of the grid.

    Example:
        >>> writer = SceneQuestionWriter(random.Random(0), cells=3)
        >>> scene = (SceneObject("circle", "red", 0, 0), SceneObject("square", "blue", 0, 1))
        >>> writer.write(scene, "exist", asked=set()).question_type
        'exist'
    """

    def __init__(self, rng: random.Random, cells: int) -> None:
        self.rng, self.cells = rng, cells
        self._answers: Counter[tuple[Finder, str, str]] = Counter()
        self._written: Counter[_Candidate] = Counter()

    def write(self, scene: tuple[SceneObject, ...], question_type: str, asked: set[tuple[str, ...]]) -> Question | None:
        """One question of a type about a scene, with the answer and then the key least often used so far.

        Args:
            scene: the shapes of the image, each in a cell of its own.
            question_type: one of `QUESTION_TYPES`.
            asked: keys already used for this scene; the new key is added.

        Returns:
            The question, or None where this scene allows no further question of the type.
        """
        finders = list(_FINDERS[question_type])
        # A form is drawn before the answer, so that the form does not betray the answer.
        first = self.rng.choices(range(len(finders)), weights=[weight for _, weight in finders])[0]
        finders.insert(0, finders.pop(first))

        for find, _ in finders:
            candidates = [c for c in find(scene, self.cells) if (c.form, *c.words) not in asked]
            if candidates:
                break
        else:
            return None

        times = [(self._answers[find, c.form, c.answer], self._written[c], self.rng.random()) for c in candidates]
        chosen = candidates[times.index(min(times))]
        self._answers[find, chosen.form, chosen.answer] += 1
        self._written[chosen] += 1
        asked.add((chosen.form, *chosen.words))
        return Question(self.rng.choice(_SENTENCES[chosen.form]).format(*chosen.words), chosen.answer, question_type)


def scene_answers() -> list[str]:
    """Every answer a scene question can have, sorted.

    Example:
        >>> scene_answers()[:8]
        ['0', '1', '2', '3', '4', '5', '6', 'blue']
    """
    return sorted({"yes", "no", *COLOURS, *SHAPES, *(str(number) for number in range(MAX_OBJECTS + 1))})


Scene = tuple[SceneObject, ...]
Finder = Callable[[Scene, int], Iterator[_Candidate]]


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _exist_pair(scene: Scene, cells: int) -> Iterator[_Candidate]:
    present = {(item.colour, item.shape) for item in scene}
    for colour, shape in product(COLOURS, SHAPES):
        # A "no" is only asked where colour and shape are both there, on different things.
        if any(colour == one for one, _ in present) and any(shape == one for _, one in present):
            yield _Candidate("exist", (f"{colour} {shape}",), _yes_no((colour, shape) in present))


# Below, `by` and `asked` are "colour" or "shape": by what things are told apart, and what is asked of one.


def _exist(scene: Scene, cells: int, by: str) -> Iterator[_Candidate]:
    for noun, number in _counts(scene, by):
        yield _Candidate("exist", (noun,), _yes_no(number > 0))


def _count(scene: Scene, cells: int, by: str) -> Iterator[_Candidate]:
    for noun, number in _counts(scene, by):
        yield _Candidate("count", (f"{noun}s",), str(number))


def _count_all(scene: Scene, cells: int) -> Iterator[_Candidate]:
    yield _Candidate("count", ("shapes",), str(len(scene)))


def _of_unique(scene: Scene, cells: int, asked: str) -> Iterator[_Candidate]:
    """What is asked of a thing that its other attribute tells from all others."""
    other = "shape" if asked == "colour" else "colour"
    counts = Counter(getattr(item, other) for item in scene)
    for item in scene:
        if counts[getattr(item, other)] == 1:
            noun = item.shape if other == "shape" else f"{item.colour} thing"
            yield _Candidate(asked, (noun,), getattr(item, asked))


def _in_corner(scene: Scene, cells: int, asked: str) -> Iterator[_Candidate]:
    by_cell = {(item.row, item.column): item for item in scene}
    for corner, (row, column) in CORNERS.items():
        if (item := by_cell.get((row % cells, column % cells))) is not None:
            yield _Candidate(asked, (f"thing in the {corner} corner",), getattr(item, asked))


def _relation(scene: Scene, cells: int, asked: str) -> Iterator[_Candidate]:
    for direction, anchor, neighbour in _neighbours(scene):
        words = (direction, f"{anchor.colour} {anchor.shape}")
        yield _Candidate(f"relation_{asked}", words, getattr(neighbour, asked))


def _next_to(scene: Scene, cells: int, asked: str) -> Iterator[_Candidate]:
    """What is asked of the one thing beside an anchor, where there is just one."""
    neighbours: dict[SceneObject, list[SceneObject]] = {}
    for _, anchor, neighbour in _neighbours(scene):
        neighbours.setdefault(anchor, []).append(neighbour)
    for anchor, beside in neighbours.items():
        if len(beside) == 1:
            words = ("next to", f"{anchor.colour} {anchor.shape}")
            yield _Candidate(f"relation_{asked}", words, getattr(beside[0], asked))


def _compare(scene: Scene, cells: int, by: str) -> Iterator[_Candidate]:
    for (first, first_count), (second, second_count) in permutations(_counts(scene, by), 2):
        if first_count + second_count > 0:
            words = (f"{first}s", f"{second}s")
            yield _Candidate("more", words, _yes_no(first_count > second_count))
            yield _Candidate("fewer", words, _yes_no(first_count < second_count))
            yield _Candidate("same", words, _yes_no(first_count == second_count))


def _counts(scene: Scene, by: str) -> list[tuple[str, int]]:
    """Each word for shapes of a colour, or for a shape, and how many there are."""
    counts = Counter(getattr(item, by) for item in scene)
    return [(f"{value} shape" if by == "colour" else value, counts[value]) for value in _VALUES[by]]


def _neighbours(scene: Scene) -> Iterator[tuple[str, SceneObject, SceneObject]]:
    """Each (direction, anchor of a kind that no other thing has, thing in the neighbouring cell in that direction)."""
    by_cell = {(item.row, item.column): item for item in scene}
    kinds = Counter((item.colour, item.shape) for item in scene)

    for anchor in scene:
        if kinds[anchor.colour, anchor.shape] > 1:
            continue
        for direction, (down, right) in STEPS.items():
            if (neighbour := by_cell.get((anchor.row + down, anchor.column + right))) is not None:
                yield direction, anchor, neighbour


# type -> (finder, share of the type's questions). Shares hold as far as the scenes allow.
_FINDERS: dict[str, tuple[tuple[Finder, float], ...]] = {
    "exist": ((_exist_pair, 0.5), (partial(_exist, by="colour"), 0.25), (partial(_exist, by="shape"), 0.25)),
    "count": ((partial(_count, by="colour"), 0.45), (partial(_count, by="shape"), 0.45), (_count_all, 0.1)),
    "colour": ((partial(_of_unique, asked="colour"), 0.6), (partial(_in_corner, asked="colour"), 0.4)),
    "shape": ((partial(_of_unique, asked="shape"), 0.6), (partial(_in_corner, asked="shape"), 0.4)),
    "relation": tuple((partial(find, asked=asked), 0.25) for find in (_relation, _next_to) for asked in _VALUES),
    "comparison": tuple((partial(_compare, by=by), 0.5) for by in _VALUES),
}
