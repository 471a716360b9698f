"""Pairs that cannot be compared are refused when the trainer is built, in one sentence."""

import pytest
import torch
from transformers import ViltConfig

from dual_distill.objectives import DiDEObjective
from dual_distill.trainer import check_compatibility


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
