"""Recipes and fields are read as they are written; help shows what a user needs and, when asked, the rest."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import pytest

from dual_distill.cli.options import run_command
from dual_distill.cli.recipe_parser import DATACLASSES, FLAGS, parse_recipe, read_recipe
from dual_distill.runs import DataArguments, ModelArguments

run = partial(run_command, "train")


def test_fields_override_the_recipe_in_either_spelling(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "hidden_size: 32\nlearning_rate: 1e-3\nimage_column: photo\ndata_options: {seed: 4}\nuse_cpu: true\n"
    )
    words = [
        str(recipe),
        "--hidden-size",
        "64",
        "--data_options",
        '{"seed": 5}',
        "--skip_bad",
        "--output_dir",
        str(tmp_path),
    ]
    model, data, training = parse_recipe(words)
    assert model == ModelArguments(hidden_size=64)
    assert data == DataArguments(image_column=["photo"], data_options={"seed": 5}, skip_bad=True)
    assert training.learning_rate == 1e-3  # YAML reads 1e-3 as a text
    assert parse_recipe([str(recipe), "--image_column", "left", "right"])[1].image_column == ["left", "right"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init_form", "x"], "there is no field 'init_form'; did you mean 'init_from'"),
        (["recipe.yml"], "there is no recipe 'recipe.yml'"),
        (["--use_cpu", "true", "stray"], "'stray' was not understood; write fields as --field value"),
        (["--data_options", "{seed: 3}"], "which is no JSON"),
    ],
)
def test_mistakes_by_their_sentences(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(words)


def test_a_field_that_stands_twice_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text in ("seed: 1\nseed: 2\n", "base: {seed: 1, seed: 2}\nroles: {a: {}}\n"):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=r"recipe.yaml is no valid YAML: the key 'seed' stands there twice"):
            parse_recipe([str(recipe)], "a" if "roles" in text else None)
    recipe.write_text("base: &base {seed: 1}\nroles: {a: {<<: *base, seed: 2}}\n")
    assert parse_recipe([str(recipe), "--output_dir", str(tmp_path)], "a")[2].seed == 2


def test_help_shows_our_fields_and_the_usual_ones_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        run(["--help-all"])
    whole = capsys.readouterr().out
    ours = [field.name for kind in DATACLASSES[:2] for field in dataclasses.fields(kind)]
    for name in [*ours, "attention_weight", "layer_map", "max_steps", "bf16"]:
        assert short.count(f"\n  --{name} ") == whole.count(f"\n  --{name} ") == 1, name
    for flag in FLAGS:
        assert f"\n  {flag} " in short
    assert "--adam_epsilon" not in short
    for field in dataclasses.fields(DATACLASSES[2]):
        assert f"\n  --{field.name} " in whole, field.name
    assert "default: None" not in short
    assert "(default: 768)" in short
    assert len(short.splitlines()) < 340
    assert "dual-distill train recipes/custom.yaml --role teacher" in short


def test_a_dry_run_prints_a_plan_for_reading_or_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fields = {
        "architecture": "fusion_encoder",
        "data_options": {"num_scenes": {"train": 4, "validation": 1, "test": 1}},
        "image_height": 36,
        "image_width": 36,
        "patch_size": 12,
        "resize": "fixed",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_steps": 3,
        "bf16": True,  # planned without a GPU too
        "output_dir": str(tmp_path / "never"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(fields))
    run(["--dry-run", str(recipe)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["task", "rows", "labels", "model", "teacher", "steps", "time", "memory"]
    assert lines["rows"] == "train 24, validation 6, test 6"
    assert lines["steps"] == "3 of 8 rows, 1.00 epochs"
    run([str(recipe), "--json", "--dry_run"])
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["teacher"], plan["memory_bytes"]["teacher"]) == (3, None, 0)
    assert not (tmp_path / "never").exists()


def test_a_recipe_loads_by_no_more_processes_than_there_are_cores(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataloader_num_workers: 4\noutput_dir: {tmp_path}\n")
    assert parse_recipe([str(recipe), "--dataloader_num_workers", "3"])[2].dataloader_num_workers == 3
    assert capsys.readouterr().err == ""
    assert parse_recipe([str(recipe)])[2].dataloader_num_workers == 2
    assert "the run takes --dataloader_num_workers 2" in capsys.readouterr().err


ROLES = """\
base: {task: vqa, max_steps: 5, data_options: {seed: 1}}
roles:
  teacher: {architecture: fusion_encoder}
  student: {max_steps: 9}
"""


def test_a_role_is_laid_over_the_base_and_the_command_line_over_both(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(ROLES)
    assert read_recipe(recipe, "student") == {"task": "vqa", "max_steps": 9, "data_options": {"seed": 1}}
    words = [str(recipe), "--max_steps", "2", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    model, data, training = parse_recipe(words, "teacher")
    assert (model.architecture, data.task, training.max_steps) == ("fusion_encoder", "vqa", 2)


@pytest.mark.parametrize(
    ("text", "role", "message"),
    [
        (ROLES, None, "no --role is given, but the roles of .* are: teacher, student; give one of them"),
        (ROLES, "alone", "--role is 'alone', but the roles of .* are: teacher, student"),
        ("task: vqa\n", "teacher", "--role is 'teacher', but the roles of .* are: none"),
    ],
)
def test_roles_that_are_not_there(text: str, role: str | None, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe, role)


def test_a_role_needs_a_recipe() -> None:
    with pytest.raises(ValueError, match="--role is 'teacher', but there is no recipe"):
        parse_recipe(["--use_cpu", "true"], "teacher")
