"""The dual encoder with a classifier: question answering, and classification of a text with N images."""

from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_classification import classification_head, classification_loss
from .modeling_dual_encoder import DualEncoderModel
from .modeling_fusion_encoder import flatten_pairs
from .modeling_outputs import EncoderForTaskOutput, ImageFeaturesOutput, shared_fields
from .modeling_towers import DualEncoderPreTrainedModel


class _DualEncoderForTask(DualEncoderPreTrainedModel):
    """A dual encoder and a head; subclasses say how many images the head reads."""

    def __init__(self, config: DualEncoderConfig, num_images: int):
        super().__init__(config)
        self.dual_encoder = DualEncoderModel(config)
        self.num_images = num_images
        in_features = num_images * config.hidden_size
        self.classifier = classification_head(in_features, max(2, num_images) * config.hidden_size, config.num_labels)
        self.post_init()

    def get_text_features(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encode texts alone; see `DualEncoderModel.get_text_features`."""
        return self.dual_encoder.get_text_features(*args, **kwargs)

    def get_image_features(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> ImageFeaturesOutput:
        """Encode images alone; see `DualEncoderModel.get_image_features`."""
        return self.dual_encoder.get_image_features(*args, **kwargs)

    def project_text(self, text_pooler_output: torch.Tensor) -> torch.Tensor:
        """Give the text's half of the interaction; see `DualEncoderModel.project_text`."""
        return self.dual_encoder.project_text(text_pooler_output)

    def project_images(self, image_pooler_output: torch.Tensor) -> torch.Tensor:
        """Give the image's half of the interaction; see `DualEncoderModel.project_images`."""
        return self.dual_encoder.project_images(image_pooler_output)

    def logits_of_projections(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Give the logits of B rows from the two halves of the interaction's first linear map, without any check.

        Args:
            text_embeds: `(B, 2C)` from `project_text`, or `(1, 2C)`: one text for all rows.
            image_embeds: `(B, N, 2C)` from `project_images`, or `(1, N, 2C)`: the same images for all rows.

        Returns:
            `(B, labels)`, equal to `forward`'s logits.
        """
        if self.config.interaction_layers:
            raise ValueError("this model has interaction layers, which read an image's tokens; call it with those.")
        fused = self.dual_encoder.fuse_projections(text_embeds[:, None], image_embeds)
        return self.classifier(flatten_pairs(fused, self.num_images))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForTaskOutput:
        """Give one logit a label for each row; the inputs are those of `DualEncoderModel.forward`.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`.
            pixel_mask: `(B, N, H, W)`.
            token_type_ids: `(B, T)`.
            labels: `(B,)` integer classes, or `(B, labels)` soft scores in [0, 1].
            output_query_states: True or a list of layers.
            output_key_states: True or a list of layers.
            join_states: as in `DualEncoderModel.forward`.
            **kwargs: as in `DualEncoderModel.forward`: `text_pooler_output` or `text_embeds` in place of the text
                inputs, `image_pooler_output`, `image_embeds` or `image_token_embeds` in place of the image inputs.

        Returns:
            An `EncoderForTaskOutput`.
        """
        output = self.dual_encoder(
            input_ids,
            attention_mask,
            pixel_values,
            pixel_mask,
            token_type_ids,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            join_states=join_states,
            **kwargs,
        )

        logits = self.classifier(flatten_pairs(output.pooler_output, self.num_images))
        loss = None if labels is None else classification_loss(logits, labels)
        return EncoderForTaskOutput(loss=loss, logits=logits, **shared_fields(output))


class DualEncoderForQuestionAnswering(_DualEncoderForTask):
    """Dual encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     num_labels=7)
        >>> model = DualEncoderForQuestionAnswering(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=1)


class DualEncoderForImagesAndTextClassification(_DualEncoderForTask):
    """Dual encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     num_images=2)
        >>> model = DualEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=config.num_images)
