"""A saved dual encoder as an embedding model, as docs/hub.md says; needs sentence-transformers, no dependency."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sentence_transformers", minversion="6", reason="sentence-transformers is not installed")
DOCS = Path(__file__).parents[2] / "docs" / "hub.md"


def test_the_embeddings_are_the_model_s_own(make_model, save_model, tmp_path: Path) -> None:
    model, folder = make_model("dual"), tmp_path / "student"
    processor = save_model(model, folder)
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "SentenceTransformer(" in block
    ]
    assert '"runs/student"' in code
    found: dict[str, Any] = {}
    exec(code.replace('"runs/student"', repr(str(folder))), found)
    embedder = found["embedder"]
    # Of unequal lengths and sizes, so that padding is at work.
    texts = ["what is in the picture?", "what", "is the picture"]
    images = [Image.linear_gradient("L").resize((16 + 8 * i, 16)).convert("RGB") for i in range(3)]
    with torch.inference_mode():
        expected_texts = model.get_text_features(**processor(text=texts)).pooler_output.numpy()
        expected_images = model.get_image_features(**processor(images=images)).pooler_output[:, 0].numpy()
    for inputs, expected in ((texts, expected_texts), (images, expected_images)):
        embeddings = embedder.encode(inputs)
        assert embeddings.shape == (3, model.config.hidden_size)
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert embedder.similarity(embedder.encode(texts), embedder.encode(images)).shape == (3, 3)
