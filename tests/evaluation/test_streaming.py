"""What all metrics share: batches add up, nothing is kept, and every column is checked."""

import numpy as np
import pytest
import torch

from dual_distill.evaluation import Consistency, GroupedAccuracy, RetrievalRecall, VQAScore


def columns_of(name, rows):
    random = np.random.default_rng(1)
    if name == "accuracy":
        labels = random.integers(0, 3, (2, rows))
        return GroupedAccuracy(), {"predictions": labels[0], "references": labels[1], "groups": labels[1] + 10}
    if name == "consistency":
        labels = random.integers(0, 2, (2, rows))
        return Consistency(), {"predictions": labels[0], "references": labels[1], "sentence_ids": np.arange(rows) // 4}
    if name == "retrieval":
        scores = torch.tensor(random.random((rows, 17), dtype=np.float32))
        return RetrievalRecall(), {"predictions": scores, "references": random.integers(0, 17, (rows, 2)).tolist()}
    words = np.array(["yes", "no", "2", "red", "two", "a red one"])
    return VQAScore(), {
        "predictions": random.choice(words, rows).tolist(),
        "references": random.choice(words, (rows, 10)).tolist(),
        "answer_types": random.choice(["yes/no", "number", "other"], rows).tolist(),
        "question_types": random.choice(["is the", "how many"], rows).tolist(),
    }


@pytest.mark.parametrize("name", ["accuracy", "consistency", "retrieval", "vqa"])
def test_many_batches_give_what_one_gives_and_the_next_result_starts_anew(name):
    metric, columns = columns_of(name, rows=101)
    whole = metric.compute(**columns)
    for _ in range(2):
        for start in range(0, 101, 7):
            metric.add_batch(**{column: values[start : start + 7] for column, values in columns.items()})
        streamed = metric.compute()
        assert streamed.keys() == whole.keys()
        for key, value in whole.items():
            assert streamed[key] == pytest.approx(value), key


def test_sums_are_all_that_is_kept(tmp_path):
    """Fifty batches: no file, and what the object holds does not grow."""
    metric = VQAScore(cache_dir=str(tmp_path))
    batch = columns_of("vqa", rows=20)[1]
    held = []
    for _ in range(50):
        metric.add_batch(**batch)
        held.append(sum(len(value) for value in vars(metric).values() if isinstance(value, list | dict | str)))
    assert len(metric) == 1000
    assert len(set(held)) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_rows_can_come_one_by_one():
    metric = GroupedAccuracy()
    metric.add(prediction="a", reference="a", groups="x")
    metric.add(prediction="a", reference="b", groups="y")
    assert metric.compute() == {"accuracy": 0.5, "accuracy_by_group": {"x": 1.0, "y": 0.0}}


def test_each_error_by_its_message():
    metric = GroupedAccuracy()
    with pytest.raises(ValueError, match="GroupedAccuracy needs one row or more, but there is none"):
        metric.compute()
    with pytest.raises(ValueError, match="has no column 'group'; it takes predictions, references, groups"):
        metric.add_batch(predictions=[1], references=[1], group=["a"])
    with pytest.raises(ValueError, match="needs the column 'references' in every batch"):
        metric.add_batch(predictions=[1])
    metric.add_batch(predictions=[1], references=[1], groups=["a"])
    with pytest.raises(ValueError, match="The column 'groups' is given in some batches only"):
        metric.add_batch(predictions=[1], references=[1])
    with pytest.raises(ValueError, match="built for 2 processes, but its sums live in one"):
        GroupedAccuracy(num_process=2, process_id=0)


def test_a_refused_batch_leaves_the_sums_as_they_were():
    metric = VQAScore()
    metric.add_batch(predictions=["red"], references=[["red"] * 10])
    with pytest.raises(ValueError, match="An answer is 7 of type int"):
        metric.add_batch(predictions=["red", 7], references=[["red"] * 10] * 2)
    assert metric.compute() == {"vqa_score": 1.0, "num_questions": 1}
