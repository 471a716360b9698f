"""The folder of a Space: complete, its own, and the one in `demo/` as it is written today."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from dual_distill.cli import main
from dual_distill.demo import write_space

ROOT = Path(__file__).parents[2]


def metadata_of(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_it_holds_app_requirements_and_the_hubs_metadata(tmp_path):
    assert write_space(tmp_path, "me/student", "me/teacher", with_package=False) == sorted(
        path.name for path in tmp_path.iterdir()
    )
    found = metadata_of(tmp_path)
    assert {found["sdk"], found["app_file"]} == {"gradio", "app.py"}
    assert found["models"] == ["me/student", "me/teacher"]
    assert '"me/student --teacher me/teacher"' in (tmp_path / "app.py").read_text()
    assert (tmp_path / "requirements.txt").read_text() == f"dual-distill[demo]=={version('dual-distill')}\n"


def test_the_package_that_goes_along_is_the_one_that_runs_there(tmp_path):
    (tmp_path / "dual_distill" / "demo").mkdir(parents=True)
    (tmp_path / "dual_distill" / "earlier.py").touch()
    write_space(tmp_path, "me/student")
    assert not (tmp_path / "dual_distill" / "earlier.py").exists()
    needed = (tmp_path / "requirements.txt").read_text().splitlines()
    assert "datasets" in needed
    assert not [line for line in needed if line.startswith(("gradio", "onnx", "mkdocs", "dual"))]

    # Isolated from where it is installed: the folder alone comes first.
    asked = "import dual_distill as d, json; print(json.dumps([d.__file__, d.__version__]))"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {asked}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    assert json.loads(printed) == [str(tmp_path / "dual_distill" / "__init__.py"), version("dual-distill")]


def test_another_package_of_that_name_is_left_alone(tmp_path):
    (tmp_path / "dual_distill").mkdir()
    with pytest.raises(FileExistsError, match="is not a copy of this package; choose another folder"):
        write_space(tmp_path, "me/student")
    assert [path.name for path in tmp_path.iterdir()] == ["dual_distill"]


def test_push_writes_one_beside_what_it_sends(student, tmp_path, capsys):
    space = tmp_path / "space"
    assert main(["push", student, "me/student", "--dry-run", "--space", str(space)]) == 0
    assert f"hf upload me/student-space {space} --repo-type space" in capsys.readouterr().err
    assert metadata_of(space)["models"] == ["me/student"]
    assert (space / "dual_distill" / "cli" / "demo.py").is_file()


def test_the_repositorys_folder_is_what_would_be_written_today(tmp_path):
    written = write_space(tmp_path, with_package=False)
    for name in written:
        assert (ROOT / "demo" / name).read_bytes() == (tmp_path / name).read_bytes()
