"""What every test may rely on: no Hub, the same random numbers, and a GPU where a test asks for one."""

import os
import sys

import pytest

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
