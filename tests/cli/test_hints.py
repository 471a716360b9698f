"""What someone types who knows other tools: each guess by the sentence that it ends with, and what starts nothing."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch

import dual_distill
from dual_distill.cli import COMMANDS, main
from dual_distill.cli.options import _MEANT, _Parser, choose_device, find_name
from dual_distill.cli.recipe_parser import DATACLASSES, make_flag_parser
from dual_distill.data import TASKS

SMALL = {
    **{"architecture": "fusion_encoder", "task": "scenes", "resize": "fixed", "image_height": 36, "image_width": 36},
    **{"patch_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_steps": 1},
    "data_options": {"num_scenes": {"train": 3, "validation": 1, "test": 1}},
}
FOLDERS = ("src", "docs", "examples", "recipes", "benchmarks", "demo", "notebooks")
MODEL_FIELDS = {*DATACLASSES[0].__dataclass_fields__} - {"init_from", "teacher"}


class Said:
    """What a command wrote, and how it ended."""

    def __init__(self, code: int | str | None, out: str, err: str):
        self.code, self.out, self.err = code, out, err
        self.last = err.strip().splitlines()[-1] if err.strip() else ""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Said]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL))

    def run(*words: str) -> Said:
        try:
            code: int | str | None = main(words)
        except SystemExit as stop:  # of argparse
            code = stop.code
        return Said(code, *capsys.readouterr())

    return run


GUESSES = {
    "--lr 1e-4": "did you mean 'learning_rate'?",
    "--batch_size 8": "did you mean 'per_device_train_batch_size'?",
    "--batch-size 8": "did you mean 'per_device_train_batch_size'?",
    "--bs 8": "did you mean 'per_device_train_batch_size'?",
    "--epochs 3": "did you mean 'num_train_epochs'?",
    "--num_epochs=3": "did you mean 'num_train_epochs'?",
    "--steps 10": "did you mean 'max_steps'?",
    "--warmup 10": "did you mean 'warmup_steps'?",
    "--wd 0.1": "did you mean 'weight_decay'?",
    "--workers 2": "did you mean 'dataloader_num_workers'?",
    "--grad_accum 2": "did you mean 'gradient_accumulation_steps'?",
    "--device cpu": "did you mean 'use_cpu'?",
    "--model runs/a": "did you mean 'init_from'?",
    "--teacher_model runs/a": "did you mean 'teacher'?",
    "--dataset photos": "did you mean 'data'?",
    "--out runs/b": "did you mean 'output_dir'?",
    "--alpha 0.5": "did you mean 'soft_label_weight'?",
    "--learning_rat 1": "did you mean 'learning_rate'?",
    "--hidden_sise 3": "did you mean 'hidden_size'?",
    "--zzz 3": "there is no field 'zzz'. `dual-distill train --help-all` lists all.",
}


@pytest.mark.parametrize("words", GUESSES)
def test_a_field_by_another_name(said: Callable[..., Said], words: str) -> None:
    found = said("train", "small.yaml", *words.split(), "--use_cpu", "true")
    assert (found.code, found.out) == (2, "")
    assert GUESSES[words] in found.last


def test_no_short_name_stands_for_a_field_that_changes_the_model() -> None:
    known = [name for kind in DATACLASSES for name in kind.__dataclass_fields__]
    short = [word for words in _MEANT.values() for word in words.split()]
    assert not MODEL_FIELDS & {find_name(word, known, MODEL_FIELDS) for word in short}
    assert find_name("batch_size", ["patch_size"], ["patch_size"]) is None
    fields_of_recipes = {*_MEANT} - {"max_rows", "batch_size", "device", "top_k", "num_beams"}
    assert fields_of_recipes <= {*known}


OPTIONS = {
    (
        "evaluate",
        "runs/a",
        "--task",
        "scenes",
        "--bs",
        "4",
    ): "unrecognized arguments: --bs 4; did you mean --batch-size?",
    ("predict", "runs/a", "--image", "a.png", "what?", "--topk", "4"): "did you mean --top-k?",
    ("encode", "runs/a", "--images", "photos", "--output-dir", "a", "--gpu", "0"): "did you mean --device?",
    ("benchmark", "runs/a", "--warm-ups", "4"): "did you mean --warmup?",
    ("push", "runs/a", "me/a", "--licence", "mit"): "did you mean --license?",
    ("convert", "runs/a", "runs/b"): "the following arguments are required: --output-dir",
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_an_option_by_another_name(said: Callable[..., Said], words: tuple[str, ...]) -> None:
    found = said(*words)
    assert (found.code, found.out) == (2, "")
    assert OPTIONS[words] in found.last


def parser_of(command: str) -> _Parser:
    parser = _Parser(prog=command)
    import_module(f"dual_distill.cli.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_one_spelling_a_notion(command: str) -> None:
    actions = {option: action for action in parser_of(command)._actions for option in action.option_strings}
    if "--device" in actions:
        assert actions["--device"].default is None  # auto
    assert not {"--output", "--output-file", "--gpu"} & {*actions}
    assert ("--out" in actions) == (command == "attention")  # one picture, no folder
    for option, action in actions.items():
        takes_a_value = action.nargs != 0 and action.choices is None
        assert not takes_a_value or action.metavar, f"{option} shows no metavar"
    assert ("--output-dir" in actions) == (
        command in ["quickstart", "teach", "evaluate", "regions", "encode", "export", "convert"]
    )


def test_dashes_and_underscores_are_both_read(said: Callable[..., Said]) -> None:
    for words in (("--max-rows", "3"), ("--max_rows", "3"), ("--max_rows=3",)):
        found = said(
            "evaluate", "runs/none", "--task", "scenes", *words, "--data_options", '{"num_scenes": {"test": 1}}'
        )
        assert "'runs/none' is not a folder here and could not be fetched" in found.last
    planned = said("train", "small.yaml", "--dry-run", "--json", "--max-steps", "7")
    assert json.loads(planned.out)["steps"] == 7


def test_train_without_a_recipe_lists_the_recipes_and_starts_nothing(said: Callable[..., Said]) -> None:
    for words in ((), ("--max_steps", "3"), ("--role", "teacher")):
        found = said("train", *words)
        assert (found.code, found.out) == (2, "")
        assert found.err.startswith("usage: dual-distill train RECIPE.yaml")
        assert re.search(r"recipes/easy_vqa\.yaml +easy-VQA \(images of one shape", found.err)
    assert [file.name for file in Path().iterdir()] == ["small.yaml"]


def test_an_unknown_task_names_all(said: Callable[..., Said]) -> None:
    for words in (("train", "small.yaml", "--use_cpu", "true"), ("evaluate", "runs/none")):
        last = said(*words, "--task", "vqa3").last
        assert "There is no task 'vqa3'; did you mean 'vqa'?" in last
        assert all(name in last for name in (*TASKS, "custom"))
    assert "(data= of a recipe)" in said("train", "small.yaml", "--task", "vqa", "--data_options", "{}").last


def test_a_device_that_is_not_there_is_a_sentence(
    said: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, sentence in {
        "cuda": "--device is 'cuda', but torch sees no CUDA device here; give --device cpu, or leave it out.",
        "cuda:3": "--device is 'cuda:3', but torch sees no CUDA device here",
        "gpu": "--device is 'gpu'; give auto, cpu, cuda or cuda:N.",
    }.items():
        found = said("predict", "runs/none", "--image", "a.png", "what?", "--device", device)
        assert (found.code, found.out) == (2, "")
        assert sentence in found.last
    assert choose_device("auto") == "cpu"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert choose_device("auto") == "cuda:0"
    assert capsys.readouterr().err == "on cuda:0, a GPU; --device cpu for the CPU\n"


def test_bf16_falls_back_where_there_is_no_gpu(said: Callable[..., Said]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = said("train", "small.yaml", "--bf16", "true", "--output_dir", "out", "--json")
    assert found.code == 0, found.err
    assert "there is no GPU with bf16 here; the run takes --bf16 false" in found.err
    assert json.loads(found.out)["steps"] == 1


def test_version_and_json(said: Callable[..., Said]) -> None:
    assert re.fullmatch(r"dual-distill \d+\.\d+\.\d+\S*\n", said("--version").out)
    for command in COMMANDS:
        assert "--json" in said(command, "--help").out


def test_an_interruption_while_a_command_imports_ends_with_130_and_no_traceback() -> None:
    words = ["predict", "runs/none", "--image", "a.png", "what?"]
    # A shell's background jobs ignore the signal, and what they start inherits that: here it is heard in any case.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for seconds in (0.2, 0.7):
            process = subprocess.Popen(
                [sys.executable, "-m", "dual_distill", *words], env=os.environ, stderr=subprocess.PIPE, text=True
            )
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=60)[1]
            assert (process.returncode, "Traceback" in printed) == (130, False), printed
    finally:
        signal.signal(signal.SIGINT, before)


def strings_of(file: Path) -> list[str]:
    """Every text in a file's code, the parts of f-strings among them."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def options_of(command: str) -> set[str]:
    """What can be typed behind a subcommand."""
    known = {"--json", "--debug", "--version", "--help"}
    if command == "train":
        names = {field.name for one in DATACLASSES for field in fields(one)}
        names |= {name.replace("_", "-") for name in names}
        known |= {option for action in make_flag_parser()._actions for option in action.option_strings} | {"--help-all"}
        return known | {f"--{name}" for name in names} | {f"--no_{name}" for name in names} | {"--field", "--no_field"}
    parser, module = _Parser(), import_module(f"dual_distill.cli.{command}")
    module.add_arguments(parser)
    return known | set(parser._option_string_actions)


