"""The official score, case by case: each expected number follows from the script's rules by hand."""

import gzip
import importlib
import itertools
import json
import random
from collections import defaultdict

import pytest

from dual_distill.evaluation import VQAScore, vqa_score
from dual_distill.vqa_answers import normalise_answer, process_digits_and_articles, process_punctuation

answers_module = importlib.import_module("dual_distill.evaluation.answers")


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)]
)
def test_the_score_of_an_answer_that_so_many_of_ten_people_gave(matches, expected):
    """Three matches: three people see two others (2/3 each), seven see three (1 each): (2 + 7) / 10 = 0.9."""
    assert vqa_score("red", ["red"] * matches + ["blue"] * (10 - matches)) == expected


def test_against_the_loop_over_people():
    """The definition, person by person, for every number of matches among four to twelve people."""
    for people, matches in itertools.product(range(4, 13), range(13)):
        if matches > people:
            continue
        answers = ["red"] * matches + [f"{i}" for i in range(people - matches)]
        total = 0.0
        for left_out in range(people):
            others = answers[:left_out] + answers[left_out + 1 :]
            total += min(1, others.count("red") / 3)
        assert vqa_score("red", answers) == pytest.approx(total / people, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        # The prediction goes through everything: case, articles, number words, contractions, punctuation.
        ("The Red one!", ["red 1"] * 10, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("dont", ["don't"] * 10, 1.0),
        ("\n yes\t", ["yes"] * 10, 1.0),
        ("1,000", ["1000"] * 10, 1.0),
        # People who differ: punctuation is taken out of their answers ...
        ("black white", ["black/white"] * 4 + ["grey"] * 6, 1.0),
        ("hot dog", ["hot-dog"] * 2 + ["hot dog"] * 2 + ["bun"] * 6, 1.0),
        ("pm", ["p.m."] * 3 + ["pm"] * 7, 1.0),
        # ... and nothing else: number words, articles and capitals of theirs stay, so these cannot be met.
        ("2", ["two"] * 9 + ["2"], 0.3),
        ("red ball", ["the red ball"] * 9 + ["red ball"], 0.3),
        ("yes", ["Yes"] * 9 + ["yes"], 0.3),
        # People who all agree: not even punctuation is taken out of theirs, and it always is out of the prediction.
        ("hot-dog", ["hot-dog"] * 10, 0.0),
        ("hot dog", ["hot dog"] * 10, 1.0),
        ("p.m.", ["p.m."] * 10, 0.0),
        ("none", ["none"] * 10, 0.0),
        ("0", ["none"] * 10, 0.0),
        # One dissenting person is enough for punctuation to go.
        ("hot-dog", ["hot-dog"] * 9 + ["bun"], 1.0),
        # What looks alike to a reader but differs in a blank is disagreement, too.
        ("hot-dog", ["hot-dog"] * 9 + ["hot-dog "], 1.0),
    ],
)
def test_what_the_script_of_2017_processes_and_what_it_does_not(prediction, answers, expected):
    assert vqa_score(prediction, answers, edition="2017") == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        # People who all agree: both sides stay as they are, but for blanks at the ends and line ends.
        ("hot-dog", ["hot-dog"] * 10, 1.0),
        ("hot dog", ["hot-dog"] * 10, 0.0),
        ("p.m.", ["p.m."] * 10, 1.0),
        ("none", ["none"] * 10, 1.0),
        ("0", ["none"] * 10, 0.0),
        ("The Red one!", ["red 1"] * 10, 0.0),
        ("two", ["2"] * 10, 0.0),
        ("yes", ["Yes"] * 10, 0.0),
        ("\n yes\t", ["yes"] * 10, 1.0),
        ("yes", [" yes"] * 4 + ["yes\n"] * 6, 1.0),
        # People who differ: both sides go through everything.
        ("2", ["two"] * 9 + ["2"], 1.0),
        ("red ball", ["the red ball"] * 9 + ["red ball"], 1.0),
        ("yes", ["Yes"] * 9 + ["yes"], 1.0),
        ("The Red one!", ["red 1"] * 3 + ["blue"] * 7, 0.9),
        ("hot-dog", ["hot-dog"] * 9 + ["bun"], 1.0),
        ("0", ["none"] * 2 + ["zero"] + ["2"] * 7, 0.9),
    ],
)
def test_what_todays_script_processes_and_what_it_does_not(prediction, answers, expected):
    assert vqa_score(prediction, answers) == vqa_score(prediction, answers, edition="2021") == expected


def score_person_by_person(prediction, answers, edition):
    """The official script in words: edit in place, leave one person out at a time, average."""
    answers, prediction = list(answers), prediction.replace("\n", " ").replace("\t", " ").strip()
    if edition == "2021":
        answers = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    differ = len(set(answers)) > 1
    if edition == "2017" or differ:
        prediction = process_digits_and_articles(process_punctuation(prediction))
    if differ:
        answers = [process_punctuation(answer) for answer in answers]
    if differ and edition == "2021":
        answers = [process_digits_and_articles(answer) for answer in answers]
    shares = []
    for left_out in range(len(answers)):
        others = [answer for person, answer in enumerate(answers) if person != left_out]
        shares.append(min(1, sum(answer == prediction for answer in others) / 3))
    return sum(shares) / len(shares)


