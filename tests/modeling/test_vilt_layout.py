"""transformers' `ViltModel` is the fusion encoder under the same parameter names, with its patches shuffled."""

import pytest
import torch
from transformers import ViltConfig, ViltModel

from dual_distill.modeling import FusionEncoderConfig, FusionEncoderModel

SHARED = {
    "vocab_size": 60,
    "type_vocab_size": 2,
    "modality_type_vocab_size": 3,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
}


@pytest.fixture
def vilt():
    model = ViltModel(ViltConfig(**SHARED)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ours(vilt, attention="sdpa"):
    model = FusionEncoderModel._from_config(FusionEncoderConfig(**SHARED), attn_implementation=attention).eval()
    report = model.load_state_dict(vilt.state_dict(), strict=False)
    # transformers registers position_ids as a buffer that is not saved; nothing else may differ.
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    return model


def test_every_tensor_fits(vilt):
    model = ours(vilt)
    assert model.state_dict().keys() == vilt.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in vilt.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pooled_vectors_agree(vilt, attention, make_rows, collate):
    model = ours(vilt, attention)
    batch = collate(make_rows((7, 3, 5, 4), (((3, 3),), ((1, 4),), ((5, 2),), ((2, 3),))), num_tokens=9)
    flat = {"pixel_values": batch["pixel_values"][:, 0], "pixel_mask": batch["pixel_mask"][:, 0]}
    expected = vilt(**{**batch, **flat}).pooler_output
    assert expected.std(0).min() > 1e-2
    torch.testing.assert_close(model(**batch).pooler_output[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(**{**batch, **flat}).pooler_output[:, 0], expected, atol=1e-5, rtol=0)


def test_text_rows_of_the_last_layer_agree(vilt, make_rows, collate):
    batch = collate(make_rows())
    flat = {"pixel_values": batch["pixel_values"][:, 0], "pixel_mask": batch["pixel_mask"][:, 0]}
    expected = vilt(**{**batch, **flat}).last_hidden_state
    found = ours(vilt)(**batch).last_hidden_state
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        torch.testing.assert_close(found[i, :length], expected[i, :length], atol=1e-5, rtol=0)


def test_segments_agree(vilt, make_rows, collate):
    batch = collate(make_rows())
    segments = torch.randint(0, 2, batch["input_ids"].shape)
    flat = {"pixel_values": batch["pixel_values"][:, 0], "pixel_mask": batch["pixel_mask"][:, 0]}
    expected = vilt(**{**batch, **flat}, token_type_ids=segments).pooler_output
    found = ours(vilt)(**batch, token_type_ids=segments).pooler_output[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_second_image_agrees(vilt, make_rows, collate):
    batch = collate(make_rows((7, 3), (((2, 3), (3, 3)), ((1, 4), (2, 2)))))
    found = ours(vilt)(**batch).pooler_output
    for slot in range(2):
        flat = {"pixel_values": batch["pixel_values"][:, slot], "pixel_mask": batch["pixel_mask"][:, slot]}
        expected = vilt(**{**batch, **flat}, image_token_type_idx=slot + 1).pooler_output
        torch.testing.assert_close(found[:, slot], expected, atol=1e-5, rtol=0)
