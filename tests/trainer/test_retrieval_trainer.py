"""Retrieval: what is ranked, what the teacher says of it pair by pair, recall over a split, a fusion encoder alone."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from dual_distill.evaluation import recall_of_vectors
from dual_distill.modeling.modeling_losses import gather_pair_ids
from dual_distill.modeling.modeling_ranking_lists import choose_lists, listed_scores
from dual_distill.objectives import listwise_cross_entropy, listwise_distillation_loss
from dual_distill.trainer.image_text_trainers import RetrievalTrainer, drawn_scores

TINY_PAIRS = runpy.run_path(str(Path(__file__).with_name("tiny_pairs.py")))
fusion, retrieval_dual, retrieval_fusion, pair_arguments, retrieval_collator, pair_rows = (
    TINY_PAIRS[name]
    for name in ("fusion", "retrieval_dual", "retrieval_fusion", "pair_arguments", "retrieval_collator", "pair_rows")
)
TEXT, IMAGES = ("input_ids", "attention_mask"), ("pixel_values", "pixel_mask")


def build(folder, model=None, teacher="tiny", eval_rows=None, metrics=None, **fields):
    return RetrievalTrainer(
        retrieval_dual() if model is None else model,
        pair_arguments(folder, **{"ranking_negatives": 3, **fields}),
        teacher=retrieval_fusion() if teacher == "tiny" else teacher,
        train_dataset=pair_rows(),
        eval_dataset=eval_rows,
        data_collator=retrieval_collator,
        compute_metrics=metrics,
    )


def score(model, batch, text, image):
    """One pair alone, by either fusion encoder."""
    outputs = model(**{name: batch[name][[text]] for name in TEXT}, **{name: batch[name][[image]] for name in IMAGES})
    if hasattr(outputs, "itm_logits"):
        return outputs.itm_logits[0, 1] - outputs.itm_logits[0, 0]
    return outputs.logits[0, 0]


def matched_alone(student, batch, text, image):
    """What a dual encoder's interaction layers say of one pair alone."""
    pixels = {name: batch[name][[image]] for name in IMAGES}
    return student.match_scores(**{name: batch[name][[text]] for name in TEXT}, **pixels).item()


def lists_by_hand(batch, text_to_image, count):
    """(text, image) of each list, the right pair first: nearest first, no equal image or caption, nothing twice."""
    images, captions = batch["image_ids"].tolist(), batch["caption_ids"].tolist()
    fits = {(caption, image) for caption, image in zip(captions, images, strict=True)}
    every = []
    for asked, scores in ((images, text_to_image), (captions, text_to_image.T)):
        for row in range(len(images)):
            kept, seen = [], set()
            for place in range(len(images)):
                pair = (captions[row], images[place]) if asked is images else (captions[place], images[row])
                if pair not in fits and asked[place] not in seen:
                    kept.append(place)
                    seen.add(asked[place])
            kept = sorted(kept, key=lambda place, row=row, scores=scores: -scores[row, place].item())[:count]
            every.append([(row, place) if asked is images else (place, row) for place in [row, *kept]])
    return every


