"""What asking and searching stores share: a model beside stores that it made, and texts as vectors."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from dual_distill.data import Prepared, ShapedBatches
from dual_distill.modeling import DualDistillProcessor

from .encoding import longest_text, stored_vectors
from .feature_store import FeatureStore
from .model_identity import (
    check_same_model,
    check_same_processor,
    image_processor_settings,
    model_identity,
    tokenizer_settings,
)
from .top_k import check_text

_BATCH_SIZE = 32


class FeatureStoreQueries:
    """A dual encoder and the stores that it made, by what they should be of; anything else is refused."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        stores: Mapping[str, FeatureStore | None],
        model_name: str | None,
        revision: str | None,
    ) -> None:
        identity = model_identity(model, model_name, revision)
        # Asked for when a store of the kind is there: not every tokenizer has settings that can be compared.
        settings = {
            "image": lambda: image_processor_settings(processor),
            "text": lambda: tokenizer_settings(processor, longest_text(model, processor)),
        }

        for kind, store in stores.items():
            if store is None:
                continue
            if store.manifest.kind != kind:
                raise ValueError(f"{store.path!r} is a store of {store.manifest.kind}s, but one of {kind}s is needed.")
            check_same_model(store.path, store.manifest.model, identity)
            check_same_processor(store.path, store.manifest.processor, settings[kind]())

        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def _text_vectors(self, texts: Sequence[str], store: FeatureStore | None) -> torch.Tensor:
        """One row a text; what the store of texts holds is not encoded again, and nothing is encoded twice."""
        if not texts:
            raise ValueError("There are no texts; give one or more.")
        for text in texts:
            check_text("A text", text)

        # A text that the store holds is read, any other is encoded.
        each = list(dict.fromkeys(texts))
        held = [False] * len(each) if store is None else store.holds(each)
        stored = [text for text, is_held in zip(each, held, strict=True) if is_held]
        others = [text for text, is_held in zip(each, held, strict=True) if not is_held]
        found: dict[str, torch.Tensor] = {}
        if store is not None and stored:
            found |= zip(stored, self._read(store, store.indices(stored)), strict=True)
        if others:
            encoded = self._finish_text(encode_text_vectors(self.model, self.processor, others, _BATCH_SIZE))
            found |= zip(others, encoded, strict=True)
        return torch.stack([found[text] for text in texts])

    def _read(self, store: FeatureStore, indices: Sequence[int]) -> torch.Tensor:
        """What the queries compute with of stored vectors, on the model's device."""
        return store.read(indices).to(self.model.device, torch.float32)

    def _finish_text(self, vectors: torch.Tensor) -> torch.Tensor:
        """The same of vectors that were encoded now."""
        return vectors


@torch.inference_mode()
def encode_text_vectors(
    model: PreTrainedModel, processor: DualDistillProcessor, texts: Iterable[str], batch_size: int
) -> torch.Tensor:
    """Encode texts as `encode_texts` does, `(texts, C)`: batches of one length, so that nothing is padded."""
    max_tokens = longest_text(model, processor)

    def encode(batch: list[Prepared]) -> torch.Tensor:
        rows = torch.stack([text.values for text in batch]).to(model.device)
        return stored_vectors(model, model.get_text_features(rows).pooler_output)

    batches = ShapedBatches(encode, batch_size)
    for index, text in enumerate(texts):
        batches.add(index, Prepared(processor.encode_text([text], max_length=max_tokens)["input_ids"][0]))
    found = batches.finish()
    return torch.stack([found[index] for index in range(len(found))])
