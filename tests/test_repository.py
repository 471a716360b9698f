"""What stands around the package: workflows, notebooks, the skill of coding assistants and the site agree with it."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from dual_distill.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    named = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in named}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_reads_only_and_calls_targets_that_there_are(file):
    content = yaml.safe_load(file.read_text())
    assert content["permissions"] == {"contents": "read"}
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    called = re.findall(r"\bmake ([a-z-]+)", " ".join(step.get("run", "") for step in steps))
    assert [target for target in called if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []


def test_every_supported_python_is_tested_and_no_other():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert content["jobs"]["pinned"]["strategy"]["matrix"]["python"] == listed
    assert PROJECT["requires-python"] == f">={listed[0]}"


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    [oldest] = [row for row in content["jobs"]["range"]["strategy"]["matrix"]["include"] if row["which"] == "oldest"]
    bounds = {
        name: re.search(rf"^{name}>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE)[1]
        for name in ("torch", "transformers")
    }
    assert oldest["install"] == " ".join(f"{name}=={version}.*" for name, version in bounds.items())


def test_tools_run_on_the_versions_of_the_tests_but_for_pillow():
    tested, tools = pins("constraints.txt"), pins("constraints-tools.txt")
    differing = {name for name in tested.keys() & tools.keys() if tested[name] != tools[name]}
    assert differing == {"pillow"}  # gradio takes none of 13 yet; once it does, the two environments become one
    assert tools["gradio"] in (ROOT / "src" / "dual_distill" / "demo" / "space.py").read_text()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_has_parameters_and_neither_outputs_nor_errors_of_syntax(file):
    cells = json.loads(file.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags") for cell in code].count(["parameters"]) == 1
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    for cell in code:
        ast.parse("".join(cell["source"]))


def test_the_skill_has_its_front_matter_and_names_commands_that_there_are():
    text = (ROOT / "skills" / "dual-distill" / "SKILL.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["name"] == "dual-distill"
    assert 40 < len(front["description"]) <= 1024
    assert set(re.findall(r"`dual-distill ([a-z]+)", text)) <= set(COMMANDS)


def test_every_page_of_the_documentation_is_in_the_sites_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^([a-z_]+(?:/\*)?)$", index, re.MULTILINE))
    folders = {f"{file.parent.name}/*" for file in (ROOT / "docs").glob("*/*.md")} - {"reference/*"}
    assert listed == {file.stem for file in (ROOT / "docs").glob("*.md")} - {"index"} | folders


def test_an_extra_that_a_message_names_is_there():
    named = {
        extra
        for file in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"dual-distill\[(\w+)\]", file.read_text())
    }
    assert {"demo", "onnx"} <= named <= set(PROJECT["optional-dependencies"])
