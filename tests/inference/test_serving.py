"""What serves many at once: jobs that go through the model together, and none that is lost."""

import threading
from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from dual_distill.inference import Batcher, ModelServer, ServingLimits
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


def test_models_that_neither_answer_nor_search_are_refused(
    answering_model: Callable[..., PreTrainedModel], answering_processor
) -> None:
    model = answering_model(DualEncoderForPreTraining)
    assert ModelServer(model, answering_processor).searches
    with pytest.raises(ValueError, match="DualEncoderModel neither answers nor searches"):
        ModelServer(answering_model(DualEncoderForQuestionAnswering).dual_encoder, answering_processor)
    with pytest.raises(ValueError, match="max_queue is 0, but must be at least 1"):
        ServingLimits(max_queue=0)
