"""Guards the floors of the house: reads every import in src by ast, so that an arrow that goes up is named here."""

import ast
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import dual_distill

SOURCE = Path(__file__).parents[1] / "src" / "dual_distill"
REPOSITORY = SOURCE.parents[1]

FLOORS = {
    "__main__": 7,  # `python -m dual_distill` is the command
    "cli": 6,
    "quickstart": 5,
    "demo": 5,
    "runs": 4,
    "trainer": 3,
    "inference": 3,
    "teachers": 2,  # below the trainer, which takes a teacher by the name of its checkpoint
    "regions": 2,
    "modeling": 1,
    "objectives": 1,
    "data": 1,
    "evaluation": 1,
    "hub_cards": 1,
}
FOUNDATIONS = {
    "credentials",
    "sealed",
    "vqa_answers",
}  # modules beside the rooms that every room may import; they import the standard library alone
MODELING_MAY_IMPORT = {"torch", "transformers", "huggingface_hub.dataclasses", "PIL"}
NAMES_WITHOUT_A_NOUN = {"utils", "util", "helpers", "helper", "common", "misc"}
ASKED_FOR_TROUBLE = {("trust_remote_code", "True"), ("allow_pickle", "True")}
LONGEST_FILE = 450


class Import(NamedTuple):
    """One imported module, as an absolute name, and how it was written."""

    line: int
    module: str
    names: tuple[str, ...]
    level: int


def imports_of(tree: ast.AST, package: str) -> list[Import]:
    """Every import anywhere in the tree; `package` is the dotted name of the folder that the file lies in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, (), 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1])
                module = f"{base}.{module}".rstrip(".")
            found.append(Import(node.lineno, module, tuple(alias.name for alias in node.names), node.level))
    return found


def room_of(module: str) -> str:
    """The room of a dotted name in the package; empty for the package's own face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "dual_distill"


def rooms_imported(item: Import) -> set[str]:
    """`from dual_distill import data` names a room too, `from dual_distill import Name` asks the face."""
    if item.module == "dual_distill":
        return {name if name in {*FLOORS, *FOUNDATIONS} else "" for name in item.names or ("",)}
    return {room_of(item.module)}


def broken_arrows(room: str, items: list[Import]) -> list[str]:
    """What a file of `room` imports although it may not, each with the reason."""
    broken = []
    for item in items:
        if not is_ours(item.module):
            continue
        for target in rooms_imported(item) - {room}:
            if target in FOUNDATIONS:
                continue
            if target == "":
                reason = "no room imports the package's face: name the room that holds it"
            elif target not in FLOORS:
                reason = "it is not a room of the house"
            elif FLOORS[target] > FLOORS[room]:
                reason = f"the arrow goes up, from floor {FLOORS[room]} to floor {FLOORS[target]}"
            elif FLOORS[target] == FLOORS[room]:
                reason = f"the rooms of floor {FLOORS[room]} do not know one another"
            elif item.module.count(".") > 1:
                reason = "nothing imports past the face of another package: import the name from there, or export it"
            else:
                continue
            broken.append(f"line {item.line}: {room} imports dual_distill{'.' + target if target else ''}: {reason}")
    return broken


def broken_foundation_imports(items: list[Import]) -> list[str]:
    """What a foundation imports beside the standard library."""
    return [
        f"line {item.line}: imports {item.module}, but a foundation imports the standard library alone: every room "
        f"stands on it"
        for item in items
        if item.level or item.module.split(".")[0] not in sys.stdlib_module_names
    ]


def broken_modeling_imports(items: list[Import]) -> list[str]:
    """What a file of modeling imports although it could not travel to the Hub with it."""
    broken = []
    for item in items:
        root = item.module.split(".")[0]
        if item.level == 1 and item.module.count(".") == 2 and "*" not in item.names:
            continue  # from .sibling import Name
        allowed = root in sys.stdlib_module_names or root in MODELING_MAY_IMPORT or item.module in MODELING_MAY_IMPORT
        if item.level or not allowed:
            broken.append(
                f"line {item.line}: modeling imports {item.module}, but may import {sorted(MODELING_MAY_IMPORT)}, the "
                "standard library and `from .sibling import Name`: it is copied to the Hub and must stand alone"
            )
    return broken


