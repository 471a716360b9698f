"""Each argument of transformers' Trainer and of its TrainingArguments has its effect with a teacher, or is refused.

A new field of transformers fails the last test until it stands in one of the tables.
"""

import copy
import dataclasses
import functools
import inspect
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS
from transformers.trainer_utils import HPSearchBackend

from dual_distill.data import IndexedDataset
from dual_distill.modeling import FusionEncoderForCaptioning
from dual_distill.trainer import CaptioningTrainer, DistillationTrainer, PreTrainingTrainer, RetrievalTrainer

PAIRS = runpy.run_path(str(Path(__file__).with_name("tiny_pairs.py")))
KINDS = ["distillation", "captioning", "pretraining", "retrieval"]


def captioning_collator(rows):
    """One masked word a row, the word that was there as its label."""
    batch = PAIRS["tiny_collator"]([{name: row[name] for name in ("ids", "image")} for row in rows])
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 0] = batch["input_ids"][:, 0]
    batch["input_ids"][:, 0] = PAIRS["MASK"]
    return {**batch, "labels": labels, "token_type_ids": torch.zeros_like(labels)}


class Rows(list):
    """What an `IndexedDataset` wraps."""

    column_names = ("ids", "image", "label", "image_id", "caption_id")

    def __getitems__(self, indices):
        return [self[index] for index in indices]


@functools.cache
def parts(kind):
    """Trainer, teacher, student, collator and rows of one of the four kinds."""
    words = {"mask_token_id": PAIRS["MASK"], "cls_token_id": 2, "sep_token_id": 3}
    shared = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
    rows = Rows(PAIRS["pair_rows"](20))
    if kind == "distillation":
        return DistillationTrainer, shared["tiny_teacher"](), shared["tiny_student"](), shared["tiny_collator"], rows
    if kind == "captioning":
        teacher, student = (PAIRS["fusion"](FusionEncoderForCaptioning, seed, **words) for seed in (1, 2))
        return CaptioningTrainer, teacher, student, captioning_collator, IndexedDataset(rows)
    if kind == "pretraining":
        return PreTrainingTrainer, PAIRS["fusion"](), PAIRS["dual"](), PAIRS["image_text_collator"], rows
    teacher, student = PAIRS["retrieval_fusion"](), PAIRS["retrieval_dual"]()
    return RetrievalTrainer, teacher, student, PAIRS["retrieval_collator"], rows


@pytest.fixture
def build_kind(arguments):
    """A trainer of one of the four kinds with a teacher; fields of the arguments, and arguments of Trainer."""

    def make(kind, given=None, **fields):
        labelled = {"label_weight": 0.5} if kind in ("distillation", "captioning") else {}
        trainer_class, teacher, student, collator, rows = parts(kind)
        args = arguments(**{"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 3, **labelled, **fields})
        options = {
            "model": copy.deepcopy(student),
            "teacher": teacher,
            "train_dataset": rows,
            "data_collator": collator,
        }
        return trainer_class(args=args, **{**options, **(given or {})})

    return make


@pytest.fixture(scope="module")
def plain():
    """The losses of runs that stay as they are, by kind and fields."""
    return {}


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Fields that reach loss, order, parameters: what another value makes of a run.
CHANGES = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 3},
    "warmup_steps": 2,
    "weight_decay": 0.9,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "optim": "sgd",
    "optim_args": "nesterov=True,momentum=0.9",
    "max_grad_norm": 0.01,
    "gradient_accumulation_steps": 2,
    "bf16": True,
    "neftune_noise_alpha": 5.0,
    "seed": 3,
    "data_seed": 3,
    "max_steps": 2,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "dataloader_drop_last": True,
    "train_sampling_strategy": "sequential",
    "accelerator_config": {"use_seedable_sampler": False},
}
WITH = {
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_restarts", "warmup_steps": 0},
    "optim_args": {"optim": "sgd"},
    "num_train_epochs": {"max_steps": -1, "num_train_epochs": 2},
    "dataloader_drop_last": {"max_steps": 4},
}
# Fields that spare memory or time: the run stays as it is.
CHANGES_NOTHING = {
    "activation_checkpointing": True,
    "gradient_checkpointing": True,
    "auto_find_batch_size": True,
    "torch_compile": True,
    "dataloader_num_workers": 1,
    "average_tokens_across_devices": False,
    "torch_empty_cache_steps": 1,
    "full_determinism": True,
    "use_cache": True,
}
REFUSED = {"label_smoothing_factor": 0.3, "remove_unused_columns": True}