@pytest.mark.parametrize("teacher", ["retrieval", "pretraining"])
def test_the_teacher_ranks_what_the_student_finds_hard(teacher, tmp_path):
    trainer = build(tmp_path, teacher=retrieval_fusion() if teacher == "retrieval" else fusion())
    student, batch = trainer.model.eval(), retrieval_collator(pair_rows())
    with torch.no_grad():
        loss = trainer.compute_loss(student, batch)
        found = trainer._take_terms()
        logits = student(**batch).logits_per_text
        lists = lists_by_hand(batch, logits, 3)
        ours = torch.stack([torch.stack([logits[pair] for pair in one]) for one in lists])
        theirs = torch.stack([torch.stack([score(trainer.teacher, batch, *pair) for pair in one]) for one in lists])
    assert ours.shape == (16, 4)
    expected = listwise_distillation_loss(ours, theirs, torch.ones(16, 4).bool())
    assert expected > 0.01
    assert found["ranking_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert set(found) == {"itc_loss", "ranking_loss", "attention_loss"}
    assert loss.item() == pytest.approx(sum(found.values()), rel=1e-5)


@pytest.mark.parametrize("has_teacher", [True, False])
def test_interaction_layers_learn_to_order_the_lists_anew(has_teacher, tmp_path):
    """Each pair alone through `match_scores` gives the loss; it reaches the layers and the score."""
    trainer = build(tmp_path, retrieval_dual(interaction_layers=1), "tiny" if has_teacher else None)
    student, batch = trainer.model.eval(), retrieval_collator(pair_rows())
    loss = trainer.compute_loss(student, batch)
    found = trainer._take_terms()
    with torch.no_grad():
        lists = lists_by_hand(batch, student(**batch).logits_per_text, 3)
        scores = [[matched_alone(student, batch, *pair) for pair in one] for one in lists]
        ours, every = torch.tensor(scores), torch.ones(16, 4).bool()
        expected = listwise_cross_entropy(ours, every)
        if has_teacher:
            theirs = [[score(trainer.teacher, batch, *pair) for pair in one] for one in lists]
            expected = listwise_distillation_loss(ours, torch.tensor(theirs), every)
    assert expected > 0.01
    assert found["match_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert loss.item() == pytest.approx(sum(found.values()), rel=1e-5)
    loss.backward()
    body = student.dual_encoder
    for part in (student.rank_output, body.interaction_model, body.interaction):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters() if parameter.dim() > 1)


def test_a_weight_of_matches_is_0_without_layers_and_refused_when_given(tmp_path):
    batch = retrieval_collator(pair_rows())
    trainer = build(tmp_path)
    trainer.compute_loss(trainer.model, batch)
    assert "match_loss" not in trainer._take_terms()
    for teacher in ("tiny", None):
        with pytest.raises(ValueError, match=r"match_weight is 2\.0, but the student has no interaction layers"):
            build(tmp_path, teacher=teacher, match_weight=2.0)


def test_lists_hold_an_entry_once_and_say_where_they_end():
    """Three rows of one image: nothing but the fourth can be held against any of them."""
    ids = gather_pair_ids(torch.tensor([1, 1, 1, 2]), torch.tensor([5, 6, 7, 8]))
    similarities = torch.arange(16.0).reshape(4, 4)
    both = (similarities, similarities.T)
    rows, is_listed = choose_lists(both, ids, 2)
    assert rows[0][:3, 0].tolist() == [3, 3, 3]
    assert is_listed[:4].tolist() == [[True, True, False]] * 3 + [[True, True, False]]
    assert rows[0][3, 0] == 0  # the image that three rows show is there once
    assert is_listed[4:7].tolist() == [[True, True, False]] * 3
    assert rows[1][3].tolist() == [2, 1]
    scores = listed_scores(both, ids, rows)
    assert scores[0, :2].tolist() == [0.0, 3.0]
    assert scores[7].tolist() == [15.0, 11.0, 7.0]


def test_a_student_learns_and_recall_is_reported(tmp_path):
    trainer = build(
        tmp_path,
        eval_rows=pair_rows(),
        metrics=recall_of_vectors,
        num_train_epochs=25,
        optim="adamw_torch",
        learning_rate=3e-3,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_mean_recall"] > before["eval_mean_recall"]
    assert {"eval_itc_loss", "eval_ranking_loss", "eval_attention_loss", "eval_text_to_image_recall@1"} <= set(after)
    assert after["eval_text_to_image_recall@10"] == 1.0  # seven images


def test_a_fusion_encoder_learns_to_put_the_right_pair_first(tmp_path):
    fields = {"num_train_epochs": 25, "optim": "adamw_torch", "learning_rate": 3e-3}
    trainer = build(tmp_path, retrieval_fusion(), None, eval_rows=pair_rows(), **fields)
    batch = retrieval_collator(pair_rows())
    ids = gather_pair_ids(batch["image_ids"], batch["caption_ids"])
    with torch.no_grad():
        model = trainer.model.eval()
        loss = trainer.compute_loss(model, batch).item()
        (image_rows, text_rows), is_listed = choose_lists(drawn_scores(ids), ids, 3)
        rows = [[(i, p) for p in [i, *image_rows[i].tolist()]] for i in range(8)]
        rows += [[(p, i) for p in [i, *text_rows[i].tolist()]] for i in range(8)]
        scores = torch.stack([torch.stack([score(model, batch, *pair) for pair in row]) for row in rows])
    assert loss == pytest.approx(listwise_cross_entropy(scores, is_listed).item(), rel=1e-4)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_right_first_share"] > before["eval_right_first_share"]


def test_recall_counts_each_image_once():
    """Two captions of image 7, one of image 9; caption 1 is nearer to the wrong image."""
    texts = np.array([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])
    images = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = recall_of_vectors(EvalPrediction((texts, images), np.array([7, 7, 9])))
    assert found["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert found["image_to_text_recall@1"] == 0.5  # caption 1 ties with image 9's own
    assert found["mean_recall"] == pytest.approx((2 / 3 + 0.5 + 4) / 6)


@pytest.mark.parametrize("precision", [{"bf16": True}, {"activation_checkpointing": True}])
def test_bf16_and_activation_checkpointing_give_nearly_the_same(precision, tmp_path):
    found = []
    for fields in ({}, precision):
        trainer = build(tmp_path, max_steps=2, **fields)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], rel=0.05 if "bf16" in precision else 1e-4)


@pytest.mark.parametrize(
    ("model", "teacher", "fields", "problem"),
    [
        (retrieval_fusion, "tiny", {}, "a teacher was given for a fusion encoder"),
        (None, "dual", {}, "the teacher is a DualEncoderForImageTextRetrieval, which scores no pairs"),
        (None, "tiny", {"ranking_weight": 0, "attention_weight": 0}, "ranking_weight and attention_weight are 0"),
        (None, "tiny", {"ranking_negatives": 0}, "ranking_negatives is 0; it must be at least 1"),
        (None, "tiny", {"cache_teacher": "attention"}, "is a RankingObjective; leave cache_teacher out"),
    ],
)
def test_what_cannot_be_is_refused(model, teacher, fields, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        build(tmp_path, model and model(), retrieval_dual() if teacher == "dual" else teacher, **fields)
