"""A teacher of any family beside a student that has tokens of its own."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .alignment import Aligned, Tokens, align_view
from .families import family_of
from .view import TeacherView

logger = logging.getLogger(__name__)
_LEAST_LOGIT = -1e4  # of answers that were not scored


@dataclass
class AlignedOutputs:
    """What an objective reads of such a teacher.

    Attributes:
        logits: `(B, L)` of the student's answers; None: it says none.
        cross_modal_scores: of each layer both directions over the student's tokens, None for one that it lacks.
        match_scores: `(B,)`, log-odds that text and image match; None: it does not say.
    """

    logits: Tensor | None
    cross_modal_scores: list[Aligned]
    match_scores: Tensor | None = None


class AlignedTeacher(nn.Module):
    """A teacher that shows its attention over the tokens of a student, whatever its own are.

    Attributes:
        name: of it, for sentences.
        num_layers: in which text and image meet.
        answers: the student's, whose logits are asked for; None: none are.
        multi_label: whether each logit is a yes or no of its own, as where several answers may be right.
        multi_label_student: whether the student reads them so.
    """

    name: str
    num_layers: int
    answers: Sequence[str] | None = None
    multi_label: bool = False
    multi_label_student: bool = False
    _has_said = False

    def view(self, batch: Mapping[str, Tensor], layers: Sequence[int]) -> TeacherView:
        """Return what the teacher shows of a batch: these layers, and the logits of `answers`."""
        raise NotImplementedError

    def forward(
        self,
        student_text: Any = None,
        student_image: Any = None,
        output_query_states: Sequence[int] | None = None,
        output_key_states: Sequence[int] | None = None,
        **batch: Tensor,
    ) -> AlignedOutputs:
        """Return what an objective compares.

        Args:
            student_text: the student's `Tokens` of the texts, where attention is asked for.
            student_image: the student's `Tokens` of the images, likewise.
            output_query_states: layers whose attention is shown.
            output_key_states: the same layers.
            **batch: of the teacher.

        Raises:
            ValueError: attention is asked for, and the teacher shows none.
        """
        view = self.view(batch, output_query_states or ())
        aligned = align_view(view, student_text, student_image) if output_query_states else []
        for pair in aligned:
            if pair == (None, None):
                raise ValueError(f"{self.name} shows no attention between text and image; set attention_weight to 0.")
            if None in pair and not self._has_said:
                self._has_said = True
                logger.warning("%s shows one direction of attention alone; the other term is left out.", self.name)
        logits = view.logits
        if logits is not None and self.multi_label_student and not self.multi_label:
            logits = as_binary(logits)
        return AlignedOutputs(logits, aligned, view.match_scores)


class ForeignTeacher(AlignedTeacher):
    """A teacher of any family, which reads texts and images by its own processor.

    Args:
        model: of a family of `FAMILIES`.
        processor: its own.
        name: of its checkpoint; None: its class.

    Attributes:
        inputs: `(images, texts)` -> what it reads of them.

    Raises:
        ValueError: no family knows the model.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, name: str | None = None):
        super().__init__()
        self.family, self.model, self.processor = family_of(model.config), model, processor
        self.name, self.num_layers = name or type(model).__name__, len(self.family.layers(model))
        self.multi_label = is_multi_label(model)
        # Without the model, so that data-loading processes need no copy of it.
        self.inputs = partial(self.family.inputs, model.config, processor)
        self._scoring: dict[str, Any] = {}

    def ask_for_matches(self) -> None:
        """Ask from now on whether text and image match: a model that writes needs to be told."""
        self.inputs = partial(self.inputs, **getattr(self.family, "MATCH_INPUTS", {}))
        self._scoring = getattr(self.family, "MATCH_VIEW", {})

    def view(self, batch: Mapping[str, Tensor], layers: Sequence[int]) -> TeacherView:
        """Run the model on a batch of `inputs`."""
        view = self.family.view(self.model, self.processor, batch, layers, self.answers, **self._scoring)
        return view if view.logits is None else replace(view, logits=view.logits.clamp(min=_LEAST_LOGIT))


def is_multi_label(model: Any) -> bool:
    """Return whether each logit of a model is a yes or no of its own."""
    return getattr(model.config, "problem_type", None) == "multi_label_classification"


def as_binary(logits: Tensor) -> Tensor:
    """Of logits of one answer those whose sigmoid is the share of each; `(..., answers)`, float32.

    Example:
        >>> as_binary(torch.tensor([12.0, 12.0, 11.0])).sigmoid()
        tensor([0.4223, 0.4223, 0.1554])
    """
    return logits.float().softmax(-1).logit(eps=1e-6)


def student_tokens(batch: Mapping[str, Tensor], patch_size: int, image_mask: Tensor) -> dict[str, Tokens]:
    """Return what a student's tokens cover, as `AlignedTeacher` takes it.

    Args:
        batch: `student_text_spans` `(B, T, 2)`, `attention_mask` `(B, T)`, `student_image_boxes` `(B, 4)`, the part of
            each image that its pixels show, and `pixel_mask` `(B, 1, H, W)`, 1 where there is one of these; the rest
            pads them at the bottom and right.
        patch_size: pixels along a side of a patch.
        image_mask: `(B, 1, L)`, True for a real token; those in front of the patches show the whole image.

    Example:
        >>> batch = {"student_text_spans": torch.tensor([[[0, 3]]]), "attention_mask": torch.ones(1, 1)}
        >>> batch |= {"pixel_mask": torch.ones(1, 1, 4, 8), "student_image_boxes": torch.tensor([[0.0, 0, 1, 1]])}
        >>> student_tokens(batch, 4, torch.ones(1, 1, 3).bool())["student_image"].covered[0].tolist()
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    """
    real = batch["pixel_mask"][:, 0].bool()
    height, width = (real.any(dim).sum(1, keepdim=True).float() for dim in (2, 1))
    rows, columns = (torch.arange(side // patch_size, device=real.device) * patch_size for side in real.shape[1:])
    top, left = (grid.flatten()[None] for grid in torch.meshgrid(rows, columns, indexing="ij"))
    edges = [left / width, top / height, (left + patch_size) / width, (top + patch_size) / height]
    # What is padding alone has no area left.
    patches = torch.stack(edges, dim=-1).clamp(max=1)
    start, end = batch["student_image_boxes"][:, None].split(2, dim=-1)
    patches = start.repeat(1, 1, 2) + patches * (end - start).repeat(1, 1, 2)

    whole = patches.new_tensor([0, 0, 1, 1]).expand(len(real), image_mask.shape[2] - patches.shape[1], 4)
    image = Tokens.of(torch.cat([whole, patches], dim=1), image_mask[:, 0])
    return {"student_text": Tokens.of(batch["student_text_spans"], batch["attention_mask"]), "student_image": image}
