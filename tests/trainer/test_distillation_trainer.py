"""The trainer: what a step is, what the teacher is not, what is logged, saved and taken up again."""

import math
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import BertTokenizer, Trainer, ViltImageProcessorPil

from dual_distill.modeling import DualDistillProcessor, DualEncoderForQuestionAnswering
from dual_distill.objectives import DiDEObjective

TERMS = ["attention_loss", "soft_label_loss", "label_loss"]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal_weights(one, other, exactly=False):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if exactly:
            assert torch.equal(other[name], tensor), name
        else:
            torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "no teacher"])
def test_two_times_four_is_a_batch_of_eight(taught, images, build, make_teacher, make_student, make_rows):
    """Texts and images of unequal sizes; 20 rows, so that the last step of an epoch has 4."""
    runs = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        trainer = build(
            make_student(num_images=images),
            make_teacher(num_images=images) if taught else None,
            rows=make_rows(20, images),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            **({"label_weight": 0.5} if taught else {}),
        )
        before = weights(trainer)
        trainer.train()
        assert trainer.state.global_step == 6
        runs.append((weights(trainer), logged(trainer, "loss"), logged(trainer, "grad_norm")))
        assert any(not torch.equal(tensor, before[name]) for name, tensor in runs[-1][0].items())
    for others in runs[1:]:
        assert_equal_weights(runs[0][0], others[0])
        assert others[2] == pytest.approx(runs[0][2], rel=1e-4)