def forbidden_things(tree: ast.AST, items: list[Import]) -> list[str]:
    """Unpickling, running the Hub's code unasked, and torchvision."""
    broken = []
    for item in items:
        root = item.module.split(".")[0]
        if root in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "torchvision"}:
            broken.append(f"line {item.line}: imports {root}")
        if item.module == "torch" and "load" in item.names:
            broken.append(f"line {item.line}: imports torch.load; a checkpoint is safetensors")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("torch", "load"):
                broken.append(f"line {node.lineno}: torch.load; a checkpoint is safetensors")
        elif isinstance(node, ast.keyword) and (node.arg, ast.unparse(node.value)) in ASKED_FOR_TROUBLE:
            broken.append(f"line {node.value.lineno}: {node.arg}=True")
    return broken


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def parsed(path: Path) -> tuple[ast.Module, list[Import]]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = ".".join(path.parent.relative_to(SOURCE.parent).parts)
    return tree, imports_of(tree, package)


def reported(path: Path, problems: list[str]) -> str:
    return "\n".join(f"{path.relative_to(REPOSITORY)}, {problem}" for problem in problems)


in_every_file = pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCE)))
every_room = [path.parent.name for path in sorted(SOURCE.glob("*/__init__.py"))]


@in_every_file
def test_arrows_run_down_only(path):
    room = room_of(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))
    if room in FOUNDATIONS:
        problems = broken_foundation_imports(parsed(path)[1])
        assert not problems, reported(path, problems)
    elif room != "__init__":  # the face may show every room
        problems = broken_arrows(room, parsed(path)[1])
        assert not problems, reported(path, problems)


@in_every_file
def test_nothing_is_unpickled_nor_run_unasked(path):
    problems = forbidden_things(*parsed(path))
    assert not problems, reported(path, problems)


@in_every_file
def test_a_file_fits_in_the_head(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, (
        f"{path.relative_to(REPOSITORY)} has {lines} lines, the longest may have {LONGEST_FILE} (about 300 is good): "
        "find the second noun in it and give that a file of its own"
    )


@in_every_file
def test_every_module_has_a_noun(path):
    names = {path.stem, *path.parent.relative_to(SOURCE).parts}
    assert not names & NAMES_WITHOUT_A_NOUN, f"{path.relative_to(REPOSITORY)}: say what it holds instead"


def test_every_folder_is_a_room_of_the_house():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(FLOORS), f"{folders - set(FLOORS)}: not in the picture of the house; draw it there first"
    assert folders == set(every_room), f"{folders ^ set(every_room)}: a room needs an __init__.py"
    loose = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert loose == FOUNDATIONS, f"{loose ^ FOUNDATIONS}: a module lives in a room, or is a foundation named above"


def test_modeling_is_flat_and_stands_alone():
    room = SOURCE / "modeling"
    assert not [path for path in room.iterdir() if path.is_dir() and path.name != "__pycache__"], "modeling/ is flat"
    problems = [reported(path, broken_modeling_imports(parsed(path)[1])) for path in sorted(room.glob("*.py"))]
    assert not any(problems), "\n".join(filter(None, problems))


def test_hub_cards_knows_no_torch():
    for path in sorted((SOURCE / "hub_cards").rglob("*.py")):
        roots = {item.module.split(".")[0] for item in parsed(path)[1]}
        assert not roots & {"torch", "transformers"}, f"{path.relative_to(REPOSITORY)} imports {roots}"


@pytest.mark.parametrize("room", every_room)
def test_a_face_says_what_the_package_is_and_imports_its_own(room):
    """What `__init__` imports is public: it stands there once, without a second list, and comes from the package."""
    tree, items = parsed(SOURCE / room / "__init__.py")
    assert ast.get_docstring(tree), f"{room}/__init__.py does not say what the package is"
    lists = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "__all__"]
    assert not lists, f"{room}/__init__.py lists in __all__ what its imports say already"
    foreign = [item.module for item in items if is_ours(item.module) and room_of(item.module) != room]
    assert not foreign, f"{room}/__init__.py hands on what is not its own: {foreign}"
    importlib.import_module(f"dual_distill.{room}")


