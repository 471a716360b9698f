"""Positions and layer lists, each against torch or a number known beforehand."""

import pytest
import torch
from torch import nn

from dual_distill.modeling import DualEncoderVisionModel, FusionEncoderModel
from dual_distill.modeling.modeling_layers import eager_attention_forward, layers_to_record, resolve_layers

TABLES = [[2, 3], [4, 4], [1, 5], [5, 1], [3, 2]]
GRIDS = [(1, 1), (1, 6), (2, 3), (3, 1), (4, 4), (7, 9)]


def interpolated(table, rows, columns):
    """What ViLT does: bilinear, corners aligned."""
    image = table.permute(2, 0, 1)[None]
    return nn.functional.interpolate(image, size=(rows, columns), mode="bilinear", align_corners=True)[0].permute(
        1, 2, 0
    )


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("cls", [FusionEncoderModel, DualEncoderVisionModel])
def test_positions_are_torchs_bilinear_interpolation(cls, table, build):
    embeddings = build(cls, image_size=[4 * table[0], 4 * table[1]], patch_size=4).embeddings
    source = embeddings.position_embeddings[0, 1:].unflatten(0, table)
    for rows, columns in GRIDS:
        positions = embeddings.interpolate_positions(rows, columns, None)[0]
        torch.testing.assert_close(positions[0], embeddings.position_embeddings[0, 0])
        expected = interpolated(source, rows, columns).flatten(0, 1)
        torch.testing.assert_close(positions[1:], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_each_image_of_a_padded_batch_gets_its_own_interpolation(table, build):
    embeddings = build(FusionEncoderModel, image_size=[4 * table[0], 4 * table[1]], patch_size=4).embeddings
    source = embeddings.position_embeddings[0, 1:].unflatten(0, table)
    mask = torch.zeros(len(GRIDS), 8, 10, dtype=torch.bool)
    for i, (rows, columns) in enumerate(GRIDS):
        mask[i, :rows, :columns] = True
    positions = embeddings.interpolate_positions(8, 10, mask)
    assert positions.isfinite().all()
    for i, (rows, columns) in enumerate(GRIDS):
        own = positions[i, 1:].unflatten(0, (8, 10))[:rows, :columns]
        torch.testing.assert_close(own, interpolated(source, rows, columns), atol=1e-5, rtol=0)


def test_an_image_of_the_tables_size_takes_the_table_as_it_is(build):
    embeddings = build(FusionEncoderModel).embeddings
    assert torch.equal(embeddings.interpolate_positions(2, 3, None), embeddings.position_embeddings)
    full = embeddings.interpolate_positions(2, 3, torch.ones(1, 2, 3, dtype=torch.bool))
    torch.testing.assert_close(full, embeddings.position_embeddings)


def test_resolve_layers_keeps_order_and_duplicates():
    assert resolve_layers([-1, 0, -4, 3, 3], 4) == [3, 0, 0, 3, 3]
    assert resolve_layers([], 4) == []


@pytest.mark.parametrize("layer", [4, -5])
def test_resolve_layers_refuses_a_layer_outside(layer):
    with pytest.raises(ValueError, match=f"layer {layer} was asked for, but the model has 4 layers"):
        resolve_layers([0, layer], 4)


def test_layers_to_record(config):
    defaults = config(FusionEncoderModel.config_class, recorded_layers=[0, -1])
    cases = [(None, None, []), (False, None, []), (True, None, [0, -1]), (True, True, [0, -1]), (None, [1], [1])]
    for queries, keys, layers in [*cases, ([1, 1], (1, 1), [1, 1]), ([0, -1], True, [0, -1])]:
        assert layers_to_record(queries, keys, defaults) == layers
    with pytest.raises(ValueError, match=r"output_query_states names layers \[0\], output_key_states \[1\]"):
        layers_to_record([0], [1], defaults)


def test_eager_attention_of_equal_scores_is_the_mean():
    query, key = torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
    value = torch.arange(12.0).view(1, 1, 3, 4)
    mask = torch.zeros(1, 1, 2, 3)
    mask[..., 2] = torch.finfo(torch.float32).min
    output, probs = eager_attention_forward(nn.Identity(), query, key, value, mask, scaling=0.5)
    assert output.shape == (1, 2, 1, 4)
    torch.testing.assert_close(output[0, :, 0], torch.tensor([[2.0, 3.0, 4.0, 5.0]] * 2))
    torch.testing.assert_close(probs[0, 0], torch.tensor([[0.5, 0.5, 0.0]] * 2))