def test_4_000_adversarial_sets_against_the_script_in_words():
    """The two editions differ in hundreds of them, so that neither can pass for the other."""
    rng, unequal = random.Random(0), 0
    pool = ["Yes", "yes", "no", "two", "2", "none", "0", "the dog", "a dog", "dog", "hot-dog", "hot dog", "p.m.", "pm"]
    pool += [" yes", "yes\n", "dont", "don't", "1,000", "1000", "black/white", "black white", "2.5", "caf\u00e9"]
    for _ in range(4_000):
        few = rng.sample(pool, rng.choice([1, 1, 2, 3]))
        prediction, answers = rng.choice([*few, rng.choice(pool)]), rng.choices(few, k=10)
        by_edition = [vqa_score(prediction, answers, edition) for edition in ("2021", "2017")]
        expected = [score_person_by_person(prediction, answers, edition) for edition in ("2021", "2017")]
        assert by_edition == pytest.approx(expected, abs=1e-12), (prediction, answers)
        unequal += by_edition[0] != by_edition[1]
    assert unequal > 500


def test_remembered_answers_score_as_the_loop_over_people_on_real_sentences(data_folder):
    """Five people wrote a caption of each image; what they wrote first stands for an answer, and they often agree."""
    with gzip.open(data_folder("coco_captions_text") / "captions_val2017.json.gz") as file:
        annotations = json.load(file)["annotations"]
    people = defaultdict(list)
    for one in annotations:
        people[one["image_id"]].append(" ".join(one["caption"].split()[: 1 + one["image_id"] % 3]))
    rows = [(said[0], said) for said in list(people.values())[:1_000]]
    rows += [(before[0], said) for (_, before), (_, said) in itertools.pairwise(rows)]

    for edition, kinds in (("2021", 6), ("2017", 2)):  # by that of 2017 no capital meets a prediction
        expected = [score_person_by_person(prediction, said, edition) for prediction, said in rows]
        assert len({round(score, 9) for score in expected}) >= kinds
        for _ in range(2):  # the second time from memory
            assert [vqa_score(*row, edition) for row in rows] == pytest.approx(expected, abs=1e-12)


def test_a_split_is_normalised_once_however_often_it_is_scored(monkeypatch):
    people = [[f"The {number} dogs", "a dog", "cats", "one cat"] for number in range(50)]
    first = [vqa_score("dog", said) for said in people]
    monkeypatch.setattr(answers_module, "normalise_answer", {"dog": "dog"}.__getitem__)
    assert [vqa_score("dog", said) for said in people] == first == [0.25] * 50


def test_accents_written_in_two_ways_are_one_answer():
    for edition in ("2021", "2017"):
        assert vqa_score("cafe\u0301", ["caf\u00e9"] * 10, edition) == 1.0
        assert vqa_score("caf\u00e9", ["cafe\u0301"] * 9 + ["bar"], edition) == 1.0
    metric = VQAScore(edition="2017")
    assert metric.compute(predictions=["none"], references=[["none"] * 10])["vqa_score"] == 0


def test_the_two_halves_of_the_normalisation_are_the_packages_own():
    assert process_punctuation("hot-dog") == normalise_answer("hot-dog") == "hot dog"


def test_by_answer_type_and_question_type():
    metric = VQAScore()
    metric.add_batch(
        predictions=["yes", "2"],
        references=[["yes"] * 10, ["3"] * 9 + ["2"]],
        answer_types=["yes/no", "number"],
        question_types=["is the", "how many"],
    )
    metric.add_batch(
        predictions=["no", "red"],
        references=[["yes"] * 8 + ["no"] * 2, ["blue"] * 10],
        answer_types=["yes/no", "other"],
        question_types=["is the", "what color"],
    )
    result = metric.compute()
    assert result["vqa_score"] == pytest.approx((1 + 0.3 + 0.6 + 0) / 4)
    assert result["num_questions"] == 4
    assert result["vqa_score_by_answer_type"] == pytest.approx({"number": 0.3, "other": 0.0, "yes/no": 0.8})
    assert result["vqa_score_by_question_type"] == pytest.approx({"how many": 0.3, "is the": 0.8, "what color": 0.0})


def test_the_ten_answers_of_a_question_may_be_given_alone():
    assert VQAScore().compute(predictions=["yes"], references=[["yes"] * 10]) == {"vqa_score": 1.0, "num_questions": 1}


def test_each_error_by_its_message():
    with pytest.raises(ValueError, match="edition is '2019'; give one of 2021, 2017"):
        vqa_score("red", ["red"] * 10, edition="2019")
    with pytest.raises(ValueError, match="A question has 1 answers, but the VQA score needs 4 or more"):
        vqa_score("red", ["red"])
    with pytest.raises(ValueError, match="An answer is None of type NoneType, but answers are strings"):
        vqa_score("red", ["red"] * 9 + [None])
    with pytest.raises(ValueError, match="There are 1 predictions and 2 answer types, but each prediction has one"):
        VQAScore().compute(predictions=["a"], references=[["a"] * 10], answer_types=["other"] * 2)
