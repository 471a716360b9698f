"""A dual encoder that starts from a fusion encoder: which tensor comes from where, and that each of them learns."""

import pytest
import torch

from dual_distill.modeling import (
    DualEncoderForImagesAndTextClassification,
    DualEncoderForQuestionAnswering,
    DualEncoderModel,
    FusionEncoderForImagesAndTextClassification,
    FusionEncoderForQuestionAnswering,
    FusionEncoderModel,
)
from dual_distill.modeling.tower_initialization import dual_config_from_fusion

PAIRS = [
    (FusionEncoderModel, DualEncoderModel),
    (FusionEncoderForQuestionAnswering, DualEncoderForQuestionAnswering),
    (FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification),
    (FusionEncoderModel, DualEncoderForQuestionAnswering),
    (FusionEncoderForQuestionAnswering, DualEncoderModel),
]


def inner(model):
    return getattr(model, "fusion_encoder", getattr(model, "dual_encoder", model))


@pytest.mark.parametrize("source, target", PAIRS)
@pytest.mark.parametrize(
    "text_layers, vision_layers", [(None, None), ([0, 2], None), ([-1, 0], [3, 2, 1, 0]), ([1], [-1, -1, 0])], ids=str
)
def test_every_tensor_of_a_tower_comes_from_the_fusion_encoder(source, target, text_layers, vision_layers, build):
    teacher = build(source, num_hidden_layers=4, modality_type_vocab_size=3, num_labels=5)
    student = target.from_fusion_encoder(teacher, text_layers, vision_layers)
    weights, dual = inner(teacher).state_dict(), inner(student)
    for tower, layers, modalities in (
        (dual.text_model, text_layers or range(4), [0]),
        (dual.vision_model, vision_layers or range(4), [1, 2]),
    ):
        assert len(tower.encoder.layer) == tower.config.num_hidden_layers == len(layers)
        for name, tensor in tower.state_dict().items():
            parts = name.split(".")
            if parts[:2] == ["encoder", "layer"]:
                parts[2] = str(layers[int(parts[2])] % 4)
            expected = weights[".".join(parts)]
            if name == "embeddings.token_type_embeddings.weight":
                expected = expected[modalities]
            assert torch.equal(tensor, expected), name


def test_one_modality_row_a_tower_for_vilts_two(build):
    dual = DualEncoderModel.from_fusion_encoder(build(FusionEncoderModel))
    assert dual.text_model.embeddings.token_type_embeddings.weight.shape == (1, 16)
    assert dual.vision_model.embeddings.token_type_embeddings.weight.shape == (1, 16)


def test_a_table_without_an_image_row_lends_its_last(build):
    teacher = build(FusionEncoderModel, modality_type_vocab_size=1)
    dual = DualEncoderModel.from_fusion_encoder(teacher)
    table = teacher.embeddings.token_type_embeddings.weight
    assert torch.equal(dual.text_model.embeddings.token_type_embeddings.weight, table)
    assert torch.equal(dual.vision_model.embeddings.token_type_embeddings.weight, table)


@pytest.mark.parametrize("source, target", PAIRS)
def test_weights_are_copies_and_not_shared(source, target, build):
    teacher = build(source)
    student = target.from_fusion_encoder(teacher)
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    ours = [parameter.data_ptr() for parameter in student.parameters()]
    assert len(set(ours)) == len(ours)
    assert not theirs & set(ours)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    dual = inner(student)
    assert torch.equal(dual.text_model.pooler.dense.weight, dual.vision_model.pooler.dense.weight)
    with torch.no_grad():
        dual.text_model.pooler.dense.weight.zero_()
    assert dual.vision_model.pooler.dense.weight.any()


@pytest.mark.parametrize("source, target", PAIRS[1:3])
def test_the_head_is_copied(source, target, build):
    teacher = build(source, num_labels=5)
    student = target.from_fusion_encoder(teacher)
    for name, tensor in teacher.classifier.state_dict().items():
        assert torch.equal(student.classifier.state_dict()[name], tensor)


