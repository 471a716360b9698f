"""A `Trainer` with a frozen teacher and an objective; without them it is the plain trainer with the same conveniences.

Unusual here:

* The teacher is no part of the student, of the optimizer, of a checkpoint, or of what accelerate prepares: it runs in
  eval mode under `no_grad` and the run's own autocast.
* Training rows that know their number (`IndexedDataset`) are told each epoch, which augmentation is drawn from.
* An objective's own parameters and state (a projection, a queue) are trained, saved and taken up again with the run.
  No wrapped module holds them: gradients are averaged here, and where FSDP or DeepSpeed shards what the student's
  optimizer steps, every process holds them whole and steps them by a second optimizer of the same kind.
* An input called `teacher_NAME` is for the teacher only, which reads it as `NAME`: the same regions in features of its
  own.
"""

import inspect
from collections.abc import Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, Trainer

from dual_distill.data import ImageTextStream, IndexedDataset, fingerprint
from dual_distill.hub_cards import ObjectiveRecord, Origin, RunRecord
from dual_distill.objectives import DiDEObjective, Objective
from dual_distill.teachers import AlignedTeacher, ForeignTeacher, as_binary, is_multi_label, load_model, student_tokens

from .compatibility import (
    check_arguments,
    check_compatibility,
    check_first_batch,
    check_options,
    content_problems,
    patch_size,
)
from .distillation_config import METHODS, DistillationTrainingArguments
from .objective_callback import ObjectiveCallback
from .objective_state import ObjectiveStateTrainer
from .optimizer import rate_heads, with_muon
from .raw_dataset import raw_collator
from .recording import known_origin, loaded_from
from .row_means import Losses
from .stored_teacher import StoredTeacher, TeacherCollator, open_teacher, view_settings
from .teacher_cache import ROW_KEYS, Batch, KeyedCollator, TeacherCache, TeacherCacheCallback
from .vision_cache import cache_images, check_frozen

TEACHER_PREFIX = "teacher_"
"""Inputs whose name begins so are the teacher's."""
NOT_READ = (TEACHER_PREFIX, "student_")  # beginnings of what a student does not read


