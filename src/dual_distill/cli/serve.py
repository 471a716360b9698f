r"""Answer, search and encode over HTTP: /answer, /search, /embed, /health, and what they take on the page /docs.

Requests that come together go through the model together. The store is what the model made of images (of texts, for a
model that searches them by images); without one, images come with the requests, in base64. SIGTERM and Ctrl-C end it in
order: what was sent is answered first. It speaks plain HTTP and knows no users: put it behind something that does.

Examples:
  dual-distill serve runs/student --store photos.store --port 8000
  curl -s localhost:8000/answer -H 'Content-Type: application/json' \
       -d '{"question": "what is it?", "image_id": "2024/cat.jpg"}'
  dual-distill serve runs/retrieval --store photos.store --index faiss
"""

import argparse
import asyncio
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

from dual_distill.inference import FeatureStore, ModelServer, ServingLimits, prepack_linear_layers
from dual_distill.teachers import load_model

from .options import add_options, aligned, option

_GRACE_S = 1.0
_MOST = 1000
_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add model, store, address and limits."""
    add_options(parser, "model")
    option(parser, "--store", "STORE", "folder of the store that the model made")
    option(parser, "--index", "faiss[:SPEC]", "of a search, such as faiss:HNSW32; none: exact")
    option(parser, "--host", "ADDRESS", "to listen on (default: %(default)s)", default="127.0.0.1")
    option(parser, "--port", "N", "0: any that is free (default: %(default)s)", default=8000)
    option(parser, "--max-batch", "N", "requests a forward pass (default: %(default)s)", default=32)
    option(parser, "--max-queue", "N", "requests under way, more are refused (default: %(default)s)", default=256)
    option(parser, "--max-body-mb", "N", "largest body in megabytes (default: %(default)s)", default=16)
    pixels = "largest width x height of an image (default: %(default)s)"
    option(parser, "--max-pixels", "N", pixels, default=16_000_000)
    add_options(parser, "--revision", "--device")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load the model, serve until a signal ends it, and say what was done."""
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("serving needs FastAPI and uvicorn: pip install 'dual-distill[serve]'.") from error

    limits = ServingLimits(options.max_batch, options.max_queue, options.max_body_mb, options.max_pixels)
    store = None if options.store is None else FeatureStore(options.store)
    model, processor = load_model(options.model, options.revision)
    model.to(options.device)
    prepack_linear_layers(model)
    guard = Guard(None, limits)
    guard.app = make_app(ModelServer(model, processor, store, options.index, limits), guard)

    class Server(uvicorn.Server):
        """A server whose first signal asks it to end when all is answered, and whose second ends it."""

        def handle_exit(self, number: int, frame: Any) -> None:
            self.force_exit = guard.stops_at is not None
            guard.stops_at = guard.stops_at or time.monotonic() + _GRACE_S

        async def on_tick(self, counter: int) -> bool:
            self.should_exit |= guard.stops_at is not None and time.monotonic() >= guard.stops_at
            return await super().on_tick(counter) or self.force_exit

        async def shutdown(self, sockets: Any = None) -> None:
            loop, connected = asyncio.get_running_loop(), []
            loop.remove_reader(listening)
            with suppress(BlockingIOError):  # what is connected, but was not accepted
                while True:
                    connected.append(listening.accept()[0])
            for server in self.servers:
                server.close()
            protocol = {"config": config, "server_state": self.server_state, "app_state": self.lifespan.state}
            for one in connected:
                await loop.connect_accepted_socket(partial(config.http_protocol_class, **protocol), one)

            # Each connection ends with its answer; uvicorn would end those at once that it has read nothing of.
            ends = time.monotonic() + _GRACE_S
            while self.server_state.connections and time.monotonic() < ends and not self.force_exit:
                await asyncio.sleep(0.01)
            await super().shutdown(sockets)

    # The loop of asyncio: the socket is taken from it at the end.
    quiet: Any = {"log_level": "warning", "server_header": False, "timeout_keep_alive": 60, "loop": "asyncio"}
    config = uvicorn.Config(guard, options.host, options.port, **quiet)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:  # listening already, so that nobody who reads the address is refused
        listening = socket.create_server((options.host, options.port), family=family, backlog=config.backlog)
    except (OSError, OverflowError) as error:
        wrong = f"cannot listen at port {options.port} of {options.host} ({getattr(error, 'strerror', None) or error})"
        raise OSError(f"{wrong}; give another --port, such as 0 for any that is free, or another --host.") from error
    address = "http://{}:{}".format(*listening.getsockname()[:2])
    print(f"serving {options.model} on {address} (what it takes: {address}/docs)", file=sys.stderr, flush=True)
    started = time.monotonic()
    Server(config).run([listening])
    seconds = round(time.monotonic() - started, 1)
    return {"model": options.model, "requests": guard.served, "refused": guard.refused, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """Lay the end of a server out for reading."""
    return aligned(result)


class Guard:
    """What stands before the routes: how many requests and how large, and connections that are to close at the end."""

    def __init__(self, app: Any, limits: ServingLimits) -> None:
        self.app, self.limits = app, limits
        self.stops_at: float | None = None
        self.active = self.served = self.refused = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or refuse it before its body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start" and self.stops_at is not None:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        limit = self.limits.max_body_mb * _MEGABYTE
        is_health = scope["path"] == "/health"
        if not is_health and self.active >= self.limits.max_queue:
            await self._refuse(answer, 503, f"{self.active} requests are under way; try again.")
        elif int(length) > limit:
            await self._refuse(answer, 413, f"the body has {int(length):,} bytes, more than {limit:,}.")
        else:
            self.active += not is_health
            try:
                await self.app(scope, _limited(receive, limit), answer)
            finally:
                self.active -= not is_health
                self.served += not is_health

    async def _refuse(self, send: Any, status: int, detail: str) -> None:
        from starlette.responses import JSONResponse

        self.refused += 1
        headers = {"Connection": "close", **({"Retry-After": "1"} if status == 503 else {})}
        await JSONResponse({"detail": detail}, status, headers)({"type": "http"}, None, send)


def _limited(receive: Any, limit: int) -> Any:
    """A body that is cut off where it is longer than was said, or than is allowed."""
    from fastapi import HTTPException

    received = 0

    async def limited() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"the body has more than {limit:,} bytes.", {"Connection": "close"})
        return message

    return limited


