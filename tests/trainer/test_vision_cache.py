"""A frozen image tower is run once for each image, and nothing that is trained or measured changes."""

import pytest
import torch

from dual_distill.modeling import DualEncoderConfig, DualEncoderForQuestionAnswering
from dual_distill.trainer.vision_cache import VisionCache

_SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_BERT = {"model_type": "bert", **_SHAPE, "vocab_size": 60, "max_position_embeddings": 12}
_VIT = {"model_type": "vit", **_SHAPE, "hidden_dropout_prob": 0.1, "image_size": [8, 16], "patch_size": 4}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


def of_towers(vision):
    torch.manual_seed(3)
    config = DualEncoderConfig(text_config=dict(_BERT), vision_config=dict(vision), num_labels=5, interaction_layers=1)
    return DualEncoderForQuestionAnswering(config)


def one_size(rows, width=12):
    """Nine images among the rows."""
    for index, row in enumerate(rows):
        row["image"] = torch.randn(1, 3, 8, width, generator=torch.Generator().manual_seed(index % 9))
    return rows


@pytest.mark.parametrize("vision", [_VIT, _RESNET, None], ids=["vit", "resnet", "ours"])
def test_training_and_evaluation_are_those_without_a_cache_and_each_image_is_run_once(
    vision, build, make_student, make_rows
):
    # A teacher of ours reads other grids than towers of others here.
    rows, found = one_size(make_rows(), 16 if vision else 12), []
    fields = {"teacher": None} if vision else {"attention_weight": 0.0}
    for limit_mb in (0, 1):
        learner = of_towers(vision) if vision else make_student()
        fields |= {"rows": rows, "eval_rows": rows[:7], "vision_cache_mb": limit_mb, "freeze_vision_tower": True}
        trainer = build(learner, **fields)
        trainer.train()
        found.append((trainer.evaluate()["eval_loss"], learner.state_dict()))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    tower = getattr(learner.dual_encoder.vision_model, "model", learner.dual_encoder.vision_model)
    assert tower.forward.run_images == 9


def test_padded_images_of_several_in_a_row_give_what_they_give_alone(make_student, make_rows, collator):
    model = make_student(num_images=2).eval().requires_grad_(False)
    batch = collator(make_rows(6, images=2))
    expected = model(**batch, output_hidden_states=True)
    cache = VisionCache(model.dual_encoder.vision_model, 1)
    for _ in range(2):
        found = model(**batch, output_hidden_states=True)
        torch.testing.assert_close(found.logits, expected.logits)
        assert cache.run_images == 12
    wider = {**batch, "pixel_mask": torch.ones_like(batch["pixel_mask"])}  # other images, though of the same pixels
    model(**wider)
    assert cache.run_images > 12


def test_other_weights_and_another_number_format_are_run_anew():
    tower = torch.nn.Conv2d(3, 2, 4).requires_grad_(False)
    cache, images = VisionCache(tower, 1), torch.randn(5, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert tower(images).dtype == torch.bfloat16
    before = tower(images)
    assert cache.run_images == 10
    with torch.no_grad():
        tower.bias += 1
    torch.testing.assert_close(tower(images), before + 1)
    assert cache.run_images == 15


def test_memory_is_filled_to_its_limit_and_what_is_kept_no_more_is_run():
    tower = torch.nn.Conv2d(3, 2, 4).requires_grad_(False)
    images = torch.randn(5, 3, 4, 4)
    expected = tower(images)
    cache = VisionCache(tower, 3 * 2 * 4 / 1e6)  # three images of two float32 numbers
    for count in (5, 7, 9):
        torch.testing.assert_close(tower(images), expected)
        assert cache.run_images == count
    assert torch.equal(tower(images[[0, 0, 1]]), expected[[0, 0, 1]])
    assert cache.run_images == 9


def test_what_is_kept_without_gradients_is_trained_on():
    tower, head = torch.nn.Conv2d(3, 2, 4).requires_grad_(False), torch.nn.Linear(2, 1)
    VisionCache(tower, 1)
    images = torch.randn(5, 3, 4, 4)
    with torch.inference_mode():
        tower(images)
    head(tower(images).flatten(1)).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_a_tower_that_is_trained_after_all_has_its_gradients():
    tower = torch.nn.Conv2d(3, 2, 4).requires_grad_(False)
    VisionCache(tower, 1)
    images = torch.randn(5, 3, 4, 4)
    tower(images)
    tower.requires_grad_(True)
    for _ in range(2):  # a kept result would hold on to a graph that is gone
        tower(images).sum().backward()
    assert tower.weight.grad.abs().sum() > 0


def test_what_a_cache_would_falsify_is_refused(build, make_student, make_rows, make_teacher):
    rows = one_size(make_rows())
    with pytest.raises(
        ValueError, match=r"vision_cache_mb is 1, but the image tower is trained; set freeze_vision_tower"
    ):
        build(make_student(), rows=rows, vision_cache_mb=1, attention_weight=0.0)
    with pytest.raises(ValueError, match=r"attention_weight is 1\.0, which compares queries inside the tower"):
        build(make_student(), rows=rows, vision_cache_mb=1, freeze_vision_tower=True)
    with pytest.raises(ValueError, match=r"vision_cache_mb is -1; give a number >= 0, 0 for no cache"):
        build(make_student(), rows=rows, vision_cache_mb=-1)
