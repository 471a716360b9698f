import hashlib
import io
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from datasets import Image
from PIL import Image as PILImage

from dual_distill.data import generate_scenes, scene_answers
from dual_distill.data.datasets.scene_questions import SceneObject

SMALL = {"train": 300, "validation": 40, "test": 60}
SINGULAR = {"circles": "circle", "squares": "square", "triangles": "triangle"}
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(SMALL, seed=3).cast_column("image", Image(decode=False))


def rows_of(data):
    return [row for split in data.values() for row in split]


# --- An answerer of its own: reads the sentence and looks at every object, apart from the generator.


def matching(phrase, objects):
    """Objects that a noun phrase fits: 'red circle', 'crosses', 'blue shapes', 'yellow thing', 'shapes'."""
    found = list(objects)
    for word in phrase.split():
        word = SINGULAR.get(word, word)
        if word in COLOURS:
            found = [o for o in found if o["colour"] == word]
        elif word in SINGULAR.values():
            found = [o for o in found if o["shape"] == word]
        else:
            assert word in ("shape", "shapes", "thing"), word
    return found


def beside(direction, anchor, objects):
    """What lies in the neighbouring cell in that direction; "next to": in any of the four."""
    if direction == "next to":
        return [o for o in objects if abs(o["row"] - anchor["row"]) + abs(o["column"] - anchor["column"]) == 1]
    row_step, column_step = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[direction]
    cell = (anchor["row"] + row_step, anchor["column"] + column_step)
    return [o for o in objects if (o["row"], o["column"]) == cell]


def only(found):
    assert len(found) == 1, "the question does not point to one thing"
    return found[0]


def referred(phrase, objects, cells):
    """The one thing that 'red circle' or 'thing in the top left corner' is."""
    corner = re.fullmatch(r"thing in the (top|bottom) (left|right) corner", phrase)
    if corner:
        row, column = 0 if corner[1] == "top" else cells - 1, 0 if corner[2] == "left" else cells - 1
        return only([o for o in objects if (o["row"], o["column"]) == (row, column)])
    relation = re.fullmatch(r"thing (left of|right of|above|below|next to) the (.+)", phrase)
    if relation:
        return only(beside(relation[1], only(matching(relation[2], objects)), objects))
    return only(matching(phrase, objects))


def brute_force_answer(question, objects, cells=3):
    yes_no = {True: "yes", False: "no"}
    patterns = {
        r"(?:are there|does the picture show) (more|fewer|as many) (.+) (?:than|as) (.+)\?": lambda how, a, b: yes_no[
            {"more": int.__gt__, "fewer": int.__lt__, "as many": int.__eq__}[how](
                len(matching(a, objects)), len(matching(b, objects))
            )
        ],
        r"is there a (.+) in the picture\?": lambda what: yes_no[bool(matching(what, objects))],
        r"(?:does the picture show|do you see) a (.+)\?": lambda what: yes_no[bool(matching(what, objects))],
        r"how many (.+) are there\?": lambda what: str(len(matching(what, objects))),
        r"how many (.+) does the picture show\?": lambda what: str(len(matching(what, objects))),
        r"what is the number of (.+)\?": lambda what: str(len(matching(what, objects))),
        r"(?:what|which) (colour|shape) (?:is|does) the (.+?)(?: have)?\?": lambda key, what: referred(
            what, objects, cells
        )[key],
        r"what is the (colour|shape) of the (.+)\?": lambda key, what: referred(what, objects, cells)[key],
    }
    for pattern, answer in patterns.items():
        found = re.fullmatch(pattern, question)
        if found:
            return answer(*found.groups())
    raise AssertionError(f"a sentence that the answerer does not know: {question}")


# --- Answers and questions


def test_an_independent_answerer_agrees_with_every_answer(scenes):
    for row in rows_of(scenes):
        assert brute_force_answer(row["question"], row["objects"]) == row["answer"], row["question"]


@pytest.mark.parametrize("cells", [2, 4])
def test_the_answerer_agrees_on_other_grids(cells):
    scenes = generate_scenes({"train": 60}, seed=1, cells=cells, questions_per_scene=4)
    for row in scenes["train"].remove_columns("image"):
        assert brute_force_answer(row["question"], row["objects"], cells) == row["answer"]


def test_questions_are_short_and_their_words_few(scenes):
    questions = [row["question"] for row in rows_of(scenes)]
    assert {5, 12} <= {len(question.split()) for question in questions} <= set(range(5, 15))
    assert len({word for question in questions for word in question.rstrip("?").split()}) < 80


def test_each_scene_has_one_question_of_each_type(scenes):
    by_scene = defaultdict(list)
    for row in rows_of(scenes):
        by_scene[row["scene_id"]].append(row["question_type"])
    types = ["colour", "comparison", "count", "exist", "relation", "shape"]
    assert all(sorted(found) == types for found in by_scene.values())
    assert len(by_scene) == sum(SMALL.values())


def test_types_take_turns_when_a_scene_has_fewer_questions():
    scenes = generate_scenes({"train": 12}, questions_per_scene=4)
    assert set(Counter(scenes["train"]["question_type"]).values()) == {8}


def test_no_question_is_asked_twice_about_one_scene():
    scenes = generate_scenes({"train": 30}, questions_per_scene=12)
    pairs = list(zip(scenes["train"]["scene_id"], scenes["train"]["question"], strict=True))
    assert len(set(pairs)) == len(pairs) == 360


def test_all_answers_are_known_and_most_occur(scenes):
    found = {row["answer"] for row in rows_of(scenes)}
    assert found <= set(scene_answers())
    assert scene_answers() == sorted(scene_answers())
    assert len(found) >= 15


