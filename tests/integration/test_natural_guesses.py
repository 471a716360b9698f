"""What someone types who knows transformers and nothing of us: each guess works, or one sentence names the call."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
from PIL import Image
from transformers import PreTrainedModel, TrainingArguments, ViltForQuestionAnswering

from dual_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderForQuestionAnswering,
    load_model,
    load_teacher,
)
from dual_distill.teachers import convert_vilt


class Folders(NamedTuple):
    """One model three times: as ViLT, as our fusion encoder, and as the dual encoder that starts from it."""

    vilt: str
    fusion: str
    dual: str


@pytest.fixture(scope="module")
def folders(vilts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("guesses")
    teacher, processor = load_teacher(vilts["vqa"])
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher)
    found = Folders(vilts["vqa"], str(root / "fusion"), str(root / "dual"))
    for model, folder in ((teacher, found.fusion), (student, found.dual)):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `args` are left out, a run writes into the folder in which it was started."""
    monkeypatch.chdir(tmp_path)


def rows(text: str = "question", label: str = "answer", count: int = 8) -> datasets.Dataset:
    """Raw rows, as `load_dataset` gives them."""
    colours = [("red", "blue")[index % 2] for index in range(count)]
    return datasets.Dataset.from_dict(
        {
            "image": [Image.new("RGB", (40, 32), colour) for colour in colours],
            text: ["what color is the shape?"] * count,
            label: colours,
        },
        datasets.Features({"image": datasets.Image(), text: datasets.Value("string"), label: datasets.Value("string")}),
    )


def few_steps(**fields: object) -> DistillationTrainingArguments:
    told = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    return DistillationTrainingArguments("out", **{**told, "disable_tqdm": True, **fields})


@pytest.fixture(scope="module")
def student(folders: Folders) -> PreTrainedModel:
    return DualEncoderForQuestionAnswering.from_pretrained(folders.dual)


@pytest.fixture(scope="module")
def processor(folders: Folders) -> DualDistillProcessor:
    return DualDistillProcessor.from_pretrained(folders.dual)


REFUSED: list[tuple[str, Callable[[Folders], object], str]] = [
    (
        "a student from the name of a teacher",
        lambda folders: DualEncoderForQuestionAnswering.from_fusion_encoder(folders.vilt),
        r"starts from a FusionEncoder model, not from '.*vqa'; give `dual_distill.load_teacher\(path\).model`",
    ),
    (
        "a student from a ViLT in memory",
        lambda folders: DualEncoderForQuestionAnswering.from_fusion_encoder(
            ViltForQuestionAnswering.from_pretrained(folders.vilt)
        ),
        r"not from a ViltForQuestionAnswering; .* `dual_distill.teachers.convert_vilt\(model\)`\.$",
    ),
    (
        "a student read from the folder of a fusion encoder",
        lambda folders: DualEncoderForQuestionAnswering.from_pretrained(folders.fusion),
        r"is a dual_distill_fusion_encoder, not a dual_distill_dual_encoder; .*load_teacher\(\.\.\.\)\.model\)`\.$",
    ),
    (
        "a fusion encoder read from the folder of a dual encoder",
        lambda folders: FusionEncoderForQuestionAnswering.from_pretrained(folders.dual),
        r"is a dual_distill_dual_encoder, not a dual_distill_fusion_encoder; load it with `dual_distill.load_model",
    ),
    (
        "a fusion encoder read from the folder of a ViLT",
        lambda folders: FusionEncoderForQuestionAnswering.from_pretrained(folders.vilt),
        r"is a vilt, not a dual_distill_fusion_encoder; load it with `dual_distill.load_model\(\.\.\.\)`",
    ),
    (
        "teacher_model= in place of teacher=",
        lambda folders: DistillationTrainer(folders.dual, teacher_model=folders.vilt, train_dataset=rows()),
        r"^teacher_model= is called teacher= here",
    ),
    (
        "transformers' own arguments",
        lambda folders: DistillationTrainer(folders.dual, TrainingArguments("out"), teacher=folders.vilt),
        r"^args is a TrainingArguments; give a DistillationTrainingArguments",
    ),
    (
        "all splits as train_dataset",
        lambda folders: DistillationTrainer(
            folders.dual, teacher=folders.vilt, train_dataset=datasets.DatasetDict(train=rows(), validation=rows())
        ),
        r"^train_dataset is a DatasetDict of train, validation; give train_dataset=data\['train'\]",
    ),
    (
        "a column of texts under another name",
        lambda folders: DistillationTrainer(folders.dual, teacher=folders.vilt, train_dataset=rows("prompt")),
        r"^the columns are image, prompt, answer, none of them question, text, sentence; rename",
    ),
    (
        "classes that are numbered in another order",
        lambda folders: DistillationTrainer(
            folders.dual,
            teacher=folders.vilt,
            train_dataset=rows().cast_column("answer", datasets.ClassLabel(names=["blue", "red"])),
        ),
        r"^column 'answer' numbers the classes \['blue', 'red'\], the model \['no', 'dog', .*; store their names",
    ),
    (
        "raw rows and models that were never saved",
        lambda folders: DistillationTrainer(
            DualEncoderForQuestionAnswering.from_fusion_encoder(load_teacher(folders.vilt).model), train_dataset=rows()
        ),
        r"^the rows are raw images and texts, and no checkpoint says how .*; give processing_class=",
    ),
]


