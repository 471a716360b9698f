import io
import os
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def data_folder():
    """The folder of one real data set: beside the repository, or where DUAL_DISTILL_DATA points."""
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[3] / "shared" / "data")

    def find(name):
        folder = root / name
        if not folder.is_dir():
            pytest.skip(f"needs the real data in {folder} (set DUAL_DISTILL_DATA to the folder that holds {name})")
        return folder

    return find


@pytest.fixture
def png():
    """Encodes a picture of one colour."""

    def encode(colour=(10, 20, 30), size=(4, 3), mode="RGB"):
        buffer = io.BytesIO()
        Image.new(mode, size, colour).save(buffer, "PNG")
        return buffer.getvalue()

    return encode
