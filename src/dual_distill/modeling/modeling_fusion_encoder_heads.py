"""Two heads that ViLT is pre-trained with and that rank and complete: image-text retrieval and masked words.

Their parameters keep ViLT's names (`rank_output`, `mlm_score`), so that its checkpoints fit after one change of prefix.
The heads that answer and classify lie beside the encoder in `modeling_fusion_encoder`.
"""

from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_embeddings import check_one_image
from .modeling_fusion_encoder import FusionEncoderForTask
from .modeling_heads import MaskedWordHead, MaskedWordsMixin, classification_loss, mlm_loss

FUSION_TIED_WEIGHTS = {"mlm_score.decoder.weight": "fusion_encoder.embeddings.text_embeddings.word_embeddings.weight"}
IMAGE_DIMS = {"pixel_values": 4, "pixel_mask": 3, "region_features": 3, "region_boxes": 3, "region_mask": 2}
"""Axes of an input of one image a row; one more where a row has several."""


class FusionEncoderForImageTextRetrieval(FusionEncoderForTask):
    """Fusion encoder that scores how well a text fits each of N images: one logit a pair.

    Every image is read as the first image of a pair of its own, so its score does not depend on its index in the row.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4)
        >>> model = FusionEncoderForImageTextRetrieval(config)
        >>> model(input_ids=torch.ones(2, 5, dtype=torch.long), pixel_values=torch.zeros(2, 4, 3, 8, 8)).logits.shape
        torch.Size([2, 4])
    """

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @staticmethod
    def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over a row's images, or binary cross-entropy summed over them."""
        if logits.shape[1] == 1 and labels.dim() == 1:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and name the fitting image of a row, but the rows have one "
                "image each; give two or more images a row, or float scores (B, 1)."
            )
        return classification_loss(logits, labels)

    def encode_rows(self, **inputs: Any) -> ModelOutput:
        """Encode each text with each image of its row, and put the row's vectors side by side again."""
        name = "pixel_values" if inputs.get("region_features") is None else "region_features"
        input_ids, rows = inputs["input_ids"], inputs[name]
        if rows is None:
            raise ValueError("a fusion encoder reads text and image together; give pixel_values (or region_features).")
        num_images = rows.shape[1] if rows.dim() > IMAGE_DIMS[name] else 1
        if rows.dim() > IMAGE_DIMS[name] and len(input_ids) != len(rows):
            raise ValueError(
                f"input_ids has {len(input_ids)} rows, {name} {len(rows)}; give one text for each row of images."
            )

        # Each candidate becomes a row of its own: images lose their second axis, texts are repeated.
        for name, dims in IMAGE_DIMS.items():
            if inputs.get(name) is not None and inputs[name].dim() > dims:
                inputs[name] = inputs[name].flatten(0, 1)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if inputs[name] is not None:
                inputs[name] = inputs[name].repeat_interleave(num_images, dim=0)

        output = super().encode_rows(**inputs)
        for name in ("pooler_output", "image_mask"):
            output[name] = output[name][:, 0].unflatten(0, (-1, num_images))
        return output

    def head_logits(self, output: Any, input_ids: Tensor | None) -> Tensor:
        """One logit an image, `(B, N)`."""
        logits: Tensor = self.rank_output(output.pooler_output).squeeze(-1)
        return logits


class FusionEncoderForWords(MaskedWordsMixin, FusionEncoderForTask):
    """A fusion encoder that tells masked words; the decoder is tied to the word embeddings."""

    _tied_weights_keys = FUSION_TIED_WEIGHTS
    task_loss = staticmethod(mlm_loss)
    one_image = "masked words are completed with one"

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config)
        self.mlm_score = MaskedWordHead(config)

    def encode_rows(self, **inputs: Any) -> ModelOutput:
        """Encode rows of one image."""
        check_one_image(inputs.get("pixel_values"), inputs.get("region_features"), self.one_image)
        return super().encode_rows(**inputs)

    def head_logits(self, output: Any, input_ids: Tensor | None) -> Tensor:
        """One logit a word piece for each text token, `(B, T, vocabulary)`."""
        assert input_ids is not None
        logits: Tensor = self.mlm_score(output.last_hidden_state[:, : input_ids.shape[1]])
        return logits


class FusionEncoderForMaskedLM(FusionEncoderForWords):
    """Fusion encoder that completes masked words of a text with one image; the decoder is tied to the word embeddings.

    Masked words do not pass through the pooler, which is there for `pooler_output` alone: under DistributedDataParallel
    train with `ddp_find_unused_parameters=True`.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4)
        >>> model = FusionEncoderForMaskedLM(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 5, 50])
    """

    def __init__(self, config: FusionEncoderConfig):
        super().__init__(config)
        self.post_init()