# One kind in each run of the tests, all of them where there is time.
MOST = [pytest.param(kind, marks=[] if kind == "distillation" else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("field", CHANGES)
def test_a_field_has_its_effect_with_a_teacher(field, kind, build_kind, plain):
    fields = WITH.get(field, {})
    if (kind, str(fields)) not in plain:
        plain[kind, str(fields)] = losses(build_kind(kind, **fields))
    assert losses(build_kind(kind, **{**fields, field: CHANGES[field]})) != plain[kind, str(fields)]


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("field", CHANGES_NOTHING)
def test_a_field_that_spares_leaves_the_run_as_it_is(field, kind, build_kind, plain):
    fields = {"torch_compile_backend": "eager"} if field == "torch_compile" else {}
    if (kind, "{}") not in plain:
        plain[kind, "{}"] = losses(build_kind(kind))
    found = losses(build_kind(kind, **{field: CHANGES_NOTHING[field]}, **fields))
    assert found == pytest.approx(plain[kind, "{}"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", REFUSED)
def test_a_field_without_effect_is_refused_by_name(field, kind, build_kind):
    with pytest.raises(ValueError, match=f"^{field} is given, but"):
        build_kind(kind, **{field: REFUSED[field]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_the_callers_is_refused_with_a_teacher(kind, build_kind):
    with pytest.raises(ValueError, match="compute_loss_func is given, but the loss is computed by the objective"):
        build_kind(kind, {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()})


@pytest.mark.parametrize("kind", ["captioning", "pretraining"])
@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics"])
def test_metrics_are_refused_where_an_evaluation_has_losses_alone(name, kind, build_kind):
    with pytest.raises(ValueError, match=f"{name} is given, but an evaluation here gives losses alone"):
        build_kind(kind, {name: lambda *given: {}})


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_of_the_callers_trains_with_a_teacher(kind, build_kind):
    plain = losses(build_kind(kind))
    sgd = (torch.optim.SGD, {"lr": 0.5})
    assert losses(build_kind(kind, {"optimizer_cls_and_kwargs": sgd})) != plain
    trainer = build_kind(kind)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.5)
    own = build_kind(kind, {"model": trainer.model, "optimizers": (optimizer, None)})
    assert own.optimizer is optimizer
    assert losses(own) != plain
    with pytest.raises(
        ValueError, match=r"head_learning_rate_factor is (given, but the groups of the optim|10.0, but nothing of)"
    ):
        build_kind(kind, {"optimizers": (optimizer, None)}, head_learning_rate_factor=10.0)


@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "no teacher"])
def test_a_loss_of_the_callers_without_a_teacher_is_that_of_transformers(taught, build, arguments):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    if taught:
        with pytest.raises(ValueError, match="compute_loss_func"):
            DistillationTrainer(build().model, arguments(), teacher=build().teacher, compute_loss_func=loss)
        return
    found = []
    for trainer_class in (Trainer, DistillationTrainer):
        fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        reference = build(teacher=None)
        trainer = trainer_class(
            reference.model, arguments(**fields), train_dataset=reference.train_dataset,
            data_collator=reference.data_collator, compute_loss_func=loss,
        )  # fmt: skip
        found.append(losses(trainer))
    assert found[0] == found[1]


class _Search:
    """What transformers' back ends do, without a library: each trial sets its parameters and trains."""

    def ensure_available(self):
        pass

    def run(self, trainer, n_trials, direction, **kwargs):
        return [self.trial(trainer, {"attention_weight": weight}) for weight in (0.25, 1.0, 4.0)]

    def trial(self, trainer, parameters):
        trainer.objective = None
        trainer.train(trial=parameters)
        trainer.objective = trainer.compute_objective(trainer.evaluate())
        return trainer.args.attention_weight, trainer.distillation_objective.attention_weight, trainer.objective


@pytest.mark.parametrize("kind", ["distillation", "pretraining", "retrieval"])
def test_each_trial_of_a_search_learns_with_its_own_weights(kind, build_kind, monkeypatch):
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.WANDB, _Search)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(id="1")))
    student, rows = parts(kind)[2], PAIRS["pair_rows"](8)
    given = {"model": None, "model_init": lambda: copy.deepcopy(student), "eval_dataset": rows}
    trainer = build_kind(kind, given, learning_rate=0.0)
    found = trainer.hyperparameter_search(dict, lambda metrics: metrics["eval_loss"], backend="wandb")
    assert [(asked, used) for asked, used, _ in found] == [(0.25, 0.25), (1.0, 1.0), (4.0, 4.0)]
    # The weights stay as they are: the losses differ by the attention term alone, four times as much each time.
    first, second, third = (loss for *_, loss in found)
    assert third - second == pytest.approx(4 * (second - first), rel=1e-3)
    assert second - first > 0.01


