"""Tiny ViLTs of every class with random weights far from their initial values, and folders that hold them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertTokenizer, PreTrainedModel, ViltConfig, ViltImageProcessorPil, ViltProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?", "red", "blue", "dog"]
FIELDS = {
    "vocab_size": 60,
    "modality_type_vocab_size": 2,
    "max_position_embeddings": 12,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
}
# What each class needs beside the shape.
CLASSES = {
    "ViltModel": {},
    "ViltForQuestionAnswering": {"id2label": {0: "yes", 1: "no", 2: "two", 3: "red"}},
    "ViltForImagesAndTextClassification": {
        "num_images": 2,
        "modality_type_vocab_size": 3,
        "id2label": {0: "False", 1: "True"},
    },
    "ViltForImageAndTextRetrieval": {},
    "ViltForMaskedLM": {},
}


@pytest.fixture
def make_vilt() -> Callable[..., PreTrainedModel]:
    """A ViLT of a class of transformers, in eval mode, with noise on every parameter."""

    def make(name: str, **fields: object) -> PreTrainedModel:
        fields = {**FIELDS, **CLASSES[name], **fields}
        if "id2label" in fields:
            fields["label2id"] = {label: index for index, label in fields["id2label"].items()}
        model = getattr(transformers, name)(ViltConfig(**fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    return make


@pytest.fixture
def vilt_processor() -> ViltProcessor:
    """ViLT's own processor with the PIL back end: images of 12 px and more, a vocabulary of a dozen words."""
    image_processor = ViltImageProcessorPil(
        size={"shortest_edge": 12}, size_divisor=4, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return ViltProcessor(image_processor, BertTokenizer({word: index for index, word in enumerate(WORDS)}))


@pytest.fixture
def save_vilt(
    make_vilt: Callable[..., PreTrainedModel], vilt_processor: ViltProcessor, tmp_path: Path
) -> Callable[..., tuple[PreTrainedModel, Path]]:
    """A ViLT and the folder that it and its processor were saved in."""

    def save(name: str, **fields: object) -> tuple[PreTrainedModel, Path]:
        model = make_vilt(name, **fields)
        folder = tmp_path / "vilt"
        model.save_pretrained(folder)
        vilt_processor.save_pretrained(folder)
        return model, folder

    return save
