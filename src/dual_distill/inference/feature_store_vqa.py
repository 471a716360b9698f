"""Ask many: questions to stored images, without an image being read again.

What is unusual: the first linear map of the shallow interaction acts on text and image apart. The question's half is
computed once for all images, the image's half once for all questions (or comes from the store), and a pair costs one
addition and what lies behind. All images are run through piece by piece; only the best `top_k` are kept, so memory does
not grow with the store.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor

from .encoding import longest_text, searches
from .feature_store import POOLED, PROJECTED, FeatureStore
from .model_identity import (
    check_same_model,
    check_same_processor,
    image_processor_settings,
    model_identity,
    tokenizer_settings,
)
from .top_k import RunningTopK, check_at_least_1

_ROWS = 1024
_MULTI_LABEL = "multi_label_classification"


class RankedImage(NamedTuple):
    """One image of a ranking.

    Attributes:
        image: its id.
        answer: the answer that was asked for, or the image's most probable one.
        score: its probability.
    """

    image: str
    answer: str
    score: float


class Ranking(NamedTuple):
    """All stored images, ranked by one question.

    Attributes:
        best: the first `top_k`, most probable first; equal ones in the order of the store.
        matches: images that reach the threshold, of which `best` shows at most `top_k`.
    """

    best: list[RankedImage]
    matches: int


class FeatureStoreVQA:
    """Answers questions about the images of a store.

    Probabilities are those of `pipeline("dual-visual-question-answering")`: one sigmoid an answer where the config's
    `problem_type` is "multi_label_classification", else a softmax over all answers.

    Args:
        model: the dual encoder that made the store, with an answer or class head for one image; put into eval mode.
        processor: its processor.
        images: a store of images.
        texts: a store of texts; questions that it holds are not encoded again.
        model_name: what errors call the model; None: what it was loaded from.
        revision: likewise.

    Raises:
        ValueError: a store was made with another model or processor (the message names both) or is of the other kind,
            or the model has no such head.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from transformers import ViltImageProcessorPil
        >>> from dual_distill.data import train_tokenizer
        >>> from dual_distill.inference import encode_images
        >>> from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering
        >>> tokenizer = train_tokenizer(["is it red?"])
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = DualEncoderForQuestionAnswering(DualEncoderConfig(
        ...     text_config={"vocab_size": len(tokenizer), **tower},
        ...     vision_config={"image_size": 32, "patch_size": 16, **tower},
        ...     id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1}))
        >>> processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer)
        >>> images = {colour: Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = encode_images(model, processor, images, folder)
        ...     ask = FeatureStoreVQA(model, processor, FeatureStore(folder))
        ...     ranking = ask.rank("is it red?", answer="yes")
        ...     [answers] = ask.answer("red", ["is it red?"])
        >>> sorted(ranked.image for ranked in ranking.best), sorted(answers[0])
        (['blue', 'red'], ['answer', 'score'])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        images: FeatureStore,
        texts: FeatureStore | None = None,
        *,
        model_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        if getattr(model, "num_images", None) != 1 or not hasattr(model, "logits_of_projections"):
            way_out = " (to search by cosine, FeatureStoreSearcher is the one)" if searches(model) else ""
            raise ValueError(
                f"{type(model).__name__} does not answer about one image at a time{way_out}; give a dual encoder with "
                f"the head "
                "question_answering, or images_and_text_classification for one image."
            )
        for store, kind in ((images, "image"), (texts, "text")):
            if store is not None and store.manifest.kind != kind:
                raise ValueError(
                    f"{store.path!r} is a store of {store.manifest.kind}s, but one of {kind}s is needed here."
                )
        identity = model_identity(model, model_name, revision)
        check_same_model(images.path, images.manifest.model, identity)
        check_same_processor(images.path, images.manifest.processor, image_processor_settings(processor))
        self._max_tokens = longest_text(model, processor)
        if texts is not None:
            check_same_model(texts.path, texts.manifest.model, identity)
            check_same_processor(texts.path, texts.manifest.processor, tokenizer_settings(processor, self._max_tokens))
        self.model, self.processor, self.images, self.texts = model.eval(), processor, images, texts
        self._labels = [model.config.id2label[place] for place in range(model.config.num_labels)]

    def rank(
        self, question: str, answer: str | None = None, top_k: int = 10, threshold: float = 0.0, rows: int = _ROWS
    ) -> Ranking:
        """Ask one question of all stored images.

        Args:
            question: with words in it.
            answer: rank by the probability of this answer; None: of each image's most probable one.
            top_k: images that are kept.
            threshold: least probability, in [0, 1].
            rows: images a step; memory grows with it, the result does not depend on it.

        Returns:
            A `Ranking`.

        Raises:
            ValueError: the question is empty, the answer is none of the model's, or `top_k` or `threshold` is out of
            range.
        """
        check_at_least_1("top_k", top_k)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but a probability lies between 0 and 1.")
        place = None if answer is None else self._place(answer)
        best = RunningTopK(top_k, threshold)
        for start, probs in self.probabilities(question, rows):
            scores, labels = probs.max(-1) if place is None else (probs[:, place], torch.full((len(probs),), place))
            best.add(start, scores, labels)
        ids = self.images.ids(best.rows.tolist())
        ranked = [
            RankedImage(image, self._labels[label], score)
            for image, label, score in zip(ids, best.labels.tolist(), best.scores.tolist(), strict=True)
        ]
        return Ranking(ranked, best.matches)

    def probabilities(self, question: str, rows: int = _ROWS) -> Iterator[tuple[int, torch.Tensor]]:
        """Ask one question of all stored images and keep nothing.

        Args:
            question: with words in it.
            rows: images a step.

        Yields:
            The place of the first image in the store, and `(images, labels)` probabilities, float32, on the CPU.
        """
        name = PROJECTED if self.images.has_projections else POOLED
        text = self._text_projections([question])
        for start, piece in self.images.pieces(name, rows):
            with torch.inference_mode():
                probs = self._probs(text, self._image_projections(piece, text)).cpu()
            yield start, probs

    def answer(self, image: str, questions: Sequence[str], top_k: int = 5) -> list[list[dict[str, str | float]]]:
        """Ask many questions of one stored image.

        Args:
            image: its id.
            questions: one or more.
            top_k: answers a question.

        Returns:
            For each question `{"answer": label, "score": probability}`, most probable first.

        Raises:
            ValueError: the store has no such image, or a question is empty.
        """
        check_at_least_1("top_k", top_k)
        places = self.images.indices([image])
        with torch.inference_mode():
            text = self._text_projections(questions)
            probs = self._probs(text, self._stored_projections(places, text))
        return self._best(probs.cpu(), top_k)

    def answer_pairs(
        self, pairs: Sequence[tuple[str, str]], top_k: int = 5, rows: int = _ROWS
    ) -> list[list[dict[str, str | float]]]:
        """Ask any questions of any stored images; a question that occurs again is encoded once.

        Args:
            pairs: id of an image, and a question.
            top_k: answers a pair.
            rows: pairs a step.

        Returns:
            For each pair what `answer` gives for one question.

        Raises:
            ValueError: the store lacks an image, or a question is empty.
        """
        check_at_least_1("top_k", top_k)
        places = self.images.indices([image for image, _ in pairs])
        answers = []
        for start in range(0, len(pairs), rows):
            questions = [question for _, question in pairs[start : start + rows]]
            each = {question: number for number, question in enumerate(dict.fromkeys(questions))}
            with torch.inference_mode():
                text = self._text_projections(list(each))[[each[question] for question in questions]]
                probs = self._probs(text, self._stored_projections(places[start : start + rows], text))
            answers += self._best(probs.cpu(), top_k)
        return answers

    @torch.inference_mode()
    def _text_projections(self, questions: Sequence[str]) -> torch.Tensor:
        """`(questions, 2C)`, from the store of texts where it holds them."""
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"A question is {question!r}, but it should be a string with words in it.")
        if not questions:
            raise ValueError("There are no questions; give one or more.")
        held = [False] * len(questions) if self.texts is None else self.texts.holds(questions)
        projections = torch.empty(
            len(questions), 2 * self.model.config.hidden_size, dtype=self.model.dtype, device=self.model.device
        )
        stored = [number for number, is_held in enumerate(held) if is_held]
        if self.texts is not None and stored:
            name = PROJECTED if self.texts.has_projections else POOLED
            vectors = self.texts.read(self.texts.indices([questions[number] for number in stored]), name)
            vectors = vectors.to(self.model.device, self.model.dtype)
            projections[stored] = vectors if self.texts.has_projections else self.model.project_text(vectors)
        if fresh := [number for number, is_held in enumerate(held) if not is_held]:
            inputs = self.processor.encode_text([questions[number] for number in fresh], max_length=self._max_tokens)
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            projections[fresh] = self.model.project_text(self.model.get_text_features(**inputs).pooler_output)
        return projections

    def _stored_projections(self, places: Sequence[int], text: torch.Tensor) -> torch.Tensor:
        return self._image_projections(
            self.images.read(places, PROJECTED if self.images.has_projections else POOLED), text
        )

    def _image_projections(self, vectors: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """`(images, 1, 2C)` of what the store holds, on the device and in the dtype of the text's half."""
        vectors = vectors.to(text.device, text.dtype)[:, None]
        return vectors if self.images.has_projections else self.model.project_images(vectors)

    def _probs(self, text: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        logits = self.model.logits_of_projections(text, images).float()
        return logits.sigmoid() if self.model.config.problem_type == _MULTI_LABEL else logits.softmax(-1)

    def _best(self, probs: torch.Tensor, top_k: int) -> list[list[dict[str, str | float]]]:
        best = probs.topk(min(top_k, probs.shape[-1]), dim=-1)
        return [
            [{"answer": self._labels[place], "score": score} for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _place(self, answer: str) -> int:
        if answer not in self._labels:
            shown = ", ".join(self._labels[:10]) + (", ..." if len(self._labels) > 10 else "")
            raise ValueError(
                f"The answer {answer!r} is none of the model's {len(self._labels)} ({shown}); give one of them."
            )
        return self._labels.index(answer)


__all__ = ["FeatureStoreVQA", "RankedImage", "Ranking"]
