"""Training with the DistillVLM objective: its projection and queue are part of the run, its teacher is not."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.modeling import DualDistillProcessor
from dual_distill.objectives import DistillVLMObjective, Objective
from dual_distill.runs import train
from dual_distill.runs.continuation import take_up_finished
from dual_distill.trainer import DistillationTrainer, check_compatibility
from dual_distill.trainer.optimizer import load_optimizer, save_optimizer

from .region_pair import region_collator, region_rows, region_student, region_teacher, region_trainer

SCRIPT = Path(__file__).with_name("two_region_processes.py")
TERMS = ["attention_loss", "hidden_loss", "soft_label_loss"]


def state(trainer):
    """Weights of the student, and the objective's parameters and queue."""
    both = {"student": trainer.model, "objective": trainer.distillation_objective}
    return {f"{part}.{name}": t.clone() for part, module in both.items() for name, t in module.state_dict().items()}


def assert_equal(one, other, exactly=False):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if exactly:
            assert torch.equal(other[name], tensor), name
        else:
            torch.testing.assert_close(other[name], tensor, atol=2e-6, rtol=1e-5, msg=name)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_two_times_four_is_a_batch_of_eight_queue_and_projection_too(tmp_path):
    """20 rows, so that the last step of an epoch has 4; the queue of 100 goes round in six steps."""
    runs = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        trainer = region_trainer(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        before = state(trainer)
        trainer.train()
        assert trainer.state.global_step == 6
        runs.append(state(trainer))
        changed = {name for name, tensor in runs[-1].items() if not torch.equal(tensor, before[name])}
        assert {
            "objective.projections.0.weight",
            "objective.projections.0.bias",
            "objective.queues.0.tokens",
        } <= changed
        assert len(trainer.distillation_objective.queues[0]) == 100
        assert int(trainer.distillation_objective.queues[0].num_written) > 200
    for other in runs[1:]:
        assert_equal(runs[0], other)


@pytest.mark.parametrize("step", [2, 3, 4], ids=["within an epoch", "between epochs", "within the next"])
def test_resumed_equals_uninterrupted_with_queue_and_projection(step, tmp_path):
    """With dropout and AdamW, on every tensor of the student, the objective and the optimizer, bit by bit."""
    fields = {
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_grad_norm": 1.0,
    }
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    whole = region_trainer(tmp_path / "out", region_student(**dropout), **fields)
    whole.train()
    resumed = region_trainer(tmp_path / "again", region_student(9, **dropout), **fields)
    with torch.no_grad():
        for parameter in resumed.distillation_objective.parameters():
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert_equal(state(whole), state(resumed), exactly=True)
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for index, one in states[0].items():
        assert all(torch.equal(torch.as_tensor(states[1][index][name]), torch.as_tensor(one[name])) for name in one)
    for term in ["loss", *TERMS]:
        assert logged(resumed, term) == logged(whole, term)


def test_the_state_lies_in_each_checkpoint_and_not_in_the_final_model(tmp_path):
    trainer = region_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model()
    file = tmp_path / "checkpoint-6" / Objective.state_file
    assert_equal(load_file(file), dict(trainer.distillation_objective.state_dict()), exactly=True)
    assert not (tmp_path / Objective.state_file).exists()
    file.unlink()
    with pytest.raises(ValueError, match=f"{Objective.state_file}' is missing, but stands in the sealed.json"):
        region_trainer(tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    (file.parent / "sealed.json").unlink()  # as of one that was fetched from the Hub
    with pytest.raises(ValueError, match=f"holds no {Objective.state_file}, but the objective has a state"):
        region_trainer(tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    with pytest.raises(ValueError, match=r"size mismatch for queues.0.tokens: .*\[100, 24\].*\[50, 24\]"):
        region_trainer(tmp_path / "c", queue_size=50).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-3" / Objective.state_file).write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        region_trainer(tmp_path / "d").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_optimizer_holds_student_and_projection_and_nothing_of_the_teacher(tmp_path):
    teacher = region_teacher(hidden_dropout_prob=0.3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = region_trainer(
        tmp_path, teacher=teacher, optim="adamw_torch", max_steps=3, head_learning_rate_factor=10.0
    )
    trainer.train()
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(
        id(p) for module in (trainer.model, trainer.distillation_objective) for p in module.parameters()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_an_optimizer_of_ones_own_must_hold_the_projection(tmp_path):
    student = region_student()
    trainer = region_trainer(tmp_path, student)
    trainer.optimizer = torch.optim.SGD(student.parameters(), 0.1)
    with pytest.raises(ValueError, match="the optimizer lacks 2 parameters of the DistillVLMObjective"):
        trainer.train()
    trainer.optimizer = torch.optim.SGD([*student.parameters(), *trainer.distillation_objective.parameters()], 0.1)
    trainer.train()


@pytest.mark.parametrize("hidden_loss", ["nce", "mse"])
def test_every_term_falls(hidden_loss, tmp_path):
    fields = {"optim": "adamw_torch", "learning_rate": 3e-3, "num_train_epochs": 14, "attention_weight": 500.0}
    trainer = region_trainer(tmp_path, hidden_loss=hidden_loss, queue_size=60, **fields)
    trainer.train()
    for term in TERMS:
        values = logged(trainer, term)[2:]  # the queue is full from the second step on
        assert sum(values[-3:]) < 0.85 * sum(values[:3]), (term, values)
        assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize("hidden_loss", ["nce", "mse"])
@pytest.mark.parametrize("save_only_model", [False, True])
def test_the_best_checkpoint_is_loaded_with_its_projection_and_queue(save_only_model, hidden_loss, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_hidden_loss", "greater_is_better": True}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    fields = {**best, **steps, "save_only_model": save_only_model, "hidden_loss": hidden_loss, "learning_rate": 0.2}
    trainer = region_trainer(tmp_path, eval_rows=region_rows(6), **fields)
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    assert trainer.evaluate()["eval_hidden_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def make_short(tmp_path):
    """A run of two steps that saves what another start of it needs."""
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = region_trainer(tmp_path, eval_rows=region_rows(6), **fields)
    trainer.processing_class = DualDistillProcessor(ViltImageProcessorPil(), train_tokenizer(["a dog"], 60))
    return trainer


def test_what_a_finished_runs_objective_learned_is_taken_up(tmp_path, caplog):
    trainer = make_short(tmp_path)
    train(trainer)
    measured = trainer.evaluate()["eval_hidden_loss"]
    again = make_short(tmp_path)
    train(again)
    assert again.evaluate()["eval_hidden_loss"] == pytest.approx(measured, rel=1e-6)
    # As a checkpoint of weights alone was, before the objective's state went with it; and without the folder.
    lost = "checkpoint-2 is gone or holds no objective.safetensors, and with it what a DistillVLMObjective learned"
    for remove in ((tmp_path / "checkpoint-2" / "objective.safetensors").unlink, None):
        shutil.rmtree(tmp_path / "checkpoint-2") if remove is None else remove()
        caplog.clear()
        train(make_short(tmp_path))
        assert lost in caplog.text


def test_what_is_taken_up_is_of_the_last_training_where_one_was_before(tmp_path, caplog):
    trainer = make_short(tmp_path)
    trainer.train()
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert trainer.run_record().steps == 4
    measured, again = trainer.evaluate()["eval_hidden_loss"], make_short(tmp_path)
    take_up_finished(again)
    assert "is gone" not in caplog.text
    assert again.evaluate()["eval_hidden_loss"] == pytest.approx(measured, rel=1e-6)


def test_evaluation_leaves_the_queue_alone(tmp_path):
    trainer = region_trainer(tmp_path, eval_rows=region_rows(11), eval_strategy="steps", eval_steps=2)
    trainer.train()
    expected = region_trainer(tmp_path)
    expected.train()
    assert_equal(state(trainer), state(expected), exactly=True)
    metrics = trainer.evaluate()
    assert {f"eval_{term}" for term in TERMS} <= set(metrics)
    assert metrics["eval_hidden_loss"] > 0


def test_the_teacher_reads_its_own_features(tmp_path):
    """Each model gets what is its own; a model without a teacher is not shown the teacher's."""
    trainer = region_trainer(tmp_path)
    batch = region_collator(region_rows(4))
    seen = {}
    trainer.teacher.register_forward_pre_hook(lambda *call: seen.update(teacher=call[2]), with_kwargs=True)
    trainer.model.register_forward_pre_hook(lambda *call: seen.update(student=call[2]), with_kwargs=True)
    trainer.compute_loss(trainer.model, batch)
    assert torch.equal(seen["teacher"]["region_features"], batch["teacher_region_features"])
    assert torch.equal(seen["student"]["region_features"], batch["region_features"])
    for inputs in seen.values():
        assert not {"teacher_region_features", "labels"} & set(inputs)
    assert isinstance(trainer.distillation_objective, DistillVLMObjective)
    alone = region_trainer(tmp_path, teacher=None)
    alone.train()
    assert alone.state.global_step == 6


def test_arguments_that_are_changed_after_the_objective_learned_are_refused(tmp_path):
    trainer = region_trainer(tmp_path)
    trainer.args.attention_weight = 5.0
    trainer.train()
    assert trainer.distillation_objective.weights["attention_weight"] == 5.0
    trainer.train()
    trainer.args.attention_weight = 7.0
    with pytest.raises(ValueError, match="of a DistillVLMObjective whose state an optimizer holds were changed; make"):
        trainer.train()


def test_a_cache_of_the_teacher_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"a cache keeps what a DiDEObjective compares, .* is a DistillVLMObjective; leave cache_teacher out",
    ):
        region_trainer(tmp_path, cache_teacher="attention")


@pytest.mark.parametrize(
    "teacher, student, fields, message",
    [
        (
            {"region_boxes_id": "detector b"},
            {},
            {},
            "the teacher has regions in the boxes of 'detector b', the student regions in the boxes of 'boxes a'; "
            ".*adapt the",
        ),
        ({"num_attention_heads": 2}, {}, {}, "the teacher has 2 attention heads, the student 4; set relation_heads"),
        ({}, {}, {"hidden_layers": {2: 1}}, "hidden_layers names layer 2 of the student, which has 2 layers"),
        ({}, {}, {"hidden_layers": {1: 5}}, "hidden_layers names layer 5 of the teacher, which has 2 layers"),
        ({}, {}, {"layer_map": {4: 1}}, "layer_map names layer 4 of the student"),
        ({"vocab_size": 61}, {}, {}, "a vocabulary of 61 word pieces"),
        (
            {"visual_inputs": "patches"},
            {},
            {},
            "the teacher has patches as visual_inputs, the student regions as visual_inputs; image tokens are "
            "compared one by one",
        ),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(teacher, student, fields, message, tmp_path):
    with pytest.raises(ValueError, match="teacher and student cannot be paired: .*" + message):
        region_trainer(tmp_path, region_student(**student), region_teacher(**teacher), **fields)


def test_boxes_that_nobody_names_are_not_checked_and_heads_may_differ(tmp_path):
    region_trainer(tmp_path, teacher=region_teacher(region_boxes_id=None))
    trainer = region_trainer(tmp_path, teacher=region_teacher(num_attention_heads=2), relation_heads=8, max_steps=2)
    assert trainer.train().training_loss > 0


def test_two_towers_and_a_projection_of_another_width_are_refused(make_student, make_teacher):
    towers = DistillVLMObjective(16, 16)
    with pytest.raises(
        ValueError, match="the student has two towers, but a DistillVLMObjective compares states of one sequence"
    ):
        check_compatibility(make_student(), make_teacher(), towers)
    with pytest.raises(
        ValueError, match="the teacher has width 24, the objective was built for 20; give it teacher_size=24"
    ):
        check_compatibility(region_student(), region_teacher(), DistillVLMObjective(16, 20))


def test_unknown_methods_are_refused(tmp_path):
    with pytest.raises(ValueError, match="method is 'vlm'; give dide or distillvlm"):
        region_trainer(tmp_path, method="vlm")
    with pytest.raises(ValueError, match="an objective was given without a teacher"):
        DistillationTrainer(
            nn.Linear(1, 1), region_trainer(tmp_path, teacher=None).args, objective=DistillVLMObjective(1, 1)
        )


def run(folder, processes, rows, *kinds):
    """What a run of `two_region_processes.py` leaves: weights, each process' objective, its logs."""
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), str(rows), *kinds]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    queues = [load_file(folder / f"objective-{rank}.safetensors") for rank in range(processes)]
    return load_file(folder / "model" / "model.safetensors"), queues, json.loads((folder / "logs.json").read_text())


def check_package(way):
    if way.startswith("zero"):
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_processes_equal_one(way, tmp_path):
    """Gradients of the projection are averaged, and both processes write one queue."""
    check_package(way)
    alone, [expected], (_, logs) = run(tmp_path / "one", 1, 8)
    together, found, (world_size, other_logs) = run(tmp_path / "two", 2, 4, way)
    assert world_size == 2
    assert_equal(alone, together)
    assert_equal(found[0], found[1], exactly=True)
    assert_equal(expected, found[0])
    for one, other in zip(logs, other_logs, strict=True):
        for name in one:
            if name.endswith("loss"):
                assert other[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp2", "zero1", "zero2", "zero3"])
def test_a_resumed_run_of_two_processes_is_the_whole_one(way, tmp_path):
    """AdamW: of the student sharded, of the projection whole. The script compares its two runs."""
    check_package(way)
    run(tmp_path / "two", 2, 4, way, "resumed")


def test_what_has_no_place_under_fsdp_is_refused(tmp_path):
    trainer = region_trainer(tmp_path)
    trainer.is_fsdp_enabled = True
    held = [*trainer.model.parameters(), *trainer.distillation_objective.parameters()]
    trainer.optimizer = torch.optim.SGD(held)
    with pytest.raises(ValueError, match="the optimizer holds parameters of the DistillVLMObjective, which FSDP and"):
        trainer.create_optimizer()
    trainer.args.fp16 = True
    with pytest.raises(ValueError, match=r"a DistillVLMObjective has parameters, and float16 scales .*; take bf16"):
        trainer._set_objective(trainer.model)


def test_a_second_optimizer_is_taken_up_again_as_it_was(tmp_path):
    layer, file = nn.Linear(3, 2), tmp_path / "one.safetensors"
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad):
        found = []
        one, other = kind(layer.parameters()), kind(layer.parameters())
        layer(torch.ones(1, 3)).sum().backward()
        one.step()
        save_optimizer(one, file)
        load_optimizer(other, file)
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        for optimizer in (one, other):
            with torch.no_grad():
                for parameter, value in zip(layer.parameters(), before, strict=True):
                    parameter.copy_(value)
            optimizer.step()
            found.append([parameter.detach().clone() for parameter in layer.parameters()])
        assert all(map(torch.equal, *found))
    with pytest.raises(ValueError, match=r"holds no two.safetensors; resume with as many processes and the sharding"):
        load_optimizer(other, tmp_path / "two.safetensors")
