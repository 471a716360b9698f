"""Pre-training: what the teacher is asked, what its answers are held against, what is logged, two processes as one."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dual_distill.objectives import attention_distillation_loss, relation_scores
from dual_distill.trainer.image_text_trainers import PreTrainingTrainer, in_batch_recall

HARD = ["itc_loss", "itm_loss", "mlm_loss"]
SOFT = ["attention_loss", "itm_distillation_loss", "mlm_distillation_loss"]
SCRIPT = Path(__file__).with_name("two_processes_pairs.py")
TINY_PAIRS = runpy.run_path(str(Path(__file__).with_name("tiny_pairs.py")))
dual, fusion, pair_arguments, image_text_collator, pair_rows = (
    TINY_PAIRS[name] for name in ("dual", "fusion", "pair_arguments", "image_text_collator", "pair_rows")
)


def build(folder, model=None, teacher="tiny", rows=None, eval_rows=None, **fields):
    return PreTrainingTrainer(
        dual() if model is None else model,
        pair_arguments(folder, **fields),
        teacher=fusion() if teacher == "tiny" else teacher,
        train_dataset=pair_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        data_collator=image_text_collator,
    )


def terms_of(trainer, batch):
    trainer._take_terms()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    return loss.item(), trainer._take_terms()


def divergence(student, teacher):
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


def test_terms_are_those_of_a_loop_over_single_pairs(tmp_path):
    """The teacher reads each pair alone; which pairs, the student's own outputs say."""
    trainer = build(
        tmp_path, attention_weight=0.5, itm_distillation_weight=2.0, mlm_distillation_weight=3.0, itm_weight=0.7
    )
    student, teacher, batch = trainer.model.eval(), trainer.teacher, image_text_collator(pair_rows())
    loss, found = terms_of(trainer, batch)
    with torch.no_grad():
        outputs = student(**batch, output_query_states=[-1], output_key_states=[-1])
        text, pixels = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")
        images, texts = outputs.negative_image_rows.tolist(), outputs.negative_text_rows.tolist()
        pairs = [(i, i) for i in range(8)] + list(enumerate(images)) + [(row, i) for i, row in enumerate(texts)]
        matching, attention, words = [], [], []
        for place, (row_of_text, row_of_image) in enumerate(pairs):
            assert min(row_of_text, row_of_image) >= 0
            pair = {name: batch[name][[row_of_text]] for name in text} | {
                name: batch[name][[row_of_image]] for name in pixels
            }
            theirs = teacher(**pair, output_query_states=[-1], output_key_states=[-1])
            matching.append(divergence(outputs.itm_logits[place], theirs.itm_logits[0]))
            if place < 8:
                tokens = batch["input_ids"].shape[1]
                keys, queries = outputs.image_mask[place], batch["attention_mask"][[place]].bool()
                ours = [s[0][[place]] for s in (outputs.query_states, outputs.key_states)]
                joint = [relation_scores(*ours), relation_scores(theirs.query_states[0], theirs.key_states[0])]
                to_image = [scores[:, :, :tokens, tokens:] for scores in joint]
                to_text = [scores[:, :, tokens:, :tokens] for scores in joint]
                attention.append(
                    attention_distillation_loss(*to_image, keys, queries)
                    + attention_distillation_loss(*to_text, queries, keys)
                )
                masked = {name: batch[name][[place]] for name in ("masked_input_ids", "masked_labels")}
                logits = teacher(**pair, **masked).mlm_logits[0]
                for token in (batch["masked_labels"][place] != -100).nonzero():
                    words.append(divergence(outputs.mlm_logits[place, token[0]], logits[token[0]]))
    expected = {
        "itm_distillation_loss": torch.stack(matching).mean().item(),
        "attention_loss": torch.stack(attention).mean().item(),
        "mlm_distillation_loss": torch.stack(words).mean().item(),
        **{name: outputs[name].item() for name in HARD},
    }
    assert min(expected.values()) > 1e-3
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    weights = {"attention_loss": 0.5, "itm_distillation_loss": 2.0, "mlm_distillation_loss": 3.0, "itm_loss": 0.7}
    assert loss == pytest.approx(sum(weights.get(name, 1.0) * value for name, value in expected.items()), rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "passes"),
    [
        ({}, 4),
        ({"attention_weight": 0.0}, 4),
        ({"itm_distillation_weight": 0.0}, 2),
        ({"mlm_distillation_weight": 0.0}, 3),
        ({"attention_weight": 0.0, "itm_distillation_weight": 0.0}, 1),
        ({"itm_distillation_weight": 0.0, "mlm_distillation_weight": 0.0}, 1),
    ],
)
def test_the_teacher_is_asked_for_what_has_a_weight_alone(weights, passes, tmp_path):
    trainer = build(tmp_path, **weights)
    asked = []
    trainer.teacher.fusion_encoder.register_forward_hook(lambda *_: asked.append(1))
    _, found = terms_of(trainer, image_text_collator(pair_rows()))
    assert len(asked) == passes
    off = {name.removesuffix("_weight") + "_loss" for name in weights}
    assert set(found) == {*HARD, *SOFT} - off


