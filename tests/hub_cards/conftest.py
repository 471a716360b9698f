"""Folders that look like a checkpoint and like an adapter, written without a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of an architecture; its weights are eight numbers."""

    def make(architecture: str = "DualEncoderForQuestionAnswering", **config: Any) -> Path:
        folder = tmp_path / architecture
        folder.mkdir()
        body = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 3}
        text, image = {"max_position_embeddings": 8}, {"image_size": [8, 12], "patch_size": 4}
        shape = {"text_config": {**body, **text}, "vision_config": {**body, **image}}
        if architecture.startswith("Fusion"):
            shape = {**body, **text, **image}
        labels = {"id2label": {"0": "yes", "1": "no"}, "label2id": {"no": 1, "yes": 0}}
        fields = {"architectures": [architecture], **shape, **labels, "num_images": 1, **config}
        (folder / "config.json").write_text(json.dumps(fields))
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "DualDistillProcessor"}))
        save_file({"weight": np.zeros((2, 4), np.float32)}, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter as peft does, with four numbers; fields of its configuration may be given."""

    def make(**config: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        fields = {
            "auto_mapping": {
                "base_model_class": "DualEncoderForQuestionAnswering",
                "parent_library": "dual_distill.modeling",
            },
            "base_model_name_or_path": "me/student",
            "peft_type": "LORA",
            "r": 2,
            "revision": "a" * 40,
            "target_modules": ["value", "query"],
            **config,
        }
        (folder / "adapter_config.json").write_text(json.dumps(fields))
        save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
        return folder

    return make
