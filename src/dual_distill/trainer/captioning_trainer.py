"""Trainers of captioning models: masked words, with a teacher or without, and the reward of what a model writes itself.

What is unusual in self-critical training here: a word is told from a [MASK] at its own index, so the probability of
a caption takes a text with a [MASK] before each word, which sees the words before it and is seen by nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from dual_distill.data import CaptioningCollator
from dual_distill.evaluation import CiderReward

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import Batch, DistillationTrainer, Losses
from .evaluation import caption_texts, captions_by_image, rows_by_image

REFERENCE_ROWS = "reference_rows"
"""Name of the index of each image's references, `(B,)` int64."""
# How a caption begins and ends.
_FRAME = ("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "max_length")


class CaptioningTrainer(DistillationTrainer):
    """Trains a captioning model on masked words, or as a student on what a teacher says of the same words.

    Evaluation gives losses; `describe_images` writes captions, which `CaptionScores` scores.

    Args:
        model: as for `DistillationTrainer`, with a captioning head.
        args: as for `DistillationTrainer`.
        **kwargs: as for `DistillationTrainer`; `data_collator` a `CaptioningCollator` with masking.

    Raises:
        ValueError: training rows are no `IndexedDataset`, by which words are masked anew in each epoch; or as for
            `DistillationTrainer`.
    """

    own_options = ()
    leaves_parameters_unused = True  # the pooler, which no caption passes through
    draws_by_row = "the masking of words"
    gives_predictions = False

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute nothing but the loss: the logits of every word of the vocabulary would fill the memory."""
        return super().prediction_step(model, inputs, True)


class SelfCriticalTrainer(DistillationTrainer):
    """Trains a captioning model on the CIDEr of what it writes: a sample is paid by what it beats the greedy caption.

    loss = mean over images of -(CIDEr of the sample - CIDEr of the greedy caption) * ln p(sample), words weighed by the
    references of the training rows. Both captions are written in eval mode; the probability has the gradient.

    Args:
        model: `FusionEncoderForCaptioning` that writes already (trained on masked words).
        args: as for `DistillationTrainer`; a small learning rate.
        data_collator: makes batches; its masking is left out.
        train_dataset: rows with captions, one row a caption; an image is seen once an epoch.
        max_new_tokens: longest caption; None: the model's own.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        ValueError: a teacher or evaluation rows are given: self-critical training has neither.

    References:
        Rennie et al., CVPR 2017, arXiv 1612.00563.
    """

    own_options = ()
    leaves_parameters_unused = True  # the pooler, which no caption passes through
    own_loss = "the reward"
    gives_predictions = False

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: DistillationTrainingArguments | None = None,
        *,
        data_collator: CaptioningCollator,
        train_dataset: Any,
        max_new_tokens: int | None = None,
        **kwargs: Any,
    ):
        for name in ("teacher", "eval_dataset"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is given, but self-critical training learns from a reward alone; omit it.")

        # An image is seen once an epoch, with all of its captions as references.
        references = captions_by_image(train_dataset, data_collator.task)
        self._references = list(references.values())
        self._reward = CiderReward(self._references)
        self._max_new_tokens = max_new_tokens
        self._tokenizer = data_collator.processor.tokenizer
        rows = train_dataset.select([rows[0] for rows in rows_by_image(train_dataset, data_collator.task).values()])
        collator = _ReferenceCollator(data_collator, {image: index for index, image in enumerate(references)})
        super().__init__(model, args, data_collator=collator, train_dataset=rows, **kwargs)

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss of a batch of images, and beside it `reward` and `greedy_reward` (CIDEr)."""
        context = {name: value for name, value in inputs.items() if name != REFERENCE_ROWS}
        references = [self._references[index] for index in inputs[REFERENCE_ROWS].tolist()]

        # Both are written in eval mode, as when the model is used.
        writer: Any = self.accelerator.unwrap_model(model)
        was_training = writer.training
        writer.eval()
        # What is sampled is learnt by its raw probability: of how the model was saved to write, the frame alone holds.
        own = writer.generation_config
        frame = {name: getattr(own, name) for name in _FRAME}
        if self._max_new_tokens is not None:
            frame["max_new_tokens"] = self._max_new_tokens
        writer.generation_config = GenerationConfig(**frame)
        try:
            with self.accelerator.autocast():
                greedy = writer.generate(**context, do_sample=False)
                sampled = writer.generate(**context, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)
        finally:
            writer.generation_config = own
        writer.train(was_training)

        paid = []
        for written in (sampled, greedy):
            captions = zip(caption_texts(self._tokenizer, written), references, strict=True)
            paid.append([self._reward(caption, given) for caption, given in captions])
        reward, greedy_reward = torch.tensor(paid, device=sampled.device)
        log_probs = caption_log_probs(model, sampled, context, writer.config)
        loss = -((reward - greedy_reward) * log_probs).mean()
        return {"loss": loss, "reward": reward.mean(), "greedy_reward": greedy_reward.mean()}, {}


class _ReferenceCollator:
    """Batches to write about, with the index of each image's references."""

    def __init__(self, collator: CaptioningCollator, index_of_image: Mapping[int | str, int]):
        self.collator = collator.without_captions()
        self.id_column = str(collator.task.image_id_column)
        self.index_of_image = index_of_image

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        indices = torch.tensor([self.index_of_image[row[self.id_column]] for row in rows])
        return {**self.collator(rows), REFERENCE_ROWS: indices}


def caption_log_probs(model: nn.Module, written: torch.Tensor, context: Batch, config: Any) -> torch.Tensor:
    """Natural logarithm of the probability of captions, their end among them, as `generate` would sample them.

    Args:
        model: a captioning model, wrapped or not.
        written: `(B, L)` ids from [CLS] on, behind the end padding, as `generate` returns them.
        context: what `generate` was given: images, and tags as `input_ids`, `attention_mask` and `token_type_ids`.
        config: of the model: says `eos_token_id`.

    Returns:
        `(B,)` float32, <= 0, with gradient.
    """
    words = written[:, 1:]
    is_end = (words == config.eos_token_id).long()
    is_told = is_end.cumsum(1) - is_end == 0  # up to the end, which is told as well
    log_probs = model(written=written, **context).logits.float().log_softmax(-1)
    return log_probs.gather(2, words[..., None])[..., 0].masked_fill(~is_told, 0.0).sum(1)
