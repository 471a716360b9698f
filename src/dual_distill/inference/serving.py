"""A model and a store for many who ask at once: answers, searches and vectors. `dual-distill serve` is the HTTP of it.

What is unusual: one thread computes, and whatever waits for it by then goes through the model together, so a batch
forms under load and a lone request waits for nobody. Images come as bytes alone: a server that fetched what a request
names would read its own files and network for strangers.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from dual_distill import data
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig
from dual_distill.teachers import LABELLED

from .encoding import encode_in_order, searches, text_inputs
from .feature_store import FeatureStore
from .feature_store_vqa import FeatureStoreVQA
from .pipeline import DualVisualQuestionAnsweringPipeline
from .queries import check_at_least_1
from .search import FeatureStoreSearcher
from .sources import check_text


@dataclass(frozen=True)
class ServingLimits:
    """What a server takes on.

    Attributes:
        max_batch: requests that go through the model together.
        max_queue: requests under way; the next is refused (503).
        max_body_mb: largest body in megabytes (413); an image in base64 takes 4/3 of its file.
        max_pixels: largest width x height of an image (422); 64,000,000 at most.

    Raises:
        ValueError: one is below 1, or `max_pixels` above what is decoded.
    """

    max_batch: int = 32
    max_queue: int = 256
    max_body_mb: int = 16
    max_pixels: int = 16_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_at_least_1(name, value)
        if self.max_pixels > data.MAX_PIXELS:
            raise ValueError(f"max_pixels is {self.max_pixels:,}, but images have {data.MAX_PIXELS:,} at most.")


class _Job(NamedTuple):
    key: Hashable
    run: Callable[[list[Any]], Sequence[Any]]
    item: Any
    future: "Future[Any]"


class Batcher:
    """One thread that runs jobs, those that wait with an equal key together.

    Args:
        max_batch: most jobs a call.

    Example:
        >>> batcher = Batcher(max_batch=8)
        >>> jobs = [batcher.submit("double", lambda items: [2 * item for item in items], item) for item in (1, 2)]
        >>> [job.result() for job in jobs]
        [2, 4]
        >>> batcher.close()
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch, self._jobs, self._closed = max_batch, deque[_Job](), False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, run: Callable[[list[Any]], Sequence[Any]], item: Any) -> "Future[Any]":
        """Let `run` have `item`, in a list of those whose key is equal; a result each comes back."""
        job = _Job(key, run, item, Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed.")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                first = self._jobs[0]
                batch = [job for job in self._jobs if job.key == first.key][: self._max_batch]
                for job in batch:
                    self._jobs.remove(job)
            self._run([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _run(self, batch: list[_Job]) -> None:
        if not batch:
            return
        try:
            results = batch[0].run([job.item for job in batch])
        except Exception as error:
            # One that cannot be answered spoils no other.
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            for job in batch if len(batch) > 1 else ():
                self._run([job])
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)


class ModelServer:
    """What the routes call: a model, and what it made, through one `Batcher`.

    Args:
        model: answers questions, or is a dual encoder that searches.
        processor: its processor.
        store: what the model made of images, or of texts to be found by images; None: only what comes with a request.
        index: as for `FeatureStoreSearcher`; None without a store to search.
        limits: what is taken on.

    Raises:
        ValueError: the model does neither; it reads regions; the store is not of this model; an index without a
            store to search.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        store: FeatureStore | None = None,
        index: str | None = None,
        limits: ServingLimits | None = None,
    ) -> None:
        self.model, self.processor, self.limits = model.eval(), processor, limits or ServingLimits()
        self.searches, self.encodes = searches(model), isinstance(model.config, DualEncoderConfig)
        if not self.searches and not isinstance(model, LABELLED):
            raise ValueError(f"{type(model).__name__} neither answers nor searches; serve a model that does.")
        if getattr(model.config, "visual_inputs", "patches") == "regions" or getattr(model, "num_images", 1) != 1:
            raise ValueError("the model reads regions, or several images together; serve one that reads an image.")

        if index is not None and not (store and self.searches):
            way_out = "leave it out, or serve a model that searches, with its store"
            raise ValueError(f"index is {index!r}, but there is no store that this model searches; {way_out}.")

        self.answering: Any = None
        self.stored: Any = None
        if not self.searches:
            self.answering = DualVisualQuestionAnsweringPipeline(model, processor, device=model.device)
        if store is not None:
            asked = (model, processor, store)
            self.stored = FeatureStoreSearcher(*asked, index=index) if self.searches else FeatureStoreVQA(*asked)
        self.batcher = Batcher(self.limits.max_batch)

    def image(self, content: bytes) -> Any:
        """Decode an image of a request."""
        return data.decode_image(content, "of the request", self.limits.max_pixels, self.processor.jpeg_size)

    def answer(self, question: str, image: bytes | None, image_id: str | None, top_k: int) -> "Future[Any]":
        """Answer a question about an image that is given, or stored."""
        check_text("question", question)
        if (image is None) == (image_id is None):
            raise ValueError("give image (base64), or image_id of the store; one of them.")
        if image_id is None:
            assert image is not None
            request = self.answering.preprocess({"image": self.image(image), "question": question})
            return self.batcher.submit(("answer", top_k), lambda batch: self._answer(batch, top_k), request)

        if self.stored is None:
            raise ValueError("image_id is given, but the server has no store; give image.")
        self.stored.images.indices([image_id])  # what is absent is said now
        pair = (image_id, question)
        return self.batcher.submit(("stored", top_k), lambda pairs: self.stored.answer_pairs(pairs, top_k), pair)

    def _answer(self, requests: list[Any], top_k: int) -> list[Any]:
        logits = self.answering.forward(requests, batch_size=self.limits.max_batch)
        return [self.answering.postprocess(one, top_k) for one in zip(requests, logits, strict=True)]

    def search(self, text: str | None, image: bytes | None, top_k: int, **options: Any) -> "Future[Any]":
        """Search the store, or rank its images by the answer to a question."""
        if self.stored is None:
            raise ValueError("the server has no store to search; start it with --store.")
        if (text is None) == (image is None):
            raise ValueError("give text, or image (base64); one of them.")
        if text is not None:
            check_text("text", text)
        given = {name: value for name, value in options.items() if value is not None}
        key = ("search", text is None, top_k, *sorted(given.items()))

        if self.searches:
            search = self.stored.by_images if text is None else self.stored.by_texts
            query = text if image is None else self.image(image)
            return self.batcher.submit(key, lambda queries: search(queries, top_k, **given), query)
        if text is None:
            raise ValueError("images are found by a question here; give text.")
        return self.batcher.submit(key, lambda texts: self.stored.rankings(texts, top_k=top_k, **given), text)

    def embed(self, texts: Sequence[str], images: Sequence[bytes]) -> list["Future[Any]"]:
        """Encode texts and images: what a store keeps of each, float32."""
        if (not texts and not images) or len(texts) + len(images) > self.limits.max_batch:
            raise ValueError(f"give texts, images, or both: 1 to {self.limits.max_batch} in all.")
        for text in texts:
            check_text("text", text)
        inputs = [*text_inputs(self.model, self.processor, texts)]
        inputs += [data.resize_image(self.processor.prepare_image, self.image(one), "of the request") for one in images]

        def encode(rows: list[Any]) -> list[list[float]]:
            return encode_in_order(self.model, rows, len(rows), self.limits.max_batch).float().tolist()

        # Texts and images go through towers of their own.
        return [self.batcher.submit(("embed", row.is_floating_point()), encode, row) for row in inputs]
