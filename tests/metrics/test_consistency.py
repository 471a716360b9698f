import pytest

from dual_distill.metrics import Consistency, consistency


def test_a_sentence_counts_when_all_its_rows_are_right():
    metric = Consistency(keep_in_memory=True)
    result = metric.compute(
        predictions=["true", "false", "true", "true", "false"],
        references=["true", "false", "true", "false", "false"],
        sentence_ids=["1", "2", "1", "2", "3"],
    )
    assert result == {"accuracy": 0.8, "consistency": 2 / 3, "num_sentences": 3}


def test_a_model_that_ignores_the_picture_is_rarely_consistent():
    """Ten sentences, each true on two pictures and false on two: 'true' everywhere is right half the time, never throughout."""
    references = [1, 1, 0, 0] * 10
    ids = [sentence for sentence in range(10) for _ in range(4)]
    result = Consistency(keep_in_memory=True).compute(predictions=[1] * 40, references=references, sentence_ids=ids)
    assert (result["accuracy"], result["consistency"]) == (0.5, 0.0)


def test_one_row_a_sentence_makes_consistency_accuracy():
    assert consistency([True, False, True, True], [1, 2, 3, 4]) == 0.75


def test_each_error_by_its_message():
    metric = Consistency(keep_in_memory=True)
    with pytest.raises(ValueError, match="There are 2 predictions and 1 sentence ids"):
        metric.compute(predictions=[1, 2], references=[1, 2], sentence_ids=["a"])
    with pytest.raises(ValueError, match="Consistency needs one prediction or more"):
        consistency([], [])