def test_training_logs_every_term_and_leaves_the_teacher_as_it_is(tmp_path):
    teacher = fusion()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = build(
        tmp_path, teacher=teacher, eval_rows=pair_rows(), num_train_epochs=15, optim="adamw_torch", learning_rate=3e-3
    )
    held_out = trainer.evaluate()
    assert set(held_out) >= {f"eval_{name}" for name in ("loss", "in_batch_recall", *HARD, *SOFT)}
    assert 0 <= held_out["eval_in_batch_recall"] <= 1
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(set(entry) >= {*HARD, *SOFT} for entry in logs)
    for entry in logs:
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in (*HARD, *SOFT)), abs=2e-4)
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert trainer.evaluate()["eval_loss"] < held_out["eval_loss"]


@pytest.mark.parametrize("model", [fusion, dual])
def test_without_a_teacher_the_model_learns_its_own_terms(model, tmp_path):
    trainer = build(
        tmp_path, model(), None, num_train_epochs=15, optim="adamw_torch", learning_rate=3e-3, mlm_weight=0.5
    )
    assert trainer.model.config.mlm_weight == 0.5
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    own = HARD if model is dual else HARD[1:]
    assert all(set(entry) & {*HARD, *SOFT} == set(own) for entry in logs)
    assert logs[-1]["loss"] < 0.9 * logs[0]["loss"]
    total = sum(logs[0][name] * (0.5 if name == "mlm_loss" else 1) for name in own)
    assert logs[0]["loss"] == pytest.approx(total, abs=2e-4)


@pytest.mark.parametrize("precision", [{"bf16": True}, {"activation_checkpointing": True}])
def test_bf16_and_activation_checkpointing_give_nearly_the_same(precision, tmp_path):
    found = []
    for fields in ({}, precision):
        trainer = build(tmp_path, max_steps=2, **fields)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert all(parameter.dtype is torch.float32 for parameter in trainer.model.parameters())
    assert found[1] == pytest.approx(found[0], rel=0.05 if "bf16" in precision else 1e-4)


def test_in_batch_recall_by_hand():
    """Rows 0 and 1 show one image; text 2 is nearer to image 0 than to its own, image 2 is nearest to its own text."""
    texts = torch.eye(3)[[0, 0, 1]]
    images = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [0.0, 0.8, 0.0]])
    ids = {"image_ids": torch.tensor([1, 1, 2]), "caption_ids": torch.tensor([5, 6, 7])}
    # texts 0 and 1 find their image, text 2 does not; every image finds a text of its own.
    assert in_batch_recall(texts, images, ids).item() == pytest.approx(5 / 6)
    assert in_batch_recall(torch.ones(4, 2), torch.ones(4, 2), {n: torch.arange(4) for n in ids}).item() == 0.0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cache_teacher": "attention"}, "the objective is a PreTrainingObjective; leave cache_teacher out"),
        (
            {"attention_weight": 0, "itm_distillation_weight": 0, "mlm_distillation_weight": 0},
            "a teacher was given, but",
        ),
        ({"itm_weight": 0}, "itm_distillation_weight is above 0, but the student's configuration has itm_weight 0"),
        ({"itc_weight": -1.0}, "itc_weight is -1.0; give a number >= 0"),
        ({"masking_share": 0.0}, "masking_share is 0.0"),
        ({"teacher": "dual"}, "the teacher is a DualEncoderForPreTraining"),
    ],
)
def test_what_cannot_be_is_refused(fields, problem, tmp_path):
    teacher = dual() if fields.get("teacher") == "dual" else "tiny"
    with pytest.raises(ValueError, match=problem):
        build(tmp_path, teacher=teacher, **{name: value for name, value in fields.items() if name != "teacher"})


def test_a_fusion_encoder_has_no_contrastive_term(tmp_path):
    with pytest.raises(ValueError, match=r"itc_weight is 1\.0, but a dual_distill_fusion_encoder has no such term"):
        build(tmp_path, fusion(), None, itc_weight=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
@pytest.mark.parametrize(
    ("way", "eval_rows"), [([], 16), (["fsdp2"], 16), ([], 13), ([], 11)], ids=["ddp", "fsdp2", "uneven", "few"]
)
def test_two_processes_equal_one(way, eval_rows, kind, tmp_path):
    """Two epochs of 24 rows, batches of 8, all terms of distillation: weights and every logged term.

    13 rows: the last batch of two processes is filled up with rows that do not count; 11: one has none of its own.
    """
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, str(SCRIPT), str(folder), str(8 // processes), kind, str(eval_rows)]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            command += way
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        world_size, logs = json.loads((folder / "logs.json").read_text())
        assert world_size == processes
        runs.append((load_file(folder / "model" / "model.safetensors"), logs))
    (alone, expected), (together, found) = runs
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name.endswith(("loss", "recall")):
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