def test_every_command_that_a_sentence_or_a_page_names_takes_its_options() -> None:
    known = {command: options_of(command) for command in COMMANDS}
    begins = re.compile(rf"(?:dual-distill |`)({'|'.join(COMMANDS)})(?= )(.*?)(?=dual-distill|[`\n]|$)")
    root, found, unknown = Path(dual_distill.__file__).parents[2], 0, set()
    files = (file for name in FOLDERS for file in (root / name).rglob("*.*"))
    suffixes = (".py", ".md", ".yaml", ".ipynb", ".sh")
    for file in (root / "README.md", root / "CONTRIBUTING.md", *(file for file in files if file.suffix in suffixes)):
        texts = strings_of(file) if file.suffix == ".py" else [file.read_text()]
        for command, words in begins.findall("\n".join(texts).replace("\\\n", " ")):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*\w", words):
                found += 1
                if option not in known[command]:
                    unknown.add(f"{file.name}: {command} {option}")
    assert unknown == set()
    assert found > 100


def test_every_option_that_a_sentence_names_is_one_of_a_subcommand() -> None:
    """Messages, help and docstrings of the whole package; what is named must be there to be typed."""
    known = set().union(*map(options_of, COMMANDS))
    # Of torchrun, accelerate and hf.
    known |= {"--nproc-per-node", "--num_processes", "--multi_gpu", "--repo-type"}
    known |= {"--no"}  # of any name: `--no_field`

    root, unknown = Path(dual_distill.__file__).parent, {}
    for file in root.rglob("*.py"):
        for text in strings_of(file):
            for option in re.findall(r"(?<![\w`-])--[a-z][a-z_-]*[a-z]", text):
                if option not in known:
                    unknown.setdefault(option, set()).add(file.name)
    assert unknown == {}
