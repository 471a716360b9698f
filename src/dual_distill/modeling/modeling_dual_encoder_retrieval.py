"""The dual encoder as a retrieval model: cosines of projected texts and images, every text with every image.

Its outputs are those of transformers' CLIP, so what works with CLIP (the zero-shot image classification pipeline, an
index of vectors) works with it. The shallow interaction takes no part here; it stays in the body, where other heads
find it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_dual_encoder import DualEncoderConfig
from .modeling_dual_encoder import DualEncoderModel, join_recorded_states
from .modeling_embeddings import check_one_image
from .modeling_layers import layers_to_record
from .modeling_outputs import DualEncoderForImageTextRetrievalOutput
from .modeling_pretraining_losses import (
    check_pair_ids,
    gather_pair_ids,
    inverse_temperature,
    itc_loss,
    pair_similarities,
    unlike_ids,
)
from .modeling_towers import DualEncoderPreTrainedModel


class ContrastiveDualEncoder(DualEncoderPreTrainedModel):
    """A dual encoder with projections to one space of texts and images, and a learned temperature."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        self.dual_encoder = DualEncoderModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        # One number, but not a scalar: FSDP2 cannot shard those.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContrastiveDualEncoder):
            init.constant_(module.logit_scale, float(self.config.logit_scale_init))

    def project_features(self, text_pooler_output: Tensor, image_pooler_output: Tensor) -> tuple[Tensor, Tensor]:
        """Project pooled vectors of texts and of images to length 1: `(B, C)` -> `(B, P)` float32 each."""
        text, image = self.text_projection(text_pooler_output), self.image_projection(image_pooler_output)
        return normalize(text.float(), dim=-1), normalize(image.float(), dim=-1)

    def get_text_features(self, *args: Tensor, **kwargs: Tensor) -> BaseModelOutputWithPooling:
        """Encode texts alone: `pooler_output` is `(B, P)`, projected and not yet of length 1, as CLIP's.

        The arguments are those of `DualEncoderModel.get_text_features`, which gives the vectors before projection.
        """
        output = self.dual_encoder.get_text_features(*args, **kwargs)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    def get_image_features(self, *args: Tensor, **kwargs: Tensor) -> BaseModelOutputWithPooling:
        """Encode images alone: `pooler_output` is `(B, P)`, projected and not yet of length 1, as CLIP's.

        The arguments are those of `DualEncoderModel.get_image_features`, which gives the vectors before projection; for
        `(B, N, 3, H, W)` pixels the result is `(B, N, P)`.
        """
        output = self.dual_encoder.get_image_features(*args, **kwargs)
        output.pooler_output = self.image_projection(output.pooler_output)
        return output


class DualEncoderForImageTextRetrieval(ContrastiveDualEncoder):
    """Dual encoder that ranks images for a text and texts for an image by the cosine of their projections.

    The interaction takes no part and gets no gradient: under DistributedDataParallel train with
    `ddp_find_unused_parameters=True` (Trainer's default, but not with activation checkpointing).

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> config = DualEncoderConfig(
        ...     text_config={"vocab_size": 50, **tower}, vision_config={"image_size": 8, "patch_size": 4, **tower},
        ...     projection_dim=6)
        >>> model = DualEncoderForImageTextRetrieval(config)
        >>> output = model(input_ids=torch.ones(5, 4, dtype=torch.long), pixel_values=torch.zeros(3, 3, 8, 8))
        >>> output.logits_per_image.shape, output.text_embeds.norm(dim=-1).allclose(torch.ones(5))
        (torch.Size([3, 5]), True)
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        caption_ids: Tensor | None = None,
        return_loss: bool | None = None,
        output_query_states: bool | Sequence[int] | None = None,
        output_key_states: bool | Sequence[int] | None = None,
        join_states: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DualEncoderForImageTextRetrievalOutput:
        """Hold every text against every image.

        Args:
            input_ids: `(texts, T)`.
            attention_mask: `(texts, T)`.
            pixel_values: `(images, 3, H, W)` or `(images, 1, 3, H, W)`; as many as texts only for a loss or recorded
                states.
            pixel_mask: `(images, H, W)` or `(images, 1, H, W)`.
            token_type_ids: `(texts, T)`.
            image_ids: `(B,)` int64, equal for equal images. With `caption_ids`, asks for the loss, in which no pair
                that is known to fit is a negative; text i belongs to image i, negatives come from all processes.
            caption_ids: `(B,)` int64, equal for equal captions.
            return_loss: True asks for the loss without ids: nothing is known to be there twice.
            output_query_states: True or a list of layers; text i is then paired with image i.
            output_key_states: likewise.
            join_states: as in `DualEncoderModel.forward`.
            **kwargs: as in `DualEncoderModel.forward`.

        Returns:
            A `DualEncoderForImageTextRetrievalOutput`.

        Raises:
            ValueError: a side is missing, rows have more than one image, or texts and images are to be paired and
                differ in number.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"{missing} is missing; give both, or encode one side by get_text_features or get_image_features."
            )
        check_one_image(pixel_values, None, "images are ranked one by one")
        check_pair_ids(image_ids, caption_ids)
        layers = layers_to_record(output_query_states, output_key_states, self.config)
        wants_loss = return_loss or image_ids is not None
        if (wants_loss or layers) and len(input_ids) != len(pixel_values):
            raise ValueError(
                f"there are {len(input_ids)} texts and {len(pixel_values)} images; a loss and recorded states pair "
                "text i with image i, so give as many of each."
            )

        body = self.dual_encoder
        text_output = body.text_model(input_ids, attention_mask, token_type_ids, recorded_layers=layers, **kwargs)
        vision_output = body.vision_model(pixel_values, pixel_mask, recorded_layers=layers, **kwargs)
        texts, images = self.project_features(text_output.pooler_output, vision_output.pooler_output)
        with torch.autocast(texts.device.type, enabled=False):
            logits_per_text = texts @ images.T * inverse_temperature(self.logit_scale)

        loss = None
        if wants_loss:
            if image_ids is None or caption_ids is None:
                image_ids = caption_ids = unlike_ids(len(texts), texts.device)
            ids = gather_pair_ids(image_ids, caption_ids)
            loss = itc_loss(*pair_similarities(texts, images, self.logit_scale), ids)

        wanted = {"query_states": output_query_states, "key_states": output_key_states}
        recorded = join_recorded_states(text_output, vision_output, wanted, join_states)
        return DualEncoderForImageTextRetrievalOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=texts,
            image_embeds=images,
            text_pooler_output=text_output.pooler_output,
            image_pooler_output=vision_output.pooler_output,
            image_mask=vision_output.image_mask[:, None],
            **recorded,
        )
