"""What someone types who knows transformers and nothing of us: each guess works, or one sentence names the call."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedModel, TrainingArguments, ViltForQuestionAnswering, pipeline

from dual_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderForQuestionAnswering,
    answer_questions,
    distill,
    get_task,
    load_custom_dataset,
    load_model,
    load_teacher,
)
from dual_distill.data import CustomDataset, DistillationCollator
from dual_distill.hub_cards import read_run
from dual_distill.teachers import convert_vilt, load_processor


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


def custom_dataset() -> CustomDataset:
    """The same under names of its own, as `load_custom_dataset` reads it."""
    own = rows("q", "a").rename_column("image", "photo")
    return load_custom_dataset(datasets.DatasetDict(train=own, validation=own), "photo", "q", "a")


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
        r"^the columns are image, prompt, answer, but a trainer looks for image and question, text or sentence; rename",
    ),
    (
        "a column of images under another name",
        lambda folders: DistillationTrainer(
            folders.dual, teacher=folders.vilt, train_dataset=rows().rename_column("image", "photo")
        ),
        r"^the columns are photo, question, answer, but .* image and .*; rename them, give distill .*=\.$",
    ),
    (
        "a custom dataset whole as train_dataset",
        lambda folders: DistillationTrainer(folders.dual, teacher=folders.vilt, train_dataset=custom_dataset()),
        r"^train_dataset is a CustomDataset of train, validation; give train_dataset=data\['train'\]",
    ),
    (
        "classes that are numbered in another order",
        lambda folders: DistillationTrainer(
            folders.dual,
            teacher=folders.vilt,
            train_dataset=rows().cast_column("answer", datasets.ClassLabel(names=["blue", "red"])),
        ),
        r"column 'answer' numbers the classes \['blue', 'red'\], the model \['no', 'dog', .*; store their names",
    ),
    (
        "raw rows and models that were never saved",
        lambda folders: DistillationTrainer(
            DualEncoderForQuestionAnswering.from_fusion_encoder(load_teacher(folders.vilt).model), train_dataset=rows()
        ),
        r"^the rows are raw images and texts, and no checkpoint says how .*; give processing_class=",
    ),
    (
        "transformers' pipeline for the features of images",
        lambda folders: pipeline("image-feature-extraction", model=folders.dual)(Image.new("RGB", (40, 32))),
        r"got none of them; get_image_features and get_text_features take one side alone\.$",
    ),
    (
        "as many questions as there are not images",
        lambda folders: answer_questions(folders.dual, [Image.new("RGB", (40, 32))] * 2, ["what color is it?"] * 3),
        r"^there are 2 images and 3 questions; give as many, or one of either\.$",
    ),
    (
        "one call with a split of another name",
        lambda folders: distill(folders.vilt, {"training": rows()}, "out"),
        r"^the dataset has the splits training, but a student learns from one named train",
    ),
    (
        "one call with a list of rows",
        lambda folders: distill(folders.vilt, list(rows()), "out"),
        r"^the rows to train on are a list; give datasets\.Dataset\.from_list\(rows\)\.$",
    ),
    (
        "one call with a loaded teacher",
        lambda folders: distill(load_teacher(folders.vilt).model, rows(), "out"),
        r"^the teacher is a FusionEncoderForQ.*; give the folder or the name that it is saved under, or take ",
    ),
    (
        "one call with a teacher without labels",
        lambda folders: distill(str(Path(folders.vilt).parent / "mlm"), rows(), "out"),
        r"is a FusionEncoderForMaskedLM, which gives no answers or classes; use its trainer",
    ),
]


def test_a_misspelt_table_is_refused_before_a_teacher_is_loaded(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dual_distill.runs.distilling.load_teacher", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(FileNotFoundError, match=r"There is no file 'shop\.csv'"):
        distill(folders.vilt, "shop.csv", "out")


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


QUESTIONS = ["what color is the shape?", "is it red?", "is the shape blue?"]


@torch.inference_mode()
def test_one_stored_image_and_many_questions(student: PreTrainedModel, processor: DualDistillProcessor) -> None:
    texts, pixels = processor(text=QUESTIONS), processor(images=Image.new("RGB", (40, 32), "red"))
    pooled = student.eval().get_image_features(**pixels).pooler_output
    expected = torch.cat([student(**processor(text=text), **pixels).logits for text in QUESTIONS])
    for stored in ({"image_pooler_output": pooled}, {"image_embeds": student.project_images(pooled)}, pixels):
        torch.testing.assert_close(student(**texts, **stored).logits, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_one_question_and_many_images(student: PreTrainedModel, processor: DualDistillProcessor) -> None:
    images = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue", "white")]
    text, pixels = processor(text=QUESTIONS[0]), processor(images=images)
    expected = torch.cat([student.eval()(**text, **processor(images=image)).logits for image in images])
    torch.testing.assert_close(student(**text, **pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_answers_in_words(folders: Folders, student: PreTrainedModel) -> None:
    red, blue = (Image.new("RGB", (40, 32), colour) for colour in ("red", "blue"))
    answers = answer_questions(folders.dual, red, QUESTIONS)
    assert set(answers) <= set(student.config.label2id)
    assert answers == [answer_questions(student, [red], question)[0] for question in QUESTIONS]

    pairs = answer_questions(student, [red, blue, red], QUESTIONS, batch_size=2)
    assert [pairs[0], pairs[2]] == [answers[0], answers[2]]
    assert answer_questions(student, [red, blue, red], QUESTIONS[1]) == [answers[1], pairs[1], answers[1]]
    assert len(answer_questions(folders.vilt, blue, QUESTIONS[0])) == 1


BARE = """
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor

print(type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)
for auto_class in (AutoConfig, AutoModel):
    try:
        auto_class.from_pretrained(sys.argv[1])
    except ValueError as error:
        print(error)
