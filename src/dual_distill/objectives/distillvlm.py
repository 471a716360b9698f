"""The DistillVLM objective: a small fusion encoder imitates a large one that reads the same words, tags and regions."""

from collections.abc import Mapping
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from .base import (
    Objective,
    Paper,
    Settings,
    check_num_tokens,
    given_attention,
    mapped_layers,
    recorded_layer,
    student_loss,
)
from .losses.attention import attention_matrix_loss, attention_probs, joint_pattern
from .losses.logits import check_positive, mlm_distillation_loss, soft_answer_loss, soft_label_loss
from .losses.tokens import TokenQueue, hidden_state_mse_loss, noise_contrastive_loss, pool_tokens

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
        hidden_loss: "nce" (`noise_contrastive_loss`), "mse" (`hidden_state_mse_loss`) or "none".
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
        The paper publishes the MSE of attention, the noise-contrastive loss over tokens with a queue,
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

    paper = Paper(
        method="attention matrices and noise-contrastive hidden states (DistillVLM)",
        title="Compressing Visual-linguistic Model via Knowledge Distillation",
        url="https://arxiv.org/abs/2104.02096",
        bibtex="@inproceedings{fang2021compressing,\n"
        "  title = {Compressing Visual-linguistic Model via Knowledge Distillation},\n"
        "  author = {Fang, Zhiyuan and Wang, Jianfeng and Hu, Xiaowei and Wang, Lijuan and Yang, Yezhou and Liu, "
        "Zicheng},\n"
        "  booktitle = {ICCV},\n  year = {2021},\n  url = {https://arxiv.org/abs/2104.02096}\n}",
        reference="Fang et al., *Compressing Visual-linguistic Model via Knowledge Distillation*, ICCV 2021",
    )

    def __init__(
        self,
        student_size: int,
        teacher_size: int,
        attention_weight: float = 1.0,
        hidden_weight: float = 1.0,
        soft_label_weight: float = 1.0,
        label_weight: float = 0.0,
        hidden_loss: HiddenLoss = "nce",
        hidden_layers: Mapping[int, int] | None = None,
        pooled: bool = False,
        queue_size: int = 4096,
        nce_temperature: float = 0.07,
        multi_label: bool = False,
        **settings: Unpack[Settings],
    ):
        if hidden_loss not in get_args(HiddenLoss):
            raise ValueError(f"hidden_loss is {hidden_loss!r}; give one of {', '.join(get_args(HiddenLoss))}.")
        check_positive(nce_temperature=nce_temperature, queue_size=queue_size)

        weights = {
            "attention_weight": attention_weight,
            "hidden_weight": 0.0 if hidden_loss == "none" else hidden_weight,
            "soft_label_weight": soft_label_weight,
            "label_weight": label_weight,
        }
        super().__init__(weights, **settings)

        self.hidden_loss = hidden_loss
        self.hidden_layers = mapped_layers("hidden_layers", hidden_layers, weights["hidden_weight"])
        self.hidden_sizes = (student_size, teacher_size) if self.hidden_layers else None
        self.one_sequence = bool(attention_weight or self.hidden_layers)
        self.pooled = pooled
        self.nce_temperature = nce_temperature
        self.multi_label = multi_label

        self.projections = nn.ModuleList([nn.Linear(student_size, teacher_size) for _ in self.hidden_layers])
        queued = self.hidden_layers if hidden_loss == "nce" else ()
        self.queues: Any = nn.ModuleList([TokenQueue(queue_size, teacher_size) for _ in queued])

    def finish_step(self) -> None:
        """Let the tokens of this step become negatives of the next."""
        for queue in self.queues:
            queue.write()

    def forward(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare one batch; in training, its teacher states are collected for the queue (`finish_step` writes them).

        Args:
            student_outputs: `logits`; `query_states` and `key_states` of `student_layers`, each `(B * N, H, S, D)`;
                `hidden_states` of all layers (the embeddings before them), each `(B * N, S, C)`; `image_mask` `(B, N,
                R)`; `attention_pattern` `(B * N, S, S)` bool where not every real token sees every other (captions);
                `loss` when `label_weight` is above 0.
            teacher_view: `logits`, states and hidden states likewise of `teacher_layers`; or, in place of queries
                and keys, `attentions` of all layers, `(B * N, H, S, S)` probabilities.
            batch: `attention_mask` `(B, T)`; for captions `labels` `(B, T)`, -100 where nothing was masked.

        Returns:
            Scalars: `loss`, and unweighted `attention_loss` (squared probability), `hidden_loss` (nats for "nce", MSE
            for "mse"), `soft_label_loss` and `label_loss` (nats) as far as they have a weight.

        Raises:
            ValueError: an output is missing or has another shape; the message names it.
        """
        losses: dict[str, Tensor] = {}
        # Captions have a pattern of their own; otherwise every real token sees every other.
        pattern: Any = getattr(student_outputs, "attention_pattern", None)
        if pattern is None and self.one_sequence:
            pattern = joint_pattern(batch["attention_mask"], student_outputs.image_mask)

        if self.attention_weight:
            losses["attention_loss"] = self._attention_loss(student_outputs, teacher_view, pattern)
        if self.hidden_layers:
            # A real token sees itself, a padded one nothing.
            token_mask = pattern.diagonal(dim1=1, dim2=2)
            losses["hidden_loss"] = self._hidden_loss(student_outputs, teacher_view, token_mask)

        if self.soft_label_weight:
            losses["soft_label_loss"] = self._soft_label_loss(student_outputs, teacher_view, batch)
        if self.label_weight:
            losses["label_loss"] = student_loss(student_outputs)
        return self.weighted(losses)

    def _attention_loss(self, student_outputs: Any, teacher_view: Any, pattern: Tensor) -> Tensor:
        """Attention matrices of the mapped layers; a foreign teacher gives its own, zero outside the pattern."""
        total = torch.zeros((), device=pattern.device)
        for index, layer in enumerate(self.teacher_layers):
            student = self._probs(student_outputs, "student", index, pattern)
            with torch.no_grad():
                if getattr(teacher_view, "query_states", None):
                    teacher = self._probs(teacher_view, "teacher", index, pattern)
                else:
                    given = given_attention(teacher_view, layer, self.relation_heads, pattern.shape[1])
                    teacher = given.float() * pattern[:, None]

            total = total + attention_matrix_loss(student, teacher, pattern)
        return total / len(self.layer_map)

    def _probs(self, outputs: Any, role: str, index: int, pattern: Tensor) -> Tensor:
        """Attention probabilities of a mapped layer's queries and keys."""
        queries, keys = recorded_layer(outputs, role, index)
        check_num_tokens(role, "recorded states", queries.shape[2], pattern.shape[1])
        return attention_probs(queries, keys, pattern, self.relation_heads)

    def _hidden_loss(self, student_outputs: Any, teacher_view: Any, token_mask: Tensor) -> Tensor:
        """Hidden states of the mapped layers, token by token or pooled; the queue collects the teacher's."""
        total = torch.zeros((), device=token_mask.device)
        for index, (student_layer, teacher_layer) in enumerate(self.hidden_layers.items()):
            student = _hidden_states(student_outputs, "student", student_layer, token_mask.shape[1])
            teacher = _hidden_states(teacher_view, "teacher", teacher_layer, token_mask.shape[1]).detach()
            real = token_mask

            # A row then counts as one token.
            if self.pooled:
                student, teacher = pool_tokens(student, real), pool_tokens(teacher, real)
                real = real.any(1, keepdim=True)

            # In float32, whatever the student's states are: a projection of its own is not cast with the model.
            projected = self.projections[index](student.float())
            if self.hidden_loss == "mse":
                total = total + hidden_state_mse_loss(projected, teacher, real)
                continue

            queue = self.queues[index]
            total = total + noise_contrastive_loss(projected, teacher, queue.negatives(), real, self.nce_temperature)
            if self.training:
                queue.collect(nn.functional.normalize(teacher[real].float(), dim=-1))
        return total / len(self.hidden_layers)

    def _soft_label_loss(self, student_outputs: Any, teacher_view: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Soft labels of a row, or of its masked words where the models give logits of words."""
        student, teacher = student_outputs.logits, teacher_view.logits
        if student.dim() == 3:
            if batch.get("labels") is None:
                compared = "logits of words, which are compared where words are masked"
                way_out = "mask words (CaptioningCollator), or set soft_label_weight to 0"
                raise ValueError(f"the models give {compared}, but the batch has no labels; {way_out}.")
            return mlm_distillation_loss(student, teacher, batch["labels"], self.temperature)

        compare = soft_answer_loss if self.multi_label else soft_label_loss
        return compare(student, teacher, self.temperature)


def _hidden_states(outputs: Any, role: str, layer: int, num_tokens: int) -> Tensor:
    """Output of a layer, `(B * N, S, C)`; the embeddings stand before the first."""
    states = getattr(outputs, "hidden_states", None)
    if not states:
        way_out = "call it with output_hidden_states=True"
        raise ValueError(f"the {role} returned no hidden_states, which are compared; {way_out}.")
    found: Tensor = states[layer if layer < 0 else layer + 1]
    check_num_tokens(role, "hidden states", found.shape[1], num_tokens)
    return found
