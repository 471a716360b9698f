"""`train --dry-run`: counts by hand, memory byte for byte, refusals, and no weights read."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers import ViltImageProcessorPil, ViTImageProcessorPil
from worlds.tiny_teachers import save_teacher, tiny_teacher

from dual_distill.data import load_task
from dual_distill.modeling import FusionEncoderConfig
from dual_distill.modeling.tower_initialization import dual_config_from_fusion
from dual_distill.runs import DataArguments, ModelArguments, make_run, plan_run
from dual_distill.runs.plan import estimate_memory, largest_images
from dual_distill.teachers import ForeignTeacher
from dual_distill.trainer import DistillationTrainingArguments, StoredTeacher, view_settings

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_height": 36,
    "image_width": 36,
    "patch_size": 12,
    "resize": "fixed",
    "max_text_length": 24,
}
SCENES = {"num_scenes": {"train": 12, "validation": 2, "test": 2}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint without its weights: a dry run must not miss them."""
    folder = tmp_path_factory.mktemp("plan") / "teacher"
    training = DistillationTrainingArguments(str(folder), max_steps=1, use_cpu=True)
    run = make_run(
        ModelArguments(architecture="fusion_encoder", **SHAPE),
        DataArguments(task="scenes"),
        training,
        data=load_task("scenes", **SCENES),
    )
    run.save_model()
    (folder / "model.safetensors").unlink()
    return str(folder)


def plan(teacher, tmp_path, data=None, training=None, **model):
    arguments = {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 5, "use_cpu": True}
    return plan_run(
        ModelArguments(**{"init_from": teacher, "teacher": teacher, **model}),
        DataArguments(**{"task": "scenes", "data_options": SCENES, **(data or {})}),
        DistillationTrainingArguments(**{**arguments, **(training or {})}),
    )


def test_counts_by_hand_and_no_weights(teacher, tmp_path):
    """12 scenes of 6 questions are 72 rows: 15 batches of 5, 4 steps of 4 batches, 8 in two epochs."""
    found = plan(teacher, tmp_path, training={"gradient_accumulation_steps": 4, "num_train_epochs": 2})
    assert found.rows == {"train": 72, "validation": 12, "test": 12}
    assert (found.steps, found.rows_per_step, found.epochs) == (8, 20, 2.0)
    assert (found.student, found.teacher) == ("DualEncoderForQuestionAnswering", "FusionEncoderForQuestionAnswering")
    assert found.student_parameters > found.teacher_parameters > 0
    assert found.memory_bytes["teacher"] == 4 * found.teacher_parameters
    assert found.memory_bytes["optimizer"] == 2 * found.memory_bytes["weights"] == 8 * found.student_parameters
    assert not (tmp_path / "out").exists()
    assert json.loads(json.dumps(asdict(found)))["num_labels"] == found.num_labels
    lines = dict(line.split(maxsplit=1) for line in str(found).splitlines())
    assert lines["steps"] == "8 of 20 rows, 2.00 epochs"
    assert lines["rows"] == "train 72, validation 12, test 12"


@pytest.mark.parametrize(
    ("training", "data", "steps", "epochs"),
    [
        ({"max_steps": 30}, {}, 30, 2.0),
        ({"num_train_epochs": 1}, {"max_train_rows": 11}, 3, 1.0),
        ({"num_train_epochs": 1, "dataloader_drop_last": True}, {"max_train_rows": 11}, 2, 1.0),
        ({"num_train_epochs": 0.5}, {}, 8, 8 / 15),
    ],
)
def test_steps(training, data, steps, epochs, teacher, tmp_path):
    found = plan(teacher, tmp_path, data, training)
    assert (found.steps, found.epochs) == (steps, pytest.approx(epochs))


def test_steps_are_those_that_training_takes(tmp_path):
    """72 rows in batches of 7, three a step: 11 batches, 4 steps."""
    fields = {
        "per_device_train_batch_size": 7,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 1,
        "use_cpu": True,
    }
    model = ModelArguments(architecture="fusion_encoder", **SHAPE)
    data = DataArguments(task="scenes", data_options=SCENES)
    training = DistillationTrainingArguments(str(tmp_path), save_strategy="no", **fields)
    assert plan_run(model, data, training).steps == 4
    assert make_run(model, data, training).train().global_step == 4