NO_NETWORK = """
import sys
def refuse(event, arguments):
    if event in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        raise RuntimeError(f"importing opened a socket: {event} {arguments}")
sys.addaudithook(refuse)
"""


@pytest.fixture
def run_without_network(fresh_processes):
    return lambda code: fresh_processes((NO_NETWORK + code,), HF_HUB_OFFLINE="0")[0]


def test_importing_opens_no_socket(run_without_network):
    rooms = "".join(f"import dual_distill.{room}\n" for room in every_room)
    finished = run_without_network(f"import dual_distill\n{rooms}")
    assert finished.returncode == 0, finished.stderr


def test_the_package_says_that_it_is_typed():
    assert (Path(dual_distill.__file__).parent / "py.typed").is_file()


# The guards themselves, each with a sin that it must see.


@pytest.mark.parametrize(
    "room, line, reason",
    [
        ("modeling", "from dual_distill.trainer import DistillationTrainer", "goes up, from floor 1 to floor 3"),
        ("objectives", "import dual_distill.modeling", "rooms of floor 1 do not know one another"),
        ("objectives", "from dual_distill import data", "rooms of floor 1 do not know one another"),
        ("objectives", "from ..data import Task", "rooms of floor 1 do not know one another"),
        (
            "inference",
            "from dual_distill.trainer import DistillationTrainer",
            "rooms of floor 3 do not know one another",
        ),
        ("trainer", "def f():\n    from dual_distill.cli import main", "goes up, from floor 3 to floor 6"),
        ("trainer", "from dual_distill import DiDEObjective", "no room imports the package's face"),
        ("cli", "import dual_distill.attic", "not a room of the house"),
        ("trainer", "from dual_distill.data.images import decode_image", "past the face of another package"),
    ],
)
def test_the_guard_sees_an_arrow_that_goes_up_or_across(room, line, reason):
    (problem,) = broken_arrows(room, imports_of(ast.parse(line), f"dual_distill.{room}"))
    assert reason in problem


@pytest.mark.parametrize(
    "room, line",
    [
        ("cli", "from dual_distill.trainer import X"),
        ("trainer", "from dual_distill.modeling import X"),
        ("trainer", "from .arguments import X"),
        ("data", "import torch, dual_distill.data.tasks"),
        ("data", "from dual_distill.vqa_answers import normalise_answer"),
        ("metrics", "from dual_distill import vqa_answers"),
    ],
)
def test_the_guard_lets_an_arrow_down_pass(room, line):
    assert not broken_arrows(room, imports_of(ast.parse(line), f"dual_distill.{room}"))


@pytest.mark.parametrize(
    "line, passes",
    [
        ("import re, collections.abc", True),
        ("import numpy", False),
        ("from dual_distill.data import Task", False),
        ("from .data import Task", False),
    ],
)
def test_the_guard_of_the_foundations_lets_the_standard_library_pass(line, passes):
    assert (not broken_foundation_imports(imports_of(ast.parse(line), "dual_distill"))) == passes


@pytest.mark.parametrize(
    "line, passes",
    [
        ("import math, torch.nn.functional", True),
        ("from transformers.utils import ModelOutput", True),
        ("from huggingface_hub.dataclasses import strict", True),
        ("from .configuration_dual_encoder import DualEncoderConfig", True),
        ("from huggingface_hub import hf_hub_download", False),
        ("import numpy", False),
        ("from . import configuration_dual_encoder", False),
        ("from .configuration_dual_encoder import *", False),
        ("from .layers.attention import Attention", False),
        ("from ..data import Task", False),
        ("from dual_distill.modeling.attention import Attention", False),
    ],
)
def test_the_guard_of_modeling_knows_what_can_travel(line, passes):
    assert (not broken_modeling_imports(imports_of(ast.parse(line), "dual_distill.modeling"))) == passes


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import torchvision.transforms",
        "from torch import load",
        "x = torch.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_the_guard_sees_what_is_forbidden(line):
    tree = ast.parse(line)
    assert forbidden_things(tree, imports_of(tree, "dual_distill.data"))


def test_the_guard_sees_a_socket(run_without_network):
    finished = run_without_network("import socket\nsocket.create_connection(('127.0.0.1', 9))")
    assert finished.returncode != 0
    assert "importing opened a socket" in finished.stderr
