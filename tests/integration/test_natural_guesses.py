"""What someone types who knows transformers and nothing of us: each guess works, or one sentence names the call."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from transformers import PreTrainedModel, ViltForQuestionAnswering

from dual_distill import (
    DualDistillProcessor,
    DualEncoderForQuestionAnswering,
    FusionEncoderForQuestionAnswering,
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
