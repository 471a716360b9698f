"""`dual-distill serve` on loopback: it gives what Python gives, refuses in a sentence, and loses nothing at its end."""

import base64
import http.client
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, PreTrainedModel, ViltImageProcessorPil

from dual_distill.cli import main
from dual_distill.inference import (
    DualVisualQuestionAnsweringPipeline,
    FeatureStore,
    FeatureStoreSearcher,
    FeatureStoreVQA,
    encode_images,
)
from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForImageTextRetrieval,
    DualEncoderForQuestionAnswering,
)

pytest.importorskip("fastapi", reason="FastAPI is not installed (the extra `serve`)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `serve`)")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "in", "the", "image", "?"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGES = {
    f"{number}.png": Image.linear_gradient("L").rotate(20 * number).resize((16 + 8 * (number % 3), 16)).convert("RGB")
    for number in range(8)
}
QUESTIONS = ["what is in the image?", "what?", "is the image what?"]


class Served(NamedTuple):
    """A server, and what it was made of."""

    process: subprocess.Popen[str]
    port: int
    model: PreTrainedModel
    processor: DualDistillProcessor
    store: FeatureStore

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def start(cls: type[PreTrainedModel], root: Path, *options: str) -> Served:
    """Save a model with a store of eight images, and start a server of it on a free port."""
    torch.manual_seed(0)
    text, image = {"vocab_size": len(WORDS), "max_position_embeddings": 12}, {"image_size": 16, "patch_size": 8}
    labels = {"id2label": {0: "yes", 1: "no", 2: "red"}, "label2id": {"yes": 0, "no": 1, "red": 2}}
    config = DualEncoderConfig(text_config=SHAPE | text, vision_config=SHAPE | image, projection_dim=8, **labels)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)
    for one in (model, processor):
        one.save_pretrained(root / "model")
    encode_images(model, processor, IMAGES, root / "store")

    words = [sys.executable, "-m", "dual_distill", "serve", str(root / "model"), "--store", str(root / "store")]
    process = subprocess.Popen(
        [*words, "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("serving "):
            return Served(
                process, int(line.split(" (")[0].rsplit(":", 1)[1]), model, processor, FeatureStore(root / "store")
            )
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module", params=[DualEncoderForQuestionAnswering, DualEncoderForImageTextRetrieval])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = start(request.param, tmp_path_factory.mktemp("serve"), "--max-body-mb", "1", "--max-pixels", "10000")
    yield one
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(30) == 0


def test_a_port_that_is_taken_is_said_in_a_sentence(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(served.store.path).parent / "model")
    assert main(["serve", folder, "--port", str(served.port)]) == 2
    assert f"cannot listen at port {served.port} of 127.0.0.1 (Address already in use" in capsys.readouterr().err


def png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def assert_close(found: Any, expected: Any) -> None:
    """Equal in all but the last digits of numbers."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name])
    else:
        assert found == expected


def test_it_gives_what_python_gives(served: Served) -> None:
    image = IMAGES["1.png"]
    if isinstance(served.model, DualEncoderForQuestionAnswering):
        ask = FeatureStoreVQA(served.model, served.processor, served.store)
        expected = ask.answer("1.png", [QUESTIONS[0]], top_k=2)[0]
        assert_close(
            served.ask("/answer", {"question": QUESTIONS[0], "image_id": "1.png", "top_k": 2})[1]["answers"], expected
        )
        answering = DualVisualQuestionAnsweringPipeline(served.model, served.processor, device="cpu")
        given = {"question": QUESTIONS[1], "image": png(image)}
        assert_close(served.ask("/answer", given)[1]["answers"], answering(image, QUESTIONS[1]))
        ranking = ask.rank(QUESTIONS[0], answer="yes", top_k=3)
        best = [{"id": one.image, "score": one.score, "answer": one.answer} for one in ranking.best]
        found = served.ask("/search", {"text": QUESTIONS[0], "answer": "yes", "top_k": 3})
        assert_close(found, (200, {"best": best, "matches": ranking.matches}))
    else:
        [result] = FeatureStoreSearcher(served.model, served.processor, served.store).by_texts([QUESTIONS[0]], top_k=3)
        best = [one._asdict() for one in result.best]
        found = served.ask("/search", {"text": QUESTIONS[0], "top_k": 3})
        assert_close(found, (200, {"best": best, "matches": result.matches}))
        with torch.inference_mode():
            texts = served.model.embed_texts(**served.processor(text=QUESTIONS))
            images = served.model.embed_images(**served.processor(images=image))
        found = served.ask("/embed", {"texts": QUESTIONS, "images": [png(image)]})
        assert_close(found, (200, {"embeddings": torch.cat([texts, images]).tolist()}))


def test_the_page_says_what_there_is(served: Served) -> None:
    status, page = served.ask("/openapi.json")
    answers = isinstance(served.model, DualEncoderForQuestionAnswering)
    assert status == 200
    assert set(page["paths"]) == {"/health", "/search", "/embed"} | ({"/answer"} if answers else set())
    assert served.ask("/health") == (200, {"status": "ok", "active": 0})


def test_bad_input_is_a_sentence_and_ends_nothing(served: Served) -> None:
    large = Image.new("1", (200, 200))
    tries: list[tuple[Any, int, str]] = [
        ({"texts": []}, 422, "give texts, images, or both: 1 to 32 in all."),
        ({"texts": ["what"] * 33}, 422, "give texts, images, or both: 1 to 32 in all."),
        ({"texts": [" "]}, 422, "text is ' ', but must be a string with words in it."),
        ({"images": ["not base64"]}, 422, ""),
        ({"images": [base64.b64encode(b"no image").decode()]}, 422, "the bytes are not an image of a known format"),
        ({"images": [png(large)]}, 422, "10,000"),
        ({"words": ["what"]}, 422, ""),
        (b"{", 422, ""),
        (b" " * 1_000_001, 413, "the body has 1,000,001 bytes, more than 1,000,000."),
    ]
    for body, expected, words in tries:
        status, answer = served.ask("/embed", body)
        assert (status, words in str(answer["detail"])) == (expected, True), (str(body)[:50], answer)

    # Longer than it says: in pieces, without a length.
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    pieces = (b'"' + b"a" * 300_000 for _ in range(5))
    connection.request("POST", "/embed", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413

    if isinstance(served.model, DualEncoderForQuestionAnswering):
        for body, words in (
            ({"question": "what?"}, "give image (base64), or image_id of the store; one of them."),
            ({"question": "what?", "image_id": "/etc/passwd"}, "lacks 1 of the images asked for: '/etc/passwd'"),
        ):
            status, answer = served.ask("/answer", body)
            assert (status, words in answer["detail"], str(served.store.path) in answer["detail"]) == (422, True, False)
    else:
        assert served.ask("/answer", {"question": "what?"})[0] == 404
    assert served.ask("/health")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_signal_loses_nothing_that_was_sent(tmp_path: Path, keep_alive: bool) -> None:
    served = start(DualEncoderForQuestionAnswering, tmp_path)
    body = json.dumps({"question": QUESTIONS[0], "image_id": "3.png"}).encode()
    outcomes: queue.Queue[str] = queue.Queue()

    def ask_on() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                outcomes.put("refused")
                return
            try:
                connection.request("POST", "/answer", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                outcomes.put(f"{answer.status} {len(json.loads(answer.read())['answers'])}")
            except (OSError, http.client.HTTPException) as error:
                outcomes.put(f"lost: {error!r}")
                return
            if not keep_alive:
                connection.close()

    clients = [threading.Thread(target=ask_on) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(2)
    served.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(60)
    assert served.process.wait(60) == 0

    found = [outcomes.get() for _ in range(outcomes.qsize())]
    answered = found.count("200 3")
    assert found.count("refused") == len(clients)
    assert answered == len(found) - len(clients) > 100
    assert served.process.stdout is not None
    assert json.loads(served.process.stdout.read())["requests"] == answered
