"""What every test may rely on: no Hub, the same random numbers, and a GPU where a test asks for one."""

import gc
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

# Set before any library reads them. A test that talks to a local Hub server starts a process of its own and sets
# HF_HUB_OFFLINE=0 there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Imports what it is told to, most of what a new process waits for; then runs the programs of each line that it is sent
# at the same time, in processes forked off it, and says how they ended.
_FORKING = """
import gc, json, os, sys, traceback
exec(sys.argv[1])
gc.collect(), gc.freeze()
for line in sys.stdin:
    children = []
    for (code, *words), folder, environment, files in json.loads(line):
        if child := os.fork():
            children.append(child)
            continue
        ended, sys.argv[1:] = 0, words
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        try:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            exec(code, {"__name__": "__main__"})
        except SystemExit as end:
            ended = end.code or 0
            if not isinstance(ended, int):  # a text, which Python prints
                print(ended, file=sys.stderr)
                ended = 1
        except BaseException:
            traceback.print_exc()
            ended = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
# What is neither ours nor the Hub's nor transformers'; and all of it.
_FRESH = """
import fsspec, jinja2, pandas, PIL.Image, pyarrow.compute, regex, requests, tokenizers, torch, torch._dynamo, yaml
import torch.distributed.tensor
assert not {"transformers", "huggingface_hub", "datasets", "dual_distill"} & sys.modules.keys()
"""
_APART = "import dual_distill.cli.quickstart, dual_distill.cli.train, torch._dynamo"
_COMMAND = "import sys; from dual_distill.cli import main; sys.exit(main())"
Ended = subprocess.CompletedProcess[str]


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


@contextmanager
def _forking(imports: str, root: Path) -> Iterator[Callable[..., list[Ended]]]:
    """Give what runs programs, each `(code, *words)`, at the same time in processes that begin with some imports."""
    command, numbers = [sys.executable, "-c", _FORKING, imports], itertools.count()
    # Threads that wait for one another do not keep a core busy that a test beside this one needs. Hashes of their own.
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pipes["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "12345"}
    with subprocess.Popen(command, **pipes) as forking:

        def run(*programs: Sequence[object], cwd: Path | None = None, **environment: str) -> list[Ended]:
            folders = [root / str(next(numbers)) for _ in programs]
            sent = []
            for program, folder in zip(programs, folders, strict=True):
                folder.mkdir()
                files = [folder / "printed", folder / "errors"]
                sent.append([program, cwd or folder, {**os.environ, **environment}, files])
            print(json.dumps(sent, default=str), file=forking.stdin, flush=True)
            codes = json.loads(forking.stdout.readline())
            texts = [[(folder / name).read_text() for name in ("printed", "errors")] for folder in folders]
            return [Ended(*one[0], *one[1]) for one in zip(zip(programs, codes, strict=True), texts, strict=True)]

        yield run
        forking.kill()


@pytest.fixture(scope="session")
def fresh_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Ended]]]:
    """Runs programs, at the same time, that find neither our modules nor transformers' imported."""
    with _forking(_FRESH, tmp_path_factory.mktemp("fresh")) as run:
        yield run


@pytest.fixture(scope="session")
def run_fresh(fresh_processes: Callable[..., list[Ended]]) -> Callable[..., str]:
    """Runs a program that finds neither our modules nor transformers' imported, and returns what it printed."""

    def run(*program: object, **options: Any) -> str:
        [done] = fresh_processes(program, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Ended]]]:
    """Runs programs, at the same time, each in a process of its own that begins with everything imported."""
    with _forking(_APART, tmp_path_factory.mktemp("apart")) as run:
        yield run


@pytest.fixture(scope="session")
def command(processes: Callable[..., list[Ended]]) -> Callable[..., Ended]:
    """Runs `dual-distill` with some words in a process of its own."""
    return lambda *words, **options: processes((_COMMAND, *words), **options)[0]


@pytest.fixture(scope="session")
def scripts(processes: Callable[..., list[Ended]]) -> Callable[..., list[Ended]]:
    """Runs a file of Python with some words, a process for each of several environments, at the same time."""

    def run(file: Path, *words: object, environments: Sequence[Mapping[str, str]] = ({},)) -> list[Ended]:
        begin = f"import os, runpy, sys; sys.path.insert(0, {str(file.parent)!r}); os.environ.update(%s); "
        begin += f"runpy.run_path({str(file)!r}, None, '__main__')"
        return processes(*((begin % dict(one), *words) for one in environments))

    return run


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
