"""Statements and questions about three boxes of shapes, in the words of NLVR v1's training sentences.

A statement is words and a rule: the rule says whether the words hold for three boxes. The phrases are frequent word
sequences of the train split ("there is 1 tower with a yellow block at the base", "closely touching the bottom of a
box"). Bare numbers ("2 black blocks", "1 tower") mean exactly so many; "a" means at least one.
"""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

COLOURS = ("black", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
MAX_COUNT = 9
"""Largest number that answers a question."""

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven")


class BoxItem(NamedTuple):
    """One shape: `size`, `x` and `y` (left and top) in pixels of a 100-pixel box."""

    shape: str
    colour: str
    size: int
    x: int
    y: int


Box = tuple[BoxItem, ...]
"""The items of one box; those of a tower from base to top."""
Boxes = tuple[Box, Box, Box]


class Statement(NamedTuple):
    """Words, their family, and the rule that says whether they hold."""

    text: str
    family: str
    holds: Callable[[Boxes], bool]


class Question(NamedTuple):
    """Words, their family, and the rule that gives the answer (None: it cannot be asked of these boxes)."""

    text: str
    family: str
    answer: Callable[[Boxes], str | None]


_Test = Callable[[Box], bool]
_ItemTest = Callable[[BoxItem], bool]


def question_answers() -> list[str]:
    """Every answer of a question: numbers up to `MAX_COUNT` and colours.

    Example:
        >>> question_answers()[:3], len(question_answers())
        (['0', '1', '2'], 13)
    """
    return [*map(str, range(MAX_COUNT + 1)), *COLOURS]


def draw_statement(rng: random.Random, towers: bool) -> Statement:
    """Draw a statement about towers (people also call them boxes with items), or about scattered items.

    Example:
        >>> draw_statement(random.Random(3), towers=True).text
        'there is no black block over a blue block'
    """
    if towers and rng.random() < 0.6:
        return rng.choice(_TOWER_STATEMENTS)(rng)
    return rng.choice((_box_with_end, *_SCATTER_STATEMENTS) if towers else _SCATTER_STATEMENTS)(rng)


def draw_question(rng: random.Random, towers: bool) -> Question:
    """Draw a question about towers, or about scattered items; its answer is a number or a colour.

    Example:
        >>> draw_question(random.Random(1), towers=True).text
        'how many black blocks are there'
    """
    return (_tower_question if towers else _scatter_question)(rng)


# Numbers


def _number(rng: random.Random, number: int) -> str:
    return rng.choice((str(number), _WORDS[number]))


def _quantity(rng: random.Random, largest: int) -> tuple[str, int, Callable[[int], bool]]:
    """Words for a quantity, the number that decides singular or plural, and the rule."""
    number = min(rng.choice((1, 1, 2, 2, 3, 4, 5, 6)), largest)
    kind = rng.choice(("bare", "exactly", "at least", "at least", "at most", "only"))
    words = _number(rng, number)
    if kind == "bare":
        return words, number, lambda count: count == number
    if kind == "at least":
        return f"at least {words}", number, lambda count: count >= number
    if kind == "at most" and number > 1:
        return f"at most {words}", number, lambda count: count <= number
    return f"{'only' if kind == 'only' else 'exactly'} {words}", number, lambda count: count == number


def _existence(rng: random.Random, noun: str) -> tuple[str, Callable[[int], bool]]:
    """Words such as "there is a tower" or "there are exactly two towers", and the rule for the number of them."""
    kind = rng.choice(("a", "a", "a", "no", "quantity", "quantity", "quantity"))
    if kind == "a":
        return f"there is a {noun}", lambda count: count >= 1
    if kind == "no":
        return f"there is no {noun}", lambda count: count == 0
    words, number, rule = _quantity(rng, 3)
    plural = noun if number == 1 else ("boxes" if noun == "box" else f"{noun}s")
    return f"there {'is' if number == 1 else 'are'} {words} {plural}", rule


def _counted(words: str, number: int, noun: str) -> str:
    return f"{words} {noun}" if number == 1 else f"{words} {noun}s"


# Towers


def _colour(rng: random.Random) -> str:
    return rng.choice(COLOURS)


def _has_pair(above: str, below: str) -> _Test:
    return lambda box: any(lower.colour == below and upper.colour == above for lower, upper in pairwise(box))


def _only(colours: set[str]) -> _Test:
    return lambda box: {item.colour for item in box} == colours


def _tower_property(rng: random.Random) -> tuple[str, _Test]:
    kind = rng.choice(("end", "end", "count", "count", "height", "only", "only two", "pair"))
    one, two = rng.sample(COLOURS, 2)
    if kind == "end":
        end = rng.choice(("top", "base"))
        place = -1 if end == "top" else 0
        return f"a {one} block at the {end}", lambda box: box[place].colour == one
    if kind == "count":
        words, number, rule = _quantity(rng, 3)
        return _counted(words, number, f"{one} block"), lambda box: rule(sum(item.colour == one for item in box))
    if kind == "height":
        words, number, rule = _quantity(rng, 4)
        return _counted(words, number, "block"), lambda box: rule(len(box))
    if kind == "only":
        return f"only {one} blocks", _only({one})
    if kind == "only two":
        return f"only {one} and {two} blocks", _only({one, two})
    below = _colour(rng)
    return f"a {one} block {rng.choice(('above', 'over', 'on'))} a {below} block", _has_pair(one, below)


def _towers_with(rng: random.Random) -> Statement:
    words, rule = _existence(rng, "tower")
    phrase, test = _tower_property(rng)
    return Statement(f"{words} with {phrase}", "tower with", lambda boxes: rule(sum(map(test, boxes))))


def _box_with_end(rng: random.Random) -> Statement:
    words, rule = _existence(rng, "box")
    place, colour = rng.choice(("on top", "at the top", "at the base")), _colour(rng)
    end = 0 if place == "at the base" else -1
    return Statement(
        f"{words} with a {colour} item {place}",
        "end of tower",
        lambda boxes: rule(sum(box[end].colour == colour for box in boxes)),
    )


def _end_of_tower(rng: random.Random) -> Statement:
    end, colour = rng.choice(("top", "base")), _colour(rng)
    place = -1 if end == "top" else 0
    start = f"there is {rng.choice(('a', 'a', 'no'))} {colour} block as the {end} of a tower"
    negative = start.startswith("there is no")
    if rng.random() < 0.4:
        return Statement(start, "end of tower", lambda b: any(box[place].colour == colour for box in b) != negative)
    words, number, rule = _quantity(rng, 4)
    return Statement(
        f"{start} with {_counted(words, number, 'block')}",
        "end of tower",
        lambda b: any(box[place].colour == colour and rule(len(box)) for box in b) != negative,
    )


def _block_on_block(rng: random.Random) -> Statement:
    above, below = _colour(rng), _colour(rng)
    start = rng.choice(("a", "a", "no"))
    test = _has_pair(above, below)
    return Statement(
        f"there is {start} {above} block {rng.choice(('above', 'over', 'on'))} a {below} block",
        "block on block",
        lambda boxes: any(map(test, boxes)) != (start == "no"),
    )


def _whole_tower(rng: random.Random) -> Statement:
    colour = _colour(rng)
    if rng.random() < 0.5:
        return Statement(f"there is a {colour} tower", "whole tower", lambda boxes: any(map(_only({colour}), boxes)))
    return Statement(
        f"there is at least {_number(rng, 1)} {colour} block in each tower",
        "whole tower",
        lambda boxes: all(any(item.colour == colour for item in box) for box in boxes),
    )


def _blocks_in_all(rng: random.Random) -> Statement:
    colour = _colour(rng)
    words, number, rule = _quantity(rng, 6)
    verb = "is" if number == 1 else "are"
    return Statement(
        f"there {verb} {_counted(words, number, f'{colour} block')}",
        "count",
        lambda boxes: rule(sum(item.colour == colour for box in boxes for item in box)),
    )


# Scattered items


def _noun(rng: random.Random) -> tuple[str, _ItemTest]:
    """A noun phrase in the singular: colour, shape, or both."""
    colour, shape = _colour(rng), rng.choice(SHAPES)
    kind = rng.choice(("colour", "colour", "shape", "both", "both"))
    if kind == "colour":
        return f"{colour} {rng.choice(('item', 'item', 'object'))}", lambda item: item.colour == colour
    if kind == "shape":
        return shape, lambda item: item.shape == shape
    return f"{colour} {shape}", lambda item: (item.colour, item.shape) == (colour, shape)


def touches_bottom(item: BoxItem) -> bool:
    """Whether the item stands on the bottom of its box."""
    return item.y + item.size >= 100


def touches_right(item: BoxItem) -> bool:
    """Whether the item touches the right wall of its box."""
    return item.x + item.size >= 100


def touches_edge(item: BoxItem) -> bool:
    """Whether the item touches any wall of its box."""
    return touches_bottom(item) or touches_right(item) or item.x <= 0 or item.y <= 0


def touches_corner(item: BoxItem) -> bool:
    """Whether the item touches two walls of its box."""
    return (touches_right(item) or item.x <= 0) and (touches_bottom(item) or item.y <= 0)


_PLACES: tuple[tuple[str, _ItemTest], ...] = (
    ("closely touching the bottom of a box", touches_bottom),
    ("touching the base", touches_bottom),
    ("closely touching right wall of a box", touches_right),
    ("touching the edge", touches_edge),
    ("touching the wall", touches_edge),
    ("closely touching a corner", touches_corner),
    ("not touching any edge", lambda item: not touches_edge(item)),
)


def _box_property(rng: random.Random) -> tuple[str, _Test]:
    kind = rng.choice(("count", "count", "size", "size", "only", "only two", "two kinds", "place"))
    if kind == "count":
        noun, test = _noun(rng)
        words, number, rule = _quantity(rng, 4)
        return _counted(words, number, noun), lambda box: rule(sum(map(test, box)))
    if kind == "size":
        words, number, rule = _quantity(rng, 6)
        return _counted(words, number, rng.choice(("item", "item", "object"))), lambda box: rule(len(box))
    one, two = rng.sample(COLOURS, 2)
    if kind == "only":
        return f"only {one} items", _only({one})
    if kind == "only two":
        return f"only {one} and {two} items", _only({one, two})
    noun, test = _noun(rng)
    if kind == "two kinds":
        return f"a {noun} and a {two} item", lambda box: any(
            test(item) and any(other.colour == two and other is not item for other in box) for item in box
        )
    place, touches = _PLACES[rng.choice((3, 4))]
    return f"a {noun} {place}", lambda box: any(test(item) and touches(item) for item in box)


def _boxes_with(rng: random.Random) -> Statement:
    phrase, test = _box_property(rng)
    if rng.random() < 0.15:
        noun = rng.choice(("box", "square"))
        words, number, rule = _quantity(rng, 6)
        what = _counted(words, number, "object")
        return Statement(
            f"one of the grey {noun} {rng.choice(('has', 'contains'))} {what}",
            "box with",
            lambda boxes: any(rule(len(box)) for box in boxes),
        )
    words, exists = _existence(rng, "box")
    return Statement(f"{words} with {phrase}", "box with", lambda boxes: exists(sum(map(test, boxes))))


def _items_in_all(rng: random.Random) -> Statement:
    noun, test = _noun(rng)
    words, number, rule = _quantity(rng, 6)
    verb = "is" if number == 1 else "are"
    return Statement(
        f"there {verb} {_counted(words, number, noun)}",
        "count",
        lambda boxes: rule(sum(test(i) for b in boxes for i in b)),
    )


def _touching(rng: random.Random) -> Statement:
    noun, test = _noun(rng)
    place, touches = rng.choice(_PLACES)
    if rng.random() < 0.1:
        return Statement(
            f"none of the {noun}s are touching {rng.choice(('any', 'the'))} edge",
            "touching",
            lambda boxes: not any(test(item) and touches_edge(item) for box in boxes for item in box),
        )
    words, exists = _existence(rng, noun)
    return Statement(
        f"{words} {place}",
        "touching",
        lambda boxes: exists(sum(test(item) and touches(item) for box in boxes for item in box)),
    )


_TOWER_STATEMENTS = (
    *[_towers_with] * 6,
    *[_end_of_tower] * 2,
    *[_block_on_block] * 2,
    _whole_tower,
    *[_blocks_in_all] * 2,
)
_SCATTER_STATEMENTS = (*[_boxes_with] * 3, *[_items_in_all] * 2, *[_touching] * 3)


# Questions


def _as_answer(count: int) -> str | None:
    return str(count) if count <= MAX_COUNT else None


def _tower_question(rng: random.Random) -> Question:
    kind = rng.choice(("towers", "blocks", "colour", "colour", "height"))
    side = rng.choice(("left", "middle", "right"))
    index = ("left", "middle", "right").index(side)
    if kind == "towers":
        phrase, test = _tower_property(rng)
        return Question(f"how many towers with {phrase}", "question", lambda boxes: str(sum(map(test, boxes))))
    if kind == "blocks":
        colour = _colour(rng)
        return Question(
            f"how many {colour} blocks are there",
            "question",
            lambda boxes: _as_answer(sum(item.colour == colour for box in boxes for item in box)),
        )
    if kind == "height":
        return Question(f"how many blocks in the {side} tower", "question", lambda boxes: str(len(boxes[index])))
    end = rng.choice(("top", "base"))
    place = -1 if end == "top" else 0
    return Question(f"color of the {end} of the {side} tower", "question", lambda boxes: boxes[index][place].colour)


def _scatter_question(rng: random.Random) -> Question:
    kind = rng.choice(("boxes", "items", "place", "one box"))
    noun, test = _noun(rng)
    if kind == "boxes":
        phrase, property_test = _box_property(rng)
        return Question(f"how many boxes with {phrase}", "question", lambda boxes: str(sum(map(property_test, boxes))))
    if kind == "items":
        return Question(
            f"how many {noun}s are there", "question", lambda boxes: _as_answer(sum(test(i) for b in boxes for i in b))
        )
    if kind == "one box":
        side = rng.choice(("left", "middle", "right"))
        index = ("left", "middle", "right").index(side)
        what = rng.choice((f"{noun}s", "items"))
        return Question(
            f"how many {what} in the {side} box",
            "question",
            lambda boxes: str(len(boxes[index]) if what == "items" else sum(map(test, boxes[index]))),
        )
    place, touches = rng.choice(_PLACES)
    return Question(
        f"how many {noun}s {place}",
        "question",
        lambda boxes: _as_answer(sum(test(item) and touches(item) for box in boxes for item in box)),
    )
