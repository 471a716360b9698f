"""Generated NLVR-style scenes: is what the statements say true? Read anew from the words, by another implementation."""

import io
import re
from collections import Counter, defaultdict

import pytest
from PIL import Image

from dual_distill.data import get_task, load_task
from dual_distill.data.datasets.nlvr_scenes import generate_nlvr_scenes, nlvr_scene_labels, paint_boxes
from dual_distill.data.datasets.nlvr_statements import BoxItem

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}


@pytest.fixture(scope="module")
def scenes():
    return load_task(
        "nlvr_scenes", num_scenes={"train": 300, "validation": 60}, questions_per_scene=6, statements_per_scene=6
    )


# A reader of its own: it parses the sentence and counts over the flat list of objects.


def number(word):
    return int(word) if word.isdigit() else NUMBERS[word]


def compare(kind, wanted, count):
    return {"at least": count >= wanted, "at most": count <= wanted}.get(kind, count == wanted)


QUANTITY = r"(?:(exactly|at least|at most|only) )?(\d|one|two|three|four|five|six)"
NOUN = r"(?:(black|blue|yellow) )?(item|object|block|circle|square|triangle)s?"
PLACES = {
    "closely touching the bottom of a box": lambda o: bottom(o),
    "touching the base": lambda o: bottom(o),
    "closely touching right wall of a box": lambda o: right(o),
    "touching the edge": lambda o: bool(walls(o)),
    "touching the wall": lambda o: bool(walls(o)),
    "closely touching a corner": lambda o: len(walls(o)) == 2,
    "not touching any edge": lambda o: not walls(o),
}


def walls(o):
    far = {"right": o["x"] + o["size"] == 100, "bottom": o["y"] + o["size"] == 100}
    return {name for name, touching in {**far, "left": o["x"] == 0, "top": o["y"] == 0}.items() if touching}


def bottom(o):
    return "bottom" in walls(o)


def right(o):
    return "right" in walls(o)


def chosen(colour, noun, objects):
    kept = [o for o in objects if colour in (None, o["colour"])]
    return [o for o in kept if noun in ("item", "object", "block", o["shape"])]


def stacked(above, below, objects):
    """Pairs in which one block lies 21 pixels over another."""
    return any((o["colour"], p["colour"]) == (above, below) and p["y"] - o["y"] == 21 for o in objects for p in objects)


def box_has(phrase, objects):
    """Whether one box or tower has what stands behind "with"."""
    if match := re.fullmatch(r"a (\w+) (?:block|item) (?:at the|on) (top|base)", phrase):
        end = min if match[2] == "top" else max
        return end(objects, key=lambda o: o["y"])["colour"] == match[1]
    if match := re.fullmatch(r"only (black|blue|yellow) (?:blocks|items)", phrase):
        return {o["colour"] for o in objects} == {match[1]}
    if match := re.fullmatch(r"only (\w+) and (\w+) (?:blocks|items)", phrase):
        return {o["colour"] for o in objects} == {match[1], match[2]}
    if match := re.fullmatch(r"a (\w+) block (?:above|over|on) a (\w+) block", phrase):
        return stacked(match[1], match[2], objects)
    if match := re.fullmatch(rf"{QUANTITY} {NOUN}", phrase):
        return compare(match[1], number(match[2]), len(chosen(match[3], match[4], objects)))
    if match := re.fullmatch(rf"a {NOUN} and a (\w+) item", phrase):
        first, second = chosen(match[1], match[2], objects), chosen(match[3], "item", objects)
        return any(o is not p for o in first for p in second)
    if match := re.fullmatch(rf"a {NOUN} (touching the (?:edge|wall))", phrase):
        return any(map(PLACES[match[3]], chosen(match[1], match[2], objects)))
    raise AssertionError(f"unread property: {phrase}")


def is_true(sentence, objects):
    boxes = [[o for o in objects if o["box"] == index] for index in range(3)]
    if match := re.fullmatch(rf"there (?:is|are) (?:(a|no)|{QUANTITY}) (?:tower|box|towers|boxes) with (.*)", sentence):
        count = sum(box_has(match[4], box) for box in boxes)
        return exists(match, count)
    if match := re.fullmatch(r"there is (a|no) (\w+) block as the (top|base) of a tower(?: with (.*))?", sentence):
        found = any(
            box_has(f"a {match[2]} block at the {match[3]}", box) and (not match[4] or box_has(match[4], box))
            for box in boxes
        )
        return found == (match[1] == "a")
    if match := re.fullmatch(r"there is (a|no) (\w+) block (?:above|over|on) a (\w+) block", sentence):
        return any(stacked(match[2], match[3], box) for box in boxes) == (match[1] == "a")
    if match := re.fullmatch(r"there is a (\w+) tower", sentence):
        return any({o["colour"] for o in box} == {match[1]} for box in boxes)
    if match := re.fullmatch(r"there is at least (?:1|one) (\w+) block in each tower", sentence):
        return all(chosen(match[1], "block", box) for box in boxes)
    if match := re.fullmatch(rf"one of the grey (?:box|square) (?:has|contains) ({QUANTITY} objects?)", sentence):
        return any(box_has(match[1], box) for box in boxes)
    if match := re.fullmatch(rf"none of the {NOUN} are touching (?:any|the) edge", sentence):
        return not any(map(walls, chosen(match[1], match[2], objects)))
    if match := re.fullmatch(rf"there (?:is|are) (?:(a|no)|{QUANTITY}) {NOUN}(?: (.*))?", sentence):
        found = chosen(match[4], match[5], objects)
        return exists(match, len([o for o in found if not match[6] or PLACES[match[6]](o)]))
    raise AssertionError(f"unread sentence: {sentence}")


