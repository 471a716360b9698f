"""The table of heads: complete, consistent with the tasks, and each refusal by its sentence."""

import pytest

from dual_distill.data import TASKS, get_task
from dual_distill.modeling import DualEncoderConfig, FusionEncoderConfig, FusionEncoderForCaptioning
from dual_distill.runs import HEADS, DataArguments, ModelArguments, head_of, make_run
from dual_distill.runs.heads import choose_head
from dual_distill.trainer import DistillationTrainingArguments


def test_every_task_has_a_head_of_the_table_and_its_labels_where_the_head_has_some():
    for task in TASKS.values():
        assert HEADS[task.head].has_labels == (task.label_column is not None), task.name


@pytest.mark.parametrize("name", HEADS)
def test_a_model_knows_its_head_and_a_head_its_models(name):
    for config in (FusionEncoderConfig(), DualEncoderConfig()):
        if isinstance(config, DualEncoderConfig) and HEADS[name].dual_class is None:
            with pytest.raises(
                ValueError, match=f"there is no {name} head for a dual_distill_dual_encoder; train a fusion_encoder"
            ):
                HEADS[name].model_class(config)
            continue
        model_class = HEADS[name].model_class(config)
        assert model_class.config_class is type(config)
        config.architectures = [model_class.__name__]
        assert head_of(config) is HEADS[name]
    assert head_of(FusionEncoderConfig()) is None


@pytest.mark.parametrize(
    ("task", "head", "message"),
    [
        ("vqa", "answers", "there is no head 'answers'; choose one of question_answering"),
        ("vqa", "images_and_text_classification", "which learns from classes, but task 'vqa' has the head"),
        ("coco_captioning", "pretraining", "which learns from image_text, but task 'coco_captioning' has the head"),
    ],
)
def test_a_head_that_does_not_fit_the_task_is_refused(task, head, message):
    with pytest.raises(ValueError, match=message):
        choose_head(get_task(task), head)


def test_only_what_writes_is_trained_on_a_reward(tmp_path):
    assert HEADS["captioning"].fusion_class is FusionEncoderForCaptioning
    scenes = {"num_scenes": {"train": 4, "validation": 1, "test": 1}}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 12, "resize": "fixed"}
    with pytest.raises(
        ValueError, match="caption_training is 'self_critical', but a question_answering head writes nothing"
    ):
        make_run(
            ModelArguments(architecture="fusion_encoder", image_height=36, image_width=36, **sizes),
            DataArguments(task="scenes", data_options=scenes, caption_training="self_critical"),
            DistillationTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True),
        )
