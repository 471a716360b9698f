"""What serves many at once: jobs that go through the model together, and none that is lost."""

import io
import threading
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from dual_distill.data import ImageError, decode_image
from dual_distill.inference import (
    Batcher,
    DualVisualQuestionAnsweringPipeline,
    FeatureStore,
    ModelServer,
    ServingLimits,
    encode_images,
)
from dual_distill.modeling import DualEncoderForPreTraining, DualEncoderForQuestionAnswering


def test_what_waits_with_an_equal_key_runs_together_and_in_order() -> None:
    batcher, started, go_on, calls = Batcher(max_batch=3), threading.Event(), threading.Event(), []

    def block(items: list[int]) -> list[int]:
        started.set()
        assert go_on.wait(10)
        return items

    def note(items: list[int]) -> list[int]:
        calls.append(items)
        return [item * 10 for item in items]

    first = batcher.submit("first", block, 0)
    assert started.wait(10)
    jobs = [batcher.submit("odd" if item % 2 else "even", note, item) for item in range(1, 10)]
    go_on.set()
    assert [job.result(10) for job in (first, *jobs)] == [0, *range(10, 100, 10)]
    assert calls == [[1, 3, 5], [2, 4, 6], [7, 9], [8]]
    batcher.close()


def test_one_that_fails_spoils_no_other_and_a_close_finishes_what_waits() -> None:
    batcher, go_on = Batcher(max_batch=8), threading.Event()

    def invert(items: list[int]) -> list[float]:
        return [1 / item for item in items]

    batcher.submit("block", lambda items: [go_on.wait(10)], None)
    jobs = [batcher.submit("invert", invert, item) for item in (1, 0, 2)]
    go_on.set()
    batcher.close()
    assert (jobs[0].result(0), jobs[2].result(0)) == (1, 0.5)
    with pytest.raises(ZeroDivisionError):
        jobs[1].result(0)
    with pytest.raises(RuntimeError, match="the batcher is closed"):
        batcher.submit("late", invert, 1)


def test_a_jpeg_of_a_request_is_decoded_as_the_processor_asks(
    answering_model: Callable[..., PreTrainedModel], answering_processor, jpeg: bytes, tmp_path
) -> None:
    model, question = answering_model(DualEncoderForQuestionAnswering), "is there a red circle?"
    answering_processor.jpeg_margin = 1
    server = ModelServer(model, answering_processor)
    answering = DualVisualQuestionAnsweringPipeline(model, answering_processor, device="cpu")
    found, expected = server.answer(question, jpeg, None, 5).result(10), answering(jpeg, question)
    assert {row["answer"]: row["score"] for row in found} == pytest.approx(
        {row["answer"]: row["score"] for row in expected}, abs=1e-6
    )

    # What a store keeps of it; the whole image has another vector.
    whole = decode_image(jpeg, 0)
    encode_images(model, answering_processor, {"jpeg": jpeg, "whole": whole}, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    [embedded] = server.embed([], [jpeg])
    vector = torch.tensor(embedded.result(10))
    torch.testing.assert_close(vector, store["jpeg"], atol=1e-5, rtol=0)
    assert (store["jpeg"] - store["whole"]).abs().max() > 1e-2


def test_a_jpeg_that_was_shrunk_while_it_was_decoded_is_resized_by_its_own_size(
    answering_model: Callable[..., PreTrainedModel], answering_processor
) -> None:
    """By the fewer pixels that it was decoded to, a side of 194 x 133 would have one patch more."""
    file, noise = io.BytesIO(), torch.randint(0, 256, (194 * 133 * 3,), dtype=torch.uint8)
    Image.frombytes("RGB", (194, 133), bytes(noise.tolist())).save(file, "JPEG")
    model, question = answering_model(DualEncoderForQuestionAnswering), "is there a red circle?"
    answering_processor.jpeg_margin = 1
    once = decode_image(file.getvalue(), 0, jpeg_size=answering_processor.jpeg_size)
    twice = decode_image(once, 0)
    assert once.size == twice.size != (194, 133)
    assert torch.equal(answering_processor.prepare_image(twice), answering_processor.prepare_image(once))
    # A crop of it is not what its header declared.
    assert decode_image(once.crop((0, 0, 10, 10)), 0).info == {}

    server = ModelServer(model, answering_processor)
    answering = DualVisualQuestionAnsweringPipeline(model, answering_processor, device="cpu")
    found = server.answer(question, file.getvalue(), None, 5).result(10)
    expected = answering(file.getvalue(), question)
    assert {row["answer"]: row["score"] for row in found} == pytest.approx(
        {row["answer"]: row["score"] for row in expected}, abs=1e-6
    )


def test_an_image_of_no_shape_is_a_sentence_and_a_limit_that_would_not_hold_is_refused(
    answering_model: Callable[..., PreTrainedModel], answering_processor
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 1)).save(file, "PNG")
    server = ModelServer(answering_model(DualEncoderForQuestionAnswering), answering_processor)
    with pytest.raises(ImageError, match="of the request: the image of 4000 x 1 pixels cannot be resized"):
        server.embed([], [file.getvalue()])
    with pytest.raises(ValueError, match="max_pixels is 64,000,001, but images have 64,000,000 at most"):
        ServingLimits(max_pixels=64_000_001)


def test_models_that_neither_answer_nor_search_are_refused(
    answering_model: Callable[..., PreTrainedModel], answering_processor
) -> None:
    model = answering_model(DualEncoderForPreTraining)
    assert ModelServer(model, answering_processor).searches
    with pytest.raises(ValueError, match="DualEncoderModel neither answers nor searches"):
        ModelServer(answering_model(DualEncoderForQuestionAnswering).dual_encoder, answering_processor)
    # Nothing is searched by an index here, of whatever name.
    for of in (model, answering_model(DualEncoderForQuestionAnswering)):
        with pytest.raises(ValueError, match="index is 'nonsense', but there is no store that this model searches"):
            ModelServer(of, answering_processor, index="nonsense")
    with pytest.raises(ValueError, match="max_queue is 0, but must be at least 1"):
        ServingLimits(max_queue=0)
