"""Before the first step: what teacher, words and the student's start answer right, and a teacher that is no better."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BertTokenizer, ViTImageProcessorPil

from dual_distill.data import DistillationCollator, Task
from dual_distill.hub_cards import read_run, write_card
from dual_distill.modeling import DualDistillProcessor
from dual_distill.runs import train
from dual_distill.trainer import DistillationTrainer, run_preflight

TASK = Task("custom", "question_answering", ("image",), "question", "answer")
NAMES = ["no", "yes", "lung", "heart", "left"]
# What is asked tells the answer nine times in ten, as in VQA-RAD; the image tells it always.
QUESTIONS = {"is it normal ?": "no", "is it there ?": "yes", "which organ ?": "lung", "where ?": "left"}


def rows(count, leaks=True):
    found = []
    for index in range(count):
        question, answer = list(QUESTIONS.items())[index % 4]
        answer = "heart" if index % 10 == 9 else answer
        image = Image.new("RGB", (12, 8), (50 * NAMES.index(answer), 0, 0))
        found.append({"image": image, "question": question if leaks else "what ?", "answer": answer})
    return Dataset.from_list(found)


class SeesAll(torch.nn.Module):
    """Answers by the brightness of the red channel: always right."""

    def forward(self, pixel_values, output_attentions=False, **others):
        # The processor makes of 0 and 255 -1 and 1.
        index = ((pixel_values[:, 0, 0, 0, 0] + 1) * 255 / 2 / 50).round().long()
        return SimpleNamespace(logits=torch.nn.functional.one_hot(index, 5).float() * 9)


@pytest.fixture
def build_trainer(make_teacher, make_student, arguments):
    def make(teacher=None, leaks=True, **fields):
        words = sorted({word for text in ("what ?", *QUESTIONS) for word in text.split()})
        tokenizer = BertTokenizer({word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])})
        tokenizer.model_max_length = 12
        processor = DualDistillProcessor(ViTImageProcessorPil(size={"height": 8, "width": 12}), tokenizer)
        collator = DistillationCollator(processor, TASK, NAMES)
        student, teacher = make_student(), make_teacher() if teacher is None else teacher
        for model in (student, teacher):
            if hasattr(model, "config"):
                model.config.id2label = dict(enumerate(NAMES))
        parts = {"train_dataset": rows(80, leaks), "eval_dataset": rows(40, leaks), "processing_class": processor}
        return DistillationTrainer(student, arguments(**fields), teacher=teacher, data_collator=collator, **parts)

    return make


def test_a_teacher_that_the_words_beat_is_said_with_its_standard_error(build_trainer, caplog):
    trainer = build_trainer()
    trainer.model.train()
    state = torch.get_rng_state()
    found = run_preflight(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training
    assert found.rows == 40
    assert found.text_only == pytest.approx(0.9)
    assert found.teacher < 0.6
    said = [record.message for record in caplog.records]
    assert said[0].startswith(f"before the first step, of 40 validation rows: teacher {100 * found.teacher:.1f} %, ")
    assert any(f"question-only baseline ({100 * (found.teacher - 0.9):+.1f} points, standard error " in s for s in said)


def test_answers_that_the_model_cannot_give_are_counted(build_trainer, caplog):
    trainer = build_trainer()
    rows = trainer.eval_dataset.to_list()
    answers = [row["answer"].upper() if index < 10 else row["answer"] for index, row in enumerate(rows)]
    trainer.eval_dataset = trainer.eval_dataset.remove_columns("answer").add_column("answer", answers)
    run_preflight(trainer)
    said = "of 40 validation rows (10 of them with an answer that is none of the model's): teacher "
    assert said in caplog.records[0].message


def test_rows_without_an_answer_and_answers_spelled_otherwise_change_nothing(build_trainer, caplog):
    teacher, accent = SeesAll(), ["n\u00e9", "ne\u0301"]
    trainer = build_trainer(teacher, leaks=False, attention_weight=0.0)
    trainer.data_collator.label_names = tuple(name.replace("heart", accent[0]) for name in NAMES)
    for split in ("eval_dataset", "train_dataset"):
        answers = [answer.replace("heart", accent[1]) for answer in getattr(trainer, split)["answer"]]
        changed = getattr(trainer, split).remove_columns("answer")
        setattr(trainer, split, changed.add_column("answer", [None, None, *answers[2:]]))
    found = run_preflight(trainer)
    assert (found.rows, found.teacher) == (38, 1.0)
    assert "none of the model's" not in caplog.text
    trainer.eval_dataset = trainer.eval_dataset.select(range(3))
    assert run_preflight(trainer) is None
    assert "there are fewer than two labelled validation rows" in caplog.text


def test_a_teacher_that_sees_is_not_warned_of(build_trainer, caplog):
    found = run_preflight(build_trainer(SeesAll(), leaks=False, attention_weight=0.0))
    assert found.teacher == 1.0
    assert found.text_only < 0.4
    assert not any("no better" in record.message for record in caplog.records)


def test_what_is_not_tried_is_said(build_trainer, caplog):
    trainer, why = build_trainer(), "the teacher is not tried before the first step: "
    trainer.eval_dataset = None
    assert run_preflight(trainer) is None
    trainer.teacher.answers = None  # as of a teacher with other tokens
    assert run_preflight(trainer) is None
    reasons = (
        "there are fewer than two labelled validation rows",
        "soft_label_weight is 0, so the teacher is asked no answers",
    )
    assert [record.message for record in caplog.records] == [why + reason for reason in reasons]


def test_once_in_a_run_in_its_record_and_on_its_card(build_trainer, caplog, tmp_path):
    folder, fields = tmp_path / "out", {"save_strategy": "steps", "save_steps": 1, "warmup_steps": 0}
    train(build_trainer(max_steps=1, **fields))
    first = read_run(folder).preflight
    assert (first.rows, first.text_only) == (40, pytest.approx(0.9))
    assert sum("before the first step" in record.message for record in caplog.records) == 1

    # A run that goes on keeps what was found.
    train(build_trainer(max_steps=2, **fields), resume=True)
    assert sum("before the first step" in record.message for record in caplog.records) == 1
    assert read_run(folder).preflight == first
    card = write_card(folder).read_text()
    assert f"| right before the first step | teacher {100 * first.teacher:.1f} %, this model " in card
    assert "question only 90.0 %, of 40 validation rows (standard error at most " in card

    train(build_trainer(output_dir=tmp_path / "other", max_steps=1, preflight=False))
    assert "preflight" not in json.loads((tmp_path / "other" / "run.json").read_text())
