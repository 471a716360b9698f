"""Captions of scenes: is what they say true, and is the hard negative false? Read anew from the words, another way."""

import hashlib
import re
from collections import Counter, defaultdict

import pytest
from datasets import Image
from worlds.scene_captions import CHANGES, generate_scene_captions

from dual_distill.data import generate_scenes

SMALL = {"train": 200, "validation": 30, "test": 40}
NUMBERS = {"no": 0, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
COLOURS = ("red", "green", "blue", "yellow")
FRAMES = ("the picture shows ", "a picture with ", "in the picture you see ", "you see ", "here we have ")


@pytest.fixture(scope="module")
def captions():
    return generate_scene_captions(SMALL, seed=3).cast_column("image", Image(decode=False))


@pytest.fixture(scope="module")
def rows(captions):
    return [row for split in captions.values() for row in split.remove_columns("image")]


# A reader of its own: it parses the sentence and looks at each object.


def fitting(noun, objects):
    """Objects that "red circle", "circles", "blue shapes" or "shapes" means."""
    found = list(objects)
    for word in noun.split():
        if word in COLOURS:
            found = [o for o in found if o["colour"] == word]
        elif word not in ("shape", "shapes"):
            found = [o for o in found if o["shape"] == word.removesuffix("s")]
    return found


def placed(how, one, two):
    row, column = one["row"] - two["row"], one["column"] - two["column"]
    if how == "next to":
        return abs(row) + abs(column) == 1
    return (row, column) == {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[how]


def fact_holds(fact, objects, cells):
    if match := re.fullmatch(r"(no|two|three|four|five|six) (shapes) in all", fact):
        return len(objects) == NUMBERS[match[1]]
    if match := re.fullmatch(r"exactly one (.+)", fact):
        return len(fitting(match[1], objects)) == 1
    if match := re.fullmatch(r"(more|fewer|as many) (.+) (?:than|as) (.+)", fact):
        one, two = len(fitting(match[2], objects)), len(fitting(match[3], objects))
        assert match[2] != match[3], fact
        return {"more": one > two, "fewer": one < two, "as many": one == two}[match[1]]
    if match := re.fullmatch(r"a (\w+ \w+) in the (top|bottom) (left|right) corner", fact):
        corner = (0 if match[2] == "top" else cells - 1, 0 if match[3] == "left" else cells - 1)
        return any((o["row"], o["column"]) == corner for o in fitting(match[1], objects))
    if match := re.fullmatch(r"a (\w+ \w+) in the middle", fact):
        assert cells % 2 == 1, "an even grid has no middle"
        return any(o["row"] == o["column"] == cells // 2 for o in fitting(match[1], objects))
    if match := re.fullmatch(r"a (\w+ \w+) (left of|right of|above|below|next to) a (\w+ \w+)", fact):
        return any(placed(match[2], o, p) for o in fitting(match[1], objects) for p in fitting(match[3], objects))
    if match := re.fullmatch(r"(no|two|three|four|five|six) (.+s)", fact):
        return len(fitting(match[2], objects)) == NUMBERS[match[1]]
    match = re.fullmatch(r"a (\w+ \w+)", fact)
    assert match, f"unread fact: {fact}"
    return bool(fitting(match[1], objects))


def is_true(caption, objects, cells=3):
    for frame in FRAMES:
        if caption.startswith(frame):
            caption = caption.removeprefix(frame)
            break
    held = [fact_holds(fact, objects, cells) for fact in re.split(r", (?:and )?", caption)]  # each fact is read
    return all(held)


def test_every_caption_is_true_and_every_hard_negative_false(rows):
    for row in rows:
        assert is_true(row["caption"], row["objects"]), row["caption"]
        assert not row["hard_negative"] or not is_true(row["hard_negative"], row["objects"]), row["hard_negative"]


@pytest.mark.parametrize("cells", [2, 4])
def test_the_same_on_other_grids(cells):
    for row in generate_scene_captions({"train": 40}, cells=cells, captions_per_scene=3)["train"].remove_columns(
        "image"
    ):
        assert is_true(row["caption"], row["objects"], cells), row["caption"]
        assert not row["hard_negative"] or not is_true(row["hard_negative"], row["objects"], cells), row[
            "hard_negative"
        ]


def test_a_hard_negative_differs_in_one_word_of_the_kind_that_is_named(rows):
    kinds = {
        "colour": COLOURS,
        "shape": ("circle", "square", "triangle", "circles", "squares", "triangles"),
        "number": tuple(NUMBERS),
        "place": ("left", "right", "above", "below", "top", "bottom"),
        "comparison": ("more", "fewer"),
    }
    assert set(kinds) == set(CHANGES)
    for row in rows:
        if row["hard_negative"]:
            words = zip(row["caption"].split(), row["hard_negative"].split(), strict=True)
            [exchanged] = [tuple(word.rstrip(",") for word in pair) for pair in words if pair[0] != pair[1]]
            assert set(exchanged) <= set(kinds[row["changed"]])
    counts = Counter(row["changed"] for row in rows)
    assert counts[""] < 0.05 * len(rows)
    assert all(counts[kind] > 0.05 * len(rows) for kind in CHANGES), counts


def test_captions_are_of_6_to_16_words_and_no_two_of_a_picture_are_alike(rows):
    assert {6, 16} <= {len(row["caption"].split()) for row in rows} <= set(range(6, 17))
    by_image = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row["caption"])
    assert all(len(set(found)) == len(found) == 5 for found in by_image.values())
    assert len(by_image) == sum(SMALL.values())
    assert sum(len(set(found)) for found in by_image.values()) > 0.9 * len(rows)


def test_captions_are_particular(rows):
    """A caption is true of few other pictures: else a search could not find the right one."""
    objects = {row["image_id"]: row["objects"] for row in rows}
    shares = [sum(is_true(row["caption"], other) for other in objects.values()) / len(objects) for row in rows[::40]]
    assert sum(shares) / len(shares) < 0.06


def test_the_words_betray_no_hard_negative(rows):
    """A word that stands in hard negatives only, or in true captions only, would give them away."""
    true = Counter(word for row in rows for word in set(row["caption"].split()))
    false = Counter(word for row in rows for word in set(row["hard_negative"].split()))
    for word in {*true, *false}:
        if true[word] + false[word] > 200:
            assert 0.4 < true[word] / (true[word] + false[word]) < 0.6, word


@pytest.mark.parametrize("seed", [3, 8])
def test_the_pictures_are_those_of_the_questions_split_by_split(seed):
    captions = generate_scene_captions(SMALL, 1, seed=seed).cast_column("image", Image(decode=False))
    scenes = generate_scenes(SMALL, seed=seed).cast_column("image", Image(decode=False))
    for split in SMALL:
        of_captions = {row["image_id"]: (row["image"]["bytes"], str(row["objects"])) for row in captions[split]}
        of_questions = {row["scene_id"]: (row["image"]["bytes"], str(row["objects"])) for row in scenes[split]}
        assert of_captions == of_questions


def test_no_test_picture_is_in_train(captions):
    digests = {
        split: {hashlib.sha256(row["bytes"]).hexdigest() for row in captions[split]["image"]}
        for split in ("train", "test")
    }
    assert not digests["train"] & digests["test"]
    assert len(digests["test"]) == SMALL["test"]


def test_one_seed_gives_the_same_rows_and_a_larger_train_split_the_same_test_rows():
    first, again, other = (
        generate_scene_captions({"test": 4, "train": n}, seed=s) for n, s in ((2, 1), (9, 1), (2, 2))
    )
    assert first["test"].to_dict() == again["test"].to_dict()
    assert first["train"].to_dict() == again["train"].select(range(10)).to_dict()
    assert first["test"]["caption"] != other["test"]["caption"]


def test_an_empty_split_keeps_its_columns():
    empty = generate_scene_captions({"train": 0})["train"]
    assert empty.num_rows == 0
    assert {"image", "caption", "image_id"} <= set(empty.column_names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captions_per_scene": 0}, "captions_per_scene is 0, but an image has 1 to 10"),
        ({"captions_per_scene": 11}, "captions_per_scene is 11, but"),
        ({"cells": 1}, "cells is 1, but must be from 2 to 8"),
    ],
)
def test_each_error_by_its_message(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scene_captions(**arguments)
