"""What asking and searching share: a model beside stores that it made, texts as vectors, the best of many scores."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from dual_distill.modeling import DualDistillProcessor

from .encoding import BATCH_SIZE, text_vectors
from .feature_store import FeatureStore
from .model_identity import longest_text, model_identity, processor_settings
from .sources import check_texts


class FeatureStoreQueries:
    """A dual encoder and the stores that it made, `image=` and `text=`; anything else is refused."""

    def __init__(self, model: PreTrainedModel, processor: DualDistillProcessor, **stores: FeatureStore | None) -> None:
        # Digested once for all stores; settings are asked for where a store is, for not every tokenizer has some.
        identity = model_identity(model)
        for kind, store in stores.items():
            if store is not None:
                settings = processor_settings(kind, model, processor)
                store.table.check_made_with(store.manifest, kind, identity, settings)
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def _text_vectors(self, texts: Sequence[str], store: FeatureStore | None) -> Tensor:
        """One row a text, float32; what the store of texts holds is not encoded again, and nothing is encoded twice."""
        check_texts(texts)

        # A text that the store holds is read, any other is encoded.
        found: dict[str, Tensor] = {}
        if store is not None:
            stored = [text for text in dict.fromkeys(texts) if text in store]
            found |= zip(stored, self._read(store, store.indices(stored)), strict=True)
        others = [text for text in dict.fromkeys(texts) if text not in found]
        if others:
            encoded = text_vectors(self.model, self.processor, others, BATCH_SIZE)
            found |= zip(others, encoded.float(), strict=True)
        return torch.stack([found[text] for text in texts])

    def _pair_inputs(self, texts: Sequence[str], store: FeatureStore, indices: Sequence[int]) -> dict[str, Tensor]:
        """What interaction layers read of texts and of stored images, side by side: equal ones stand there once."""
        # Broadcast to all of the other side, neither encoded nor read for each.
        asked = texts[:1] if len(set(texts)) == 1 else texts
        read = indices[:1] if len(set(indices)) == 1 else indices

        return self._words(asked) | self._stored_images(store, read)

    def _words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts as a model reads them, on its device."""
        check_texts(texts)
        words = self.processor.encode_text(list(texts), max_length=longest_text(self.model, self.processor))
        return {name: tensor.to(self.model.device) for name, tensor in words.items()}

    def _stored_images(self, store: FeatureStore, indices: Sequence[int]) -> dict[str, Tensor]:
        """What interaction layers read of stored images, on the model's device and in its dtype."""
        given = store.image_inputs(indices, self.model.config)
        dtypes = {name: self.model.dtype if tensor.is_floating_point() else None for name, tensor in given.items()}
        return {name: tensor.to(self.model.device, dtypes[name]) for name, tensor in given.items()}

    def _read(self, store: FeatureStore, indices: Sequence[int]) -> Tensor:
        """Vectors at some indices, float32, on the model's device."""
        return store.read(indices).to(self.model.device, torch.float32)


class RunningTopK:
    """Keeps the best `top_k` rows of pieces that come one after the other, in memory that does not grow with them.

    Args:
        top_k: rows that are kept.
        threshold: least score.

    Attributes:
        scores: `(kept,)`, best first; equal ones in the order in which they came.
        rows: `(kept,)` int64, their indices.
        labels: `(kept,)` int64, what `add` was given beside them.
        matches: rows so far that reach the threshold, kept or not.

    Example:
        >>> best = RunningTopK(top_k=2, threshold=0.0)
        >>> best.add(0, torch.tensor([0.1, 0.9]))
        >>> best.add(2, torch.tensor([-0.5, 0.9, 0.3]))
        >>> best.rows, best.matches
        (tensor([1, 3]), 4)
    """

    def __init__(self, top_k: int, threshold: float) -> None:
        self._top_k, self._threshold = top_k, threshold
        self.scores = torch.empty(0)
        self.rows = self.labels = torch.empty(0, dtype=torch.long)
        self.matches = 0

    def add(self, start: int, scores: Tensor, labels: Tensor | None = None) -> None:
        """Take in one piece.

        Args:
            start: index of its first row.
            scores: `(rows,)`, on the CPU.
            labels: `(rows,)` int64, kept beside the rows; None: 0.
        """
        is_match = scores >= self._threshold
        self.matches += int(is_match.sum())
        # Once all are kept that may be, only better ones come in.
        if len(self.scores) == self._top_k:
            is_match &= scores > self.scores[-1]
        found = is_match.nonzero()[:, 0]
        if not len(found):
            return

        # Sorted stably and the earlier ones first: equal scores stay in their order.
        self.scores, order = torch.cat([self.scores, scores[found]]).sort(descending=True, stable=True)
        order = order[: self._top_k]
        self.scores = self.scores[: self._top_k].clone()
        self.rows = torch.cat([self.rows, found + start])[order]
        self.labels = torch.cat([self.labels, torch.zeros_like(found) if labels is None else labels[found]])[order]


def answer_probs(config: PreTrainedConfig, logits: Tensor) -> Tensor:
    """Return probabilities of answers: a sigmoid each where several may be right, else a softmax over all."""
    return logits.sigmoid() if config.problem_type == "multi_label_classification" else logits.softmax(-1)


def log_odds(config: PreTrainedConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-odds of one answer a row: its sigmoid is `answer_probs`, but where that rounds to 1 it differs."""
    chosen = logits.gather(-1, labels[:, None])[:, 0]
    if config.problem_type == "multi_label_classification":
        return chosen
    return chosen - logits.scatter(-1, labels[:, None], -torch.inf).logsumexp(-1)


def best_answers(config: PreTrainedConfig, logits: Tensor, top_k: int) -> list[list[dict[str, str | float]]]:
    """Return for each row of `(rows, labels)` logits the best answers with their probabilities, most probable first."""
    # By logits: probabilities of sure answers are all 1 in float32.
    order = logits.topk(min(top_k, logits.shape[-1]), dim=-1).indices
    scores = answer_probs(config, logits).gather(-1, order)
    return [
        [{"answer": config.id2label[label], "score": score} for label, score in zip(labels, scores, strict=True)]
        for labels, scores in zip(order.tolist(), scores.tolist(), strict=True)
    ]


def check_at_least_1(name: str, value: int) -> None:
    """Refuse a count that is no integer or below 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, but must be at least 1.")
