"""What asking and searching stores share: a model beside stores that it made, and texts as vectors."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from dual_distill.modeling import DualDistillProcessor

from .encoding import encode_text_vectors
from .feature_store import FeatureStore
from .model_identity import model_identity, processor_settings
from .top_k import check_text

_BATCH_SIZE = 32


class FeatureStoreQueries:
    """A dual encoder and the stores that it made, of images and of texts; anything else is refused."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DualDistillProcessor,
        images: FeatureStore | None,
        texts: FeatureStore | None,
    ) -> None:
        identity = model_identity(model)
        for kind, store in (("image", images), ("text", texts)):
            if store is not None:
                settings = processor_settings(kind, model, processor)
                store.table.check_made_with(store.manifest, kind, identity, settings)
        self.model, self.processor = model.eval(), processor

    @torch.inference_mode()
    def _text_vectors(self, texts: Sequence[str], store: FeatureStore | None) -> torch.Tensor:
        """One row a text, float32; what the store of texts holds is not encoded again, and nothing is encoded twice."""
        if not texts:
            raise ValueError("There are no texts; give one or more.")
        for text in texts:
            check_text("A text", text)

        # A text that the store holds is read, any other is encoded.
        found: dict[str, torch.Tensor] = {}
        if store is not None:
            stored = [text for text in dict.fromkeys(texts) if text in store]
            found |= zip(stored, self._read(store, store.indices(stored)), strict=True)
        others = [text for text in dict.fromkeys(texts) if text not in found]
        if others:
            encoded = encode_text_vectors(self.model, self.processor, others, _BATCH_SIZE).float()
            found |= zip(others, encoded, strict=True)
        return torch.stack([found[text] for text in texts])

    def _read(self, store: FeatureStore, indices: Sequence[int]) -> torch.Tensor:
        """Vectors at some indices, float32, on the model's device."""
        return store.read(indices).to(self.model.device, torch.float32)
