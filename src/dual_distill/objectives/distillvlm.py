"""The DistillVLM objective: a small fusion encoder imitates a large one whose tokens are the same words, tags and regions."""

from collections.abc import Container, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from .attention_matrices import attention_matrix_loss, attention_probs, joint_pattern
from .hidden_states import noise_contrastive_loss, pool_tokens, squared_distance_loss
from .labels import soft_answer_loss, soft_label_loss
from .objective import Objective, attention_requests
from .pretraining import mlm_distillation_loss
from .token_queue import TokenQueue

HiddenLoss = Literal["nce", "mse", "none"]


class DistillVLMObjective(Objective):
    """What a fusion encoder imitates of a larger one: whole attention matrices, hidden states token by token, answers.

    loss = attention_weight * attention + hidden_weight * hidden states + soft_label_weight * soft labels + label_weight
    * hard labels; a term of weight 0 is not computed. Attention and hidden states are averaged over their mapped
    layers. Soft labels of a model with `(B, T, vocabulary)` logits (captions) are compared at the masked tokens alone.

    Student and teacher may differ in width, heads (with `relation_heads`) and depth; their token i must be the same
    word, tag or region, which is what teacher adaptation is for.

    Args:
        student_size: width of the student.
        teacher_size: width of the teacher.
        attention_weight: >= 0, of `attention_matrix_loss`.
        hidden_weight: >= 0, of the hidden states' loss.
        soft_label_weight: >= 0.
        label_weight: >= 0; the student's own loss on hard labels.
        temperature: > 0, of the soft labels.
        layer_map: student layer -> teacher layer of the attention term, negative counts from the last; None: last to
            last.
        relation_heads: heads over which attention is compared when head counts differ; None: the models' own.
        hidden_loss: "nce" (`noise_contrastive_loss`), "mse" (`squared_distance_loss`) or "none".
        hidden_layers: student layer -> teacher layer of the hidden states; None: last to last. A state is a layer's
            output: with `norm_first` the one before the final layer norm.
        pooled: whether the mean of a row's tokens is compared instead of each token.
        queue_size: token states of the teacher that are kept as negatives, for "nce".
        nce_temperature: > 0, for "nce".
        multi_label: whether each answer is a yes-or-no of its own (VQA with soft scores).

    Raises:
        ValueError: a weight is negative, all are 0, a temperature, size or relation_heads is not positive, a map of
            layers is empty, or hidden_loss is unknown.

    Note:
        The paper publishes the squared difference of attention, the noise-contrastive loss over tokens with a queue,
        and matched predictions in fine-tuning; a queue of 4,096 is reported as the best of those tried. It leaves open
        the weights (here 1), the layers (here the last), the temperature (here 0.07, as in MoCo), the projection (here
        one linear map of the student's states to the teacher's width, none of the teacher's), and what else is a
        negative (here the queue alone). All but the projection are arguments.

    References:
        Fang et al., ICCV 2021, arXiv 2104.02096.

    Example:
        >>> from types import SimpleNamespace
        >>> states = (torch.zeros(1, 1, 3, 2),)
        >>> def outputs(width, logits):
        ...     return SimpleNamespace(logits=torch.tensor([logits]), loss=None, query_states=states, key_states=states,
        ...         hidden_states=(torch.ones(1, 3, width),), image_mask=torch.ones(1, 1, 1).bool())
        >>> objective = DistillVLMObjective(student_size=2, teacher_size=4)
        >>> losses = objective(outputs(2, [0.0, 0.0]), outputs(4, [50.0, 0.0]), {"attention_mask": torch.ones(1, 2)})
        >>> {name: round(value.item(), 4) for name, value in losses.items()}   # the queue is empty yet; ln 2
        {'attention_loss': 0.0, 'hidden_loss': 0.0, 'soft_label_loss': 0.6931, 'loss': 0.6931}
        >>> objective.finish_step()
        >>> len(objective.queues[0])
        3
    """

    def __init__(
        self,
        student_size: int,
        teacher_size: int,
        attention_weight: float = 1.0,
        hidden_weight: float = 1.0,
        soft_label_weight: float = 1.0,
        label_weight: float = 0.0,
        temperature: float = 1.0,
        layer_map: Mapping[int, int] | None = None,
        relation_heads: int | None = None,
        hidden_loss: HiddenLoss = "nce",
        hidden_layers: Mapping[int, int] | None = None,
        pooled: bool = False,
        queue_size: int = 4096,
        nce_temperature: float = 0.07,
        multi_label: bool = False,
    ):
        super().__init__()
        if hidden_loss not in get_args(HiddenLoss):
            raise ValueError(f"hidden_loss is {hidden_loss!r}; give one of {', '.join(get_args(HiddenLoss))}.")
        hidden_weight = 0.0 if hidden_loss == "none" else hidden_weight
        weights = {
            "attention_weight": attention_weight,
            "hidden_weight": hidden_weight,
            "soft_label_weight": soft_label_weight,
            "label_weight": label_weight,
        }
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):  # not: NaN is refused too
            raise ValueError(f"the weights are {weights}; give numbers >= 0, at least one above 0.")
        for name, number in (
            ("temperature", temperature),
            ("nce_temperature", nce_temperature),
            ("queue_size", queue_size),
        ):
            if not number > 0:
                raise ValueError(f"{name} is {number}; give a number above 0.")
        if relation_heads is not None and relation_heads < 1:
            raise ValueError(
                f"relation_heads is {relation_heads}; give a number above 0, or None for the models' own heads."
            )
        for name, layers in (("layer_map", layer_map), ("hidden_layers", hidden_layers)):
            if layers is not None and not layers:
                raise ValueError(f"{name} is empty; map at least one student layer, or set the term's weight to 0.")
        self.attention_weight = attention_weight
        self.hidden_weight = hidden_weight
        self.soft_label_weight = soft_label_weight
        self.label_weight = label_weight
        self.temperature = temperature
        self.layer_map = dict(layer_map or {-1: -1}) if attention_weight else {}
        self.relation_heads = relation_heads
        self.hidden_loss = hidden_loss
        self.hidden_layers = dict(hidden_layers or {-1: -1}) if hidden_weight else {}
        self.student_size = student_size
        self.teacher_size = teacher_size
        self.pooled = pooled
        self.nce_temperature = nce_temperature
        self.multi_label = multi_label
        self.projections = nn.ModuleList([nn.Linear(student_size, teacher_size) for _ in self.hidden_layers])
        queued = self.hidden_layers if hidden_loss == "nce" else ()
        self.queues = nn.ModuleList([TokenQueue(queue_size, teacher_size) for _ in queued])

    @property
    def student_layers(self) -> list[int]:
        """Layers whose queries and keys the student must record, in order; empty without an attention term."""
        return list(self.layer_map)

    @property
    def teacher_layers(self) -> list[int]:
        """Layers whose queries and keys (or attentions) the teacher must give, in order."""
        return list(self.layer_map.values())

    def student_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Ask for queries, keys and hidden states, as far as terms have a weight."""
        layers = {"output_query_states": self.student_layers, "output_key_states": self.student_layers}
        return (layers if self.student_layers else {}) | self._hidden_requests()

    def teacher_requests(self, takes: Container[str]) -> dict[str, Any]:
        """Ask for queries and keys (a foreign teacher for its attentions) and hidden states."""
        return attention_requests(self.teacher_layers, takes) | self._hidden_requests()

    def _hidden_requests(self) -> dict[str, Any]:
        return {"output_hidden_states": True} if self.hidden_layers else {}

    def finish_step(self) -> None:
        """Let the tokens of this step become negatives of the next."""
        for queue in self._queues():
            queue.write()

    def forward(
        self, student_outputs: Any, teacher_outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compare one batch; in training, its teacher states are collected for the queue (`finish_step` writes them).

        Args:
            student_outputs: `logits`; `query_states` and `key_states` of `student_layers`, each `(B * N, H, S, D)`;
                `hidden_states` of all layers (the embeddings before them), each `(B * N, S, C)`; `image_mask` `(B, N,
                R)`; `attention_pattern` `(B * N, S, S)` bool where not every real token sees every other (captions);
                `loss` when `label_weight` is above 0.
            teacher_outputs: `logits`, states and hidden states likewise of `teacher_layers`; or, in place of queries
                and keys, `attentions` of all layers, `(B * N, H, S, S)` probabilities.
            batch: `attention_mask` `(B, T)`; for captions `labels` `(B, T)`, -100 where nothing was masked.

        Returns:
            Scalars: `loss`, and unweighted `attention_loss` (squared probability), `hidden_loss` (nats for "nce",
            squared difference for "mse"), `soft_label_loss` and `label_loss` (nats) as far as they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, torch.Tensor] = {}
        total = torch.zeros((), device=student_outputs.logits.device)
        if self.attention_weight or self.hidden_weight:
            pattern = getattr(student_outputs, "attention_pattern", None)
            if pattern is None:
                pattern = joint_pattern(batch["attention_mask"], student_outputs.image_mask)
            if self.attention_weight:
                losses["attention_loss"] = self._attention_loss(student_outputs, teacher_outputs, pattern)
                total = total + self.attention_weight * losses["attention_loss"]
            if self.hidden_weight:
                # A real token sees itself, a padded one nothing.
                token_mask = pattern.diagonal(dim1=1, dim2=2)
                losses["hidden_loss"] = self._hidden_loss(student_outputs, teacher_outputs, token_mask)
                total = total + self.hidden_weight * losses["hidden_loss"]
        if self.soft_label_weight:
            losses["soft_label_loss"] = self._soft_label_loss(student_outputs, teacher_outputs, batch)
            total = total + self.soft_label_weight * losses["soft_label_loss"]
        if self.label_weight:
            if student_outputs.loss is None:
                raise ValueError("label_weight is above 0, but the batch has no labels; give labels or set it to 0.")
            losses["label_loss"] = student_outputs.loss
            total = total + self.label_weight * losses["label_loss"]
        return losses | {"loss": total}

    def _attention_loss(self, student_outputs: Any, teacher_outputs: Any, pattern: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=pattern.device)
        for index in range(len(self.layer_map)):
            student = self._probs(student_outputs, "student", self.student_layers, index, pattern)
            with torch.no_grad():
                teacher = self._probs(teacher_outputs, "teacher", self.teacher_layers, index, pattern)
            total = total + attention_matrix_loss(student, teacher, pattern)
        return total / len(self.layer_map)

    def _probs(self, outputs: Any, role: str, layers: list[int], index: int, pattern: torch.Tensor) -> torch.Tensor:
        """Attention probabilities of a mapped layer, from queries and keys or as a foreign teacher gives them."""
        num_tokens = pattern.shape[1]
        queries, keys = getattr(outputs, "query_states", None), getattr(outputs, "key_states", None)
        if queries and keys and len(queries) > index and len(keys) > index:
            _same_tokens(role, "recorded", queries[index], num_tokens)
            return attention_probs(queries[index], keys[index], pattern, self.relation_heads)
        attentions = getattr(outputs, "attentions", None)
        if role == "student" or not attentions:
            raise ValueError(
                f"the {role} returned query_states of {len(queries or ())} layers and "
                f"{'attentions' if attentions else 'no attentions'}, the objective compares {len(layers)}; call it "
                f"with "
                f"output_query_states and output_key_states = {role}_layers (a foreign teacher must return "
                f"attentions, which "
                'needs attn_implementation="eager").'
            )
        if self.relation_heads is not None:
            raise ValueError(
                f"relation_heads is {self.relation_heads}, but the teacher returns attention probabilities, which "
                f"cannot be "
                "split into other heads; leave relation_heads out or use a teacher that returns queries and keys."
            )
        probs: torch.Tensor = attentions[layers[index]].float() * pattern[:, None]
        _same_tokens(role, "attends to", probs, num_tokens)
        return probs

    def _hidden_loss(self, student_outputs: Any, teacher_outputs: Any, token_mask: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=token_mask.device)
        for index, (student_layer, teacher_layer) in enumerate(self.hidden_layers.items()):
            student = _hidden_states(student_outputs, "student", student_layer, token_mask.shape[1])
            teacher = _hidden_states(teacher_outputs, "teacher", teacher_layer, token_mask.shape[1]).detach()
            real = token_mask
            if self.pooled:
                student, teacher = pool_tokens(student, real), pool_tokens(teacher, real)
                real = real.any(1, keepdim=True)
            # In float32, whatever the student's states are: a projection of its own is not cast with the model.
            projected = self.projections[index](student.float())
            if self.hidden_loss == "mse":
                total = total + squared_distance_loss(projected, teacher, real)
                continue
            queue = self._queues()[index]
            total = total + noise_contrastive_loss(projected, teacher, queue.negatives(), real, self.nce_temperature)
            if self.training:
                queue.collect(nn.functional.normalize(teacher[real].float(), dim=-1))
        return total / len(self.hidden_layers)

    def _soft_label_loss(
        self, student_outputs: Any, teacher_outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        if student_outputs.logits.dim() == 3:
            if batch.get("labels") is None:
                raise ValueError(
                    "the models give logits of words, which are compared where words are masked, but the batch has no "
                    "labels; "
                    "mask words (CaptioningCollator), or set soft_label_weight to 0."
                )
            return mlm_distillation_loss(
                student_outputs.logits, teacher_outputs.logits, batch["labels"], self.temperature
            )
        compare = soft_answer_loss if self.multi_label else soft_label_loss
        return compare(student_outputs.logits, teacher_outputs.logits, self.temperature)

    def _queues(self) -> list[TokenQueue]:
        return [queue for queue in self.queues if isinstance(queue, TokenQueue)]


def _same_tokens(role: str, verb: str, states: torch.Tensor, num_tokens: int) -> None:
    if states.shape[2] != num_tokens:
        raise ValueError(
            f"the {role} {verb} {states.shape[2]} tokens, the student's batch has {num_tokens}; both must read the "
            f"same words, "
            "tags and regions."
        )


def _hidden_states(outputs: Any, role: str, layer: int, num_tokens: int) -> torch.Tensor:
    """Output of a layer, `(B * N, S, C)`; the embeddings stand before the first."""
    states = getattr(outputs, "hidden_states", None)
    if not states:
        raise ValueError(
            f"the {role} returned no hidden_states, which are compared; call it with output_hidden_states=True."
        )
    found: torch.Tensor = states[layer if layer < 0 else layer + 1]
    if found.shape[1] != num_tokens:
        raise ValueError(
            f"the {role} has hidden states of {found.shape[1]} tokens, the student's batch has {num_tokens}; both "
            f"must read "
            "the same words, tags and regions."
        )
    return found


__all__ = ["DistillVLMObjective", "HiddenLoss"]