def test_arguments_that_are_changed_between_two_runs_count(build):
    trainer = build(max_steps=1, learning_rate=0.0)
    [first] = losses(trainer)
    trainer.args.attention_weight = 2.0
    [second] = losses(trainer)
    attention = trainer.state.log_history[0]["attention_loss"]
    assert second == pytest.approx(first + attention, rel=1e-4)


def test_weights_that_are_written_into_the_objective_before_a_run_count(build):
    [first] = losses(build(max_steps=1, learning_rate=0.0))
    trainer = build(max_steps=1, learning_rate=0.0)
    trainer.distillation_objective.weights["attention_weight"] = 3.0
    [third] = losses(trainer)
    attention = trainer.state.log_history[0]["attention_loss"]
    assert third == pytest.approx(first + 2 * attention, rel=1e-4)


@pytest.mark.parametrize("kind", ["distillation", "captioning"])
def test_a_short_last_micro_batch_counts_for_the_rows_that_it_has(kind, build_kind):
    """Six rows at once, and as four and two: the same update. Terms that compare rows see others, so not those."""
    runs = []
    for size, steps in ((6, 1), (4, 2)):
        rows = Rows(PAIRS["pair_rows"](6))
        rows = IndexedDataset(rows) if kind == "captioning" else rows
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer = build_kind(kind, {"train_dataset": rows}, **fields, max_steps=2, train_sampling_strategy="sequential")
        trainer.train()
        runs.append((trainer.model.state_dict(), [one["loss"] for one in trainer.state.log_history if "loss" in one]))
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)
    for name, weight in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], weight, atol=1e-6, rtol=1e-5, msg=name)


class _Endless(IterableDataset):
    """Rows of no length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_streamed_rows_are_read_by_each_process_and_can_be_cached(build, make_rows):
    trainer = build(rows=_Endless(make_rows()), max_steps=2, cache_teacher="attention")
    assert trainer.accelerator.dataloader_config.dispatch_batches is False
    trainer.train()
    assert len(trainer.teacher_cache) == 16


# Fields that reach none of loss, order, parameters and checkpoint, or are about the machine.
ELSEWHERE = {
    *("output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
    *("logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level_replica", "disable_tqdm", "report_to"),
    *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug"),
    *("skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank", "use_cpu"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "dataloader_in_order", "tf32", "enable_jit_checkpoint"),
}
# Evaluation and saving, which `test_distillation_trainer` and `test_recording` run.
EVALUATION = {
    *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only"),
    *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "label_names"),
    *("save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip"),
    *("restore_callback_states_from_checkpoint",),
}
# Several processes or a GPU (`test_distributed`), or options of a field above.
ELSEWHERE_TRIED = {
    *("fp16", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "ddp_find_unused_parameters"),
    *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "torch_compile_backend"),
    *("torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "length_column_name", "optim_target_modules"),
}


def test_no_field_and_no_argument_of_transformers_is_left_out():
    known = {*CHANGES, *CHANGES_NOTHING, *REFUSED, *ELSEWHERE, *EVALUATION, *ELSEWHERE_TRIED}
    assert {field.name for field in dataclasses.fields(TrainingArguments)} == known
    arguments = {"model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "callbacks"}
    tried = {"model_init", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "optimizers"}
    named = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert named == {*arguments, *tried, "optimizer_cls_and_kwargs"}