def exists(match, count):
    if match[1]:
        return (count > 0) == (match[1] == "a")
    return compare(match[2], number(match[3]), count)


def answer(question, objects):
    boxes = dict(
        zip(("left", "middle", "right"), ([o for o in objects if o["box"] == i] for i in range(3)), strict=True)
    )
    if match := re.fullmatch(r"how many (?:towers|boxes) with (.*)", question):
        return str(sum(box_has(match[1], box) for box in boxes.values()))
    if match := re.fullmatch(rf"how many {NOUN} in the (left|middle|right) (?:tower|box)", question):
        return str(len(chosen(match[1], match[2], boxes[match[3]])))
    if match := re.fullmatch(r"color of the (top|base) of the (left|middle|right) tower", question):
        end = min if match[1] == "top" else max
        return end(boxes[match[2]], key=lambda o: o["y"])["colour"]
    if match := re.fullmatch(rf"how many {NOUN}(?: are there)?(.*)", question):
        found = chosen(match[1], match[2], objects)
        return str(len([o for o in found if not match[3] or PLACES[match[3].strip()](o)]))
    raise AssertionError(f"unread question: {question}")


def test_every_statement_and_answer_is_right(scenes):
    families = Counter()
    for row in scenes["train"]:
        families[row["family"]] += 1
        if row["family"] == "question":
            assert answer(row["sentence"], row["objects"]) == row["label"], row["sentence"]
        else:
            assert is_true(row["sentence"], row["objects"]) == (row["label"] == "true"), row["sentence"]
    assert len(families) == 8, f"not every family was drawn: {families}"


@pytest.mark.parametrize("near_copies", [True, False])
def test_near_copies_differ_less(near_copies):
    """In most pairs of near copies the towers hold as many blocks in all; in few pairs of any two scenes."""
    rows = generate_nlvr_scenes({"train": 80}, tower_share=1.0, near_copies=near_copies)["train"].to_list()
    assert all(is_true(row["sentence"], row["objects"]) == (row["label"] == "true") for row in rows)
    same = [len(a["objects"]) == len(b["objects"]) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert (sum(same) / len(same) > 0.9) == near_copies


def test_each_statement_is_once_true_and_once_false(scenes):
    labels = defaultdict(list)
    for row in scenes["train"].filter(lambda row: row["family"] != "question"):
        labels[row["sentence_id"], row["sentence"]].append(row["label"])
    assert len(labels) == 300 * 6 // 2
    assert all(sorted(pair) == ["false", "true"] for pair in labels.values())


def test_labels_are_those_of_the_task(scenes):
    assert get_task("nlvr_scenes").label_names == tuple(nlvr_scene_labels())
    assert set(scenes["train"]["label"]) <= set(nlvr_scene_labels())


def test_one_seed_gives_the_same_rows_and_another_does_not():
    first, again, other = (generate_nlvr_scenes({"train": 8}, seed=seed)["train"] for seed in (1, 1, 2))
    assert first.to_list() == again.to_list()
    assert first["sentence"] != other["sentence"]


def test_no_scene_is_in_two_splits(scenes):
    train, validation = (
        {str([dict(sorted(o.items())) for o in row["objects"]]) for row in scenes[split]} for split in scenes
    )
    assert not train & validation


def test_a_split_does_not_change_with_the_size_of_train():
    small, large = (generate_nlvr_scenes({"train": n, "validation": 6}) for n in (4, 12))
    assert small["validation"].to_list() == large["validation"].to_list()


def test_the_picture_shows_the_objects_where_they_are():
    boxes = ((), (BoxItem("square", "blue", 20, 40, 80),), (BoxItem("circle", "yellow", 30, 70, 0),))
    picture = Image.open(io.BytesIO(paint_boxes(boxes))).convert("RGB")
    assert picture.size == (400, 100)
    colours = [picture.getpixel(place) for place in ((10, 10), (120, 50), (200, 90), (195, 70), (385, 15), (371, 1))]
    grey = (211, 211, 211)
    assert colours == [grey, (128, 128, 128), (0, 153, 255), grey, (255, 255, 0), grey]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_scenes": {"train": 1}}, "num_scenes\\['train'\\] is 1"),
        ({"num_scenes": 7}, "maps split names to numbers"),
        ({"statements_per_scene": 3}, "statements_per_scene is 3, but it is an even number"),
        ({"questions_per_scene": -1}, "questions_per_scene is -1"),
        ({"tower_share": 1.5}, "tower_share is 1.5"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        generate_nlvr_scenes(**options)


def test_people_join_train_and_judge(data_folder):
    folder = data_folder("nlvr1")
    mixed, people = generate_nlvr_scenes({"train": 4}, nlvr=folder, nlvr_rows=50), load_task("nlvr", folder)
    assert Counter(mixed["train"]["family"])["people"] == 50
    assert mixed["train"].num_rows == 4 * 6 + 50
    assert all(mixed[split]["identifier"] == people[split]["identifier"] for split in ("validation", "dev", "test"))
    assert set(mixed["train"]["identifier"][-50:]) <= set(people["train"]["identifier"])
