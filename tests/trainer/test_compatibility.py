"""Pairs that cannot be compared are refused when the trainer is built, in one sentence."""

from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from transformers import BertTokenizer, ViltConfig, ViTImageProcessorPil

from dual_distill.data import DistillationCollator, Task
from dual_distill.modeling import DualDistillProcessor
from dual_distill.objectives import DiDEObjective
from dual_distill.teachers import load_teacher
from dual_distill.trainer import DistillationTrainer, check_compatibility
from dual_distill.trainer.compatibility import check_first_batch


@pytest.mark.parametrize(
    "teacher, student, fields, message",
    [
        (
            {"vocab_size": 61},
            {},
            {},
            "the teacher has a vocabulary of 61 word pieces, the student a vocabulary of 60 word pieces; both must "
            "read",
        ),
        (
            {"image_size": [12, 12]},
            {},
            {},
            "the teacher has a patch grid of 3 x 3 patches of 4 pixels, the student a patch grid of 2 x 3 patches of 4",
        ),
        (
            {"image_size": [16, 24], "patch_size": 8},
            {},
            {},
            "the teacher has a patch grid of 2 x 3 patches of 8 pixels, the student a patch grid of 2 x 3 patches of 4",
        ),
        (
            {"num_labels": 4},
            {},
            {},
            "the teacher has 4 answers, the student 5; train the teacher on the student's answers",
        ),
        (
            {"num_attention_heads": 2},
            {},
            {},
            "the teacher has 2 attention heads, the student 4; set relation_heads to a number that divides both",
        ),
        (
            {"hidden_size": 24},
            {},
            {"relation_heads": 16},
            "relation_heads is 16, which does not divide the teacher's width 24",
        ),
        (
            {"hidden_size": 24},
            {},
            {"relation_heads": 6},
            "relation_heads is 6, which does not divide the student's width 16",
        ),
        (
            {},
            {},
            {"layer_map": {2: 0}},
            "layer_map names layer 2 of the student, which has 2 layers; choose from -2 to 1",
        ),
        (
            {},
            {},
            {"layer_map": {0: -3}},
            "layer_map names layer -3 of the teacher, which has 2 layers; choose from -2 to 1",
        ),
        (
            {"num_images": 2},
            {},
            {},
            "the teacher has 2 images a row, the student 1 images a row; set num_images of both",
        ),
    ],
)
def test_refused_before_the_first_step(teacher, student, fields, message, build, make_teacher, make_student):
    with pytest.raises(ValueError, match="teacher and student cannot be paired: .*" + message):
        build(make_student(**student), make_teacher(**teacher), **fields)


def test_all_that_does_not_fit_is_said_at_once(build, make_teacher):
    with pytest.raises(ValueError, match="cannot be paired") as said:
        build(teacher=make_teacher(vocab_size=61, num_labels=4, num_attention_heads=2))
    for part in ("a vocabulary of 61 word pieces", "4 answers, the student 5", "2 attention heads, the student 4"):
        assert part in str(said.value)


def test_answers_in_another_order_are_refused(build, make_teacher, make_student):
    teacher, student = make_teacher(), make_student()
    student.config.id2label = dict(enumerate(["no", "yes", "one", "two", "red"]))
    teacher.config.id2label = dict(enumerate(["no", "yes", "two", "one", "red"]))
    with pytest.raises(ValueError, match="the teacher has answer 2 = 'two', the student answer 2 = 'one'"):
        build(student, teacher)
    build(student, teacher, soft_label_weight=0.0)


def test_what_is_not_compared_may_differ(build, make_teacher, make_student):
    pairs = [
        build(teacher=make_teacher(num_labels=4), soft_label_weight=0.0),
        build(teacher=make_teacher(num_attention_heads=2), attention_weight=0.0),
        build(teacher=make_teacher(num_attention_heads=2), relation_heads=4),
        build(teacher=make_teacher(num_hidden_layers=3)),
        build(teacher=make_teacher(hidden_size=24)),
    ]
    for trainer in pairs:
        result = trainer.train()
        assert result.global_step > 0
        assert 0 < result.training_loss < float("inf")


def test_each_tower_needs_the_mapped_layers(make_teacher, make_student):
    """A shallow text tower is found out, too."""
    from dual_distill.modeling import DualEncoderForQuestionAnswering

    teacher = make_teacher(num_hidden_layers=3)
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(teacher, text_layers=[0])
    with pytest.raises(ValueError, match="layer 1 of the student, which has 1 layers"):
        check_compatibility(student, teacher, DiDEObjective(layer_map={1: 1}))
    check_compatibility(student, teacher, DiDEObjective())


