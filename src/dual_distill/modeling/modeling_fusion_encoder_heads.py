"""The heads of the fusion encoder but for captions: answers, classes, retrieval, masked words, and pre-training.

Parameters keep ViLT's names (`rank_output`, `itm_score`, `mlm_score`), so that its checkpoints fit after one change of
prefix.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .configuration_fusion_encoder import FusionEncoderConfig
from .modeling_embeddings import check_one_image
from .modeling_fusion_encoder import FusionEncoderModel, FusionEncoderPreTrainedModel
from .modeling_heads import (
    ClassifierHead,
    EncoderForPreTraining,
    EncoderForTask,
    MaskedWordsMixin,
    Negatives,
    classification_loss,
    masked_word_head,
    matching_head,
)
from .modeling_losses import PairIds, gather_rows, hard_negatives, mlm_loss

TIED_WEIGHTS = {"mlm_score.decoder.weight": "fusion_encoder.embeddings.text_embeddings.word_embeddings.weight"}
IMAGE_DIMS = {"pixel_values": 4, "pixel_mask": 3, "region_features": 3, "region_boxes": 3, "region_mask": 2}
"""Axes of an input of one image a row; one more where a row has several."""


class FusionEncoderForTask(EncoderForTask, FusionEncoderPreTrainedModel):
    """A fusion encoder, to which subclasses add their head."""

    body_class = FusionEncoderModel


class FusionEncoderForQuestionAnswering(ClassifierHead, FusionEncoderForTask):
    """Fusion encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4, num_labels=7)
        >>> model = FusionEncoderForQuestionAnswering(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """


class FusionEncoderForImagesAndTextClassification(ClassifierHead, FusionEncoderForTask):
    """Fusion encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4, num_images=2, modality_type_vocab_size=3)
        >>> model = FusionEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    reads_config_images = True


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

    def add_head(self, config: FusionEncoderConfig) -> None:
        """Build the map to one score."""
        self.rank_output = nn.Linear(config.hidden_size, 1)

    @staticmethod
    def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over a row's images, or binary cross-entropy summed over them."""
        if logits.shape[1] == 1 and labels.dim() == 1:
            name = f"labels have shape {tuple(labels.shape)} and name the fitting image of a row"
            way_out = "give two or more images a row, or float scores (B, 1)"
            raise ValueError(f"{name}, but the rows have one image each; {way_out}.")
        return classification_loss(logits, labels)

    def encode_rows(self, **inputs: Any) -> Any:
        """Encode each text with each image of its row, and put the row's vectors side by side again."""
        # Each candidate becomes a row of its own: images lose their second axis, texts are repeated.
        num_images = 1
        for name, dims in IMAGE_DIMS.items():
            if inputs.get(name) is not None and inputs[name].dim() > dims:
                if len(inputs[name]) != len(inputs["input_ids"]):
                    rows = f"{len(inputs['input_ids'])} rows, {name} {len(inputs[name])}"
                    raise ValueError(f"input_ids has {rows}; give one text for each row of images.")
                num_images = inputs[name].shape[1]
                inputs[name] = inputs[name].flatten(0, 1)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if inputs[name] is not None:
                inputs[name] = inputs[name].repeat_interleave(num_images, dim=0)

        output = super().encode_rows(**inputs)
        for name in ("pooler_output", "image_mask"):
            output[name] = output[name][:, 0].unflatten(0, (-1, num_images))
        return output

    def head_logits(self, output: Any, input_ids: Any) -> Any:
        """One logit an image, `(B, N)`."""
        return self.rank_output(output.pooler_output).squeeze(-1)


class FusionEncoderForWords(MaskedWordsMixin, FusionEncoderForTask):
    """A fusion encoder that tells masked words; the decoder is tied to the word embeddings."""

    _tied_weights_keys = TIED_WEIGHTS
    task_loss = staticmethod(mlm_loss)
    one_image = "masked words are completed with one"

    def add_head(self, config: FusionEncoderConfig) -> None:
        """Build the decoder of words."""
        self.mlm_score = masked_word_head(config)

    def encode_rows(self, **inputs: Any) -> Any:
        """Encode rows of one image, and keep the text's tokens."""
        check_one_image(inputs.get("pixel_values"), inputs.get("region_features"), self.one_image)
        output = super().encode_rows(**inputs)
        output.last_hidden_state = output.last_hidden_state[:, : inputs["input_ids"].shape[1]]
        return output

    def head_logits(self, output: Any, input_ids: Any) -> Any:
        """One logit a word piece for each text token, `(B, T, vocabulary)`."""
        return self.mlm_score(output.last_hidden_state)


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


class FusionEncoderForPreTraining(EncoderForPreTraining, FusionEncoderPreTrainedModel):
    """Fusion encoder with ViLT's two heads of pre-training: image-text matching and masked words.

    Up to three passes through the encoder make one step: the matched pairs, each text with an image that is not its
    own, and the matched pairs with masked words. Queries, keys, hidden states and attentions are those of the first.

    A term is computed when its inputs are given and its weight in the configuration is not 0. With both terms on, every
    parameter gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`.

    Example:
        >>> config = FusionEncoderConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        ...     image_size=8, patch_size=4)
        >>> model = FusionEncoderForPreTraining(config)
        >>> text, labels = torch.ones(3, 5, dtype=torch.long), torch.full((3, 5), -100)
        >>> labels[:, 2] = 7
        >>> output = model(input_ids=text, pixel_values=torch.zeros(3, 3, 8, 8), masked_input_ids=text,
        ...                masked_labels=labels, image_ids=torch.arange(3), caption_ids=torch.arange(3))
        >>> output.itm_logits.shape, output.mlm_logits.shape
        (torch.Size([6, 2]), torch.Size([3, 5, 50]))
        >>> torch.allclose(output.loss, output.itm_loss + output.mlm_loss)
        True
    """

    body_class = FusionEncoderModel
    _tied_weights_keys = TIED_WEIGHTS

    def add_head(self, config: FusionEncoderConfig) -> None:
        """Build the heads of matching and of words."""
        self.itm_score = matching_head(config.hidden_size)
        self.mlm_score = masked_word_head(config)

    def fuse_negatives(self, output: Any, ids: PairIds, similarities: Any, inputs: dict[str, Any]) -> Negatives:
        """Read each text once more, with an image that is drawn uniformly; row 0 where none may be."""
        rows = hard_negatives(torch.zeros(ids.num_rows, len(ids.image_ids), device=ids.image_ids.device), ids)
        pixels, mask = inputs["pixel_values"], inputs["pixel_mask"]
        gathered = gather_rows(pixels)
        # Another process' images may be larger.
        if mask is None and gathered is not pixels:
            mask = pixels.new_ones(pixels.shape[:-3] + pixels.shape[-2:], dtype=torch.bool)

        indices = rows.clamp(min=0)
        drawn_mask = None if mask is None else gather_rows(mask)[indices]
        drawn = self.fusion_encoder(**{**inputs, "pixel_values": gathered[indices], "pixel_mask": drawn_mask})
        return (rows,), drawn.pooler_output[:, 0]

    def masked_word_states(self, output: Any, inputs: dict[str, Any]) -> Any:
        """Read the masked text with its image, in a pass of its own."""
        num_words = inputs["input_ids"].shape[1]
        return self.fusion_encoder(**inputs).last_hidden_state[:, :num_words]
