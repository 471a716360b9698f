"""The folder of a Space: complete, its own, and the one in `demo/` as it is written today."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from dual_distill.cli import main
from dual_distill.demo import space, write_space
from dual_distill.hub_cards import Origin, RunRecord, write_run

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


def test_the_package_that_runs_is_never_replaced_nor_copied_into_itself(tmp_path, monkeypatch):
    running = tmp_path / "src" / "dual_distill"
    (running / "demo").mkdir(parents=True)
    (running / "demo" / "space.py").write_text("here")
    monkeypatch.setattr(space, "__file__", str(running / "demo" / "space.py"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "dual_distill").symlink_to(running)
    for folder in (tmp_path / "src", tmp_path / "linked", running, running / "demo"):
        with pytest.raises(FileExistsError, match="is the package that runs here, or inside it; choose another folder"):
            write_space(folder, "me/student")
    assert [path.name for path in running.rglob("*")] == ["demo", "space.py"]
    assert [path.name for path in (tmp_path / "src").iterdir()] == ["dual_distill"]


def test_a_copy_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    write_space(tmp_path, "me/student")

    def fail(*given, **named):
        raise OSError("the disk is full")

    monkeypatch.setattr(space.shutil, "copytree", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_space(tmp_path, "me/student")
    assert (tmp_path / "dual_distill" / "__init__.py").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_it_shows_the_revisions_that_are_named_and_takes_no_other_names(tmp_path):
    write_space(tmp_path, "me/student@v2", f"me/teacher@{'c' * 40}", with_package=False)
    assert f'"me/student@v2 --teacher me/teacher@{"c" * 40}"' in (tmp_path / "app.py").read_text()
    found = metadata_of(tmp_path)
    assert (found["title"], found["models"]) == ("Where it looks, student", ["me/student", "me/teacher"])
    assert "[me/student@v2](https://huggingface.co/me/student/tree/v2)" in (tmp_path / "README.md").read_text()
    for name in (
        'me/t"); __import__("os").system("id"); ("',
        "me/t --host 0.0.0.0",
        "--debug",
        "me/t@a\nb",
        "runs/a/b",
    ):
        with pytest.raises(ValueError, match="is no name on the Hub; give owner/name, or owner/name@revision"):
            write_space(tmp_path, "me/student", name, with_package=False)


def test_push_writes_one_beside_what_it_sends(student, tmp_path, capsys):
    folder = tmp_path / "space"
    assert main(["push", student, "me/student", "--dry-run", "--space", str(folder)]) == 0
    assert f"hf upload me/student-space {folder} --repo-type space" in capsys.readouterr().err
    assert metadata_of(folder)["models"] == ["me/student"]
    assert (folder / "dual_distill" / "cli" / "demo.py").is_file()


def test_a_space_shows_the_branch_that_was_pushed_beside_the_teacher_of_the_record(student, tmp_path, capsys):
    folder, shown = tmp_path / "student", tmp_path / "space"
    shutil.copytree(student, folder)
    write_run(folder, RunRecord(teacher=Origin("me/teacher", "c" * 40, on_hub=True)))
    words = ["push", str(folder), "me/student", "--dry-run", "--space", str(shown)]
    assert main([*words, "--revision", "v2"]) == 0
    assert f'"me/student@v2 --teacher me/teacher@{"c" * 40}"' in (shown / "app.py").read_text()
    assert main([*words, "--create-pr"]) != 0
    assert "--create-pr is given, but --space shows what a branch holds; leave it out" in capsys.readouterr().err


def test_the_repositorys_folder_is_what_would_be_written_today(tmp_path):
    written = write_space(tmp_path, with_package=False)
    for name in written:
        assert (ROOT / "demo" / name).read_bytes() == (tmp_path / name).read_bytes()
