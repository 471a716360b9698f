"""What the page of the demo asks of one checkpoint, and of a teacher beside it: nothing here knows of a browser."""

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, pipeline

from dual_distill import inference, modeling
from dual_distill.data import ImageError, decode_image
from dual_distill.inference import FeatureStore, FeatureStoreSearcher, FeatureStoreVQA
from dual_distill.teachers import LABELLED, family_of, load_teacher
from dual_distill.trainer import captions_of_images

MOST_PIXELS = 24_000_000  # of an image from the page: 96 MB decoded, ten users at once
LONGEST_TEXT = 1_000
TOP_K = 3
TILE_SIZE = 420
_ROUTES = {"fusion_encoder": "nothing stored", "dual_encoder": "nothing stored", "image_stored": "image stored"}
_READ = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")


@dataclass(frozen=True)
class DemoImages:
    """Images that the page offers and searches.

    Attributes:
        source: what `open_images` takes: a folder, a Parquet file, a dataset, a mapping from id to image.
        questions: id -> a question that fits; may be empty.
    """

    source: Any
    questions: Mapping[str, str] = field(default_factory=dict)


class Answered(NamedTuple):
    """What models say of one question to one image.

    Attributes:
        answers: model -> answer -> probability, the most probable first.
        words: of the question, in order.
        maps: model -> `(words, rows, columns)`, the share of each word's attention that each cell gets.
        milliseconds: model and route -> of one answer, the smallest unit first.
        caption: what the checkpoint writes about the image; None: it writes none.
    """

    answers: dict[str, dict[str, float]]
    words: list[str]
    maps: dict[str, np.ndarray]
    milliseconds: dict[str, float]
    caption: str | None = None


class Found(NamedTuple):
    """One image of a search: its id and what is said of it."""

    image: str
    caption: str


