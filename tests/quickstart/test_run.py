"""The quickstart end to end, in its smallest size: what it writes, what it prints, and a second start."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForVisualQuestionAnswering

from dual_distill import DualDistillProcessor, DualEncoderForQuestionAnswering, FusionEncoderForQuestionAnswering
from dual_distill.cli import main
from dual_distill.quickstart import finding
from dual_distill.quickstart.run import choose_example


@pytest.fixture(scope="module")
def quickstart(processes):
    """Runs the smallest one in a process of its own, with some threads; of one, stages come one after another."""
    code = "import sys, torch; from dual_distill.cli import main; torch.set_num_threads({}); sys.exit(main())"

    def run(folder: Path, *words: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
        command = ["quickstart", "--preset", "smoke", "--output-dir", folder, *words]
        [done] = processes((code.format(threads), *command), OMP_NUM_THREADS=str(threads))
        return done

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, quickstart) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    done = quickstart(folder, "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return folder, json.loads(done.stdout)


def test_the_json_line_has_what_is_promised(finished: tuple[Path, dict]) -> None:
    folder, report = finished
    for name in ("teacher", "hard_labels", "distilled_pooled", "distilled", "text_only"):
        assert 0 <= report[name]["accuracy"] <= 1
    assert set(report["ms_per_pair"]) == {
        "teacher",
        "student",
        "student_stored_images",
        "pooled",
        "pooled_stored_images",
    }
    assert all(value > 0 for value in report["ms_per_pair"].values())
    assert (report["seed"], report["output_dir"]) == (0, str(folder))
    assert report["seconds"] > 0
    assert json.loads((folder / "report.json").read_text()) == report


def test_it_writes_three_checkpoints_a_report_and_a_picture(finished: tuple[Path, dict]) -> None:
    folder, report = finished
    kinds = {
        "teacher": FusionEncoderForQuestionAnswering,
        "hard_labels": DualEncoderForQuestionAnswering,
        "distilled_pooled": DualEncoderForQuestionAnswering,
        "distilled": DualEncoderForQuestionAnswering,
    }
    for name, kind in kinds.items():
        model = AutoModelForVisualQuestionAnswering.from_pretrained(folder / name)
        assert type(model) is kind
        assert not list((folder / name).glob("*.bin"))
        batch = DualDistillProcessor.from_pretrained(folder / name)(
            text="is there a circle?", images=Image.new("RGB", (36, 36))
        )
        assert model(**batch).logits.shape == (1, model.config.num_labels)
    with Image.open(folder / "attention.png") as picture:
        assert picture.width >= 900
    page = (folder / "report.md").read_text()
    assert f"{100 * report['distilled']['accuracy']:.1f}" in page
    assert "attention.png" in page
    assert f"The question is {report['example']['rule']}." in page


def test_the_example_is_one_that_distillation_made_right_and_its_rule_is_said() -> None:
    long = " ".join(["is"] * 11)
    test = Dataset.from_dict({"question": ["is it?", "is it so?", long, "what?"], "answer": ["yes", "no", "no", "red"]})
    answers = {
        "teacher": ["no", "no", "no", "red"],
        "distilled_pooled": ["yes"] * 4,
        "distilled": ["yes", "no", "no", "red"],
        "hard_labels": ["no", "no", "yes", "blue"],
    }
    index, rule = choose_example(test, answers)
    assert index == 3
    assert rule.startswith(
        "the first test question of at most 10 words that teacher and distilled student answer right"
    )
    assert choose_example(test, {**answers, "hard_labels": answers["teacher"]})[0] == 0
    assert choose_example(test, {**answers, "hard_labels": answers["teacher"]})[1].startswith("the first of all, for")


@pytest.fixture(scope="module")
def started_again(finished: tuple[Path, dict], quickstart) -> tuple[subprocess.CompletedProcess[str], list[object]]:
    """A second start, as if the last stage had been interrupted, and what of the first it found there.

    With two threads: what is left is trained by a process that is started for it.
    """
    folder, _ = finished
    weights = [folder / stage / "model.safetensors" for stage in ("teacher", "distilled")]
    found = [weights[0].stat().st_mtime_ns, weights[1].read_bytes()]
    (folder / "distilled" / "stage.json").unlink()
    done = quickstart(folder, threads=2)
    assert done.returncode == 0, done.stderr
    return done, found


def test_a_second_start_keeps_what_is_finished_and_gives_the_same_figures(finished, started_again) -> None:
    (folder, report), (done, [taught_at, distilled]) = finished, started_again
    assert "teacher: finished earlier, kept" in done.stderr
    assert "distilled: finished earlier" not in done.stderr
    assert (folder / "teacher" / "model.safetensors").stat().st_mtime_ns == taught_at
    assert (folder / "distilled" / "model.safetensors").read_bytes() == distilled
    again = json.loads((folder / "report.json").read_text())
    assert {name: again[name]["accuracy"] for name in ("teacher", "hard_labels", "distilled_pooled", "distilled")} == {
        name: report[name]["accuracy"] for name in ("teacher", "hard_labels", "distilled_pooled", "distilled")
    }


@pytest.mark.slow
def test_side_by_side_is_one_after_another(finished, quickstart, tmp_path: Path) -> None:
    done = quickstart(tmp_path / "out", threads=2)
    assert done.returncode == 0, done.stderr
    for stage in ("teacher", "hard_labels", "distilled_pooled", "distilled"):
        weights = [load_file(folder / stage / "model.safetensors") for folder in (finished[0], tmp_path / "out")]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), stage


@pytest.mark.slow
def test_stages_end_with_the_process_that_started_them(tmp_path: Path, quickstart) -> None:
    words = ["--preset", "smoke", "--output-dir", str(tmp_path / "out")]
    run = subprocess.Popen(
        [sys.executable, "-m", "dual_distill", "quickstart", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    while "step" not in run.stderr.readline():
        assert run.poll() is None
    run.kill()
    # Workers hold the pipe too: it ends when the last of them has.
    run.communicate(timeout=30)
    done = quickstart(tmp_path / "out", threads=2)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("is_sent_to_all", [True, False], ids=["Ctrl-C", "kill -INT"])
def test_an_interruption_ends_all_stages_at_once_with_130_and_no_traceback(tmp_path, is_sent_to_all) -> None:
    words = ["--preset", "default", "--output-dir", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job would ignore
    run = subprocess.Popen(
        [sys.executable, "-m", "dual_distill", "quickstart", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    while "teacher: step" not in run.stderr.readline():
        assert run.poll() is None
    (os.killpg if is_sent_to_all else os.kill)(run.pid, signal.SIGINT)
    printed = run.communicate(timeout=30)[1]
    assert (run.returncode, "Traceback" in printed) == (130, False), printed


def test_it_ends_with_what_to_make_of_it_and_commands_that_run(finished, started_again, capsys, monkeypatch) -> None:
    (folder, report), (done, _) = finished, started_again
    sentence = "Preset smoke: 30 steps of a teacher and 20 of a student teach nothing"
    assert sentence in done.stdout
    assert sentence in (folder / "report.md").read_text()
    lines = [shlex.split(line) for line in done.stdout.splitlines()[-3:]]
    # The program runs; what it is told, in this process: each of its own would import for five seconds.
    starts = [line[: line.index(name)] for line, name in zip(lines, ("predict", "evaluate", "push"), strict=True)]
    asked = subprocess.run([*starts[0], "--version"], capture_output=True, text=True, check=True, cwd="/").stdout
    assert asked.startswith("dual-distill ")
    monkeypatch.chdir("/")
    printed = []
    for start, line in zip(starts, lines, strict=True):
        assert start == starts[0]
        assert main(line[len(start) :]) == 0
        printed.append(capsys.readouterr().out)
    predict, evaluate, push = printed
    assert predict.splitlines()[0] == f"{folder / 'example.png'}: {report['example']['question']}"
    assert f"{100 * report['distilled']['accuracy']:.1f} %" in evaluate.splitlines()[1]
    assert "model.safetensors" in push
    assert "nothing was sent to me/distilled-scenes" in push


def test_other_settings_or_a_foreign_folder_are_refused(finished, tmp_path: Path, capsys) -> None:
    words = ["quickstart", "--preset", "smoke", "--output-dir"]
    assert main([*words, str(finished[0]), "--seed", "1"]) == 2
    assert "other settings (seed differ)" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([*words, str(tmp_path)]) == 2
    assert "is not empty and holds no quickstart" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("hard_labels", "sentence"),
    [
        (
            0.6,
            r"closed 75 % \(standard error 14\) of the gap .* is at 93\.8 % \(standard error 3\.6\) of its teacher's",
        ),
        # Of 400 rows the difference of 0.8 and 0.71 has a standard error of 3.03 points.
        (0.71, r"9\.0 points above the dual encoder on hard labels, within three standard errors \(9\.1\)"),
        (0.85, r"-5\.0 points above the dual encoder on hard labels, within three standard errors"),
    ],
)
def test_no_share_of_a_gap_within_three_standard_errors(hard_labels: float, sentence: str) -> None:
    shares = {"teacher": 0.8, "hard_labels": hard_labels, "distilled": 0.75}
    report = {stage: {"accuracy": share} for stage, share in shares.items()}
    found = finding(report | {"settings": {"preset": "default"}, "test_rows": 400})
    assert re.search(sentence, found), found
    assert ("closed" in found) == (hard_labels == 0.6)
