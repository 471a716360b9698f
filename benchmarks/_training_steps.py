"""The training steps that are compared: the same teacher, student and batch, with and without distillation.

A step is teacher forward, student forward and backward, as `DistillationTrainer` runs it; gradients are dropped before
each, and no optimizer is in it, which would be the same for all.
"""

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dual_distill.inference import PairShape, random_pairs
from dual_distill.modeling import (
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.objectives import DiDEObjective, attention_distillation_loss, relation_scores, soft_answer_loss

WAYS = {
    "floor": "teacher forward, student forward and backward on hard labels; no distillation",
    "last_layer": "soft labels and attention of the last layer",
    "all_layers": "soft labels and attention of every layer",
    "output_attentions": "soft labels and attention of the last layer by output_attentions=True under eager attention",
}


TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 200}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of a benchmark of one shape of steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--text-tokens", type=int, default=40, help="padding included")
    parser.add_argument("--real-tokens", type=int, default=12)
    parser.add_argument("--height", type=int, default=384, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="on residual branches, in every way alike (the recipe's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script out")
    return parser


def steps_of(options: argparse.Namespace, device: str) -> tuple["TrainingSteps", PairShape]:
    """The steps that those arguments name, with 3,129 answers."""
    shape = PairShape(options.batch_size, options.text_tokens, options.real_tokens, (options.height, options.width))
    fields = {"num_labels": 3129, **(TINY if options.tiny else {})}
    return TrainingSteps(fields, shape, options.dropout, device, options.seed), shape


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
            **fields,
            image_size=list(shape.image_size),
            hidden_dropout_prob=dropout,
            problem_type="multi_label_classification",
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
        """Weights of both models, and the most bytes that one step adds: activations, gradients, recorded states."""
        self.student.zero_grad(set_to_none=True)  # the last step's gradients would count as freed by this one
        return sum(weight.nbytes for weight in self.weights) + peak_memory(self.step(way), self.weights[0].device)

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """Both models'."""
        return (*self.teacher.parameters(), *self.student.parameters())

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

        A dual encoder's own attention never crosses the modalities, so the student's side is queries times keys here
        too.
        """
        student = self.student(**self.batch, output_query_states=[-1], output_key_states=[-1], output_attentions=True)
        teacher = self._teacher(output_attentions=True)
        tokens = self.batch["input_ids"].shape[1]
        text_mask, image_mask = self.batch["attention_mask"].bool(), student.image_mask.flatten(0, 1)
        [own_queries], [own_keys] = student.query_states, student.key_states
        blocks = (
            relation_scores(own_queries[:, :, :tokens], own_keys[:, :, tokens:]),
            relation_scores(own_queries[:, :, tokens:], own_keys[:, :, :tokens]),
        )
        probs = teacher.attentions[-1]
        theirs = (probs[:, :, :tokens, tokens:], probs[:, :, tokens:, :tokens])
        masks = ((image_mask, text_mask), (text_mask, image_mask))
        total = soft_answer_loss(student.logits, teacher.logits)
        for ours, their_probs, (keys, queries) in zip(blocks, theirs, masks, strict=True):
            scores = their_probs.clamp(min=torch.finfo(torch.float32).tiny).log()
            total = total + attention_distillation_loss(ours, scores, keys, queries)
        return total


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors that lived at once during a call, beyond those that lived before it.

    On the CPU torch's own allocations are counted (by its profiler), which is the same in every run; what libraries
    take beside it, and what the allocator keeps back, is not in it. On a GPU it is torch's peak of allocated memory.

    Example:
        >>> peak_memory(lambda: torch.zeros(1000) + torch.zeros(1000))   # three vectors of 4,000 bytes
        12000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