class Demonstration:
    """Loaded models and images; one request at a time, however many threads ask.

    Args:
        model: checkpoint of any model that can teach (`attention_maps`); ours answers, searches or writes captions too.
        teacher: a second one beside it.
        images: what is offered and searched.
        store: feature store of these images; None: a dual encoder encodes them now.
        revision: of the model.
        device: of both.

    Raises:
        ValueError: a model reads regions or several images together, the store is not of these images, or one cannot
            be loaded.
    """

    def __init__(
        self,
        model: str,
        teacher: str | None = None,
        images: DemoImages | None = None,
        store: str | None = None,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.images = inference.open_images(images.source) if images else None
        self.questions = images.questions if images else {}
        if store is not None and self.images is None:
            raise ValueError(f"The store {store!r} holds no pictures to show; give its images too.")

        self.models: dict[str, PreTrainedModel] = {}
        self.processors: dict[str, Any] = {}
        self._pipelines: dict[str, Any] = {}
        for name, role, named in ((model, "student" if teacher else "model", revision), (teacher, "teacher", None)):
            if name is not None:
                self._load(name, f"{role}: {Path(name).name}", named, device)
        self.name = next(iter(self.models))
        self._judges = {name for name in self.models if self.name in self._pipelines and self._is_judge(name)}
        self._lock = threading.Lock()
        self._search = None if self.images is None else self._open_search(store)

    def _load(self, name: str, title: str, revision: str | None, device: str) -> None:
        model, processor = load_teacher(name, revision)
        if getattr(model.config, "visual_inputs", "patches") == "regions" or getattr(model, "num_images", 1) != 1:
            raise ValueError(f"{name!r} reads regions, or several images together; take a model of one image.")
        if isinstance(model.config, modeling.FusionEncoderConfig | modeling.DualEncoderConfig):
            inference.prepack_linear_layers(model)
        self.models[title], self.processors[title] = model.to(device), processor
        if isinstance(model, LABELLED):
            answering = {"model": model, "processor": processor, "device": device}
            self._pipelines[title] = pipeline(inference.ANSWERING_TASK, **answering)

    def _open_search(self, store: str | None) -> FeatureStoreSearcher | FeatureStoreVQA | None:
        """What finds images by text, where the checkpoint is a dual encoder that can."""
        model, processor = self.models[self.name], self.processors[self.name]
        compares = isinstance(model, modeling.ContrastiveDualEncoder)
        answers = isinstance(model.config, modeling.DualEncoderConfig) and self.name in self._pipelines
        if not (compares or answers):
            return None
        searcher = FeatureStoreSearcher if compares else FeatureStoreVQA
        if store is not None:
            opened = FeatureStore(store)
            self.images_of([*opened.ids(range(min(1, len(opened))))])
            return searcher(model, processor, opened)

        # Kept as long as the process runs: what was opened is mapped into memory.
        self._folder = tempfile.TemporaryDirectory()
        inference.encode_images(model, processor, self.images, self._folder.name, show_progress=True)
        return searcher(model, processor, FeatureStore(self._folder.name))

    def _is_judge(self, name: str) -> bool:
        """Whether a model of another family says how probable answers are that it is given."""
        try:
            return name not in self._pipelines and bool(self._judged(name, Image.new("RGB", (64, 64)), "yes?", ["yes"]))
        except ValueError:  # the family's own word for one that says nothing of answers
            return False

    def _judged(self, name: str, image: Image.Image, text: str, answers: list[str]) -> dict[str, float]:
        """How probable a model of another family finds some answers, which add up to 1."""
        model, processor = self.models[name], self.processors[name]
        family = family_of(model.config)
        batch = family.inputs(model.config, processor, [image], [text])
        batch = {key: each.to(model.device) for key, each in batch.items()}
        logits = family.view(model, processor, batch, [-1], answers=answers).logits
        return {} if logits is None else dict(zip(answers, logits[0].softmax(-1).tolist(), strict=True))

    def answers(self, name: str) -> bool:
        """Whether a model has answers of its own, or judges those of the other."""
        return name in self._pipelines or name in self._judges

    @property
    def writes_captions(self) -> bool:
        """Whether the checkpoint writes captions."""
        return isinstance(self.models[self.name], modeling.FusionEncoderForCaptioning)

    @property
    def searches(self) -> bool:
        """Whether images can be found by a text."""
        return self._search is not None

    @property
    def ranks_answers(self) -> bool:
        """Whether a search is a question to all images, and not a text that is near to some."""
        return isinstance(self._search, FeatureStoreVQA)

    def images_of(self, ids: list[str]) -> list[Image.Image]:
        """Decoded images by their ids.

        Raises:
            ValueError: there is no such image.
        """
        assert self.images is not None
        known = set(self.images.ids)
        if absent := [identifier for identifier in ids if identifier not in known]:
            raise ValueError(f"There is no image {absent[0]!r} among those given; give the images of the store.")
        return [decode_image(self.images.value(identifier), identifier) for identifier in ids]

    def ask(self, image: Any, question: str | None) -> Answered:
        """Answer, look and time.

        Args:
            image: what `load_image` takes; None: there is none yet.
            question: or a sentence; where a checkpoint writes captions none is needed: its own then looks.

        Raises:
            ValueError: there is no image, or no word.
        """
        if image is None:
            raise ValueError("There is no image yet; choose one below, or upload one.")
        with self._lock:
            shown = self.models[self.name], self.processors[self.name]
            [caption] = captions_of_images(*shown, [image]) if self.writes_captions else [None]
            text = checked_text(question or caption, "question")
            answers = {
                name: {row["answer"]: row["score"] for row in answering(image, text, top_k=TOP_K)}
                for name, answering in self._pipelines.items()
            }
            for name in self._judges:
                whole = inference.load_image(image, text)
                answers[name] = self._judged(name, whole, text, list(answers[self.name]))
            maps: dict[str, np.ndarray] = {}
            for name, model in self.models.items():
                grid = next(iter(maps.values())).shape[1:] if maps else None
                words, maps[name] = inference.attention_maps(model, self.processors[name], image, text, grid=grid)
            return Answered(answers, words, maps, self._times(image, text), caption)

    def _times(self, image: Any, question: str) -> dict[str, float]:
        """Median milliseconds of every route of our models, timed in turn on this very question."""
        calls: dict[str, Any] = {}
        for name, model in self.models.items():
            if name in self._pipelines:
                shown = inference.load_image(image, question, jpeg_size=self.processors[name].jpeg_size)
                batch = family_of(model.config).inputs(model.config, self.processors[name], [shown], [question])
                read = {key: batch[key].to(model.device) for key in _READ}
                ways = inference.answering_ways(model, read)
                calls |= {f"{name}, {_ROUTES[way]}": call for way, call in ways.items() if way in _ROUTES}
        if not calls:
            return {}
        timings = inference.alternate(calls, next(iter(self.models.values())).device, warmup=1, repeats=3)
        return {name: timing.median_ms for name, timing in timings.items()}

    def search(self, text: str, answer: str = "", top_k: int = 12) -> list[Found]:
        """Find images by a text, or those to which an answer of a question is most probable.

        Args:
            text: a sentence, or a question where `ranks_answers`.
            answer: of the question; empty: each image's most probable one.
            top_k: images that are found.

        Raises:
            ValueError: there is no word, or the model has no such answer.
        """
        text = checked_text(text, "text")
        with self._lock:
            if isinstance(self._search, FeatureStoreVQA):
                best = self._search.rank(text, answer.strip() or None, top_k).best
                return [Found(hit.image, f"{hit.answer}  {100 * hit.score:.1f} %") for hit in best]
            assert self._search is not None
            [result] = self._search.by_texts([text], top_k)
            return [Found(hit.id, f"cosine {hit.score:.3f}") for hit in result.best]


def checked_text(text: str | None, what: str) -> str:
    """Return a text without space around it, or refuse one that is empty or far too long.

    Example:
        >>> checked_text(" ", "question")
        Traceback (most recent call last):
        ValueError: There is no question yet; write one.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError(f"There is no {what} yet; write one.")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"The {what} has {len(text):,} characters, more than {LONGEST_TEXT:,}; write a shorter one.")
    return text


def read_upload(file: str) -> bytes:
    """Return what was uploaded, once it was decoded; the sentence of what cannot be used names no path of this machine.

    Raises:
        ValueError: the file is no image, is damaged, or has too many pixels.
    """
    try:
        content = Path(file).read_bytes()
        decode_image(content, "upload", max_pixels=MOST_PIXELS)
        return content
    except ImageError as error:
        reason = str(error).partition(": ")[2].partition(";")[0]
        raise ValueError(f"This image cannot be used: {reason}. Choose another.") from error


def sharpest(answered: Answered) -> int:
    """The word, no punctuation, with the largest share on one cell, in the mean of the models.

    Example:
        >>> maps = {"model": np.array([[[0.5, 0.5]], [[0.1, 0.8]], [[0.0, 1.0]]])}
        >>> sharpest(Answered({}, ["the", "dog", "?"], maps, {}))
        1
    """
    peaks = np.mean([maps.max(axis=(1, 2)) for maps in answered.maps.values()], axis=0)
    is_word = np.array([any(map(str.isalnum, word)) for word in answered.words])
    return int(np.where(is_word, peaks, -1.0).argmax())


def looks(image: Image.Image, answered: Answered, word: int) -> dict[str, tuple[Image.Image, float]]:
    """Where models look for one word: a tile each, and the largest share of a cell; the tiles have one scale."""
    heat = {name: maps[word] for name, maps in answered.maps.items()}
    peak = max(float(values.max()) for values in heat.values()) or 1.0
    return {
        name: (inference.draw_attention_tile(image, values / peak, tile_size=TILE_SIZE), float(values.max()))
        for name, values in heat.items()
    }