def test_the_question_text_betrays_little():
    """Best guess per question text, fitted on the very rows it is scored on, so an upper bound for such a guess."""
    train = generate_scenes({"train": 2_000}, seed=5)["train"]
    by_kind = defaultdict(Counter)
    for question, answer in zip(train["question"], train["answer"], strict=True):
        # "red" for every colour and so on: texts of one kind share their statistics, else most texts occur once
        kind = re.sub("red|green|blue|yellow", "C", re.sub("circle|square|triangle", "S", question))
        by_kind[kind][answer] += 1
    assert sum(max(counts.values()) for counts in by_kind.values()) / train.num_rows < 0.45
    for question_type in ("exist", "comparison"):
        answers = Counter(
            answer
            for answer, kind in zip(train["answer"], train["question_type"], strict=True)
            if kind == question_type
        )
        assert abs(answers["yes"] - answers["no"]) <= 0.1 * answers.total()


# --- Pictures


def test_pictures_show_each_object_in_its_cell(scenes):
    reference = {"red": (222, 45, 38), "green": (44, 160, 62), "blue": (49, 90, 224), "yellow": (244, 196, 20)}
    for row in list(scenes["test"])[::6]:
        pixels = np.asarray(PILImage.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
        assert pixels.shape == (36, 36, 3)
        paper = np.bincount(pixels.ravel()).argmax()
        empty = np.ones((36, 36), dtype=bool)
        for (left, top, right, bottom), item in zip(row["boxes"], row["objects"], strict=True):
            assert item["row"] * 12 <= top < bottom <= item["row"] * 12 + 12
            assert item["column"] * 12 <= left < right <= item["column"] * 12 + 12
            centre = pixels[(top + bottom) // 2, (left + right) // 2]
            nearest = min(reference, key=lambda colour: abs(centre - reference[colour]).sum())
            assert nearest == item["colour"]
            empty[top:bottom, left:right] = False
        assert (pixels[empty] == paper).all(), "ink outside the boxes"


def test_one_scene_is_not_one_picture(scenes):
    images = {row["scene_id"]: row["image"]["bytes"] for row in rows_of(scenes)}
    assert len(set(images.values())) == len(images)
    crops = {
        PILImage.open(io.BytesIO(row["image"]["bytes"])).crop((0, 0, 12, 12)).tobytes()
        for row in rows_of(scenes)
        if any((o["row"], o["column"], o["shape"], o["colour"]) == (0, 0, "circle", "red") for o in row["objects"])
    }
    assert len(crops) >= 5


def test_picture_size_follows_the_arguments():
    scenes = generate_scenes({"train": 2}, cells=4, cell_px=16)
    assert scenes["train"][0]["image"].size == (64, 64)
    assert scenes["train"][0]["image"].mode == "RGB"


# --- Splits and seeds


def signature(row):
    return frozenset((o["row"], o["column"], o["shape"], o["colour"]) for o in row["objects"])


def test_no_two_scenes_are_equal_within_or_between_splits(scenes):
    by_scene = {row["scene_id"]: signature(row) for row in rows_of(scenes)}
    assert len(set(by_scene.values())) == len(by_scene) == 400


def digest(data):
    content = hashlib.sha256()
    for split in sorted(data):
        for row in data[split].cast_column("image", Image(decode=False)):
            content.update(repr(row).encode())
    return content.hexdigest()


def test_equal_seeds_give_equal_bytes_in_another_process(processes):
    code = (
        "import hashlib\n"
        "from datasets import Image\n"
        "from dual_distill.data import generate_scenes\n"
        "data = generate_scenes({'train': 20, 'test': 5}, seed=7)\n"
        "content = hashlib.sha256()\n"
        "for split in sorted(data):\n"
        "    for row in data[split].cast_column('image', Image(decode=False)):\n"
        "        content.update(repr(row).encode())\n"
        "print(content.hexdigest())\n"
    )
    [done] = processes((code,))
    here = digest(generate_scenes({"train": 20, "test": 5}, seed=7))
    assert done.stdout.strip() == here, done.stderr
    assert here != digest(generate_scenes({"train": 20, "test": 5}, seed=8))


def test_test_and_validation_stay_when_train_grows():
    small = generate_scenes({"train": 5, "validation": 10, "test": 10})
    large = generate_scenes({"train": 50, "validation": 10, "test": 10})
    for split in ("validation", "test"):
        assert small[split].to_dict() == large[split].to_dict()


def test_an_empty_split_keeps_its_columns(scenes):
    empty = generate_scenes({"train": 0})["train"]
    assert empty.num_rows == 0
    assert empty.column_names == scenes["train"].column_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": {"train": -1}}, r"num_scenes\['train'\] is -1"),
        ({"num_scenes": 100}, "num_scenes maps split names to numbers"),
        ({"questions_per_scene": 0}, "questions_per_scene is 0, but must be from 1 to 12"),
        ({"cells": 1}, "cells is 1, but must be from 2 to 8"),
        ({"cell_px": 7}, "cell_px is 7, but must be from 8 to inf"),
    ],
)
def test_each_error_by_its_message(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scenes(**arguments)


def test_a_full_grid_is_said_and_not_waited_for(monkeypatch):
    only_scene = (SceneObject("circle", "red", 0, 0),)
    monkeypatch.setattr("dual_distill.data.datasets.scenes._draw_objects", lambda rng, cells: only_scene)
    with pytest.raises(ValueError, match="No new scene in 1,000 attempts after 1 scenes on a grid of 3 x 3 cells"):
        generate_scenes({"train": 2}, questions_per_scene=1)