def kept_bytes(model, batch, layers, is_half):
    """What autograd keeps of a real forward pass, by the place of its memory; the slow reference."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def note(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_half),
    ):
        alive.append(model.train()(**batch, output_query_states=layers or None, output_key_states=layers or None))
    return sum(kept.values())


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("head", ["FusionEncoderForQuestionAnswering", "DualEncoderForImagesAndTextClassification"])
def test_activations_are_byte_for_byte_what_autograd_keeps(head, is_half, tmp_path):
    import dual_distill

    cls, layers = getattr(dual_distill, head), [] if head.startswith("Fusion") else [-1]
    config = FusionEncoderConfig(
        vocab_size=60, max_position_embeddings=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, image_size=[8, 12], patch_size=4, num_labels=5, hidden_dropout_prob=0.1,
        num_images=1 if head.startswith("Fusion") else 2,
    )  # fmt: skip
    if head.startswith("Dual"):
        config = dual_config_from_fusion(config)
    processor = ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4)
    arguments = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=3, bf16=is_half, use_cpu=True)
    found = estimate_memory(cls, config, layers, processor, arguments)
    # The longer side is int(1333 / 800 x 8) = 13 px, so 12; a portrait and a landscape picture pad each other.
    text_mask, pixel_mask = torch.ones(3, 12), torch.ones(3, config.num_images, 12, 12)
    text_mask[0, 7:], pixel_mask[0, :, 8:], pixel_mask[1, :, :, 8:] = 0, 0, 0
    batch = {
        "input_ids": torch.ones(3, 12).long(),
        "attention_mask": text_mask.long(),
        "pixel_values": torch.randn(3, config.num_images, 3, 12, 12),
        "pixel_mask": pixel_mask.long(),
    }
    expected = kept_bytes(cls(config), batch, layers, is_half)
    assert expected > 50_000
    # Under bf16 some statistics of layer norms are float32 in truth and bfloat16 among fake tensors: 2 bytes a row.
    assert found["activations"] == (pytest.approx(expected, abs=2 * 3 * 8) if is_half else expected)
    assert found["weights"] == sum(4 * parameter.numel() for parameter in cls(config).parameters())


def test_checkpointing_keeps_the_inputs_of_the_layers(tmp_path):
    """By hand: what a layer keeps beside its input goes, inputs stay: two of them, `(3, 12 + 1 + 9, 16)` float32."""
    from dual_distill import FusionEncoderForQuestionAnswering

    sizes = {"vocab_size": 60, "max_position_embeddings": 12, "hidden_size": 16, "num_attention_heads": 4}
    processor = ViltImageProcessorPil(size={"shortest_edge": 8}, size_divisor=4)

    def kept(layers, **fields):
        config = FusionEncoderConfig(**sizes, num_hidden_layers=layers, image_size=[8, 12], patch_size=4, num_labels=5)
        arguments = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=3, use_cpu=True, **fields)
        return estimate_memory(FusionEncoderForQuestionAnswering, config, [], processor, arguments)["activations"]

    states = 3 * (12 + 1 + 9) * 16 * 4
    assert kept(3, activation_checkpointing=True) - kept(2, activation_checkpointing=True) == states
    assert kept(3) - kept(2) > 5 * states


def test_a_frozen_tower_keeps_no_activations_and_has_no_gradients(tmp_path):
    """By hand: between one and two layers of the image tower lie what autograd keeps of one, and its weights."""
    from dual_distill import DualEncoderForQuestionAnswering

    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 5}
    config = dual_config_from_fusion(FusionEncoderConfig(**sizes, image_size=[8, 12], patch_size=4))
    processor = ViTImageProcessorPil(size={"height": 8, "width": 12})

    def found(**fields):
        arguments = DistillationTrainingArguments(str(tmp_path), use_cpu=True, **fields)
        return estimate_memory(DualEncoderForQuestionAnswering, config, [], processor, arguments)

    trained, frozen = found(), found(freeze_vision_tower=True)
    tower = DualEncoderForQuestionAnswering(config).dual_encoder.vision_model
    weights = sum(4 * parameter.numel() for parameter in tower.parameters())
    assert frozen["weights"] == trained["weights"]
    assert trained["gradients"] - frozen["gradients"] == weights
    assert trained["optimizer"] - frozen["optimizer"] == 2 * weights
    model = DualEncoderForQuestionAnswering(config)
    batch = {"input_ids": torch.ones(8, 40).long(), "attention_mask": torch.ones(8, 40).long()}
    batch |= {"pixel_values": torch.randn(8, 1, 3, 8, 12), "pixel_mask": torch.ones(8, 1, 8, 12).long()}
    batch["attention_mask"][0, 7:], batch["pixel_mask"][0, :, :, 8:] = 0, 0
    model.dual_encoder.vision_model.requires_grad_(False)
    assert frozen["activations"] == kept_bytes(model, batch, [], False) < trained["activations"]


def test_the_largest_batch_of_pictures():
    config = FusionEncoderConfig()
    vilt = ViltImageProcessorPil(size={"shortest_edge": 384})
    assert largest_images(vilt, config) == (608, 608)
    fixed = ViTImageProcessorPil(size={"height": 36, "width": 60})
    assert largest_images(fixed, config) == (36, 60)


def test_a_full_size_run_is_planned_in_a_second(tmp_path):
    """ViLT-B/32 and its student at batch 64: nothing of their gigabytes is allocated; figures of the configuration."""
    from dual_distill import DualEncoderForQuestionAnswering

    config = dual_config_from_fusion(FusionEncoderConfig(num_labels=3_129))
    arguments = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=64, use_cpu=True)
    processor = ViltImageProcessorPil(size={"shortest_edge": 384})
    found = estimate_memory(DualEncoderForQuestionAnswering, config, [-1], processor, arguments)
    assert 2e8 * 4 < found["weights"] < 2.1e8 * 4
    # By hand: 12 layers of two towers keep about 14 C + 2 MLP = 22 C numbers a token, 64 x (40 + 362) tokens, C = 768.
    assert found["activations"] == pytest.approx(12 * 22 * 768 * 64 * 402 * 4, rel=0.4)


def test_a_teacher_of_another_family_is_counted_and_a_store_needs_no_memory(teacher, tmp_path):
    model, own = tiny_teacher("smolvlm")
    folder = save_teacher("smolvlm", tmp_path / "smolvlm")
    (folder / "model.safetensors").unlink()
    found = plan(str(folder), tmp_path, init_from=teacher)
    assert (found.teacher, found.teacher_parameters) == (type(model).__name__, model.num_parameters())
    assert found.memory_bytes["teacher"] == 4 * model.num_parameters()

    foreign = ForeignTeacher(model, own)
    StoredTeacher(tmp_path / "views", foreign, view_settings(foreign, [-1], None))
    found = plan(str(tmp_path / "views"), tmp_path, init_from=teacher)
    assert (found.teacher, found.teacher_parameters) == (str(tmp_path / "views"), 0)


def test_what_would_stop_a_run_stops_its_plan(teacher, tmp_path):
    alone = {"taught_by": None, "model": {"init_from": None, **SHAPE}}  # checkpoints are looked at before data
    wrong = [
        (
            {"model": {"init_from": None, **SHAPE, "num_attention_heads": 4}},
            "the teacher has 2 attention heads, the student 4",
        ),
        ({"data": {"task": "scene"}}, "did you mean 'scenes'"),
        (
            {**alone, "data": {"task": "nlvr2", "data": str(tmp_path / "nowhere"), "data_options": None}},
            "There is no folder",
        ),
        ({"data": {"task": "custom", "data": None, "data_options": None}}, "task custom needs data="),
        (
            {**alone, "data": {"task": "coco_retrieval", "data": str(tmp_path), "data_options": None}},
            "holds none of dataset_coco.json",
        ),
        ({"data": {"head": "pretraining"}}, "head is 'pretraining', which learns from image_text"),
        ({"model": {"init_from": str(tmp_path / "nowhere")}}, "is not a folder here and could not be fetched"),
        ({"training": {"layer_map": {"7": 0}}}, "layer_map names layer 7 of the student"),
        ({"data": {"data_options": {"num_scenes": {"train": 2, "validation": 0, "test": 1}}}}, "validation"),
    ]
    for fields, message in wrong:
        model = fields.pop("model", {})
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            plan(fields.pop("taught_by", teacher), tmp_path, **fields, **model)