"""


def test_what_transformers_says_without_the_package(folders: Folders, run_fresh) -> None:
    """Nothing of ours runs there and no key of a config is shown: the model type alone says what is missing."""
    tokenizer, *said = run_fresh(BARE, folders.dual).splitlines()
    assert tokenizer == "BertTokenizer"
    sentence = "has model type `dual_distill_dual_encoder` but Transformers does not recognize this architecture"
    assert sum(sentence in line for line in said) == 2


@pytest.mark.parametrize("form", ["custom", "splits", "rows"])
def test_one_call_distills(folders: Folders, form: str) -> None:
    data = datasets.DatasetDict(train=rows(), validation=rows(count=4)) if form == "splits" else rows()
    data, is_split = custom_dataset() if form == "custom" else data, form != "rows"
    told = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    student, processor, metrics = distill(folders.vilt, data, output_dir="student", disable_tqdm=True, **told)
    assert type(student) is DualEncoderForQuestionAnswering
    assert {"train_loss"} | ({"eval_loss", "eval_accuracy"} if is_split else set()) <= set(metrics)

    image = Image.new("RGB", (40, 32), "red")
    words = answer_questions("student", image, QUESTIONS)
    assert words == answer_questions(student, image, QUESTIONS, processor)
    assert read_run("student").teacher.revision.startswith("sha256:")

    told["max_steps"] = 1
    with pytest.raises(ValueError, match=r"\(max_steps: 2 there, 1 now\); give resume .*, overwrite to begin anew"):
        distill(folders.vilt, data, output_dir="student", disable_tqdm=True, **told)
    distill(folders.vilt, data, output_dir="student", overwrite=True, disable_tqdm=True, **told)
    assert read_run("student").steps == 1


def test_a_table_by_its_name_is_spelled_as_the_teachers_answers(folders: Folders, tmp_path: Path) -> None:
    """Answers in capitals were no class of the model, and every evaluation was 0."""
    for row in range(8):
        Image.new("RGB", (40, 32), (row, 0, 0)).save(tmp_path / f"{row}.png")
    names = [*AutoConfig.from_pretrained(folders.vilt).id2label.values()]
    lines = [f"{row}.png,what is it?,{names[row % 2].upper()}" for row in range(8)]
    (tmp_path / "shop.csv").write_text("\n".join(["image,question,answer", *lines]))
    told = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    metrics = distill(
        folders.vilt, tmp_path / "shop.csv", "spelled", label_weight=1.0, disable_tqdm=True, **told
    ).metrics
    assert metrics["eval_label_loss"] > 0


@pytest.mark.parametrize(
    ("told", "layers", "weights"),
    [
        ({}, 1, (1, 1, 1)),
        ({"interaction_layers": 2, "interaction_hidden_weight": 0.5}, 2, (1, 1, 0.5)),
        ({"interaction_layers": 0}, 0, (1, 0, 0)),
        ({"cache_teacher": "attention"}, 1, (1, 1, 0)),
        ({"cache_teacher": "logits", "attention_weight": 0.0}, 1, (0, 0, 0)),
    ],
    ids=["default", "two layers", "the paper's", "cached attention", "cached answers"],
)
def test_one_call_builds_a_layer_and_teaches_where_it_looks(folders: Folders, told, layers, weights) -> None:
    fields = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    student = distill(folders.vilt, rows(), "student", disable_tqdm=True, **fields, **told).student
    noted = read_run("student").objective.weights
    names = ("attention_weight", "interaction_attention_weight", "interaction_hidden_weight")
    assert student.config.interaction_layers == layers
    assert tuple(noted.get(name, 0) for name in names) == weights
    others = rf"\(interaction_layers: {layers} there, 3 now.*; ask for the same shape, overwrite to begin anew"
    with pytest.raises(ValueError, match=others):
        distill(folders.vilt, rows(), "student", resume=True, **fields, **{**told, "interaction_layers": 3})
    with pytest.raises(ValueError, match="interaction_layers is 1, but the student that was given has as many"):
        distill(folders.vilt, rows(), "other", student="student", interaction_layers=1)


def test_the_one_call_of_the_page_runs(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "distillation.md"
    [block] = [part.split("```")[0] for part in page.read_text().split("```python\n") if "distill(" in part[:400]]
    answers = get_task("scenes").label_names
    head = load_model(
        folders.vilt, model_class=FusionEncoderForQuestionAnswering, new_head=True, label_names=list(answers)
    ).model
    for saved in (head, load_processor(folders.vilt)):
        saved.save_pretrained("quickstart-default-seed0/teacher")
    for long, short in (('"train": 1000', '"train": 20'), ("max_steps=100", "max_steps=1, use_cpu=True")):
        assert long in block
        block = block.replace(long, short)
    exec(compile(block, str(page), "exec"), {})


def test_rows_behind_a_transform_are_what_it_makes_of_them(folders: Folders) -> None:
    student, processor = load_model(folders.dual)

    def prepared(batch: dict) -> dict:
        labels = torch.tensor([int(answer == "red") for answer in batch["a"]])
        return {**processor(text=batch["q"], images=batch["img"], padding="max_length", max_length=8), "labels": labels}

    def renamed(batch: dict) -> dict:
        return {"image": batch["img"], "question": batch["q"]}

    raw = rows().rename_columns({"image": "img", "question": "q", "answer": "a"})
    args = DistillationTrainingArguments("out", remove_unused_columns=False, use_cpu=True, report_to="none")
    for transform in (prepared, renamed):
        made = raw.with_transform(transform)
        trainer = DistillationTrainer(student, args, train_dataset=made, processing_class=processor)
        assert isinstance(trainer.data_collator, DistillationCollator) == (transform is renamed)
