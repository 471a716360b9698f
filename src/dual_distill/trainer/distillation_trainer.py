"""A `Trainer` with a frozen teacher and an objective; without them it is the plain trainer with the same conveniences.

Unusual here:

* The teacher is no part of the student, of the optimizer, of a checkpoint, or of what accelerate prepares: it runs in
  eval mode under `no_grad` and the run's own autocast.
* Training rows that know their number (`IndexedDataset`) are told each epoch, which augmentation is drawn from.
* An objective's own parameters and state (a projection, a queue) are trained, saved and taken up again with the run.
* An input called `teacher_NAME` is the teacher's alone, which reads it as `NAME`: the same regions in features of its
own.
* Each loss term is averaged over the rows since the last log and gathered across processes, in training and evaluation.
"""

import inspect
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from dual_distill.data import ImageTextStream, IndexedDataset, RowEpochCallback, fingerprint
from dual_distill.hub_cards import PushReport, push_folder, write_card
from dual_distill.objectives import DiDEObjective, Objective
from dual_distill.teachers import load_teacher

from .compatibility import check_compatibility
from .distillation_config import DistillationTrainingArguments
from .objective_callback import ObjectiveCallback
from .teacher_cache import ROW_KEYS, KeyedCollator, TeacherCache, TeacherCacheCallback, estimate_bytes

logger = logging.getLogger(__name__)

TEACHER_PREFIX = "teacher_"
"""Inputs whose name begins so are the teacher's."""


