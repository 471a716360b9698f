import numpy as np
import pytest

from dual_distill.evaluation import GroupedAccuracy, accuracy_by_group


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
        accuracy_by_group([True], ["a", "b"])
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