def test_rows_without_a_label_keep_two_times_four_equal_to_eight(build, make_rows):
    rows = make_rows()
    for i in (0, 3, 4, 5, 11, 17):
        rows[i]["label"] = -100
    runs = []
    for size, steps in ((8, 1), (4, 2)):
        trainer = build(teacher=None, rows=rows, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        trainer.train()
        runs.append(weights(trainer))
    assert_equal_weights(*runs)


def test_smoothed_labels_count_by_rows(build, make_rows, make_student):
    """Two times four is eight where rows lack a label; and a factor near 0 is none."""
    rows = make_rows(8)
    for index in (0, 1, 2, 5):
        rows[index]["label"] = -100
    weights = []
    for size, factor in ((8, 0.3), (4, 0.3), (8, 1e-9), (8, 0.0)):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "optim": "sgd"}
        fields |= {"train_sampling_strategy": "sequential", "max_steps": 1, "learning_rate": 0.1}
        trainer = build(teacher=None, rows=rows, label_smoothing_factor=factor, **fields)
        trainer.train()
        weights.append(trainer.model.classifier[-1].bias.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[2], weights[3], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(weights[0], weights[2], atol=1e-4)


def test_soft_scores_are_not_smoothed(build, make_student, collator):
    def soft(rows):
        batch = collator(rows)
        return {**batch, "labels": torch.nn.functional.one_hot(batch["labels"], 5).float()}

    trainer = build(teacher=None, label_smoothing_factor=0.1)
    trainer.data_collator = soft
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0.1, but the labels are soft scores of several"):
        trainer.train()


@pytest.mark.parametrize("kind", ["fusion encoder", "dual encoder"])
def test_transformers_trainer_accumulates_too(kind, build, make_teacher, make_student):
    """Without our trainer: the models themselves say that their loss is a mean over rows."""
    runs = []
    for size, steps in ((8, 1), (4, 2)):
        model = make_teacher(seed=3) if kind == "fusion encoder" else make_student()
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = build(model, None, trainer_class=Trainer, **fields)
        trainer.train()
        runs.append(weights(trainer))
    assert_equal_weights(*runs)


def test_plain_training_is_transformers_trainer(build):
    runs = []
    for trainer_class in (Trainer, None):
        options = {} if trainer_class is None else {"trainer_class": trainer_class}
        trainer = build(teacher=None, **options)
        trainer.train()
        runs.append((weights(trainer), logged(trainer, "loss")))
    assert runs[0][1] == runs[1][1]
    assert_equal_weights(runs[0][0], runs[1][0], exactly=True)


def test_a_fusion_encoder_trains_without_a_teacher(build, make_teacher):
    trainer = build(make_teacher(seed=3), None, num_train_epochs=10, optim="adamw_torch", learning_rate=3e-3)
    trainer.train()
    losses = logged(trainer, "loss")
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert not any(term in entry for entry in trainer.state.log_history for term in TERMS)


def test_the_teacher_is_bit_identical_frozen_and_in_eval_mode(build, make_teacher):
    teacher = make_teacher(hidden_dropout_prob=0.3).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = build(teacher=teacher, optim="adamw_torch", eval_rows=[], max_steps=4)
    assert not teacher.training
    trainer.train()
    assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    assert not held & {id(p) for p in teacher.parameters()}


def test_a_teacher_with_dropout_says_the_same_at_every_step(build, make_teacher, make_rows, collator):
    trainer = build(teacher=make_teacher(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    trainer.model.eval()
    batch = collator(make_rows(4))
    losses = [trainer.compute_loss(trainer.model, batch).item() for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.fixture
def processor():
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what"])}
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4), BertTokenizer(words))


def test_every_checkpoint_holds_student_and_processor_and_no_teacher(build, processor, tmp_path):
    trainer = build(processing_class=processor, save_strategy="steps", save_steps=2)
    trainer.train()
    folders = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    student = set(trainer.model.state_dict())
    for folder in folders:
        assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= {
            p.name for p in folder.iterdir()
        }
        found = set()
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                found |= set(file.keys())
        assert found == student
        assert not (folder / "training_args.bin").exists()
        again = DualEncoderForQuestionAnswering.from_pretrained(folder)
        assert DualDistillProcessor.from_pretrained(folder).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert_equal_weights(weights(trainer), again.state_dict(), exactly=True)
    optimizer = folders[-1] / "optimizer.pt"
    assert optimizer.stat().st_size < 4 * sum(p.numel() * 4 for p in trainer.model.parameters())


@pytest.mark.parametrize("step", [2, 3, 4], ids=["within an epoch", "between epochs", "within the next"])
@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "no teacher"])
def test_resumed_equals_uninterrupted(step, taught, build, make_student, tmp_path):
    """With dropout and AdamW, on every tensor of the model and of the optimizer, bit by bit."""
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    fields = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    pair = {} if taught else {"teacher": None}
    whole = build(make_student(**dropout), **pair, **fields)
    whole.train()
    resumed = build(make_student(seed=9, **dropout), **pair, **fields, output_dir=tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert resumed.state.global_step == whole.state.global_step == 6
    assert_equal_weights(weights(whole), weights(resumed), exactly=True)
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(torch.as_tensor(states[1][index][name]), torch.as_tensor(state[name])) for name in state)
    for term in ["loss", *(TERMS[:2] if taught else [])]:
        assert logged(resumed, term) == logged(whole, term)


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_draw_nothing_from_the_generator_of_dropout(persistent, build, make_student, make_rows, tmp_path):
    """Workers that outlive an epoch are seeded once in a whole run, and once more after a resume."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    fields = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": 1}
    fields |= {"dataloader_persistent_workers": persistent, "eval_strategy": "steps", "eval_steps": 1}
    whole = build(make_student(**dropout), eval_rows=make_rows(2), **fields)
    whole.train()
    resumed = build(make_student(seed=9, **dropout), eval_rows=make_rows(2), **fields, output_dir=tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_equal_weights(weights(whole), weights(resumed), exactly=True)
    assert not active_children()  # they end with the run
    assert resumed.evaluate()["eval_loss"] > 0
    resumed._end_workers()


def test_the_best_checkpoint_is_loaded_on_every_tensor(build, make_rows, tmp_path):
    trainer = build(
        eval_rows=make_rows(6),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_attention_loss",
        greater_is_better=False,
        learning_rate=2.0,
    )
    trainer.train()
    best = min(logged(trainer, "eval_attention_loss"))
    assert trainer.state.best_metric == best
    stored = DualEncoderForQuestionAnswering.from_pretrained(trainer.state.best_model_checkpoint)
    assert_equal_weights(stored.state_dict(), weights(trainer), exactly=True)
    assert trainer.evaluate()["eval_attention_loss"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("label_weight", [0.0, 1.0])
def test_every_term_falls_over_thirty_steps(label_weight, build):
    trainer = build(label_weight=label_weight, num_train_epochs=10, optim="adamw_torch", learning_rate=3e-3)
    trainer.train()
    assert trainer.state.global_step == 30
    for term in ["loss", *(TERMS if label_weight else TERMS[:2])]:
        values = logged(trainer, term)
        assert len(values) == 30
        assert sum(values[-3:]) < 0.8 * sum(values[:3]), (term, values)
        assert all(math.isfinite(value) for value in values)


def test_logged_terms_make_up_the_logged_loss(build, make_rows):
    factors = {"attention_weight": 2.0, "soft_label_weight": 0.5, "label_weight": 0.25}
    trainer = build(
        **factors, rows=make_rows(24), eval_rows=make_rows(11), eval_strategy="steps", eval_steps=2, logging_steps=2
    )
    trainer.train()
    for prefix in ("", "eval_"):
        entries = [entry for entry in trainer.state.log_history if f"{prefix}loss" in entry]
        assert len(entries) == 3
        for entry in entries:
            total = sum(weight * entry[prefix + name.replace("weight", "loss")] for name, weight in factors.items())
            assert entry[f"{prefix}loss"] == pytest.approx(total, rel=1e-4)


def test_only_terms_with_a_weight_are_logged(build, make_rows):
    trainer = build(attention_weight=0.0, eval_rows=make_rows(4), eval_strategy="epoch")
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert {"soft_label_loss", "eval_soft_label_loss"} <= names
    assert not names & {"attention_loss", "eval_attention_loss", "label_loss", "eval_label_loss"}


def test_terms_of_a_log_are_the_mean_of_its_steps(build):
    often, seldom = build(logging_steps=1), build(logging_steps=3)
    often.train()
    seldom.train()
    for term in TERMS[:2]:
        each, means = logged(often, term), logged(seldom, term)
        rows = [8, 8, 4]  # terms are weighed by rows
        expected = [sum(n * value for n, value in zip(rows, each[i : i + 3], strict=True)) / 20 for i in (0, 3)]
        assert means == pytest.approx(expected, rel=1e-5)


def test_terms_that_an_earlier_run_did_not_log_are_none_of_the_next(build):
    trainer = build(logging_steps=2, max_steps=3, learning_rate=0.0)
    trainer.train()
    first = [logged(trainer, term) for term in TERMS[:2]]
    trainer.train()  # the third step was not logged
    assert [logged(trainer, term) for term in TERMS[:2]] == first


def test_evaluation_before_training(build, make_rows, make_teacher, make_student, collator):
    """In batches of 8 and 3 the metrics are the objective on all eleven rows at once."""
    rows = make_rows(11)
    trainer = build(eval_rows=rows)
    metrics = trainer.evaluate()
    batch = collator(rows)
    asked = {"output_query_states": [-1], "output_key_states": [-1]}
    with torch.no_grad():
        expected = DiDEObjective()(
            make_student().eval()(**batch, **asked), make_teacher().eval()(**batch, **asked), batch
        )
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-4)
    assert set(TERMS) & {name.removeprefix("eval_") for name in metrics} == set(TERMS[:2])


def test_evaluation_within_training_leaves_the_terms_of_training_alone(build, make_rows):
    plain, evaluated = (
        build(logging_steps=3),
        build(logging_steps=3, eval_rows=make_rows(4), eval_strategy="steps", eval_steps=1),
    )
    plain.train()
    evaluated.train()
    for term in TERMS[:2]:
        assert logged(plain, term) == logged(evaluated, term)


@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "no teacher"])
def test_metrics_get_logits_and_labels_only(taught, build, make_rows):
    seen = []

    def accuracy(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    rows = make_rows(11)
    trainer = build(teacher="tiny" if taught else None, eval_rows=rows, compute_metrics=accuracy)
    metrics = trainer.evaluate()
    [(predictions, labels)] = seen
    assert isinstance(predictions, np.ndarray)
    assert predictions.shape == (11, 5)
    assert labels.tolist() == [row["label"] for row in rows]
    assert 0 <= metrics["eval_accuracy"] <= 1


@pytest.mark.parametrize("taught", [True, False], ids=["teacher", "no teacher"])
def test_prediction_without_labels_gives_the_logits(taught, build, make_rows, collator, make_student):
    rows = [{name: row[name] for name in ("ids", "image")} for row in make_rows(11)]
    output = build(teacher="tiny" if taught else None).predict(rows)
    assert isinstance(output.predictions, np.ndarray)
    expected = make_student().eval()(**collator(rows)).logits
    torch.testing.assert_close(torch.as_tensor(output.predictions), expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [None, "attention"])
def test_an_evaluation_without_labels_measures_what_needs_none(cache, build, make_rows):
    labelled, bare = make_rows(10), [{name: row[name] for name in ("ids", "image")} for row in make_rows(10)]
    measure = {"compute_metrics": lambda found: {"seen": len(found.label_ids)}}
    expected = build(cache_teacher=cache).evaluate(labelled, metric_key_prefix="test")
    found = build(cache_teacher=cache, **measure).evaluate(bare, metric_key_prefix="test")
    names = ("test_loss", "test_attention_loss", "test_soft_label_loss")
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-5)
    assert "test_seen" not in found
    # Hard labels cannot be measured without, and nothing is asked of a teacher for predictions.
    assert "test_loss" not in build(label_weight=1.0).evaluate(bare, metric_key_prefix="test")
    assert "test_loss" not in build().predict(bare).metrics


def test_training_with_a_teacher_needs_no_labels(build, make_rows):
    rows = [{name: row[name] for name in ("ids", "image")} for row in make_rows()]
    without, with_labels = build(rows=rows), build()
    without.train()
    with_labels.train()
    assert_equal_weights(weights(without), weights(with_labels), exactly=True)


def test_labels_do_not_reach_a_student_that_learns_from_the_teacher_alone(build, make_rows):
    rows = make_rows()
    outside = [{**row, "label": 99} for row in rows]  # no answer of the head: the student's own loss would fail
    one, other = build(rows=rows), build(rows=outside)
    one.train()
    other.train()
    assert_equal_weights(weights(one), weights(other), exactly=True)


def test_bfloat16_mixed_precision_trains(build, make_rows):
    trainer = build(bf16=True, eval_rows=make_rows(4), num_train_epochs=5)
    trainer.train()
    losses = logged(trainer, "loss")
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())
    exact = build()
    exact.train()
    assert losses[0] == pytest.approx(logged(exact, "loss")[0], rel=0.05)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_activation_checkpointing_trains_the_same(build):
    plain, saving = build(), build(activation_checkpointing=True)
    plain.train()
    saving.train()
    assert_equal_weights(weights(plain), weights(saving))


class ForeignTeacher(nn.Module):
    """Knows nothing of this package's arguments; its attention probabilities are all that it shows."""

    def __init__(self, fusion_encoder):
        super().__init__()
        self.inner = fusion_encoder
        self.inner.set_attn_implementation("eager")

    def forward(self, input_ids, attention_mask, pixel_values, pixel_mask, output_attentions=False):
        output = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            output_attentions=output_attentions,
        )
        return SimpleNamespace(logits=output.logits, attentions=output.attentions)


