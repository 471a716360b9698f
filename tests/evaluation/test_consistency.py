import pytest

from dual_distill.evaluation import Consistency, consistency


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
