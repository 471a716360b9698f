"""The pipeline against the model called by hand; an image is encoded once; bad input ends in one sentence."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from dual_distill.data import ImageError
from dual_distill.inference import DualVisualQuestionAnsweringPipeline
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
)

TASK = "dual-visual-question-answering"
QUESTION = "is there a red circle?"
QUESTIONS = [QUESTION, "how many blue squares are there?", "red?"]
QA_MODELS = pytest.mark.parametrize("cls", [FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering])


@pytest.fixture
def make(
    answering_model: Callable[..., PreTrainedModel], answering_processor: DualDistillProcessor
) -> Callable[..., DualVisualQuestionAnsweringPipeline]:
    def make(cls: type[PreTrainedModel], **fields: object) -> DualVisualQuestionAnsweringPipeline:
        return pipeline(TASK, model=answering_model(cls, **fields), processor=answering_processor, device="cpu")

    return make


def by_hand(pipe: DualVisualQuestionAnsweringPipeline, images: object, text: str) -> torch.Tensor:
    """The logits of one row, from the processor and the model themselves."""
    with torch.no_grad():
        return pipe.model(**pipe.processor(images=[images], text=[text])).logits[0]


def as_probs(pipe: DualVisualQuestionAnsweringPipeline, answers: list[dict]) -> torch.Tensor:
    scores = {answer["answer"]: answer["score"] for answer in answers}
    return torch.tensor([scores[pipe.model.config.id2label[place]] for place in range(5)])


@QA_MODELS
def test_answers_are_the_models_own_softmax(cls: type[PreTrainedModel], make: Callable, pictures: list) -> None:
    pipe = make(cls)
    answers = pipe(pictures[0], QUESTION)
    expected = by_hand(pipe, pictures[0], QUESTION).softmax(-1)
    torch.testing.assert_close(as_probs(pipe, answers), expected, atol=1e-5, rtol=0)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    assert pipe(pictures[0], QUESTION, top_k=2) == answers[:2]
    assert pipe(pictures[0], QUESTION, top_k=99) == answers


def test_interaction_layers_answer_from_an_images_tokens(make: Callable, pictures: list) -> None:
    pipe = make(DualEncoderForQuestionAnswering, interaction_layers=1)
    expected = torch.stack([by_hand(pipe, pictures[0], question).softmax(-1) for question in QUESTIONS])
    found = torch.stack([as_probs(pipe, answers) for answers in pipe(pictures[0], QUESTIONS)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@QA_MODELS
def test_soft_scores_are_answered_by_sigmoids(cls: type[PreTrainedModel], make: Callable, pictures: list) -> None:
    pipe = make(cls, problem_type="multi_label_classification")
    expected = by_hand(pipe, pictures[0], QUESTION).sigmoid()
    torch.testing.assert_close(as_probs(pipe, pipe(pictures[0], QUESTION)), expected, atol=1e-5, rtol=0)


@QA_MODELS
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_many_requests_together_are_what_each_is_alone(
    cls: type[PreTrainedModel], batch_size: int, make: Callable, pictures: list
) -> None:
    pipe = make(cls)
    requests = [{"image": picture, "question": QUESTIONS[: 1 + place % 3]} for place, picture in enumerate(pictures)]
    together = pipe(requests, batch_size=batch_size)
    assert [len(answers) for answers in together] == [1, 2, 3, 1, 2]
    for request, answers in zip(requests, together, strict=True):
        for question, best in zip(request["question"], answers, strict=True):
            expected = by_hand(pipe, request["image"], question).softmax(-1)
            torch.testing.assert_close(as_probs(pipe, best), expected, atol=1e-5, rtol=0)


def test_the_dual_encoder_encodes_an_image_once_for_all_its_questions(make: Callable, pictures: list) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    encoded: list[int] = []
    towers: DualEncoderModel = pipe.model.dual_encoder
    towers.vision_model.register_forward_hook(
        lambda module, inputs, output: encoded.append(output.pooler_output.shape[0])
    )
    one_by_one = [pipe(pictures[0], question) for question in QUESTIONS]
    assert encoded == [1, 1, 1]
    encoded.clear()
    together = pipe(pictures[0], QUESTIONS * 7, batch_size=4)  # 21 questions in 6 forward passes
    assert encoded == [1]
    for alone, answers in zip(one_by_one * 7, together, strict=True):
        torch.testing.assert_close(as_probs(pipe, answers), as_probs(pipe, alone), atol=1e-5, rtol=0)
    encoded.clear()
    pipe([{"image": picture, "question": QUESTIONS} for picture in pictures], batch_size=2)
    assert encoded == [2, 2, 1]


@pytest.mark.parametrize(
    "cls", [FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification]
)
def test_a_model_of_two_images_takes_two(cls: type[PreTrainedModel], make: Callable, pictures: list) -> None:
    fields = {"num_images": 2}
    if cls is FusionEncoderForImagesAndTextClassification:
        fields["modality_type_vocab_size"] = 3
    pipe = make(cls, **fields)
    answers = pipe(pictures[:2], QUESTION)
    expected = by_hand(pipe, pictures[:2], QUESTION).softmax(-1)
    torch.testing.assert_close(as_probs(pipe, answers), expected, atol=1e-5, rtol=0)
    both = pipe([{"image": pictures[:2], "question": QUESTION}, {"image": pictures[2:4], "question": QUESTION}])
    torch.testing.assert_close(as_probs(pipe, both[0]), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="has 1 images, but the model reads 2 together"):
        pipe(pictures[0], QUESTION)


def test_every_way_of_giving_requests(make: Callable, pictures: list, tmp_path: Path) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    file = tmp_path / "picture.png"
    pictures[0].save(file)
    expected = pipe(pictures[0], QUESTION)
    assert pipe(str(file), QUESTION) == pipe(file, QUESTION) == pipe(file.read_bytes(), QUESTION) == expected
    assert pipe({"image": file, "question": QUESTION}) == expected
    assert pipe({"image": [file], "question": (QUESTION,)}) == [expected]
    assert pipe([{"image": file, "question": QUESTION}]) == [expected]
    assert pipe([]) == []
    rows = datasets.Dataset.from_dict({"image": [str(file)] * 3, "question": [QUESTION] * 3})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    for data in (rows, KeyDataset([{"row": row} for row in rows], "row"), (row for row in rows)):
        answers = list(pipe(data, batch_size=2))
        assert len(answers) == 3
        for answer in answers:
            torch.testing.assert_close(as_probs(pipe, answer), as_probs(pipe, expected), atol=1e-5, rtol=0)


def test_a_generator_is_read_as_far_as_it_is_answered(make: Callable, pictures: list) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    asked = []

    def requests():
        for picture in pictures:
            asked.append(picture)
            yield {"image": picture, "question": QUESTION}

    answers = pipe(requests(), batch_size=2)
    assert asked == []
    next(answers)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (FusionEncoderForQuestionAnswering, {}),
        (DualEncoderForQuestionAnswering, {}),
        (DualEncoderForImagesAndTextClassification, {"num_images": 2}),
    ],
)
def test_a_checkpoint_is_asked_by_its_path(
    cls: type, fields: dict, make: Callable, pictures: list, tmp_path: Path
) -> None:
    pipe = make(cls, **fields)
    pipe.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(loaded.model) is cls
    images = pictures[: loaded.model.num_images]
    for answers, expected in zip(loaded(images, QUESTIONS), pipe(images, QUESTIONS), strict=True):
        torch.testing.assert_close(as_probs(loaded, answers), as_probs(pipe, expected), atol=1e-6, rtol=0)
    assert not loaded.model.training


def test_a_model_in_training_mode_answers_in_eval_mode(
    answering_model: Callable, answering_processor: DualDistillProcessor, pictures: list
) -> None:
    model = answering_model(FusionEncoderForQuestionAnswering, hidden_dropout_prob=0.5).train()
    pipe = pipeline(TASK, model=model, processor=answering_processor, device="cpu", top_k=1)
    assert pipe(pictures[0], QUESTION) == pipe(pictures[0], QUESTION)
    assert len(pipe(pictures[0], QUESTION)) == 1


# Bad input


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_images_that_cannot_be_used(make: Callable, tmp_path: Path) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    with pytest.raises(
        ImageError, match=r"^row 'red\?' \(image 'nowhere.png'\): the file cannot be read \(No such file"
    ):
        pipe("nowhere.png", "red?")
    with pytest.raises(ImageError, match=r"the image is missing \(None\)"):
        pipe(None, "red?")
    with pytest.raises(ImageError, match="declares"):
        pipe(png_that_declares(30_000, 30_000), "red?")
    with pytest.raises(ImageError, match="the bytes are not an image of a known format"):
        pipe(b"GIF, perhaps", "red?")
    with pytest.raises(ImageError, match=r"the image of 1 x 2000 pixels cannot be resized .* crop it"):
        pipe(Image.new("RGB", (1, 2000)), "red?")


def test_grey_with_alpha_is_composited_on_white(make: Callable) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    buffer = io.BytesIO()
    Image.new("LA", (20, 20), (0, 127)).save(buffer, "PNG")
    assert pipe(buffer.getvalue(), QUESTION) == pipe(Image.new("RGB", (20, 20), (128, 128, 128)), QUESTION)


@QA_MODELS
def test_a_question_of_ten_thousand_words_is_cut_to_what_the_model_reads(
    cls: type[PreTrainedModel], make: Callable, pictures: list
) -> None:
    pipe = make(cls)
    pipe.processor.tokenizer.model_max_length = int(1e30)  # a tokenizer without a limit of its own
    pipe = DualVisualQuestionAnsweringPipeline(pipe.model, pipe.processor, device="cpu")
    long, cut, shorter = (as_probs(pipe, pipe(pictures[0], "a " * words)) for words in (10_000, 18, 17))
    torch.testing.assert_close(long, cut, atol=1e-6, rtol=0)  # 20 positions, two of them for [CLS] and [SEP]
    assert (long - shorter).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"image": "x.png", "question": ""}, "Question 0 of a request is '', but must be a string with words in it"),
        ({"image": "x.png", "question": ["red?", " \n"]}, r"Question 1 of a request is ' \\n'"),
        ({"image": "x.png", "question": None}, "Question 0 of a request is None"),
        ({"image": "x.png", "question": []}, "an empty list of questions"),
        ({"image": "x.png"}, "A request has no 'question' but only image"),
        ({"question": "red?"}, "A request has no 'image' but only question"),
        ({"image": ["x.png", "y.png"], "question": "red?"}, "has 2 images, but the model reads 1 together"),
        ("x.png", r"There is an image \(str\) without a question"),
        (Image.new("RGB", (2, 2)), r"There is an image \(Image\) without a question"),
    ],
)
def test_requests_that_are_refused(request_: object, message: str, make: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        make(DualEncoderForQuestionAnswering)(request_)


def test_options_and_models_that_are_refused(
    make: Callable, answering_model: Callable, answering_processor: DualDistillProcessor, pictures: list, tmp_path: Path
) -> None:
    pipe = make(DualEncoderForQuestionAnswering)
    with pytest.raises(ValueError, match="top_k is 0, but must be at least 1"):
        pipe(pictures[0], QUESTION, top_k=0)
    with pytest.raises(ValueError, match="batch_size is 0, but must be at least 1"):
        pipe(pictures[0], QUESTION, batch_size=0)
    body = answering_model(DualEncoderModel)
    with pytest.raises(ValueError, match="DualEncoderModel gives no answers; the pipeline takes FusionEncoderForQ"):
        pipeline(TASK, model=body, processor=answering_processor, device="cpu")
    with pytest.raises(ValueError, match="The pipeline has a model but no processor"):
        DualVisualQuestionAnsweringPipeline(pipe.model, device="cpu")
    body.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="DualEncoderModel gives no answers"):
        pipeline(TASK, model=str(tmp_path), device="cpu")
