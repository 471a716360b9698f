"""Matching heads and rerankers of other families rank for a retrieval student, pair by pair."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ViTImageProcessorPil
from worlds.tiny_teachers import save_teacher, tiny_teacher

from dual_distill import DualDistillProcessor, FusionEncoderConfig
from dual_distill.data import PreTrainingCollator, Task, train_tokenizer
from dual_distill.modeling import DualEncoderForImageTextRetrieval, dual_config_from_fusion
from dual_distill.objectives import listwise_distillation_loss
from dual_distill.teachers import ForeignTeacher, causal_vlm, family_of
from dual_distill.trainer import DistillationTrainingArguments, RetrievalTrainer, StoredTeacher, view_settings

TEXTS = ["two dogs on a red sofa", "what is it?", "yes, a black ball", "a cat and dogs"]
TASK = Task("pairs", "image_text_retrieval", ("image",), "caption", None)


def make_rows():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48 + 8 * (i % 3), 64, 3), dtype=np.uint8)) for i in range(4)]
    return Dataset.from_dict({"image": images, "caption": TEXTS})


def build(folder, teacher, **fields):
    processor = DualDistillProcessor(
        ViTImageProcessorPil(size={"height": 30, "width": 30}), train_tokenizer(TEXTS, 60, 24)
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = dual_config_from_fusion(
        FusionEncoderConfig(vocab_size=len(processor.tokenizer), image_size=30, patch_size=10, **shape)
    )
    told = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    told |= {"use_cpu": True, "disable_tqdm": True, "ranking_negatives": 2}
    return RetrievalTrainer(
        DualEncoderForImageTextRetrieval(config),
        DistillationTrainingArguments(output_dir=str(folder), **(told | fields)),
        teacher=teacher,
        train_dataset=make_rows(),
        eval_dataset=make_rows(),
        data_collator=PreTrainingCollator(processor, TASK),
    )


@pytest.mark.parametrize("name", ["blip", "smolvlm", pytest.param("blip2", marks=pytest.mark.slow)])
def test_each_pair_alone_gives_the_loss(name, tmp_path):
    model, own = tiny_teacher(name)
    trainer = build(tmp_path, ForeignTeacher(model, own))
    rows, student = make_rows(), trainer.model.eval()
    batch = trainer.data_collator(list(rows))
    with torch.no_grad():
        trainer.compute_loss(student, batch)
        found = trainer._take_terms()
        seen = {key: it for key, it in batch.items() if not key.startswith(("teacher_", "student_"))}
        outputs = student(**seen, num_listed=2)

    # Each pair by itself, as a user asks the family; a model that writes in the form of a reranker.
    family, lists = family_of(model.config), []
    asked, scored = (causal_vlm.MATCH_INPUTS, causal_vlm.MATCH_VIEW) if name == "smolvlm" else ({}, {})
    for images, texts in [(outputs.listed_images, None), (None, outputs.listed_texts)]:
        for row in range(4):
            drawn = (texts if images is None else images)[row].tolist()
            scores = []
            for image, text in [(row, row)] + [(row, i) if images is None else (i, row) for i in drawn]:
                pair = family.inputs(model.config, own, [rows[image]["image"]], [rows[text]["caption"]], **asked)
                scores.append(family.view(model, own, pair, [], **scored).match_probs.logit())
            lists.append(torch.cat(scores))
    expected = listwise_distillation_loss(outputs.list_scores, torch.stack(lists), outputs.is_listed)
    assert torch.stack(lists).std() > 1e-3
    assert found["ranking_loss"] == pytest.approx(expected.item(), rel=1e-3)
    assert set(found) == {"itc_loss", "ranking_loss", "attention_loss"}


def test_a_student_learns_from_a_matching_head_by_its_name(tmp_path):
    trainer = build(tmp_path / "run", str(save_teacher("blip", tmp_path / "blip")), learning_rate=3e-3, max_steps=6)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_ranking_loss"] < before["eval_ranking_loss"]


def test_what_cannot_rank_is_refused(tmp_path):
    silent = ForeignTeacher(*tiny_teacher("modernvbert"), "silent")
    trainer = build(tmp_path, silent)
    with pytest.raises(ValueError, match=r"silent does not say whether text and image match; .* ranking_weight to 0"):
        trainer.train()
    build(tmp_path, silent, ranking_weight=0).train()

    blip = ForeignTeacher(*tiny_teacher("blip"), "blip")
    store = StoredTeacher(tmp_path / "views", blip, view_settings(blip, [-1], None))
    with pytest.raises(ValueError, match=r"the store of blip holds .* give the teacher itself, or set ranking_weight"):
        build(tmp_path, store)
    with pytest.raises(ValueError, match="is a RankingObjective; leave cache_teacher out"):
        build(tmp_path, blip, cache_teacher="attention")
