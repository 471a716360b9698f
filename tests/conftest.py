"""What every test may rely on: no Hub, the same random numbers, and a GPU where a test asks for one."""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

# Set before any library reads them. A test that talks to a local Hub server starts a process of its own and sets
# HF_HUB_OFFLINE=0 there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test that is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seeds torch before each test, so that a test gives the same result alone and among others."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def data_folder():
    """The folder of one real data set: beside the repository, or where DUAL_DISTILL_DATA points."""
    root = Path(os.environ.get("DUAL_DISTILL_DATA") or Path(__file__).parents[2] / "shared" / "data")

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