class DistillationTrainer(Trainer):
    """Trains a student on what a frozen teacher shows, or any of the package's models on labels alone.

    Args:
        model: the student, also wrapped by peft; without a teacher, any model with a task head.
        args: a `DistillationTrainingArguments`; its weights describe the objective unless one is given.
        teacher: a model, or the name of a checkpoint (ours, or a ViLT, which is converted on the way in); frozen in
            place (`requires_grad_(False)`, `eval()`) and moved to the training device. A foreign teacher must return
            `logits` and `attentions` of the joint sequence `[text; image CLS; patches]` in raster order.
        objective: what is compared; None: `args.make_objective()` when there is a teacher.
        **kwargs: as for `transformers.Trainer`; `processing_class` is saved with every checkpoint.

    Raises:
        ValueError: an objective without a teacher, or a pair that cannot be compared (vocabulary, patch grid, answers,
            heads, layers); or a collator that augments rows of a training set that is no `IndexedDataset`, which it would
            pass over. Said before the first step.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.
    """

    # The loss is a mean over the rows of one micro-batch, so Trainer must divide it by the accumulation steps.
    loss_is_scaled_for_ga = False
    data_collator: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: DistillationTrainingArguments,
        *,
        teacher: PreTrainedModel | nn.Module | str | Path | None = None,
        objective: Objective | None = None,
        **kwargs: Any,
    ):
        if teacher is None and objective is not None:
            raise ValueError(
                "an objective was given without a teacher; give teacher= as well, or leave objective= out."
            )
        taught_by = load_teacher(teacher).model if isinstance(teacher, str | Path) else teacher
        super().__init__(model=model, args=args, **kwargs)
        if isinstance(self.train_dataset, IndexedDataset):
            self.add_callback(RowEpochCallback())
        elif (
            self.train_dataset is not None
            and not isinstance(self.train_dataset, ImageTextStream)  # its rows say their index and epoch themselves
            and getattr(self.data_collator, "augmentation", None) is not None
        ):
            raise ValueError(
                "the collator has an augmentation, which is drawn from a row's number and epoch, but train_dataset is "
                f"a {type(self.train_dataset).__name__} without them; give IndexedDataset(train_dataset)."
            )
        self.teacher: nn.Module | None = taught_by
        self.objective = objective
        self._term_sums: dict[str, torch.Tensor] = {}
        self._term_rows = 0
        self.teacher_cache: TeacherCache | None = None
        if taught_by is None:
            return
        student = self.accelerator.unwrap_model(self.model)
        if objective is None:
            objective = self._make_objective(student, taught_by)
        check_compatibility(student, taught_by, objective)
        self.teacher = taught_by.requires_grad_(False).eval().to(self.args.device)
        self.objective = objective.to(self.args.device)
        self._teacher_requests = objective.teacher_requests(inspect.signature(taught_by.forward).parameters)
        # A model wrapped by peft passes on what the one inside takes.
        inside = getattr(student, "get_base_model", lambda: student)()
        self._student_requests = objective.student_requests(inspect.signature(inside.forward).parameters)
        self._check_objective(objective)
        self.add_callback(ObjectiveCallback(objective, self.accelerator, args.max_grad_norm))
        if args.cache_teacher is not None:
            if not isinstance(objective, DiDEObjective):
                raise ValueError(
                    f"cache_teacher is {args.cache_teacher!r}, but a cache keeps what DiDEObjective compares, and the "
                    f"objective is a {type(objective).__name__}; leave cache_teacher out."
                )
            self.teacher_cache = self._open_teacher_cache(args.cache_teacher, taught_by, objective)
            self.data_collator = KeyedCollator(self.data_collator)
            self.add_callback(TeacherCacheCallback(self.teacher_cache))

    def _open_teacher_cache(self, kind: str, teacher: nn.Module, objective: DiDEObjective) -> TeacherCache:
        """Open the cache that the arguments name, and see that it will fit on the disk."""
        augmentation = getattr(self.data_collator, "augmentation", None)
        image_processor = getattr(self.processing_class, "image_processor", None)
        config: Any = teacher.config
        patch_size = getattr(config, "vision_config", config).patch_size
        cache = TeacherCache(
            self.args.teacher_cache_dir or Path(self.args.output_dir, "teacher_cache"),
            kind,
            {
                "teacher": fingerprint(teacher),
                "layers": objective.teacher_layers if kind == "attention" else [],
                "relation_heads": objective.relation_heads,
                "image_processor": None if image_processor is None else image_processor.to_dict(),
                # Its settings, its seed among them.
                "augmentation": None
                if augmentation is None
                else {"class": type(augmentation).__name__}
                | {name: repr(value) for name, value in vars(augmentation).items() if not name.startswith("_")},
            },
            patch_size=patch_size,
        )
        if self.train_dataset is not None:
            rows = len(self.train_dataset)
            sample = self.data_collator([self.train_dataset[place] for place in range(min(rows, 32))])
            passes = 1 if augmentation is None else math.ceil(self.args.num_train_epochs)
            estimated = estimate_bytes(
                sample,
                rows * passes,
                config.num_labels,
                len(objective.teacher_layers) if kind == "attention" else 0,
                objective.relation_heads or config.num_attention_heads,
                patch_size,
            )
            logger.info("the teacher cache will take about %.2f GB", estimated / 1e9)
            cache.check_space(estimated)
        return cache

    def _make_objective(self, student: nn.Module, teacher: nn.Module) -> Objective:
        """Build the objective that the arguments describe, for these two."""
        config: Any = student.config
        multi_label = config.problem_type == "multi_label_classification"
        return self.args.make_objective(multi_label, config, getattr(teacher, "config", None))

    def _check_objective(self, objective: Objective) -> None:
        """Refuse what an objective's parameters cannot do: be trained where the student's are sharded, or not at all."""
        if not any(True for _ in objective.parameters()):
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"a {type(objective).__name__} has parameters of its own, which are not sharded with the student; "
                f"train it "
                "with DistributedDataParallel (torchrun, or accelerate launch without FSDP and DeepSpeed)."
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss in nats per row, and the logits `(B, labels)` if `return_outputs`.

        Only the logits are handed on, or evaluation would gather every query and key.
        """
        if self.objective is None or self.teacher is None:
            inputs = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (loss, {"logits": outputs["logits"]}) if return_outputs else loss
        student_outputs = self._ask_student(model, inputs)
        if self.teacher_cache is None:
            teacher_outputs = self._ask_teacher(inputs, student_outputs)
        else:
            assert isinstance(self.objective, DiDEObjective)
            teacher_outputs = self.teacher_cache.outputs(
                inputs, lambda part: self._ask_teacher(part, student_outputs), self.objective
            )
        self.objective.train(model.training)
        losses = self.objective(student_outputs, teacher_outputs, inputs)
        self._note_terms(losses, len(inputs["input_ids"]))
        return (losses["loss"], {"logits": student_outputs.logits}) if return_outputs else losses["loss"]

    def _ask_student(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Return the student's outputs on a batch, with what the objective compares."""
        assert self.objective is not None
        # Hard labels are kept from a student that does not learn from them: the objective names every term.
        hidden = {ROW_KEYS} if self.objective.label_weight else {ROW_KEYS, "labels"}
        seen = {
            name: value for name, value in inputs.items() if name not in hidden and not name.startswith(TEACHER_PREFIX)
        }
        return model(**seen, **self._student_requests)

    def _ask_teacher(self, inputs: Mapping[str, torch.Tensor], student_outputs: Any) -> Any:
        """Return the teacher's outputs on a batch.

        Args:
            inputs: the batch; a teacher with a cache is asked for the rows alone that the cache lacks.
            student_outputs: of the whole batch, for teachers that are asked about what the student found.
        """
        assert self.teacher is not None
        own = {
            name.removeprefix(TEACHER_PREFIX): value
            for name, value in inputs.items()
            if name.startswith(TEACHER_PREFIX)
        }
        shared = {
            name: value
            for name, value in inputs.items()
            if name not in ("labels", ROW_KEYS) and not name.startswith(TEACHER_PREFIX)
        }
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher(**{**shared, **own}, **self._teacher_requests)

    def _note_terms(self, losses: Mapping[str, torch.Tensor], rows: int) -> None:
        for name, value in losses.items():
            if name != "loss":
                # Stays on the device: reading it here would wait for it in every step.
                self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach().float() * rows
        self._term_rows += rows

    def _take_terms(self) -> dict[str, float]:
        """Return the mean of each term since the last call, over all processes, and start anew."""
        sums, rows = self._term_sums, self._term_rows
        self._term_sums, self._term_rows = {}, 0
        if not sums:
            return {}
        totals = torch.stack([*sums.values(), torch.tensor(float(rows), device=self.args.device)])
        totals = self.accelerator.reduce(totals, reduction="sum")
        return {name: (totals[i] / totals[-1]).item() for i, name in enumerate(sums)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss terms beside the loss they make up."""
        if "loss" in logs:
            logs = {**logs, **self._take_terms()}
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, with the loss terms among the metrics."""
        training_sums, training_rows = self._term_sums, self._term_rows
        self._term_sums, self._term_rows = {}, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        terms = {f"{metric_key_prefix}_{name}": value for name, value in self._take_terms().items()}
        self._term_sums, self._term_rows = training_sums, training_rows
        return output._replace(metrics={**output.metrics, **terms})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save model or adapter and processor, and no pickle of the arguments: it may hold tokens, and nothing reads it."""
        folder = Path(output_dir or self.args.output_dir)
        card = folder / "README.md"
        written = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        # peft leaves an empty form for a card, or adds to the one that is there.
        if written is not None:
            card.write_bytes(written)
        else:
            card.unlink(missing_ok=True)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Note the name of the repository; no constructor opens a socket, and the push creates it."""
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        self.push_in_progress = None

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the card from the record of the run (`run.json`, which `dual-distill train` leaves)."""
        if self.is_world_process_zero():
            write_card(self.args.output_dir, repo_id=self.args.hub_model_id)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushReport | None:
        """Save, then push model, processor and card in one commit, and nothing else; None on other processes than the
        first.

        Args:
            commit_message: of the commit.
            blocking: pushes are always awaited; there for Trainer's signature.
            token: of the Hub; None: `args.hub_token`, else the one that is logged in.
            revision: branch; None: `args.hub_revision`, else main.
            private: whether a repository that is created is private.
            **kwargs: there for Trainer's signature.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.init_hf_repo()
        return push_folder(
            self.args.output_dir,
            self.hub_model_id,
            message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            private=self.args.hub_private_repo if private is None else private,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Leave intermediate checkpoints here: stock pushes would send training_args.bin."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what a resumed run needs, the objective's state among it."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.objective is not None and self.args.should_save:
            self.objective.save_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take up what `_save_optimizer_and_scheduler` saved."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.objective is not None and checkpoint is not None:
            self.objective.load_state(checkpoint)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer, of student and objective; head and shallow interaction get their own rate if asked for.

        Raises:
            ValueError: an optimizer of the caller's lacks the objective's parameters.
        """
        built_before = self.optimizer is not None  # by the caller, or by an earlier `train()`: its groups are settled
        optimizer = super().create_optimizer(model)
        own = [] if self.objective is None else [one for one in self.objective.parameters() if one.requires_grad]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in own if id(parameter) not in held]
        if built_before:
            if missing:
                raise ValueError(
                    f"the optimizer lacks {len(missing)} parameters of the {type(self.objective).__name__}; give it "
                    "objective.parameters() beside the student's."
                )
            return optimizer
        factor = self.args.head_learning_rate_factor
        if factor != 1.0:
            named = (self.model if model is None else model).named_parameters()
            heads = {id(parameter) for name, parameter in named if "classifier." in name or "interaction." in name}
            for group in list(optimizer.param_groups):
                chosen = [parameter for parameter in group["params"] if id(parameter) in heads]
                if chosen:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
                    optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * factor})
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": self.args.weight_decay})
        return optimizer


__all__ = ["TEACHER_PREFIX", "DistillationTrainer"]
