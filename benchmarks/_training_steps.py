"""The training steps that are compared: the same teacher, student and batch, with and without distillation.

A step is teacher forward, student forward and backward, as `DistillationTrainer` runs it; gradients are dropped before each,
and no optimizer is in it, which would be the same for all.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from dual_distill.inference import PairShape, peak_memory
from dual_distill.inference.benchmark import random_pairs
from dual_distill.modeling import DualEncoderForQuestionAnswering, FusionEncoderConfig, FusionEncoderForQuestionAnswering
from dual_distill.objectives import DiDEObjective, attention_distillation_loss, cross_modal_scores, soft_answer_loss

WAYS = {
    "floor": "teacher forward, student forward and backward on hard labels; no distillation",
    "last_layer": "soft labels and attention of the last layer",
    "all_layers": "soft labels and attention of every layer",
    "output_attentions": "soft labels and attention of the last layer by output_attentions=True under eager attention",
}


class TrainingSteps:
    """Teacher, student and a batch, and one step for each of `WAYS`.

    Args:
        fields: of the teacher's configuration; the student is the dual encoder of its shape.
        shape: of the batch.
        dropout: of student and teacher's configuration (the teacher is in eval mode).
        device: where all of it lies.
        seed: of weights and batch.
    """

    def __init__(self, fields: dict[str, Any], shape: PairShape, dropout: float, device: str, seed: int):
        torch.manual_seed(seed)
        config = FusionEncoderConfig(
            **fields, image_size=list(shape.image_size), hidden_dropout_prob=dropout, problem_type="multi_label_classification"
        )
        self.layers = range(config.num_hidden_layers)
        self.teacher = FusionEncoderForQuestionAnswering(config).requires_grad_(False).eval().to(device)
        self.student = DualEncoderForQuestionAnswering.from_fusion_encoder(self.teacher).to(device)
        self.student.requires_grad_(True)
        self.batch = {name: tensor.to(device) for name, tensor in random_pairs(config, shape, seed).items()}
        self.labels = torch.zeros(shape.batch_size, config.num_labels, device=device)
        self.labels[:, 0] = 1.0

    def step(self, way: str) -> Callable[[], float]:
        """Return the step of one way; it gives back the loss."""

        def run() -> float:
            self.student.zero_grad(set_to_none=True)
            attention = "eager" if way == "output_attentions" else "sdpa"
            for model in (self.teacher, self.student):
                model.set_attn_implementation(attention)
            loss = getattr(self, f"_{way}")()
            loss.backward()
            return loss.item()

        return run

    def peak_bytes(self, way: str) -> int:
        """Weights of both models, and the most bytes that one step adds to them: activations, gradients, recorded states."""
        self.student.zero_grad(set_to_none=True)  # the last step's gradients would count as freed by this one
        parameters = (*self.teacher.parameters(), *self.student.parameters())
        resident = sum(weight.numel() * weight.element_size() for weight in parameters)
        return resident + peak_memory(self.step(way), parameters[0].device)

    def fixed_bytes(self) -> int:
        """Weights of both models and gradients of the student: what no way of distilling changes."""
        sizes = [weight.numel() * weight.element_size() for weight in self.student.parameters()]
        return 2 * sum(sizes) + sum(weight.numel() * weight.element_size() for weight in self.teacher.parameters())

    def _teacher(self, **requests: Any) -> Any:
        with torch.no_grad():
            return self.teacher(**self.batch, **requests)

    def _floor(self) -> torch.Tensor:
        loss: torch.Tensor = self.student(**self.batch, labels=self.labels).loss
        self._teacher()
        return loss

    def _last_layer(self) -> torch.Tensor:
        return self._distil(DiDEObjective(multi_label=True))

    def _all_layers(self) -> torch.Tensor:
        return self._distil(DiDEObjective(multi_label=True, layer_map={layer: layer for layer in self.layers}))

    def _distil(self, objective: DiDEObjective) -> torch.Tensor:
        wanted = {"output_query_states": objective.student_layers, "output_key_states": objective.student_layers}
        # As in the trainer: a student that can hand out its two towers' states apart is spared the copy.
        apart = {"join_states": False} if "join_states" in inspect.signature(self.student.forward).parameters else {}
        student = self.student(**self.batch, **wanted, **apart)
        layers = objective.teacher_layers
        teacher = self._teacher(output_query_states=layers, output_key_states=layers)
        loss: torch.Tensor = objective(student, teacher, self.batch)["loss"]
        return loss

    def _output_attentions(self) -> torch.Tensor:
        """What one writes with the means that transformers has: every layer of both models gives its probabilities.

        A dual encoder's own attention never crosses the modalities, so the student's side is queries times keys here too.
        """
        student = self.student(**self.batch, output_query_states=[-1], output_key_states=[-1], output_attentions=True)
        teacher = self._teacher(output_attentions=True)
        tokens = self.batch["input_ids"].shape[1]
        text_mask, image_mask = self.batch["attention_mask"].bool(), student.image_mask.flatten(0, 1)
        blocks = cross_modal_scores(student.query_states[0], student.key_states[0], tokens)
        probs = teacher.attentions[-1]
        theirs = (probs[:, :, :tokens, tokens:], probs[:, :, tokens:, :tokens])
        masks = ((image_mask, text_mask), (text_mask, image_mask))
        total = soft_answer_loss(student.logits, teacher.logits)
        for ours, their_probs, (keys, queries) in zip(blocks, theirs, masks, strict=True):
            scores = their_probs.clamp(min=torch.finfo(torch.float32).tiny).log()
            total = total + attention_distillation_loss(ours, scores, keys, queries)
        return total
