"""Tiny checkpoints of every kind that the demo shows, in folders."""

import pytest
import torch
from transformers import ViltImageProcessorPil

from dual_distill import modeling
from dual_distill.data import train_tokenizer

WORDS = ["is there a red circle in the picture?", "how many blue squares are there?", "what colour is it?"]
ANSWERS = ("yes", "no", "red", "blue", "two")


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory):
    """Saves a model of a class with a processor, and returns its folder."""
    root = tmp_path_factory.mktemp("checkpoints")

    def save(name, cls, **fields):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(WORDS, vocab_size=80)
        processor = modeling.DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text, image = {"vocab_size": len(tokenizer), **shape}, {"image_size": 32, "patch_size": 16, **shape}
        if cls.config_class is modeling.FusionEncoderConfig:
            config = cls.config_class(**{**text, **image}, **fields)
        else:
            config = cls.config_class(text_config=text, vision_config=image, **fields)
        folder = str(root / name)
        model = cls(config).eval()
        if cls is modeling.FusionEncoderForCaptioning:
            model.use_tokens_of(tokenizer)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def labels():
    return {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: index for index, name in enumerate(ANSWERS)}}


@pytest.fixture(scope="session")
def teacher(save_checkpoint, labels):
    return save_checkpoint("teacher", modeling.FusionEncoderForQuestionAnswering, **labels)


@pytest.fixture(scope="session")
def student(save_checkpoint, labels):
    return save_checkpoint("student", modeling.DualEncoderForQuestionAnswering, **labels)
