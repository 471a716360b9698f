"""The dual encoder with a classifier: question answering, and classification of a text with N images."""

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_dual_encoder import DualEncoderModel
from .modeling_heads import ClassifierHead, EncoderForTask
from .modeling_outputs import ImageFeaturesOutput
from .modeling_towers import DualEncoderPreTrainedModel


class DualEncoderForTask(ClassifierHead, EncoderForTask, DualEncoderPreTrainedModel):
    """A dual encoder and a classifier; subclasses say how many images it reads."""

    def __init__(self, config: DualEncoderConfig, num_images: int):
        super().__init__(config)
        self.dual_encoder = DualEncoderModel(config)
        self._add_classifier(config, num_images)
        self.post_init()

    def get_text_features(self, *args: Tensor, **kwargs: Tensor) -> BaseModelOutputWithPooling:
        """Encode texts alone; see `DualEncoderModel.get_text_features`."""
        return self.dual_encoder.get_text_features(*args, **kwargs)

    def get_image_features(self, *args: Tensor, **kwargs: Tensor) -> ImageFeaturesOutput:
        """Encode images alone; see `DualEncoderModel.get_image_features`."""
        return self.dual_encoder.get_image_features(*args, **kwargs)

    def project_text(self, text_pooler_output: Tensor) -> Tensor:
        """Give the text's half of the interaction; see `DualEncoderModel.project_text`."""
        return self.dual_encoder.project_text(text_pooler_output)

    def project_images(self, image_pooler_output: Tensor) -> Tensor:
        """Give the image's half of the interaction; see `DualEncoderModel.project_images`."""
        return self.dual_encoder.project_images(image_pooler_output)

    def logits_of_projections(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
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
        return self.classify(fused)


class DualEncoderForQuestionAnswering(DualEncoderForTask):
    """Dual encoder with an answer classifier (VQA): one question, one image.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> vision = dict(image_size=8, patch_size=4, **tower)
        >>> model = DualEncoderForQuestionAnswering(
        ...     DualEncoderConfig(text_config=tower, vision_config=vision, num_labels=7))
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8)).logits.shape
        torch.Size([3, 7])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=1)


class DualEncoderForImagesAndTextClassification(DualEncoderForTask):
    """Dual encoder that classifies a text with `config.num_images` images (visual entailment 1, NLVR2 2).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     num_images=2, text_config=tower, vision_config=dict(image_size=8, patch_size=4, **tower))
        >>> model = DualEncoderForImagesAndTextClassification(config)
        >>> model(input_ids=torch.ones(3, 5, dtype=torch.long), pixel_values=torch.zeros(3, 2, 3, 8, 8)).logits.shape
        torch.Size([3, 2])
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config, num_images=config.num_images)