def make_app(server: ModelServer, guard: Guard) -> Any:
    """Return the FastAPI app of what a model can do: its routes, their bodies and answers, errors as sentences."""
    from contextlib import asynccontextmanager
    from typing import Annotated

    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse
    from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

    count = Annotated[int, Field(ge=1, le=_MOST)]
    in_base64 = Annotated[Base64Bytes | None, Field(description="image file in base64")]

    class Body(BaseModel):
        model_config = ConfigDict(extra="forbid")

    class AnswerBody(Body):
        question: str
        image: in_base64 = None
        image_id: str | None = None
        top_k: count = 5

    class SearchBody(Body):
        text: str | None = None
        image: in_base64 = None
        top_k: count = 10
        threshold: float | None = None
        if server.searches:
            rerank_top: count | None = None
        else:
            answer: str | None = None

    class EmbedBody(Body):
        texts: list[str] = []
        images: list[Base64Bytes] = []

    class Answer(BaseModel):
        answer: str
        score: float

    class Hit(BaseModel):
        id: str
        score: float
        match: float | None = None
        answer: str | None = None

    class Answers(BaseModel):
        answers: list[Answer]

    class Hits(BaseModel):
        best: list[Hit]
        matches: int | None

    class Vectors(BaseModel):
        embeddings: list[list[float]]

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield
        server.batcher.close()

    app = FastAPI(title="dual-distill", description=f"{type(server.model).__name__}", lifespan=lifespan)

    @app.exception_handler(ValueError)
    def refuse(request: Any, error: ValueError) -> Any:
        # Where the store lies is not for strangers.
        path = getattr(getattr(server.stored, "images", None) or getattr(server.stored, "store", None), "path", None)
        return JSONResponse({"detail": str(error).replace(f" {path!r}", "")}, 422)

    @app.get("/health")
    async def health() -> Any:
        """200 while it takes requests; 503 once it was told to end."""
        stops = guard.stops_at is not None
        return JSONResponse({"status": "stopping" if stops else "ok", "active": guard.active}, 503 if stops else 200)

    # Images are decoded in threads, beside the model's.
    if server.answering:

        @app.post("/answer")
        async def answer(body: AnswerBody) -> Answers:
            """Answer a question about an image of the request, or of the store."""
            job = await run_in_threadpool(server.answer, body.question, body.image, body.image_id, body.top_k)
            return Answers(answers=await asyncio.wrap_future(job))

    if server.stored:

        @app.post("/search", response_model_exclude_unset=True)
        async def search(body: SearchBody) -> Hits:
            """Search the store by a text or an image; of a model that answers, rank its images by a question."""
            job = await run_in_threadpool(lambda: server.search(**body.model_dump()))
            found = await asyncio.wrap_future(job)
            # A ranking calls an image's id by its kind.
            rows = [one._asdict() for one in found.best]
            best = [Hit(id=row.pop("image", None) or row.pop("id"), **row) for row in rows]
            return Hits(best=best, matches=found.matches)

    if server.encodes:

        @app.post("/embed")
        async def embed(body: EmbedBody) -> Vectors:
            """Encode texts and images: unit vectors of a model that searches, else pooled ones; texts come first."""
            jobs = await run_in_threadpool(server.embed, body.texts, body.images)
            return Vectors(embeddings=await asyncio.gather(*map(asyncio.wrap_future, jobs)))

    return app
