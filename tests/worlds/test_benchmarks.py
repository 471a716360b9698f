"""The benchmarks of runs, tiny: worlds are written, models trained and evaluated, a table printed, nothing recorded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(folder: Path, script: str, *words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), "--tiny", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_pre_training_and_then_retrieval(tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (BENCHMARKS / "results").iterdir()}
    out = run(tmp_path, "pretraining_2x2.py", "--seeds", "0", "--tasks", "scene_statements")
    assert "tiny: nothing is recorded in pretraining_2x2_scene_statements.json" in out
    assert out.count("pre-training ") == 4
    out = run(tmp_path, "retrieval.py")
    assert "scene_captions, distilled: " in out
    assert {file: file.stat().st_mtime_ns for file in (BENCHMARKS / "results").iterdir()} == before


@pytest.mark.slow
def test_distillvlm(tmp_path: Path) -> None:
    words = ("--seeds", "0", "--tasks", "scene_captioning", "--caption-variants", "hard_labels", "both_unadapted")
    out = run(tmp_path, "distillvlm_scenes.py", *words)
    assert [line.split()[1] for line in out.splitlines()[-6:-1]] == [
        *("teacher", "teacher_unadapted", "teacher_adapted", "hard_labels", "both_unadapted")
    ]
