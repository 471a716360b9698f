"""Statements about two pictures: true or false as labelled? Read anew from the words, by another implementation."""

import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest
from datasets import Image
from worlds.scene_statements import generate_scene_statements, statement_families

from dual_distill.data import generate_scenes

SMALL = {"train": 180, "validation": 20, "test": 45}
COLOURS = ("red", "green", "blue", "yellow")
NUMBERS = {"no": 0, "none": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
NUMBER = "(no|none|one|two|three|four|five|six)"


@pytest.fixture(scope="module")
def statements():
    made = generate_scene_statements(SMALL, seed=3)
    return made.cast_column("image_0", Image(decode=False)).cast_column("image_1", Image(decode=False))


@pytest.fixture(scope="module")
def rows(statements):
    return [row for split in statements.values() for row in split.remove_columns(["image_0", "image_1"])]


def number_of(noun, objects):
    """How many objects "red circle", "circles" or "blue shape" means."""
    found = list(objects)
    for word in noun.split():
        if word in COLOURS:
            found = [o for o in found if o["colour"] == word]
        elif word not in ("shape", "shapes"):
            assert word.removesuffix("s") in ("circle", "square", "triangle"), noun
            found = [o for o in found if o["shape"] == word.removesuffix("s")]
    return len(found)


def in_corner(where, objects):
    row, column = where.split()
    cell = ({"top": 0, "bottom": 2}[row], {"left": 0, "right": 2}[column])
    return next((o for o in objects if (o["row"], o["column"]) == cell), None)


def is_true(sentence, left, right):
    sides = {"left": left, "right": right}
    if match := re.fullmatch(
        r"the (left|right) picture (?:has|shows|holds) (more|fewer) (.+) than the (left|right) one", sentence
    ):
        here, there = number_of(match[3], sides[match[1]]), number_of(match[3], sides[match[4]])
        assert match[1] != match[4], sentence
        return here > there if match[2] == "more" else here < there
    equal = r"both pictures have the same number of (.+)|there are as many (.+) on the left as on the right"
    if match := re.fullmatch(equal, sentence):
        noun = match[1] or match[2]
        return number_of(noun, left) == number_of(noun, right)
    unequal = r"one picture has more (.+) than the other|the two pictures differ in the number of (.+)"
    if match := re.fullmatch(unequal, sentence):
        noun = match[1] or match[2]
        return number_of(noun, left) != number_of(noun, right)
    if match := re.fullmatch(rf"the left picture holds {NUMBER} (.+) and the right one {NUMBER}", sentence):
        found = (number_of(match[2], left), number_of(match[2], right))
        return found == (NUMBERS[match[1]], NUMBERS[match[3]])
    if match := re.fullmatch(rf"there (?:is|are) {NUMBER} (.+) on the left and {NUMBER} (.+) on the right", sentence):
        found = (number_of(match[2], left), number_of(match[4], right))
        return found == (NUMBERS[match[1]], NUMBERS[match[3]])
    if match := re.fullmatch(rf"together the pictures show (?:(exactly|at least|at most) )?{NUMBER} (.+)", sentence):
        found, wanted = number_of(match[3], left + right), NUMBERS[match[2]]
        return {"at least": found >= wanted, "at most": found <= wanted}.get(match[1], found == wanted)
    corners = r"both (.+) corners hold things (of the same|that differ in) (colour|shape)"
    if match := re.fullmatch(corners, sentence):
        one, two = in_corner(match[1], left), in_corner(match[1], right)
        return bool(one and two) and (one[match[3]] == two[match[3]]) == (match[2] == "of the same")
    holding = {
        r"both pictures show an? (.+)|there is an? (.+) in each picture|each picture holds an? (.+)": {2},
        r"exactly one of the pictures shows a (.+)|only one picture holds a (.+)"
        r"|there is a (.+) in one picture but not in both": {1},
        r"neither picture shows a (.+)|there is no (.+) in the two pictures": {0},
        r"at least one of the pictures shows a (.+)|one picture or both hold a (.+)|there is a (.+) somewhere": {1, 2},
    }
    for pattern, wanted in holding.items():
        if match := re.fullmatch(pattern, sentence):
            noun = next(filter(None, match.groups()))
            return sum(number_of(noun, side) > 0 for side in (left, right)) in wanted
    raise AssertionError(f"unread sentence: {sentence}")


def test_every_label_is_right(rows):
    for row in rows:
        assert is_true(row["sentence"], row["objects_0"], row["objects_1"]) == (row["label"] == "True"), row["sentence"]
    assert {row["family"] for row in rows} == set(statement_families())
    assert len(statement_families()) == 9


def test_each_wording_is_as_often_true_as_false_and_so_is_each_family(statements):
    for split in statements.values():
        labels, families = defaultdict(Counter), defaultdict(Counter)
        for sentence, family, label in zip(split["sentence"], split["family"], split["label"], strict=True):
            labels[sentence][label] += 1
            families[family][label] += 1
        assert all(counts["True"] == counts["False"] for counts in (*labels.values(), *families.values()))
    assert statements.num_rows == {split: 4 * number for split, number in SMALL.items()}
    sizes = {counts.total() for counts in families.values()}
    assert max(sizes) - min(sizes) <= 4, "families take turns"


def test_a_statement_shares_its_left_picture_and_its_right_picture_with_the_other_label(rows):
    by_statement = defaultdict(list)
    for row in rows:
        by_statement[row["sentence_id"]].append(row)
    for four in by_statement.values():
        assert len(four) == 4
        assert len({row["sentence"] for row in four}) == 1
        for side in ("image_0_id", "image_1_id"):
            assert any(one[side] == two[side] and one["label"] != two["label"] for one, two in combinations(four, 2))


def test_no_pair_is_one_picture_twice(rows):
    assert all(row["image_0_id"] != row["image_1_id"] for row in rows)


@pytest.mark.parametrize("side", [0, 1])
def test_one_image_by_itself_does_not_answer(rows, side):
    """The best guess of a perfect reader who sees one image, and as many others as he likes, but not the other one."""
    pictures = list(
        {row["image_0_id"]: row["objects_0"] for row in rows if row["image_0_id"].startswith("train")}.values()
    )
    right = Counter()
    judged = [row for row in rows if row["image_0_id"].startswith("train")][::2]
    for row in judged:
        seen = row[f"objects_{side}"]
        pairs = [(seen, other) if side == 0 else (other, seen) for other in pictures[:40]]
        share = sum(is_true(row["sentence"], *pair) for pair in pairs) / len(pairs)
        # Certain where the other picture cannot change it; a fair coin where it can, for each is true and false as
        # often.
        guess = str(share == 1) if share in (0, 1) else None
        right[guess is None or guess == row["label"]] += 0.5 if guess is None else 1
        right[False] += 0.5 if guess is None else 0
    assert right[True] / right.total() < 0.78


def test_the_pictures_are_those_of_the_questions_split_by_split(statements):
    scenes = generate_scenes(SMALL, seed=3).cast_column("image", Image(decode=False))
    for split in SMALL:
        known = {row["scene_id"]: (row["image"]["bytes"], row["objects"]) for row in scenes[split]}
        used = set()
        for row in statements[split]:
            for number in (0, 1):
                identifier = row[f"image_{number}_id"]
                assert known[identifier] == (row[f"image_{number}"]["bytes"], row[f"objects_{number}"])
                used.add(identifier)
        assert used == set(known), "each picture is in a row"


def test_one_seed_gives_the_same_rows_and_a_larger_train_split_the_same_test_rows():
    first, again, other = (
        generate_scene_statements({"test": 12, "train": n}, seed=s) for n, s in ((0, 1), (20, 1), (0, 2))
    )
    assert first["test"].to_dict() == again["test"].to_dict()
    assert first["test"]["sentence"] != other["test"]["sentence"]
    assert first["train"].num_rows == 0
    assert first["train"].column_names == again["train"].column_names


def test_each_statement_gives_four_rows():
    assert generate_scene_statements({"train": 10}, statements_per_scene=3)["train"].num_rows == 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statements_per_scene": 0}, "statements_per_scene is 0, but a scene has 1 to 12"),
        ({"num_scenes": {"train": 3}}, r"num_scenes\['train'\] is 3, but statements about two images need 10 scenes"),
        ({"num_scenes": {"train": -3}}, r"num_scenes\['train'\] is -3"),
    ],
)
def test_each_error_by_its_message(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scene_statements(**arguments)
