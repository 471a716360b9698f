import numpy as np
import pytest

from dual_distill.evaluation import Consistency, GroupedAccuracy


@pytest.fixture
def metric(tmp_path):
    return GroupedAccuracy(cache_dir=str(tmp_path))


def test_overall_and_by_group(metric):
    result = metric.compute(
        predictions=["yes", "no", "2", "2"],
        references=["yes", "yes", "2", "3"],
        groups=["exist", "exist", "count", "count"],
    )
    assert result == {"accuracy": 0.5, "accuracy_by_group": {"count": 0.5, "exist": 0.5}}
    assert list(result["accuracy_by_group"]) == ["count", "exist"]


def test_without_groups_there_is_one_number(metric):
    assert metric.compute(predictions=[1, 2, 3, 4], references=[1, 2, 3, -100]) == {"accuracy": 0.75}


def test_arrays_are_accepted(metric):
    assert metric.compute(predictions=np.array([1, 0]), references=np.array([1, 1]))["accuracy"] == 0.5


def test_batches_add_up(metric):
    metric.add_batch(predictions=[1, 1], references=[1, 0], groups=["a", "b"])
    metric.add_batch(predictions=[0], references=[0], groups=["a"])
    assert metric.compute() == {"accuracy": 2 / 3, "accuracy_by_group": {"a": 1.0, "b": 0.0}}


def test_overall_is_the_weighted_mean_of_the_groups(metric):
    random = np.random.default_rng(0)
    predictions, references = random.integers(0, 3, 200), random.integers(0, 3, 200)
    groups = random.choice(["a", "b", "c"], 200).tolist()
    result = metric.compute(predictions=predictions, references=references, groups=groups)
    mean = sum(groups.count(group) * share for group, share in result["accuracy_by_group"].items()) / 200
    assert result["accuracy"] == pytest.approx(mean)
    assert result["accuracy"] == pytest.approx((predictions == references).mean())


def test_each_error_by_its_message(metric):
    with pytest.raises(ValueError, match="There are 2 predictions and 1 groups, but each prediction has one"):
        metric.compute(predictions=[1, 2], references=[1, 2], groups=["a"])
    with pytest.raises(ValueError, match="There are 1 predictions and 2 groups"):
        metric.compute(predictions=[1], references=[1], groups=["a", "b"])
    with pytest.raises(ValueError, match="There are 2 predictions and 1 references, but each prediction has one"):
        metric.compute(predictions=[1, 2], references=[1])
    with pytest.raises(
        ValueError, match="Row 1 predicts 1 where the reference is 'yes', but both must be integers or both"
    ):
        metric.compute(predictions=["no", 1], references=["no", "yes"])


def test_accuracy_of_each_class_of_visual_entailment(metric):
    """Nine rows, three a class: contradiction 2 of 3 found, entailment 3 of 3, neutral 0 of 3."""
    references = ["contradiction"] * 3 + ["entailment"] * 3 + ["neutral"] * 3
    predictions = ["contradiction"] * 2 + ["entailment"] * 7
    result = metric.compute(predictions=predictions, references=references, groups=references)
    assert result == {
        "accuracy": 5 / 9,
        "accuracy_by_group": {"contradiction": 2 / 3, "entailment": 1.0, "neutral": 0.0},
    }


def test_a_sentence_counts_when_all_its_rows_are_right():
    metric = Consistency(keep_in_memory=True)
    result = metric.compute(
        predictions=["true", "false", "true", "true", "false"],
        references=["true", "false", "true", "false", "false"],
        sentence_ids=["1", "2", "1", "2", "3"],
    )
    assert result == {"accuracy": 0.8, "consistency": 2 / 3, "num_sentences": 3}


def test_a_model_that_ignores_the_image_is_rarely_consistent():
    """Ten sentences, each true on two images and false on two: 'true' everywhere is right half the time, not always."""
    references = [1, 1, 0, 0] * 10
    ids = [sentence for sentence in range(10) for _ in range(4)]
    result = Consistency(keep_in_memory=True).compute(predictions=[1] * 40, references=references, sentence_ids=ids)
    assert (result["accuracy"], result["consistency"]) == (0.5, 0.0)


def test_one_row_a_sentence_makes_consistency_accuracy():
    found = Consistency().compute(predictions=[1, 0, 1, 1], references=[1] * 4, sentence_ids=[1, 2, 3, 4])
    assert found["consistency"] == found["accuracy"] == 0.75


def test_a_sentence_needs_an_id_and_consistency_a_row():
    metric = Consistency(keep_in_memory=True)
    with pytest.raises(ValueError, match="There are 2 predictions and 1 sentence ids"):
        metric.compute(predictions=[1, 2], references=[1, 2], sentence_ids=["a"])
    with pytest.raises(ValueError, match="Consistency needs one row or more"):
        metric.compute(predictions=[], references=[], sentence_ids=[])


def test_nlvr2_groups_the_image_pairs_of_one_sentence_and_keeps_two_sentences_of_one_set_apart():
    """split-set-pair-sentence: the official script drops the pair, so dev-850 has the sentences 0 and 1 here."""
    identifiers = ["dev-850-0-0", "dev-850-1-0", "dev-850-0-1", "dev-850-1-1", "dev-851-0-0"]
    predictions = ["True", "False", "True", "True", "False"]
    references = ["True", "False", "True", "False", "True"]
    sentences = ["-".join(part for place, part in enumerate(name.split("-")) if place != 2) for name in identifiers]
    result = Consistency().compute(predictions=predictions, references=references, sentence_ids=sentences)
    assert result == {"accuracy": 3 / 5, "consistency": 1 / 3, "num_sentences": 3}


def test_nlvr_groups_the_boxes_and_permutations_of_one_sentence():
    """Two sentences with two boxes of six permutations each; one wrong permutation spoils its sentence."""
    sentences = [sentence for sentence in ("12", "13") for _ in range(12)]
    predictions = [True] * 23 + [False]
    result = Consistency().compute(predictions=predictions, references=[True] * 24, sentence_ids=sentences)
    assert result == {"accuracy": 23 / 24, "consistency": 0.5, "num_sentences": 2}