def test_a_foreign_teacher_teaches_the_same(build, make_teacher):
    ours, foreign = build(), build(teacher=ForeignTeacher(make_teacher()))
    ours.train()
    foreign.train()
    for term in ["loss", *TERMS[:2]]:
        assert logged(foreign, term)[0] == pytest.approx(logged(ours, term)[0], abs=1e-5)
    assert_equal_weights(weights(ours), weights(foreign))
    assert not any(p.requires_grad for p in foreign.teacher.parameters())


def test_a_teacher_of_another_width_and_depth_teaches_through_relation_heads_and_a_layer_map(build, make_teacher):
    teacher = make_teacher(hidden_size=24, num_attention_heads=3, num_hidden_layers=4)
    trainer = build(teacher=teacher, relation_heads=8, layer_map={0: 1, -1: 3}, num_train_epochs=10)
    trainer.train()
    losses = logged(trainer, "attention_loss")
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_an_objective_of_ones_own(build):
    trainer = build(objective=DiDEObjective(attention_weight=0.0, temperature=3.0))
    trainer.train()
    assert trainer.distillation_objective.temperature == 3.0
    assert not logged(trainer, "attention_loss")


def test_an_objective_without_a_teacher_is_refused(build):
    with pytest.raises(ValueError, match="an objective was given without a teacher"):
        build(teacher=None, objective=DiDEObjective())