def test_the_head_is_drawn_anew_from_a_bare_fusion_encoder(build):
    torch.manual_seed(3)
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(build(FusionEncoderModel, num_labels=5))
    assert student.classifier[3].out_features == 5
    assert student.classifier[0].weight.isfinite().all()
    assert student.classifier[0].weight.std() > 0


def test_the_configuration_follows_the_fusion_encoders(config):
    fields = {"hidden_dropout_prob": 0.1, "image_size": [8, 20], "num_images": 2, "recorded_layers": [0]}
    fusion = config(FusionEncoderModel.config_class, num_hidden_layers=4, num_labels=3, **fields)
    fusion.problem_type = "multi_label_classification"
    fusion.id2label = {0: "no", 1: "yes", 2: "maybe"}
    dual = dual_config_from_fusion(fusion, text_layers=[0, -1])
    assert (dual.text_config.num_hidden_layers, dual.vision_config.num_hidden_layers) == (2, 4)
    assert dual.text_config.hidden_dropout_prob == dual.vision_config.hidden_dropout_prob == 0.1
    assert (dual.patch_grid, dual.num_images, list(dual.recorded_layers)) == ((2, 5), 2, [0])
    assert (dual.id2label, dual.problem_type) == (fusion.id2label, "multi_label_classification")


def test_dtype_mode_and_reload(build, tmp_path):
    student = DualEncoderForQuestionAnswering.from_fusion_encoder(build(FusionEncoderModel).to(torch.bfloat16))
    assert student.dtype == torch.bfloat16
    assert student.training
    student.save_pretrained(tmp_path)
    again = DualEncoderForQuestionAnswering.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_the_fusion_encoder_stays_as_it_was(build):
    teacher = build(FusionEncoderForQuestionAnswering)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    DualEncoderForQuestionAnswering.from_fusion_encoder(teacher)
    assert not teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize(
    "source, target",
    [
        (FusionEncoderForImagesAndTextClassification, DualEncoderForImagesAndTextClassification),
        (None, DualEncoderForImagesAndTextClassification),
        (None, FusionEncoderForImagesAndTextClassification),
    ],
)
def test_every_parameter_learns(source, target, num_images, build, make_rows, collate):
    """From the labels alone; a key bias shifts all scores of a query alike, so softmax gives it none but rounding."""
    fields = {"num_images": num_images, "num_labels": 3, "modality_type_vocab_size": 3}
    if target is DualEncoderForImagesAndTextClassification and source is None:
        fields["modality_type_vocab_size"] = 2
    model = target.from_fusion_encoder(build(source, **fields)) if source else build(target, **fields).train()
    batch = collate(make_rows((7, 3), (((2, 3), (3, 3))[:num_images], ((1, 2), (4, 2))[:num_images])))
    model(**batch, labels=torch.tensor([0, 2])).loss.backward()
    largest = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
    dead = [name for name, value in largest.items() if value < 1e-7]
    assert all(name.endswith("attention.key.bias") for name in dead), dead


@pytest.mark.parametrize("layers", [{"text_layers": [0, 4]}, {"vision_layers": [-5]}])
def test_a_layer_that_does_not_exist_is_refused(layers, build):
    [[layer]] = [[value for value in values if value not in range(-4, 4)] for values in layers.values()]
    with pytest.raises(ValueError, match=f"layer {layer} was asked for, but the model has 4 layers"):
        DualEncoderModel.from_fusion_encoder(build(FusionEncoderModel, num_hidden_layers=4), **layers)


def test_a_head_of_another_kind_is_refused(build):
    teacher = build(FusionEncoderForQuestionAnswering, num_images=2)
    message = (
        "head of FusionEncoderForQuestionAnswering has weights .* that of DualEncoderForImagesAndText.* the same head"
    )
    with pytest.raises(ValueError, match=message):
        DualEncoderForImagesAndTextClassification.from_fusion_encoder(teacher)
