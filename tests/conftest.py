"""What every test may rely on: no Hub, the same random numbers, and a GPU where a test asks for one."""

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

# Set before any library reads them. A test that talks to a local Hub server starts a process of its own and sets
# HF_HUB_OFFLINE=0 there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Imports what is neither ours nor the Hub's nor transformers', most of what a new process waits for; then runs each
# program that it is sent in a process forked off it, and says how that ended.
_FORKING = """
import json, os, sys, traceback
import pandas, pyarrow.compute, torch, torch._dynamo, torch.distributed.tensor
assert not {"transformers", "huggingface_hub", "datasets", "dual_distill"} & sys.modules.keys()
for line in sys.stdin:
    code, sys.argv[1:], folder, environment, files = json.loads(line)
    child = os.fork()
    if not child:
        ended = 0
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        try:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            ended = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def pytest_collection_finish() -> None:
    """Hides what was collected from the garbage collector, which each trainer sends through half a million objects."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def run_fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a program that finds neither our modules nor transformers' imported, and returns what it printed."""
    command = [sys.executable, "-c", _FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forking:

        def run(code: str, *words: object, cwd: Path | None = None, **environment: str) -> str:
            folder = tmp_path_factory.mktemp("fresh")
            files = [folder / "printed", folder / "errors"]
            sent = [code, words, cwd or folder, {**os.environ, **environment}, files]
            print(json.dumps(sent, default=str), file=forking.stdin, flush=True)
            assert forking.stdout.readline() == "0\n", files[1].read_text()
            return files[0].read_text()

        yield run
        forking.kill()


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
