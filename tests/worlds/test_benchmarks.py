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


@pytest.mark.parametrize(
    ("answer", "label", "strict", "lenient"),
    [
        ("table", "table", 100.0, 100.0),
        ("curtain", "blinds", 94.0, 94.0),
        ("carpet", "floor", 6.7, 67.0),  # below the threshold a tenth counts
        ("lamp", "floor", 0.0, 0.0),
        ("table, carpet", "table", 2.0, 20.0),  # who says too much pays for it,
        ("table", "table, carpet", 2.0, 20.0),  # as who says too little,
        ("carpet, curtain", "blinds,floor", 6.3, 62.98),  # and every word of a list has its nearest
    ],
)
def test_wups_by_hand(answer: str, label: str, strict: float, lenient: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from wups import mean_wups

    known = {("blinds", "curtain"): 0.94, ("carpet", "floor"): 0.67, ("carpet", "table"): 0.2}

    def similarity(word: str, other: str) -> float:
        return known.get((min(word, other), max(word, other)), 0.0)

    assert mean_wups([(answer, label)], similarity) == {"WUPS at 0.9": strict, "WUPS at 0.0": lenient}