@pytest.mark.parametrize("guess, sentence", [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_guess_is_refused_by_a_sentence_that_names_the_call(
    folders: Folders, guess: Callable[[Folders], object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        guess(folders)


def test_the_calls_that_the_sentences_name_make_a_student(folders: Folders) -> None:
    vilt = ViltForQuestionAnswering.from_pretrained(folders.vilt)
    for teacher in (load_teacher(folders.vilt).model, load_teacher(folders.fusion).model, convert_vilt(vilt)):
        student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher)
        assert student.config.id2label == teacher.config.id2label


@pytest.mark.parametrize("columns", [("question", "answer"), ("text", "label")], ids=str)
def test_names_and_raw_rows_are_all_that_a_trainer_needs(folders: Folders, columns: tuple[str, str]) -> None:
    trainer = DistillationTrainer(
        folders.dual, few_steps(), teacher=folders.vilt, train_dataset=rows(*columns), eval_dataset=rows(*columns)
    )
    batch = trainer.data_collator([rows(*columns)[index] for index in range(2)])
    assert [trainer.model.config.id2label[index] for index in batch["labels"].tolist()] == ["red", "blue"]
    trainer.train()
    assert {"eval_loss", "eval_attention_loss", "eval_soft_label_loss"} <= set(trainer.evaluate())
    trainer.save_model()
    assert DualDistillProcessor.from_pretrained("out").tokenizer.get_vocab()
    assert load_model("out").model.config.id2label == trainer.model.config.id2label


def test_arguments_may_be_left_out_and_the_student_be_an_object(folders: Folders, student: PreTrainedModel) -> None:
    trainer = DistillationTrainer(student, teacher=load_teacher(folders.fusion).model, train_dataset=rows())
    assert trainer.args.output_dir == "tmp_trainer"
    assert trainer.data_collator.task.text_column == "question"
    assert trainer.processing_class is not None


def test_several_evaluation_sets_by_name(folders: Folders) -> None:
    named = datasets.DatasetDict(easy=rows(count=4), hard=rows(count=4))
    trainer = DistillationTrainer(
        folders.dual,
        few_steps(eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_hard_loss"),
        teacher=folders.vilt,
        train_dataset=rows(),
        eval_dataset=named,
    )
    trainer.train()
    assert {"eval_easy_loss", "eval_hard_loss"} <= set(trainer.evaluate())
    assert {"easy", "hard"} <= {each.split for each in trainer.run_record().measurements}
