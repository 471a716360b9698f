"""Ask many: questions to stored images, without an image being read again.

What is unusual: the first linear map of the shallow interaction acts on text and image apart. The question's half is
computed once for all images, the image's half once for all questions (or comes from the store), and a pair costs one
addition and what lies behind. All images are run through piece by piece; only the best `top_k` are kept, so memory does
not grow with the store.

Of a model with interaction layers the store holds each image's tokens, or the keys and values that the layers make of
them, and the layers read these with every question.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor

from .encoding import searches
from .feature_store import LISTS, PROJECTED, FeatureStore
from .queries import FeatureStoreQueries, RunningTopK, answer_probs, best_answers, check_at_least_1, log_odds
from .sources import check_texts

_ROWS = 1024
_TOKEN_ROWS = 64


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


class FeatureStoreVQA(FeatureStoreQueries):
    """Answers questions about the images of a store.

    Probabilities are those of `pipeline("dual-visual-question-answering")`: one sigmoid an answer where the config's
    `problem_type` is "multi_label_classification", else a softmax over all answers.

    Args:
        model: the dual encoder that made the store, with an answer or class head for one image; put into eval mode.
        processor: its processor.
        images: a store of images.
        texts: a store of texts; questions that it holds are not encoded again.

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
    ) -> None:
        if getattr(model, "num_images", None) != 1 or not hasattr(model, "logits_of_projections"):
            way_out = " (to search by cosine, FeatureStoreSearcher is the one)" if searches(model) else ""
            wrong = f"{type(model).__name__} does not answer about one image at a time{way_out}"
            raise ValueError(f"{wrong}; give a dual encoder that answers about one image.")

        super().__init__(model, processor, image=images, text=texts)
        for store in (images, texts) if model.config.interaction_layers else ():
            if store is not None and store.manifest.vectors not in LISTS:
                held = f"the store {store.path!r} holds {store.manifest.vectors} vectors of {store.manifest.kind}s"
                reads = "The model has interaction layers, which read an image's tokens"
                raise ValueError(f"{reads}, but {held}; encode the images again, and give no store of texts.")
        self.images, self.texts = images, texts
        self._has_tokens = images.manifest.vectors in LISTS
        self._part = PROJECTED if images.manifest.projected else None
        self._labels = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def rank(
        self, question: str, answer: str | None = None, top_k: int = 10, threshold: float = 0.0, rows: int | None = None
    ) -> Ranking:
        """Ask one question of all stored images: `rankings` of it alone."""
        return self.rankings([question], answer, top_k, threshold, rows)[0]

    @torch.inference_mode()
    def rankings(
        self,
        questions: Sequence[str],
        answer: str | None = None,
        top_k: int = 10,
        threshold: float = 0.0,
        rows: int | None = None,
    ) -> list[Ranking]:
        """Ask questions of all stored images, each of which is read and brought to the questions once.

        Args:
            questions: with words in them.
            answer: rank by the probability of this answer; None: of each image's most probable one.
            top_k: images that are kept of each question.
            threshold: least probability, in [0, 1].
            rows: images a step (default 1,024; 64 where tokens are stored); memory grows with it, the result does not
                depend on it.

        Returns:
            A `Ranking` a question.

        Raises:
            ValueError: a question is empty, the answer is none of the model's, or `top_k` or `threshold` is out of
                range.
        """
        check_at_least_1("top_k", top_k)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but a probability lies between 0 and 1.")
        if answer is not None and answer not in self._labels:
            shown = ", ".join(self._labels[:10]) + (", ..." if len(self._labels) > 10 else "")
            raise ValueError(f"The answer {answer!r} is none of the model's {len(self._labels)} ({shown}).")

        # By log-odds: probabilities of sure answers are all 1 in float32.
        each = [RunningTopK(top_k, -sys.float_info.max) for _ in check_texts(questions, "questions")]
        label = None if answer is None else self._labels.index(answer)
        for start, of_questions in self._asked(questions, rows):
            for best, logits in zip(each, of_questions, strict=True):
                labels = logits.argmax(-1) if label is None else torch.full_like(logits[:, 0], label, dtype=torch.long)
                odds = log_odds(self.model.config, logits, labels).cpu().double()
                best.add(start, odds.masked_fill(_probabilities(odds) < threshold, -math.inf), labels.cpu())

        rankings = []
        for best in each:
            ids, answers = self.images.ids(best.rows.tolist()), [self._labels[one] for one in best.labels.tolist()]
            scores = _probabilities(best.scores).tolist()
            rankings.append(Ranking(list(map(RankedImage, ids, answers, scores)), best.matches))
        return rankings

    @torch.inference_mode()
    def probabilities(self, question: str, rows: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Ask one question of all stored images and keep nothing.

        Args:
            question: with words in it.
            rows: images a step, as in `rankings`.

        Yields:
            The index of the first image in the store, and `(images, labels)` probabilities, float32, on the CPU.
        """
        for start, of_questions in self._asked([question], rows):
            for logits in of_questions:
                yield start, answer_probs(self.model.config, logits).cpu()

    def _asked(self, questions: Sequence[str], rows: int | None) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """The first image of each step, and for each question the logits of the step's images."""
        if not self._has_tokens:
            texts = self.model.project_text(self._text_vectors(questions, self.texts).to(self.model.dtype))
            for start, vectors in self.images.pieces(self._part, rows or _ROWS):
                half = self._projected(vectors)
                yield start, (self._logits(text[None], half) for text in texts)
            return

        size = rows or _TOKEN_ROWS
        words = [self._words([question]) for question in questions]
        for start in range(0, len(self.images), size):
            indices = range(start, min(start + size, len(self.images)))
            images = self._stored_images(self.images, indices)
            if len(words) > 1:
                images = self._token_states(images)
            yield start, (self._token_logits(asked, images, len(indices)) for asked in words)

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
        return self.answer_pairs([(image, question) for question in check_texts(questions, "questions")], top_k)

    @torch.inference_mode()
    def answer_pairs(
        self, pairs: Sequence[tuple[str, str]], top_k: int = 5, rows: int | None = None
    ) -> list[list[dict[str, str | float]]]:
        """Ask any questions of any stored images; a question that occurs again is encoded once.

        Args:
            pairs: id of an image, and a question.
            top_k: answers a pair.
            rows: pairs a step, by default as many as `rank` takes images.

        Returns:
            For each pair what `answer` gives for one question.

        Raises:
            ValueError: the store lacks an image, or a question is empty.
        """
        check_at_least_1("top_k", top_k)
        # All images are looked up first, so that a missing one is said before minutes of answering.
        indices = self.images.indices([image for image, _ in pairs])

        answers = []
        rows = rows or (_TOKEN_ROWS if self._has_tokens else _ROWS)
        for start in range(0, len(pairs), rows):
            step = slice(start, start + rows)
            questions = [question for _, question in pairs[step]]
            if self._has_tokens:
                inputs = self._pair_inputs(questions, self.images, indices[step])
                logits = self._token_logits(inputs, {}, len(questions))
            else:
                vectors = self.images.read(indices[step], self._part)
                texts = self._text_vectors(questions, self.texts).to(self.model.dtype)
                logits = self._logits(self.model.project_text(texts), self._projected(vectors))
            answers += best_answers(self.model.config, logits, top_k)
        return answers

    def _projected(self, vectors: torch.Tensor) -> torch.Tensor:
        """The images' half of the interaction, `(rows, 1, 2C)`, of what is stored."""
        images = vectors.to(self.model.device, self.model.dtype)[:, None]
        return images if self._part == PROJECTED else self.model.project_images(images)

    def _logits(self, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Logits of pairs of projected texts and images, or of one text and every image."""
        return self.model.logits_of_projections(texts, images).float()

    def _token_logits(self, words: Mapping[str, Any], images: Mapping[str, Any], pairs: int) -> torch.Tensor:
        """Logits of pairs of question and image, or of one question and every image."""
        return self.model(**words, **images).logits.float().expand(pairs, -1)

    def _token_states(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Stored tokens as the keys and values that interaction layers make of them, for many questions."""
        if "image_token_embeds" not in images:
            return dict(images)
        body, (tokens, mask) = self.model.dual_encoder, images.values()
        states = body.interaction_model.project_images(tokens[:, None])
        pooled = body.vision_model.pool(tokens, mask)
        return {"image_pooler_output": pooled, "image_token_states": states, "image_token_mask": mask}


def _probabilities(log_odds: torch.Tensor) -> torch.Tensor:
    """Log-odds as probabilities, float32; rounded last, so that they stand in the same order."""
    return log_odds.double().sigmoid().float()
