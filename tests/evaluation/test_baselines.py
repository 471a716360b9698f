import os
import random
from pathlib import Path

import pytest

from dual_distill.data import load_task
from dual_distill.evaluation import baselines, majority_answer, question_only_baseline
from dual_distill.evaluation.baselines import _ngram_answers


def test_the_majority_is_the_most_frequent_answer_and_of_equals_the_alphabetically_first():
    assert majority_answer(["a", "b", "b"]) == "b"
    assert majority_answer(["b", "a"]) == "a"


def test_exact_text_wins_where_words_do_not_add_up():
    """Exclusive or of two words: no sum over words gets it, and here neither over pairs of neighbours."""
    texts = [f"{a} then then then {b}" for a in ("red", "blue") for b in ("red", "blue")] * 60
    labels = ["same" if text.split()[0] == text.split()[-1] else "different" for text in texts]
    result = question_only_baseline(texts, labels, texts[:4], labels[:4])
    assert result.method == "exact_text"
    assert result.accuracy == 1.0
    assert result.held_out_accuracy["ngrams"] < 1.0


def test_ngrams_win_on_texts_never_seen():
    rng = random.Random(0)
    texts = [f"{rng.random()} {word}" for word in ("yes", "no") * 200]
    labels = [text.split()[-1] for text in texts]
    fresh = [f"{rng.random()} {word}" for word in ("yes", "no") * 20]
    result = question_only_baseline(texts, labels, fresh, [text.split()[-1] for text in fresh])
    assert (result.method, result.accuracy) == ("ngrams", 1.0)
    assert result.predictions == ("yes", "no") * 20


def test_word_order_is_read():
    rng = random.Random(1)
    texts = [f"{rng.random()} {pair}" for pair in ("cat dog", "dog cat") * 200]
    labels = ["first" if text.endswith("cat dog") else "second" for text in texts]
    assert question_only_baseline(texts[:300], labels[:300], texts[300:], labels[300:]).accuracy == 1.0


def test_pure_noise_stays_near_the_majority():
    rng = random.Random(2)
    texts = [" ".join(rng.choices("abcdefgh", k=6)) for _ in range(3_000)]
    labels = rng.choices(["yes", "no"], k=3_000)
    accuracy = question_only_baseline(texts[:2_000], labels[:2_000], texts[2_000:], labels[2_000:]).accuracy
    assert 0.45 < accuracy < 0.55


def test_groups_keep_copies_on_one_side():
    """Each text comes six times with one random label: memory is perfect on copies and worthless on new texts."""
    rng = random.Random(3)
    texts = [f"text number {number}" for number in range(300) for _ in range(6)]
    labels = [label for label in rng.choices(["yes", "no"], k=300) for _ in range(6)]
    groups = [number for number in range(300) for _ in range(6)]
    blind = question_only_baseline(texts, labels, ["new"], ["yes"])
    grouped = question_only_baseline(texts, labels, ["new"], ["yes"], train_groups=groups)
    assert blind.held_out_accuracy["exact_text"] > 0.95
    assert grouped.held_out_accuracy["exact_text"] < 0.7


def test_test_answers_change_nothing_but_the_score():
    texts, labels = ["is it red?", "how many?"] * 20, ["yes", "2"] * 20
    right = question_only_baseline(texts, labels, ["how many?"], ["2"])
    wrong = question_only_baseline(texts, labels, ["how many?"], ["never seen"])
    assert (right.accuracy, wrong.accuracy) == (1.0, 0.0)
    assert (right.predictions, right.held_out_accuracy) == (wrong.predictions, wrong.held_out_accuracy)


def test_marks_and_accents_are_read_as_elsewhere():
    """Vowel signs make other words; accents are one letter or two, and the same word."""
    texts, labels = ["\u0926\u093f\u0928 x", "\u0926\u0941\u0928 x", "caf\u00e9 x"] * 30, ["day", "tune", "bar"] * 30
    asked = ["y \u0926\u093f\u0928", "y \u0926\u0941\u0928", "y cafe\u0301"]
    held_out, rows = [number % 10 == 0 for number in range(90)], list(zip(texts, labels, strict=True))
    assert _ngram_answers(rows, held_out, asked, 0)[0] == 1


def test_memory_does_not_grow_with_n_grams_times_answers(monkeypatch):
    """Fewer buckets than n-grams: what shares one disturbs, and most is still right."""
    monkeypatch.setattr(baselines, "_MOST_BUCKETS", 64)
    texts = [f"number {number % 40} {number}" for number in range(800)]
    labels = [str(number % 40) for number in range(800)]
    result = question_only_baseline(texts, labels, texts[:40], labels[:40])
    assert result.held_out_accuracy["ngrams"] > 0.5


def test_equal_seeds_give_equal_results():
    rng = random.Random(4)
    texts, labels = [" ".join(rng.choices("abc", k=3)) for _ in range(200)], rng.choices(["x", "y", "z"], k=200)
    results = [question_only_baseline(texts, labels, texts[:50], labels[:50], seed=seed) for seed in (5, 5)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["x", "y"], ["a"], ["x"]), "train has 1 texts and 2 labels"),
        ((["a"], ["x"], ["a", "b"], ["x"]), "test has 2 texts and 1 labels"),
        (([], [], ["a"], ["x"]), "train has no rows"),
        ((["a"], ["x"], [], []), "test has no rows"),
        ((["a"], ["x"], ["a"], ["x"]), "train has a single group; two or more are needed"),
        ((["a", "b"], ["x", "x"], ["a"], ["x"], 0, [1]), "train has 2 rows and 1 groups"),
    ],
)
def test_each_error_by_its_message(arguments, message):
    with pytest.raises(ValueError, match=message):
        question_only_baseline(*arguments)


def test_generated_scenes_need_the_image():
    data = load_task("scenes", num_scenes={"train": 1_500, "test": 300})
    columns = [list(data[split][column]) for split in ("train", "test") for column in ("question", "answer")]
    assert question_only_baseline(*columns).accuracy < 0.45


@pytest.mark.parametrize(
    ("name", "folder", "column", "label", "low", "high"),
    [
        ("easy_vqa", "easy_vqa", "question", "answer", 0.66, 0.68),
        pytest.param("nlvr", "nlvr1", "sentence", "label", 0.55, 0.59, marks=pytest.mark.slow),
    ],
)
def test_real_data_gives_the_known_numbers(name, folder, column, label, low, high):
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data") / folder
    if not root.is_dir():
        pytest.skip(f"needs the real data in {root} (or set DUAL_DISTILL_DATA to the folder that holds {folder})")
    data = load_task(name, root)
    groups = list(data["train"]["directory"]) if name == "nlvr" else None
    columns = [list(data[split][key]) for split in ("train", "test") for key in (column, label)]
    result = question_only_baseline(*columns, train_groups=groups)
    assert low < result.accuracy < high
    assert result.accuracy > columns[3].count(majority_answer(columns[1])) / len(columns[3])