def test_what_a_foreign_teacher_does_not_say_is_not_checked(make_student):
    student = make_student()
    teacher = torch.nn.Linear(1, 1)
    check_compatibility(student, teacher, DiDEObjective())
    teacher.config = type("Config", (), {"vocab_size": 60})()
    check_compatibility(student, teacher, DiDEObjective())
    teacher.config = type("Config", (), {"vocab_size": 59})()
    with pytest.raises(ValueError, match="a vocabulary of 59"):
        check_compatibility(student, teacher, DiDEObjective())


def test_vilts_configuration_is_understood_and_its_shuffled_attention_refused(make_student):
    """It says num_images = -1 for "not set", and its patches have no order to compare."""
    fields = {"vocab_size": 60, "image_size": 12, "patch_size": 4, "num_attention_heads": 4, "num_hidden_layers": 2}
    teacher = torch.nn.Linear(1, 1)
    teacher.config = ViltConfig(**fields, hidden_size=16, num_labels=5)
    soft_labels = DiDEObjective(attention_weight=0)
    check_compatibility(make_student(image_size=12), teacher, soft_labels)
    with pytest.raises(ValueError, match="the teacher has a patch grid of 3 x 3"):
        check_compatibility(make_student(), teacher, soft_labels)
    with pytest.raises(
        ValueError, match=r"ViLT draws its patches in a random order .*; load its weights into a FusionEncoder"
    ):
        check_compatibility(make_student(image_size=12), teacher, DiDEObjective())


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"nce_temperature": 0.2, "queue_size": 64},
            r"queue_size is 64 and nce_temperature is 0.2, but nothing of this run \(DistillationTrainer, "
            r"DiDEObjective\) reads that; leave it out",
        ),
        ({"method": "distillvlm", "interaction_hidden_weight": 1.0}, "interaction_hidden_weight is 1.0, .*DistillVLM"),
        ({"method": "distillvlm", "count_padded_queries": True}, "count_padded_queries is True"),
        ({"ranking_negatives": 7}, "ranking_negatives is 7"),
        ({"itc_weight": 1.0, "masking_share": 0.3}, "itc_weight is 1.0 and masking_share is 0.3"),
        ({"teacher": None, "attention_weight": 0.5}, r"attention_weight is 0.5, .*\(DistillationTrainer, no teacher\)"),
        ({"teacher": None, "cache_teacher": "attention"}, "cache_teacher is attention"),
    ],
)
def test_options_that_nothing_reads_are_refused_by_name(fields, message, build):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_an_objective_that_is_given_has_its_own_settings(build):
    with pytest.raises(ValueError, match=r"temperature is 2.0, but nothing of this run .*DiDEObjective"):
        build(objective=DiDEObjective(), temperature=2.0)
    build(objective=DiDEObjective(), head_learning_rate_factor=10.0)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "red", "blue", "?", *(f"w{n}" for n in range(50)))
NAMES = ["no", "yes", "one", "two", "red"]
TASK = Task("custom", "question_answering", ("image",), "question", "answer")


def make_processor(words=WORDS, size=(8, 12), mean=0.5, limit=12, side="right"):
    images = ViTImageProcessorPil(size={"height": size[0], "width": size[1]}, image_mean=[mean] * 3)
    tokenizer = BertTokenizer({word: index for index, word in enumerate(words)}, padding_side=side)
    tokenizer.model_max_length = limit
    return DualDistillProcessor(images, tokenizer)


def labelled_rows(**columns):
    texts = ["is it red ?", "is it blue ?"] * 3
    images = [Image.new("RGB", (12, 8), colour) for colour in ("red", "blue")] * 3
    return Dataset.from_dict({"image": images, "question": texts, "answer": ["yes", "no"] * 3, **columns})


@pytest.fixture
def build_labelled(make_teacher, make_student, arguments, tmp_path):
    """A student, and a teacher as it was loaded from its folder, on rows that our collator reads."""
    teacher = make_teacher()
    teacher.config.id2label, teacher.config.label2id = dict(enumerate(NAMES)), {name: i for i, name in enumerate(NAMES)}
    teacher.save_pretrained(tmp_path / "teacher")
    make_processor().save_pretrained(tmp_path / "teacher")

    def make(processor=None, names=NAMES, rows=None, max_text_length=None, **fields):
        student = make_student()
        student.config.id2label = dict(enumerate(NAMES))
        options = {"max_text_length": max_text_length, "image_cache_mb": 0}
        collator = DistillationCollator(processor or make_processor(), TASK, names, **options)
        parts = {"teacher": load_teacher(tmp_path / "teacher").model, "data_collator": collator}
        return DistillationTrainer(student, arguments(**fields), train_dataset=rows or labelled_rows(), **parts)

    return make


