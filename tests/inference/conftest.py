"""Tiny models with unlike weights, far from their initial values, and their processor."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, ViltImageProcessorPil

from dual_distill.data import train_tokenizer
from dual_distill.modeling import DualDistillProcessor, DualEncoderConfig, FusionEncoderConfig

ANSWERS = ("yes", "no", "red", "blue", "two")


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """A program of `examples/` as a module, by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def answering_processor() -> DualDistillProcessor:
    tokenizer = train_tokenizer(
        ["is there a red circle?", "how many blue squares are there?", "xylophones"], vocab_size=60
    )
    return DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), tokenizer)


@pytest.fixture
def answering_model(answering_processor: DualDistillProcessor) -> Callable[..., PreTrainedModel]:
    def build(cls: type[PreTrainedModel], **fields: object) -> PreTrainedModel:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text = {"vocab_size": len(answering_processor.tokenizer), "max_position_embeddings": 20}
        image = {"image_size": 16, "patch_size": 8}
        labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: place for place, name in enumerate(ANSWERS)}}
        if cls.config_class is FusionEncoderConfig:
            config = FusionEncoderConfig(**shape, **text, **image, **labels, **fields)
        else:
            config = DualEncoderConfig(text_config=shape | text, vision_config=shape | image, **labels, **fields)
        model = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return build


@pytest.fixture
def jpeg() -> bytes:
    """A photograph of noise, eight times as large as what a model reads: shrunk while it is decoded, it is another."""
    file = io.BytesIO()
    noise = torch.randint(0, 256, (152 * 200 * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    Image.frombytes("RGB", (200, 152), bytes(noise.tolist())).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Five pictures of unequal sizes."""
    torch.manual_seed(3)
    sizes = [(24, 16), (16, 16), (16, 30), (40, 20), (17, 23)]
    return [
        Image.frombytes("RGB", size, bytes(torch.randint(0, 256, (size[0] * size[1] * 3,), dtype=torch.uint8).tolist()))
        for size in sizes
    ]
