"""Runs, evaluations and predictions over photographs of mixed shapes: grouped, resumed, in their order."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from transformers import ViltImageProcessorPil

from dual_distill.data import DistillationCollator, IndexedDataset, RandAugment, Task, train_tokenizer
from dual_distill.modeling import DualDistillProcessor
from dual_distill.trainer import DistillationTrainer, rank_answers

TASK = Task("own", "question_answering", ("image",), "question", "answer")
LABELS = ("a", "b", "c", "d", "e")
SIZES = [(24, 12), (12, 12), (12, 24)]
COUNT = 18
QUESTION = "what is it?"


class NotingCollator(DistillationCollator):
    """Notes how much of each batch is real."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        self.shares.append(batch["pixel_mask"].float().mean().item())
        return batch


@pytest.fixture
def collator():
    processor = DualDistillProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4), train_tokenizer([QUESTION], vocab_size=60)
    )
    made = NotingCollator(processor, TASK, LABELS, max_text_length=12, augmentation=RandAugment(seed=1))
    made.shares = []
    return made


@pytest.fixture
def rows(png):
    draw = np.random.default_rng(0)
    images = [png(tuple(map(int, draw.integers(0, 256, 3))), size=SIZES[row % 3]) for row in range(COUNT)]
    columns = {"image": images, "question": [QUESTION] * COUNT, "answer": [LABELS[row % 5] for row in range(COUNT)]}
    texts = dict.fromkeys(("question", "answer"), Value("string"))
    return Dataset.from_dict(columns, Features({"image": Image(decode=False), **texts}))


@pytest.fixture
def trainer(rows, collator, make_student, arguments):
    def build(seed=2, compute_metrics=None, **fields):
        fields = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "preflight": False, **fields}
        return DistillationTrainer(
            model=make_student(seed=seed, hidden_dropout_prob=0.1),
            args=arguments(**fields),
            data_collator=collator,
            train_dataset=IndexedDataset(rows),
            eval_dataset=rows,
            compute_metrics=compute_metrics,
        )

    return build


def test_batches_of_a_run_are_hardly_padded_unless_asked_for(trainer, collator):
    grouped, mixed = trainer(num_train_epochs=1), trainer(num_train_epochs=1, group_by_shape=False)
    shares = []
    for run in (grouped, mixed):
        collator.shares.clear()
        for batch in run.get_train_dataloader():
            assert len(batch["labels"]) == 3
        shares.append(np.mean(collator.shares))
    assert shares[0] == 1
    assert shares[1] < 0.9


@pytest.mark.parametrize("step", [2, 6, 9], ids=["within an epoch", "between epochs", "within the next"])
def test_resumed_equals_uninterrupted(step, trainer, tmp_path):
    """Order and augmentation of an epoch, bit by bit."""
    fields = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    whole, resumed = trainer(**fields), trainer(seed=9, output_dir=tmp_path / "again", **fields)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert resumed.state.global_step == whole.state.global_step == 12
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_an_evaluation_gives_and_measures_the_rows_in_their_order(trainer, rows, collator):
    given = []

    def measure(found):
        given.append(found)
        return {"right": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    run = trainer(compute_metrics=measure)
    collator.shares.clear()
    found = run.predict(rows)
    assert collator.shares == [1] * 6
    alone = trainer(group_by_shape=False, per_device_eval_batch_size=1).predict(rows)
    assert found.label_ids.tolist() == alone.label_ids.tolist() == [row % 5 for row in range(COUNT)]
    assert given[0].label_ids.tolist() == found.label_ids.tolist()
    np.testing.assert_array_equal(given[0].predictions, found.predictions)
    np.testing.assert_allclose(found.predictions, alone.predictions, atol=1e-5)
    assert run.compute_metrics is measure


def test_an_evaluation_that_drops_its_last_rows_drops_those_of_the_data(trainer, rows):
    found = trainer(dataloader_drop_last=True, per_device_eval_batch_size=4).predict(rows)
    whole = trainer(per_device_eval_batch_size=1).predict(rows)
    assert found.label_ids.tolist() == [row % 5 for row in range(16)]
    np.testing.assert_allclose(found.predictions, whole.predictions[:16], atol=1e-5)


def test_ranked_answers_are_in_the_order_of_the_rows(make_student, rows, collator):
    student = make_student().eval()
    found = rank_answers(student, rows, collator, batch_size=3)
    assert collator.shares == [1] * 6
    alone = [rank_answers(student, rows.select([row]), collator)[0] for row in range(COUNT)]
    assert [best[0]["answer"] for best in found] == [best[0]["answer"] for best in alone]
    assert [best[0]["score"] for best in found] == pytest.approx([best[0]["score"] for best in alone], abs=1e-5)
