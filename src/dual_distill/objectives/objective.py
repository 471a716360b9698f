"""What every objective says to whoever trains: which outputs it needs, what it keeps, and when a step is over."""

from collections.abc import Container
from typing import Any

from torch import nn


class Objective(nn.Module):
    """The contract between objective and trainer; `objective(student_outputs, teacher_outputs, batch)` gives named
    losses.

    An objective may have parameters (trained by the student's optimizer, gradients averaged over processes) and
    buffers. Its `state_dict` is saved in every checkpoint and restored bit by bit on resume; one without any is not
    saved.

    Attributes:
        attention_weight: weight of the attention term; 0: attention is not compared.
        soft_label_weight: weight of the teacher's soft labels; 0: the two models may have other labels.
        label_weight: weight of hard labels; 0: the student is not shown them.

    Example:
        >>> from dual_distill.objectives import DiDEObjective
        >>> DiDEObjective().teacher_requests({"output_query_states", "output_key_states"})
        {'output_query_states': [-1], 'output_key_states': [-1]}
    """

    attention_weight: float = 0.0
    soft_label_weight: float = 0.0
    label_weight: float = 0.0

    def student_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Return the keyword arguments that make a student hand out what is compared.

        Args:
            takes: names of the parameters of its `forward`.
        """
        return {}

    def teacher_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Return the keyword arguments that make a teacher hand out what is compared.

        Args:
            takes: names of the parameters of its `forward`.
        """
        return {}

    def finish_step(self) -> None:
        """Take note that the optimizer has made a step, so that what a step collected counts from the next on."""


def attention_requests(layers: list[int], takes: Container[str]) -> dict[str, Any]:
    """Return what makes a teacher hand out queries and keys of `layers`, or of a foreign one its attentions.

    Example:
        >>> attention_requests([-1], {"input_ids"}), attention_requests([], {"input_ids"})
        ({'output_attentions': True}, {})
    """
    if not layers:
        return {}
    if "output_query_states" in takes:
        return {"output_query_states": layers, "output_key_states": layers}
    return {"output_attentions": True}


__all__ = ["Objective", "attention_requests"]