class DistillationTrainer(ObjectiveStateTrainer):
    """Trains a student on what a frozen teacher shows, or any of the package's models on hard labels only.

    Args:
        model: the student, also wrapped by peft, or the name of its checkpoint; without a teacher, any model with a
            task head. None: `model_init` makes it.
        args: its weights describe the objective unless one is given; None: the recipe, into `tmp_trainer`.
        teacher: a model, the name of a checkpoint, or the folder that `dual-distill teach` wrote; frozen in place
            (`requires_grad_(False)`, `eval()`) and moved to the training device. By name it is of any family of
            `teachers.FAMILIES`: one that cuts text or image otherwise than the student becomes a `ForeignTeacher`,
            whose attention is carried to the student's tokens. Any other model must return `logits` and `attentions`
            of the joint sequence `[text; image CLS; patches]` in raster order.
        objective: what is compared; None: with a teacher that of `args.make_objective`. It is called
            `distillation_objective` afterwards, since transformers' hyperparameter search writes its own `objective`.
        **kwargs: as for `transformers.Trainer`; `processing_class` is saved with every checkpoint. Without a
            `data_collator`, rows of a `datasets.Dataset` with the columns image (image_0, image_1), question, text or
            sentence, and answer, label or answers get the collator of a model with labels, and the processor of the
            teacher's or the student's checkpoint.

    Raises:
        ValueError: an objective without a teacher, or a pair that cannot be compared (vocabulary, patch grid, answers,
            heads, layers); or a collator that augments rows of a training set that is no `IndexedDataset`. Said before
            the first step.

    References:
        Wang et al., EMNLP 2022, arXiv 2112.08723.
    """

    teacher_class: ClassVar[type[PreTrainedModel] | None] = None
    """Class that the name of a teacher is loaded as; None: that of its checkpoint."""
    objective_class: ClassVar[type[Objective] | None] = None
    """What is compared unless it is given; None: what `args.method` names."""
    own_options: ClassVar[tuple[str, ...]] = ("head_learning_rate_factor",)
    """Options of distillation that are read whatever is compared."""
    leaves_parameters_unused: ClassVar[bool] = False
    """Whether some parameters of the student take no part in a step."""
    label_columns: ClassVar[list[str] | None] = None
    """Inputs that `compute_metrics` is given, and where they are there a loss is computed; None: `labels`."""
    draws_by_row: ClassVar[str | None] = None
    """What is drawn anew in each epoch beside an augmentation."""
    own_loss: ClassVar[str | None] = None
    """What computes the loss without a teacher; None: the model, or whatever the arguments of `Trainer` say."""
    gives_predictions: ClassVar[bool] = True
    """Whether an evaluation has outputs for `compute_metrics`."""

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | Path | None = None,
        args: DistillationTrainingArguments | None = None,
        *,
        teacher: PreTrainedModel | nn.Module | str | Path | None = None,
        objective: Objective | None = None,
        **kwargs: Any,
    ):
        if "teacher_model" in kwargs:
            raise ValueError("teacher_model= is called teacher= here: a model, or the name of its checkpoint.")
        if args is not None and not isinstance(args, DistillationTrainingArguments):
            way_out = "give a DistillationTrainingArguments, which has the same fields and those of the objective"
            raise ValueError(f"args is a {type(args).__name__}; {way_out}.")
        if teacher is None and objective is not None:
            raise ValueError("an objective was given without a teacher; give teacher= as well, or leave it out.")
        args = DistillationTrainingArguments(output_dir="tmp_trainer") if args is None else args
        has_idle_parameters = self.leaves_parameters_unused or teacher is not None
        if has_idle_parameters and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True
        # Read by each process for itself: rows of unequal sizes cannot be sent around as one batch.
        is_streamed = isinstance(kwargs.get("train_dataset"), IterableDataset)
        if is_streamed and args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False
        check_options(type(self), args, teacher is not None, objective)
        check_arguments(self, args, teacher, kwargs)

        # Whoever is given by name is loaded, and brings a processor: the student's, if it has none of its own.
        name = teacher if isinstance(teacher, str | Path) else None
        taught_by: Any = teacher
        processor = kwargs.get("processing_class")
        if isinstance(model, str | Path):
            model, own_processor = load_model(model)
            processor = processor or own_processor
        if name is not None:
            ours, may_align = getattr(model, "config", None), self.teacher_class is None and args.method == "dide"
            taught_by, own_processor = open_teacher(name, ours, processor, None, self.teacher_class, may_align)
            processor = processor or own_processor

        # Rows as they are and a model with labels: nothing else needs to be said.
        is_aligned = isinstance(taught_by, AlignedTeacher)
        labelled: Any = taught_by if model is None else model
        if kwargs.get("data_collator") is None and hasattr(labelled, "classifier"):
            checkpoint = (not is_aligned and loaded_from(taught_by)) or loaded_from(labelled)
            collator = raw_collator(kwargs.get("train_dataset"), labelled.config, processor, checkpoint)
            kwargs |= {"data_collator": collator, "processing_class": collator.processor} if collator else {}
        super().__init__(model=model, args=args, **kwargs)
        self._prepare_model(self.model)
        if self.label_columns is not None and args.label_names is None:
            self.label_names = self.label_columns

        # A stream's rows say their index and epoch themselves.
        drawn = "an augmentation" if getattr(self.data_collator, "augmentation", None) else self.draws_by_row
        if drawn is not None and not isinstance(self.train_dataset, IndexedDataset | ImageTextStream | None):
            lacks = f"a {type(self.train_dataset).__name__} without them; give IndexedDataset(train_dataset)"
            raise ValueError(f"{drawn} is drawn from a row's number and epoch, but train_dataset is {lacks}.")

        self.teacher: nn.Module | None = taught_by
        self.distillation_objective: Objective | None = None
        self._made_of: Any = None
        self.teacher_cache: TeacherCache | None = None
        student = self.accelerator.unwrap_model(self.model)
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        # A teacher with tokens of its own reads other batches.
        models = {"student": student, **({} if taught_by is None or is_aligned else {"teacher": taught_by})}
        rows = [self.train_dataset, *evaluated]
        collator = getattr(self.data_collator, "collator", self.data_collator)
        self._problems = list(content_problems(collator, models, rows))
        if taught_by is None:
            check_compatibility(student, None, None, self._problems)
            return

        # The teacher is known by its weights as they are now, one that was never saved by a digest of its parameters.
        known = None if isinstance(taught_by, StoredTeacher) else known_origin(name or loaded_from(taught_by))
        digest = taught_by.store.settings["teacher"] if isinstance(taught_by, StoredTeacher) else fingerprint(taught_by)
        called = getattr(taught_by, "name", type(taught_by).__name__)
        self._teacher_origin = known or Origin(called, f"parameters:{digest}", on_hub=False)
        self.teacher = taught_by.requires_grad_(False).eval()
        # A model on several devices, or of few bits, stays where it is.
        if not any(hasattr(each, "hf_device_map") for each in self.teacher.modules()):
            self.teacher.to(args.device)
        self._given_objective = objective
        objective = self._set_objective(student)
        self.add_callback(ObjectiveCallback(self))

        if args.cache_teacher is not None and not isinstance(objective, DiDEObjective):
            compares = f"a DiDEObjective compares, and the objective is a {type(objective).__name__}"
            raise ValueError(f"a cache keeps what {compares}; leave cache_teacher out.")
        if is_aligned:
            teller: AlignedTeacher = taught_by
            if isinstance(taught_by, ForeignTeacher) and args.cache_teacher is not None:
                layers, heads = objective.teacher_layers, objective.relation_heads
                settings = view_settings(taught_by, layers, taught_by.answers, heads)
                teller = StoredTeacher(self._cache_folder, taught_by, settings)
                teller.answers, teller.multi_label_student = taught_by.answers, taught_by.multi_label_student
            if isinstance(teller, StoredTeacher):
                self.add_callback(TeacherCacheCallback(teller.store))
            self.data_collator, self.teacher = TeacherCollator(self.data_collator, teller), teller
        elif args.cache_teacher is not None:
            if objective.hidden_layers:
                compares = f"interaction_hidden_weight is {objective.weights['interaction_hidden_weight']}"
                way_out = "leave cache_teacher out, or set it to 0"
                raise ValueError(f"a cache keeps no hidden states, but {compares}; {way_out}.")
            self.teacher_cache = self._open_teacher_cache(args.cache_teacher, taught_by, objective)
            self.data_collator = KeyedCollator(self.data_collator)
            self.add_callback(TeacherCacheCallback(self.teacher_cache))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, once a first batch was held against the run."""
        rows, is_sharded = self.train_dataset, self.is_sharded
        is_table = isinstance(rows, Sized) and not isinstance(rows, IterableDataset)
        # Of stored rows nothing is asked twice.
        says_anything = self.teacher is not None or not self.leaves_parameters_unused
        is_stored = self.teacher_cache is not None or isinstance(self.teacher, StoredTeacher)
        is_plain = self.compute_loss_func is None and not is_stored
        if is_table and says_anything and is_plain and not is_sharded:
            check_first_batch(self, [rows[index] for index in range(min(2, len(rows)))])
        return super().train(*args, **kwargs)

    def _hp_search_setup(self, trial: Any) -> None:
        """Set up a run: its model and objective are those of the arguments as they are now, a trial's among them."""
        super()._hp_search_setup(trial)
        student = self.accelerator.unwrap_model(self.model)
        self._prepare_model(student)
        objective = self.distillation_objective
        if objective is None:
            return

        # What the caller wrote into an objective stays; of a trained state, so do the optimizer's parameters.
        is_as_said = self._said_of_objective(student) == self._made_of
        if self.model_init is None and not is_as_said and objective.state_dict() and self.optimizer is not None:
            trained = f"the arguments of a {type(objective).__name__} whose state an optimizer holds were changed"
            raise ValueError(f"{trained}; make a new trainer.")
        if self.model_init is None and is_as_said:
            return
        objective = self._set_objective(student)
        if self.teacher_cache is not None:
            # Of other layers another one is needed; where it is refused, this holds for the next try too.
            said, self._made_of = self._made_of, None
            self.teacher_cache.flush()
            teacher: Any = self.teacher
            self.teacher_cache = self._open_teacher_cache(self.teacher_cache.kind, teacher, objective)
            self.pop_callback(TeacherCacheCallback)
            self.add_callback(TeacherCacheCallback(self.teacher_cache))
            self._made_of = said

    def _said_of_objective(self, student: Any) -> Any:
        """Return what the arguments say about the objective; None: it was given."""
        if self._given_objective is not None:
            return None
        made = self.objective_class or METHODS[self.args.method]
        return made, self.args.objective_arguments(made, student.config, getattr(self.teacher, "config", None))

    def _prepare_model(self, model: Any) -> None:
        """Write into a model what the arguments say about it."""
        is_adapter = hasattr(model, "get_base_model")
        if is_adapter and self.args.keep_attention_projections:
            raise ValueError("keep_attention_projections is set, but an adapter is saved without them; leave it out.")
        body = (model.get_base_model() if is_adapter else model).base_model
        self.args.freeze_towers(body)
        if limit_mb := self.args.vision_cache_mb:
            cache_images(body, limit_mb, self.data_collator, self.is_sharded or self.args.n_gpu > 1)

    def _set_objective(self, student: Any) -> Objective:
        """Set what is compared from now on, and what both models are asked for it."""
        teacher: Any = self.teacher
        objective, self._made_of = self._given_objective, self._said_of_objective(student)
        if objective is None:
            own = self.objective_class
            objective = self.args.make_objective(own, student.config, getattr(teacher, "config", None))
        check_compatibility(student, teacher, objective, self._problems)
        check_frozen(self.args, objective)
        is_multi = is_multi_label(student)
        self._teacher_gives_one = is_multi and hasattr(teacher, "config") and not is_multi_label(teacher)
        if isinstance(teacher, AlignedTeacher):
            labels = student.config.id2label
            teacher.answers = [labels[index] for index in range(len(labels))] if objective.soft_label_weight else None
            teacher.multi_label_student = is_multi
        if self.is_sharded and self.args.fp16 and any(True for _ in objective.parameters()):
            scaled = "and float16 scales the loss, which their own optimizer under FSDP and DeepSpeed does not know"
            raise ValueError(f"a {type(objective).__name__} has parameters, {scaled}; take bf16.")

        # A model wrapped by peft passes on what the one inside takes.
        inside = getattr(student, "get_base_model", lambda: student)()
        self._student_requests = objective.student_requests(_parameters(inside))
        self._teacher_requests = objective.teacher_requests(_parameters(teacher))
        self.distillation_objective, self._objective_optimizer = objective.to(self.args.device), None
        return objective

    def run_record(self) -> RunRecord:
        """Return what is known of the run, teacher and objective among it."""
        record, objective = super().run_record(), self.distillation_objective
        if objective is None:
            return record
        paper = objective.paper._asdict() if objective.paper else None
        noted = ObjectiveRecord(type(objective).__name__, dict(objective.weights), paper)
        return replace(record, objective=noted, teacher=record.teacher or self._teacher_origin)

    def _open_teacher_cache(self, kind: str, teacher: nn.Module, objective: Objective) -> TeacherCache:
        """Open the cache that the arguments name, with everything that a result depends on, beside the row itself."""
        collator = getattr(self.data_collator, "collator", self.data_collator)
        augmentation = getattr(collator, "augmentation", None)
        image_processor = getattr(self.processing_class, "image_processor", None)
        config: Any = teacher.config

        # Of an augmentation its seed too.
        drawn = None
        if augmentation is not None:
            options = {name: repr(value) for name, value in vars(augmentation).items() if not name.startswith("_")}
            drawn = {"class": type(augmentation).__name__, **options}
        settings = {
            "teacher": fingerprint(teacher),
            "layers": objective.teacher_layers if kind == "attention" else [],
            "relation_heads": objective.relation_heads,
            "image_processor": None if image_processor is None else image_processor.to_dict(),
            "augmentation": drawn,
        }
        return TeacherCache(self._cache_folder, kind, settings, config.patch_size)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed cuts what is trained into shards."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def _cache_folder(self) -> str | Path:
        return self.args.teacher_cache_dir or Path(self.args.output_dir, "teacher_cache")

    def _losses(self, model: nn.Module, inputs: Batch) -> Losses:
        """Return the loss and its terms, in nats per row, and the logits: of more, every query would be gathered."""
        objective = self.distillation_objective
        if objective is None:
            own = {name: value for name, value in inputs.items() if not name.startswith(TEACHER_PREFIX)}
            smoothed = None if self.label_smoother is None else own.get("labels")
            if smoothed is not None and smoothed.is_floating_point():
                factor = f"label_smoothing_factor is {self.args.label_smoothing_factor}"
                raise ValueError(f"{factor}, but the labels are soft scores of several answers; leave it out.")
            # Divided by the rows, as without smoothing: those without a label don't change the weight of the others.
            divisor = len(smoothed) if smoothed is not None and smoothed.dim() == 1 else None
            loss, outputs = Trainer.compute_loss(self, model, own, return_outputs=True, num_items_in_batch=divisor)
            return {"loss": loss}, {"logits": outputs["logits"]}

        # The student first: some teachers are asked about what it found.
        student_outputs = self._ask_student(model, inputs, objective)
        if self.teacher_cache is None:
            teacher_view = self._ask_teacher(inputs, student_outputs)
        else:
            assert isinstance(objective, DiDEObjective)
            teacher_view = self.teacher_cache.outputs(inputs, self._ask_teacher, objective)
            # In every process, whether or not it had to ask: what is checked is gathered.
            self.note_finite("the teacher's outputs", teacher_view.logits)
        if self._teacher_gives_one and teacher_view.logits is not None:
            teacher_view.logits = as_binary(teacher_view.logits)
        objective.train(model.training)
        return objective(student_outputs, teacher_view, inputs), {"logits": student_outputs.logits}

    def _needs_labels(self) -> bool:
        return self.distillation_objective is None or bool(self.distillation_objective.label_weight)

    def _ask_student(self, model: nn.Module, inputs: Batch, objective: Objective) -> Any:
        """Return the student's outputs on a batch, with what the objective compares."""
        # Hard labels are kept from a student that does not learn from them: the objective names every term.
        hidden = {ROW_KEYS} if objective.label_weight else {ROW_KEYS, "labels"}
        seen = {name: it for name, it in inputs.items() if name not in hidden and not name.startswith(NOT_READ)}
        return model(**seen, **self._student_requests)

    def _ask_teacher(self, inputs: Batch, student_outputs: Any = None) -> Any:
        """Return the teacher's outputs on a batch.

        Args:
            inputs: the batch; a teacher with a cache is asked for those rows only that the cache lacks.
            student_outputs: of the whole batch, for teachers that are asked about what the student found.
        """
        own = {name.removeprefix(TEACHER_PREFIX): inputs[name] for name in inputs if name.startswith(TEACHER_PREFIX)}
        if isinstance(self.teacher, AlignedTeacher):
            size = patch_size(self.accelerator.unwrap_model(self.model).config)
            tokens: Any = student_tokens(inputs, size, student_outputs.image_mask)
            return self._pass_to_teacher(own | tokens, self._teacher_requests)
        hidden = ("labels", ROW_KEYS)
        shared = {name: it for name, it in inputs.items() if name not in hidden and not name.startswith(TEACHER_PREFIX)}
        return self._pass_to_teacher(shared | own, self._teacher_requests)

    def _pass_to_teacher(self, batch: Batch, requests: Mapping[str, Any] | None = None) -> Any:
        assert self.teacher is not None
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self.teacher(**batch, **(requests or {}))
        self.note_finite("the teacher's outputs", outputs if isinstance(outputs, Mapping) else vars(outputs))
        return outputs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save as `RecordingTrainer` does; the model that is the run's result with the projections, where asked."""
        is_result = output_dir in (None, self.args.output_dir) and self.args.keep_attention_projections
        projections = getattr(self.distillation_objective, "attention_projections", None) if is_result else None
        if projections is None:
            return super()._save(output_dir, state_dict)

        model: Any = self.accelerator.unwrap_model(self.model)
        prefix = f"{model.base_model_prefix}.attention_projections."
        kept = {prefix + name: weight.detach() for name, weight in projections.state_dict().items()}
        objective: Any = self.distillation_objective
        model.config.projected_heads = objective.projected_heads
        try:
            super()._save(output_dir, {**(state_dict or model.state_dict()), **kept})
        finally:
            # In memory the objective has them.
            model.config.projected_heads = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer of student and objective, with a learning rate of its own for the classifier.

        Raises:
            ValueError: an optimizer of the caller's lacks the objective's parameters.
        """
        built_before = self.optimizer is not None  # by the caller, or by an earlier `train()`: its groups are settled
        model = self.model if model is None else model
        optimizer = super().create_optimizer(model)
        objective = self.distillation_objective
        own = [] if objective is None else [one for one in objective.parameters() if one.requires_grad]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in own if id(parameter) not in held]
        if self.is_sharded and own:
            if len(missing) < len(own):
                both = f"the optimizer holds parameters of the {type(objective).__name__}"
                raise ValueError(f"{both}, which FSDP and DeepSpeed do not shard; leave them out.")
            if self._objective_optimizer is None:
                optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
                self._objective_optimizer = optimizer_class(own, weight_decay=self.args.weight_decay, **options)
            missing = []
        if built_before:
            if missing:
                lacks = f"{len(missing)} parameters of the {type(objective).__name__}"
                raise ValueError(f"the optimizer lacks {lacks}; give it objective.parameters() too.")
            return optimizer

        rate_heads(optimizer, model, self.args.head_learning_rate_factor)
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": self.args.weight_decay})
        if self.args.muon_learning_rate is not None:
            self.optimizer: Any = with_muon(optimizer, model, self.args.muon_learning_rate, self.is_sharded)
        return self.optimizer


def _parameters(model: nn.Module) -> set[str]:
    """Names that a model's `forward` takes, those that it hands to its body among them."""
    parts = (model, getattr(model, "base_model", model))
    return {name for part in parts for name in inspect.signature(part.forward).parameters}