def test_rows_that_fill_no_batch_are_refused_where_such_a_batch_is_left_out(build, make_rows):
    """Nothing was trained, and the run was finished."""
    trainer = build(rows=make_rows(5), dataloader_drop_last=True, per_device_train_batch_size=6, max_steps=2)
    with pytest.raises(ValueError, match="leaves out the 5 rows to train on, which fill no batch of 6; set it to"):
        trainer.train()


def test_soft_scores_choose_the_loss_of_answers(build, make_student):
    student = make_student()
    student.config.problem_type = "multi_label_classification"
    assert build(student).distillation_objective.multi_label
    assert not build().distillation_objective.multi_label


@pytest.mark.parametrize("cache", [None, "logits"])
def test_a_teacher_of_one_answer_gives_a_student_of_several_the_share_of_each(
    cache, build, make_student, make_teacher, make_rows, collator, tmp_path
):
    """By hand: yes or no against its softmax; of a teacher that answers several itself, against its sigmoid."""
    rows = make_rows(8)
    for kind in ("single_label_classification", "multi_label_classification"):
        student, teacher = make_student().eval(), make_teacher().eval()
        student.config.problem_type, teacher.config.problem_type = "multi_label_classification", kind
        fields = {"cache_teacher": cache, "attention_weight": 0.0, "output_dir": tmp_path / kind}
        trainer = build(student, teacher, rows=rows, eval_rows=rows, **fields)
        with torch.no_grad():
            mine, its = (model(**collator(rows)).logits for model in (student, teacher))
        targets = its.sigmoid() if kind.startswith("multi") else its.softmax(-1)
        expected = nn.functional.binary_cross_entropy_with_logits(mine, targets, reduction="none").sum(1).mean()
        assert trainer.evaluate()["eval_soft_label_loss"] == pytest.approx(expected.item(), rel=1e-4), kind


