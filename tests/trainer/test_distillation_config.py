"""The arguments: recipe defaults, ranges, and what becomes of them."""

import pytest
from transformers import HfArgumentParser
from transformers.integrations import is_deepspeed_available

from dual_distill.modeling import FusionEncoderConfig
from dual_distill.objectives import DiDEObjective
from dual_distill.trainer import DistillationTrainingArguments


def test_defaults_are_the_recipes(tmp_path):
    arguments = DistillationTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (arguments.attention_weight, arguments.soft_label_weight, arguments.label_weight) == (1.0, 1.0, 0.0)
    assert (arguments.temperature, arguments.layer_map, arguments.relation_heads) == (1.0, None, None)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.warmup_steps) == (1e-4, 0.01, 0.1)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-8)
    assert arguments.lr_scheduler_type == "linear"
    assert arguments.get_warmup_steps(200) == 20


def test_the_objective_is_what_the_arguments_say(arguments):
    fields = {
        "attention_weight": 2.0,
        "soft_label_weight": 0.5,
        "label_weight": 0.25,
        "temperature": 3.0,
        "layer_map": {0: 1, -1: -1},
        "relation_heads": 8,
    }
    config = FusionEncoderConfig(problem_type="multi_label_classification")
    objective = arguments(**fields).make_objective(DiDEObjective, config)
    assert {name: getattr(objective, name) for name in fields} == fields
    assert objective.multi_label


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention_weight": -1.0}, "the weights are .*; give numbers >= 0"),
        ({"soft_label_weight": -0.5}, "the weights are .*; give numbers >= 0"),
        ({"label_weight": -2.0}, "the weights are .*; give numbers >= 0"),
        ({"attention_weight": 0.0, "soft_label_weight": 0.0}, "at least one above 0"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"head_learning_rate_factor": 0.0}, "head_learning_rate_factor is 0.0; give a number above 0"),
        ({"head_learning_rate_factor": -3.0}, "head_learning_rate_factor is -3.0"),
        ({"layer_map": {}}, "layer_map is empty"),
        ({"layer_map": "{1: 2}"}, "layer_map is '{1: 2}', which is no JSON"),
        ({"layer_map": "[1, 2]"}, r"layer_map is \[1, 2\]; give an object of student layer to teacher layer"),
    ],
)
def test_ranges_are_checked_at_construction(fields, message, arguments):
    with pytest.raises(ValueError, match=message):
        arguments(**fields)


@pytest.mark.parametrize("relation_heads", [0, -2])
def test_relation_heads_are_at_least_one(relation_heads, arguments):
    with pytest.raises(ValueError, match=f"relation_heads is {relation_heads}"):
        arguments(relation_heads=relation_heads)


@pytest.mark.parametrize("given", ['{"5": 11, "-1": -1}', {"5": 11, "-1": "-1"}, {5: 11, -1: -1}], ids=str)
def test_layer_maps_become_numbers(given, arguments):
    assert arguments(layer_map=given).layer_map == {5: 11, -1: -1}


def test_a_command_line_reads_them(tmp_path):
    parser = HfArgumentParser(DistillationTrainingArguments)
    line = (
        f"--output_dir {tmp_path} --use_cpu true --attention_weight 0.5 --relation_heads 6 --warmup_steps 0.2".split()
    )
    [arguments] = parser.parse_args_into_dataclasses([*line, "--layer_map", '{"0": 1}', "--temperature", "2"])
    assert (arguments.attention_weight, arguments.relation_heads, arguments.temperature) == (0.5, 6, 2.0)
    assert (arguments.layer_map, arguments.warmup_steps) == ({0: 1}, 0.2)


def test_they_survive_json(arguments):
    before = arguments(layer_map={0: 1, -1: -1}, relation_heads=4)
    fields = {name: before.to_dict()[name] for name in ("layer_map", "relation_heads", "attention_weight")}
    assert arguments(**fields).layer_map == before.layer_map


@pytest.mark.skipif(is_deepspeed_available(), reason="deepspeed is installed")
def test_deepspeed_without_its_package_is_refused_in_a_sentence_that_names_it(tmp_path):
    with pytest.raises(ImportError, match="pip install deepspeed"):
        DistillationTrainingArguments(output_dir=str(tmp_path), deepspeed=str(tmp_path / "zero2.json"))