SWAPPED = (*WORDS[:7], "blue", "red", *WORDS[9:])
NUMBERED = labelled_rows(answer=[0, 1] * 3).cast_column("answer", ClassLabel(names=[*NAMES[2:], "no", "yes"]))


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            {"processor": make_processor(SWAPPED)},
            "the teacher's tokenizer reads 'red' as 7, the run's as 8; give the run the processor of the teacher",
        ),
        (
            {"names": ["yes", "no", *NAMES[2:]]},
            "answer 0 is 'yes' for the collator, 'no' for the student; give the collator label_names in the student's",
        ),
        ({"names": [*NAMES, "blue"]}, "the collator has 6 label_names, the student 5 labels"),
        (
            {"rows": NUMBERED},
            r"column 'answer' numbers the classes \['one', .*\], the model \['no', 'yes', .*; store their names",
        ),
        (
            {"processor": make_processor(limit=512)},
            "texts are cut at 512 tokens, but the student has positions for 12; give the collator max_text_length=12",
        ),
        ({"processor": make_processor(limit=10**30)}, "texts are not cut, but the student has positions for 12"),
        ({"max_text_length": 20}, "texts are cut at 20 tokens, but the teacher has positions for 12"),
        (
            {"processor": make_processor(mean=0.0)},
            "of one colour the teacher's processor makes 0.57 -0.22 -0.61, the run's 1.57 0.78 0.39; give the run",
        ),
        (
            {"processor": make_processor(size=(10, 12))},
            "the processor makes 10 x 12 pixels of an image of 64 x 96, which are no whole patches of 4 as the student",
        ),
    ],
)
def test_parts_that_read_in_different_ways_are_refused(parts, message, build_labelled):
    with pytest.raises(ValueError, match=message):
        build_labelled(**parts)


def test_all_parts_are_named_at_once_and_parts_that_fit_train(build_labelled, caplog):
    with pytest.raises(ValueError, match="the parts of this run do not fit") as said:
        build_labelled(make_processor(SWAPPED, mean=0.0, limit=512), [*NAMES, "blue"])
    for part in ("'red' as 7", "of one colour", "cut at 512", "6 label_names"):
        assert part in str(said.value)

    build_labelled(max_text_length=6, processor=make_processor(size=(4, 8), limit=512), max_steps=1).train()
    assert "of one image the teacher's processor makes (8, 12) pixels, the run's (4, 8)" in caplog.text
    build_labelled(make_processor(side="left"), max_steps=1).train()


def test_parameters_that_no_loss_reaches_are_named(build, caplog):
    build(soft_label_weight=0.0, max_steps=1).train()
    [said] = [record.message for record in caplog.records if "no loss reaches" in record.message]
    assert "they stay as they are" in said
    caplog.clear()
    build(max_steps=1).train()
    assert "no loss reaches" not in caplog.text


class CausalTeacher(torch.nn.Module):
    """Text before the image, and no token sees a later one."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_ids, attention_mask, pixel_values, pixel_mask, output_attentions=False):
        rows, tokens = len(input_ids), input_ids.shape[1] + 1 + pixel_mask[0, 0, ::4, ::4].numel()
        seen = torch.ones(tokens, tokens).tril().expand(rows, 4, -1, -1)
        return SimpleNamespace(logits=torch.randn(rows, 5), attentions=(seen / seen.sum(-1, keepdim=True),) * 2)


def test_a_causal_teacher_has_nothing_to_teach_ahead(build):
    trainer = build(teacher=CausalTeacher())
    with pytest.raises(ValueError, match=r"attention from text to image is 0 .*; set attention_weight to 0"):
        trainer.train()
    build(teacher=CausalTeacher(), attention_weight=0.0, max_steps=1).train()


def test_the_first_batch_uses_nothing_up(build, make_student):
    trainer = build(make_student(hidden_dropout_prob=0.2))
    state = torch.get_rng_state()
    check_first_batch(trainer, trainer.train_dataset[:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
