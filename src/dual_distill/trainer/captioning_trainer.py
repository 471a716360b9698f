"""Trainers of captioning models: masked words, with a teacher or without, and the reward of what a model writes itself.

What is unusual in self-critical training here: a word is told from a [MASK] in its own place, so the probability of a
caption of L tokens takes L short texts, each the words before a place and a [MASK]. They go through the model as rows
of one batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dual_distill.data import CaptioningCollator, IndexedDataset
from dual_distill.evaluation import CiderReward

from .distillation_config import DistillationTrainingArguments
from .distillation_trainer import DistillationTrainer
from .evaluation import caption_texts, captions_by_image, first_rows_of_images

REFERENCE_ROWS = "reference_rows"
"""Name of the places of a batch's references, `(B,)` int64."""


class CaptioningTrainer(DistillationTrainer):
    """Trains a captioning model on masked words: on labels alone, or as a student on what a teacher says of the same
    words.

    Evaluation gives losses; `describe_images` and `report_captions` score what is written.

    Args:
        model: as for `DistillationTrainer`, with a captioning head.
        args: as for `DistillationTrainer`.
        **kwargs: as for `DistillationTrainer`; `data_collator` a `CaptioningCollator` with masking.

    Raises:
        ValueError: training rows are no `IndexedDataset`, by which words are masked anew in each epoch; or as for
            `DistillationTrainer`.
    """

    def __init__(self, model: PreTrainedModel | nn.Module, args: DistillationTrainingArguments, **kwargs: Any):
        rows = kwargs.get("train_dataset")
        if rows is not None and not isinstance(rows, IndexedDataset):
            raise ValueError(
                f"train_dataset is a {type(rows).__name__}, whose captions would be masked alike in every epoch; give "
                "IndexedDataset(train_dataset)."
            )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # the pooler, which no caption passes through
        super().__init__(model, args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """Compute the loss alone: the logits of every word of the vocabulary would fill the memory."""
        return super().prediction_step(model, inputs, True, ignore_keys)


class SelfCriticalTrainer(DistillationTrainer):
    """Trains a captioning model on the CIDEr of what it writes: a sample is paid by how much it beats the greedy
    caption.

    loss = mean over images of -(CIDEr of the sample - CIDEr of the greedy caption) * ln p(sample), words weighed by the
    references of the training rows. Both captions are written in eval mode; the probability has the gradient.

    Args:
        model: `FusionEncoderForCaptioning` that writes already (trained on masked words).
        args: as for `DistillationTrainer`; a small learning rate.
        data_collator: makes batches; its masking is left out.
        train_dataset: rows with captions, one row a caption; an image is seen once an epoch.
        max_new_tokens: longest caption.
        **kwargs: as for `transformers.Trainer`.

    Raises:
        ValueError: a teacher or evaluation rows are given: self-critical training has neither.

    References:
        Rennie et al., CVPR 2017, arXiv 1612.00563.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationTrainingArguments,
        *,
        data_collator: CaptioningCollator,
        train_dataset: Any,
        max_new_tokens: int = 20,
        **kwargs: Any,
    ):
        for name in ("teacher", "eval_dataset"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} is given, but self-critical training learns from a reward alone; leave it out "
                    f"(report_captions "
                    "scores what a model writes)."
                )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # the pooler, which no caption passes through
        references = captions_by_image(train_dataset, data_collator.task)
        self._references = list(references.values())
        self._reward = CiderReward(self._references)
        self._max_new_tokens = max_new_tokens
        rows = train_dataset.select(first_rows_of_images(train_dataset, data_collator.task))
        id_column = str(data_collator.task.image_id_column)
        super().__init__(
            model,
            args,
            data_collator=_ReferenceCollator(
                data_collator, id_column, {one: place for place, one in enumerate(references)}
            ),
            train_dataset=rows,
            **kwargs,
        )
        self._tokenizer = data_collator.processor.tokenizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of a batch of images; `reward` and `greedy_reward` (CIDEr) are logged beside it."""
        context = {name: value for name, value in inputs.items() if name != REFERENCE_ROWS}
        references = [self._references[place] for place in inputs[REFERENCE_ROWS].tolist()]
        writer = self.accelerator.unwrap_model(model)
        greedy, sampled = self._write(writer, context)
        rewards = torch.tensor([self._rewards(one, references) for one in (sampled, greedy)], device=sampled.device)
        log_probs = caption_log_probs(model, sampled, context, writer.config)
        self._note_terms({"reward": rewards[0].mean(), "greedy_reward": rewards[1].mean()}, len(references))
        return -((rewards[0] - rewards[1]) * log_probs).mean()

    def _write(self, writer: Any, context: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        was_training = writer.training
        writer.eval()
        shared = {"max_new_tokens": self._max_new_tokens, "num_beams": 1}
        with self.accelerator.autocast():
            greedy = writer.generate(**context, **shared, do_sample=False)
            sampled = writer.generate(**context, **shared, do_sample=True, top_k=0, top_p=1.0, temperature=1.0)
        writer.train(was_training)
        return greedy, sampled

    def _rewards(self, written: torch.Tensor, references: Sequence[Sequence[str]]) -> list[float]:
        captions = caption_texts(self._tokenizer, written)
        return [self._reward(caption, given) for caption, given in zip(captions, references, strict=True)]


class _ReferenceCollator:
    """Batches to write about, with the places of their images' references."""

    def __init__(self, collator: CaptioningCollator, id_column: str, places: Mapping[int | str, int]):
        self.collator = collator.without_captions()
        self.id_column = id_column
        self.places = places

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        places = torch.tensor([self.places[row[self.id_column]] for row in rows])
        return {**self.collator(rows), REFERENCE_ROWS: places}


def caption_log_probs(
    model: nn.Module, written: torch.Tensor, context: Mapping[str, torch.Tensor], config: Any
) -> torch.Tensor:
    """Natural logarithm of the probability of captions, their end among them, as `generate` would sample them.

    Args:
        model: a captioning model, wrapped or not.
        written: `(B, L)` ids from [CLS] on, behind the end padding, as `generate` returns them.
        context: what `generate` was given: images, and tags as `input_ids`, `attention_mask` and `token_type_ids`.
        config: of the model: says `mask_token_id`, `eos_token_id` and `pad_token_id`.

    Returns:
        `(B,)` float32, <= 0, with gradient.
    """
    rows, length = written.shape
    words = written[:, 1:]
    ended = (words == config.eos_token_id).long().cumsum(1)
    told = (ended - (words == config.eos_token_id).long()) == 0  # up to the end, which is told as well
    row, place = told.nonzero(as_tuple=True)
    prefixes = written[row].masked_fill(
        torch.arange(length, device=written.device) > place[:, None] + 1, config.pad_token_id
    )
    asked = place + 1
    prefixes[torch.arange(len(row), device=row.device), asked] = config.mask_token_id
    real = (torch.arange(length, device=written.device) <= asked[:, None]).long()
    batch = {name: value[row] for name, value in context.items() if name.startswith(("pixel", "region"))}
    segments = torch.zeros_like(prefixes)
    if "input_ids" in context:
        tags, is_tag = context["input_ids"][row], context["token_type_ids"][row] * context["attention_mask"][row]
        prefixes, real = torch.cat([prefixes, tags], 1), torch.cat([real, is_tag], 1)
        segments = torch.cat([segments, torch.ones_like(tags)], 1)
    outputs = model(input_ids=prefixes, attention_mask=real, token_type_ids=segments, **batch)
    logits = outputs.logits[torch.arange(len(row), device=row.device), asked].float()
    each = logits.log_softmax(-1).gather(1, words[row, place][:, None])[:, 0]
    return torch.zeros(rows, device=each.device).index_add(0, row, each)


__all__ = ["REFERENCE_ROWS", "CaptioningTrainer", "SelfCriticalTrainer", "caption_log_probs"]