def test_head_learning_rate_factor_makes_groups(build):
    trainer = build(head_learning_rate_factor=10.0, learning_rate=0.01)
    trainer.train()
    fast = {name for name, _ in trainer.model.named_parameters() if name.startswith("classifier.")}
    assert fast
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = (round(group["initial_lr"], 9), group["weight_decay"])
    assert found.keys() == set(names.values())
    for name, (rate, decay) in found.items():
        assert rate == (0.1 if name in fast else 0.01), name
        is_norm = "norm" in name.lower() or name in ("classifier.1.weight", "dual_encoder.interaction.1.weight")
        assert decay == (0.0 if name.endswith("bias") or is_norm else 0.01), name


def test_head_learning_rate_factor_scales_the_first_step(build):
    """SGD without clipping: the first step of the classifier is ten times as long, that of all below it the same."""
    fields = {"max_steps": 1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "weight_decay": 0.0}
    before = weights(build())
    plain, fast = build(**fields), build(**fields, head_learning_rate_factor=10.0)
    plain.train()
    fast.train()
    for name, tensor in weights(plain).items():
        factor = 10 if name.startswith("classifier.") else 1
        torch.testing.assert_close(
            weights(fast)[name] - before[name], factor * (tensor - before[name]), atol=1e-6, rtol=1e-3, msg=name
        )


def test_head_learning_rate_factor_resumes(build, tmp_path):
    fields = {"head_learning_rate_factor": 10.0, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    whole = build(**fields)
    whole.train()
    resumed = build(**fields, output_dir=tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_equal_weights(weights(whole), weights(resumed), exactly=True)
    rates = [[group["lr"] for group in trainer.optimizer.param_groups] for trainer in (whole, resumed)]
    assert rates[0] == rates[1]


def test_head_learning_rate_factor_is_applied_once(build):
    trainer = build(head_learning_rate_factor=10.0, learning_rate=0.01)
    trainer.create_optimizer()
    trainer.create_optimizer()
    assert sorted({round(group["lr"], 9) for group in trainer.optimizer.param_groups}) == [0.01, 0.1]
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(
        list(trainer.model.parameters())
    )
