"""What models with a task head share: one forward, the classifier (also the shallow interaction), and its loss."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .modeling_base import EncoderPreTrainedModel
from .modeling_outputs import EncoderForTaskOutput, shared_fields


class SplitLinear(nn.Linear):
    """A linear map of two concatenated vectors, whole or in halves: `W [a; b] + c = (W_a a + c) + W_b b`."""

    def forward(self, features: torch.Tensor, half: Literal["first", "second"] | None = None) -> torch.Tensor:
        """Map both vectors `(..., in_features)`, or one half: the first with the bias, the second without."""
        middle = self.in_features // 2
        if half == "first":
            return nn.functional.linear(features, self.weight[:, :middle], self.bias)
        if half == "second":
            return nn.functional.linear(features, self.weight[:, middle:])
        return super().forward(features)


def classification_head(
    in_features: int, hidden_features: int, num_labels: int, first_layer: type[nn.Linear] = nn.Linear
) -> nn.Sequential:
    """Build `Linear -> LayerNorm -> GELU -> Linear`, the head of every task and of the shallow interaction."""
    return nn.Sequential(
        first_layer(in_features, hidden_features),
        nn.LayerNorm(hidden_features),
        nn.GELU(),
        nn.Linear(hidden_features, num_labels),
    )


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Hard-label loss in nats per row.

    Args:
        logits: `(B, labels)`.
        labels: `(B,)` integer classes (-100: row without a label) for cross-entropy, or `(B, labels)` soft scores in
            [0, 1] for binary cross-entropy summed over answers, as VQA v2 is trained.

    Raises:
        ValueError: the labels have neither shape.

    Example:
        >>> round(classification_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)  # ln 4
        1.3863
        >>> round(classification_loss(torch.zeros(1, 4), torch.zeros(1, 4)).item(), 4)  # 4 ln 2
        2.7726
    """
    logits = logits.float()

    if labels.is_floating_point() and labels.shape == logits.shape:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / len(logits)
    if not labels.is_floating_point() and labels.shape == logits.shape[:1]:
        # Divided by the rows, not by the labelled ones: unlabelled rows must not change the weight of the others, and
        # two half batches must add up to a whole one.
        return nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100) / len(logits)
    raise ValueError(
        f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, logits {tuple(logits.shape)}; give integer "
        "classes (B,) or soft scores (B, labels)."
    )


class EncoderForTask(EncoderPreTrainedModel):
    """A body of either kind and a head: subclasses say how rows are encoded, what the logits are, and their loss."""

    task_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = staticmethod(classification_loss)

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> EncoderForTaskOutput:
        """Give the logits of B rows of one text and N images, and their loss; the inputs are those of the body.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            pixel_values: `(B, N, 3, H, W)` or `(B, 3, H, W)`; masked words and captions have one image.
            pixel_mask: `(B, N, H, W)`.
            token_type_ids: `(B, T)`.
            labels: `(B,)` integer classes, or `(B, labels)` soft scores in [0, 1]. For retrieval the index in `[0, N)`
                of the image that fits, or `(B, N)` float, 1 = fits, 0 = does not. For masked words and captions
                `(B, T)` word pieces, -100 where nothing was masked.
            output_query_states: True or a list of layers.
            output_key_states: True or a list of layers.
            **kwargs: as in the body's `forward`: regions in place of pixels for a fusion encoder; for a dual encoder
                stored vectors in place of a side (`text_pooler_output`, `image_embeds`, ...), and `join_states`.

        Returns:
            An `EncoderForTaskOutput`; the loss is in nats per row, per labelled token for masked words and captions.

        Raises:
            ValueError: a shape does not fit, or there are more images a row than the head reads.
        """
        output = self.encode_rows(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            token_type_ids=token_type_ids,
            output_query_states=output_query_states,
            output_key_states=output_key_states,
            **kwargs,
        )

        logits = self.head_logits(output, input_ids)
        loss = None if labels is None else self.task_loss(logits, labels)
        return EncoderForTaskOutput(loss=loss, logits=logits, **shared_fields(output))

    def encode_rows(self, **inputs: Any) -> ModelOutput:
        """Run the body."""
        output: ModelOutput = self.base_model(**inputs)
        return output

    def head_logits(self, output: Any, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Run the head on the body's output."""
        raise NotImplementedError


class ClassifierHead:
    """The classifier of a row's N fused vectors, side by side; mixed into the models that answer and classify."""

    def _add_classifier(self, config: PreTrainedConfig, num_images: int) -> None:
        """Build the head."""
        self.num_images = num_images
        in_features = num_images * config.hidden_size
        self.classifier = classification_head(in_features, max(2, num_images) * config.hidden_size, config.num_labels)

    def head_logits(self, output: Any, input_ids: torch.Tensor | None) -> torch.Tensor:
        """One logit a label, `(B, labels)`."""
        return self.classify(output.pooler_output)

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        """Logits of fused vectors `(B, N, C)`; refuse another N than the head's."""
        if fused.shape[1] != self.num_images:
            raise ValueError(
                f"the rows have {fused.shape[1]} images, the head was built for {self.num_images}; "
                "set num_images in the config or give as many images a row."
            )
        logits: torch.Tensor = self.classifier(fused.flatten(1))
        return logits
