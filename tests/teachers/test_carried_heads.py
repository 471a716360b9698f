"""A head from another head: what is taken over between pre-training, retrieval and masked words, and what is new."""

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForImageTextRetrieval,
    DualEncoderForPreTraining,
    DualEncoderForQuestionAnswering,
    FusionEncoderForImageTextRetrieval,
    FusionEncoderForMaskedLM,
    FusionEncoderForPreTraining,
    FusionEncoderForQuestionAnswering,
)
from dual_distill.teachers import load_model, random_batch

ANSWERS = ["yes", "no"]
PRETRAINING = (FusionEncoderForPreTraining, DualEncoderForPreTraining)
RETRIEVAL = (FusionEncoderForImageTextRetrieval, DualEncoderForImageTextRetrieval)


@pytest.fixture
def said(caplog):
    """What the conversion warns of."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("dual_distill.teachers")]


@pytest.fixture
def saved(save_vilt, tmp_path):
    """A model of ours with noise on every parameter, and the folder that it was saved in."""

    def save(kind, interaction_layers=0):
        _, folder = save_vilt("ViltForMaskedLM")
        model, processor = load_model(folder, model_class=PRETRAINING, new_head=True)
        if kind == "dual":
            model = DualEncoderForPreTraining.from_fusion_encoder(model, interaction_layers=interaction_layers).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        return model, tmp_path / kind

    return save


def assert_same(model, other, prefixes):
    ours, theirs = model.state_dict(), other.state_dict()
    names = [name for name in ours if name.startswith(prefixes)]
    assert {name.split(".")[0] for name in names} == {prefix.split(".")[0] for prefix in prefixes}
    for name in names:
        assert torch.equal(ours[name], theirs[name]), name


def test_vilts_words_are_kept_for_pretraining_and_the_matching_head_is_drawn(save_vilt, said):
    vilt, folder = save_vilt("ViltForMaskedLM")
    model, _ = load_model(folder, model_class=PRETRAINING, new_head=True)
    assert type(model) is FusionEncoderForPreTraining
    batch = random_batch(model.config)
    output = model(**batch, masked_input_ids=batch["input_ids"])
    one_image = {name: value[:, 0] if name.startswith("pixel") else value for name, value in batch.items()}
    with torch.no_grad():
        expected = vilt(**one_image).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(output.mlm_logits[real], expected[real], atol=1e-5, rtol=0)
    kept, new = said()
    assert "its head is of another class; taken over from it: " in kept
    assert "mlm_score.transform.dense.weight" in kept
    assert new.endswith("must be trained: itm_score.fc.weight, itm_score.fc.bias.")


def test_words_alone_are_not_taken_for_pretraining_unasked(save_vilt):
    _, folder = save_vilt("ViltForMaskedLM")
    with pytest.raises(
        ValueError, match=r"was saved as ViltForMaskedLM, not as FusionEncoderForPreTraining; .* set new_head"
    ):
        load_model(folder, model_class=PRETRAINING)


def test_a_matching_head_ranks_with_the_probability_that_it_gave(saved, said):
    before, folder = saved("fusion")
    model, _ = load_model(folder, model_class=RETRIEVAL)
    assert type(model) is FusionEncoderForImageTextRetrieval
    batch = random_batch(model.config)
    with torch.no_grad():
        expected = before(**batch).itm_logits.softmax(-1)[:, 1]
        found = model(**batch).logits[:, 0].sigmoid()
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert "taken over from it: rank_output.bias, rank_output.weight." in said()[-1]


def test_a_matching_head_behind_layers_ranks_with_the_probability_that_it_gave(saved, said):
    before, folder = saved("dual", interaction_layers=1)
    model, _ = load_model(folder, model_class=RETRIEVAL)
    height, width = (side * model.config.vision_config.patch_size for side in model.config.vision_config.patch_grid)
    batch = {"input_ids": torch.randint(1, 9, (3, 5)), "pixel_values": torch.randn(3, 1, 3, height, width)}
    with torch.no_grad():
        expected = before(**batch).itm_logits.softmax(-1)[:, 1]
        found = model.match_scores(**batch)[:, 0].sigmoid()
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert "rank_output.weight" in said()[-1]


def test_masked_words_follow_from_pretraining(saved):
    before, folder = saved("fusion")
    model, _ = load_model(folder, model_class=FusionEncoderForMaskedLM)
    assert type(model) is FusionEncoderForMaskedLM
    assert_same(model, before, ("fusion_encoder", "mlm_score"))
    assert model.mlm_score.decoder.weight is model.get_input_embeddings().weight


def test_projections_follow_from_pretraining_and_go_back(saved, said, tmp_path):
    before, folder = saved("dual")
    retrieval, processor = load_model(folder, model_class=RETRIEVAL)
    assert type(retrieval) is DualEncoderForImageTextRetrieval
    parts = ("dual_encoder", "text_projection", "image_projection", "logit_scale")
    assert_same(retrieval, before, parts)
    retrieval.save_pretrained(tmp_path / "retrieval")
    processor.save_pretrained(tmp_path / "retrieval")
    with pytest.raises(
        ValueError, match="was saved as DualEncoderForImageTextRetrieval, not as DualEncoderForPreTraining"
    ):
        load_model(tmp_path / "retrieval", model_class=PRETRAINING)
    again, _ = load_model(tmp_path / "retrieval", model_class=PRETRAINING, new_head=True)
    assert type(again) is DualEncoderForPreTraining
    assert_same(again, before, parts)
    assert "text_projection" not in said()[-1]
    assert "itm_score.fc.weight" in said()[-1]


@pytest.mark.parametrize(
    "kind, cls, body",
    [
        ("fusion", FusionEncoderForQuestionAnswering, "fusion_encoder"),
        ("dual", DualEncoderForQuestionAnswering, "dual_encoder"),
    ],
)
def test_what_was_pretrained_is_fine_tuned_and_pretrained_again(kind, cls, body, saved, tmp_path):
    before, folder = saved(kind)
    tuned, processor = load_model(folder, model_class=cls, new_head=True, label_names=ANSWERS)
    assert type(tuned) is cls
    assert_same(tuned, before, (body,))
    tuned.save_pretrained(tmp_path / "tuned")
    processor.save_pretrained(tmp_path / "tuned")
    again, _ = load_model(tmp_path / "tuned", model_class=PRETRAINING, new_head=True)
    assert type(again) is type(before)
    assert_same(again, before, (body,))
    assert not torch.equal(again.itm_score.fc.weight, before.itm_score.fc.weight)


@pytest.mark.parametrize("kind", ["fusion", "dual"])
def test_pretraining_loads_as_it_was_saved(kind, saved, said):
    before, folder = saved(kind)
    count = len(said())
    model, _ = load_model(folder)
    assert type(model) is type(before)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(weight, before.state_dict()[name]) for name, weight in model.state_dict().items())
    assert len(said()) == count
