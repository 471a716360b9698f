"""The command as a user meets it: real processes, their exit codes, and one sentence for each mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dual_distill.cli import main

TINY = {
    "task": "scenes",
    "data_options": {"num_scenes": {"train": 20, "validation": 4, "test": 5}},
    "resize": "fixed",
    "image_height": 36,
    "image_width": 36,
    "patch_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
}


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one sentence on stderr of a command that must fail with exit code 2 and no traceback.

    The command's own `main`, in this process: a process of its own for each mistake would take five seconds of imports.
    """

    def run(*words: str, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as stop:  # argparse's own refusals
            code = stop.code
        printed = capsys.readouterr()
        assert code == 2, printed.err
        assert "Traceback" not in printed.err
        assert printed.out == ""
        return printed.err.strip().splitlines()[-1]

    return run


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command that succeeds prints on stdout, in this process."""

    def run(*words: str, cwd: Path) -> str:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = main(words)
        found = capsys.readouterr()
        assert code == 0, found.err
        return found.out

    return run


def recipe(folder: Path, **fields: object) -> str:
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**TINY, **fields}))  # JSON is YAML
    return file.name


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, command) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = command("train", recipe(folder, architecture="fusion_encoder", output_dir="teacher"), "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["steps"] == 4
    assert 0 <= results["eval_accuracy"] <= 1
    return folder / "teacher"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    help_text = capsys.readouterr().out
    for name in ("quickstart", "train", "evaluate", "predict", "convert"):
        assert f"    {name}" in help_text
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: dual-distill {name}")


def test_a_refusal_is_a_process_that_ends_with_exit_code_2(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dual_distill", "card", "nowhere"]  # which imports no torch
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        "dual-distill card: 'nowhere' is not a folder; give the one that a run or `save_pretrained` wrote. (--debug "
        "shows the traceback)"
    )


def test_an_unknown_command_is_refused(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "invalid choice: 'trian'" in refusal("trian", cwd=tmp_path)


def test_a_wrong_field_names_the_nearest(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "there is no field 'hidden_sise'; did you mean 'hidden_size'?" in refusal(
        "train", recipe(tmp_path, hidden_sise=3), cwd=tmp_path
    )
    assert "there is no field 'learning_rat'; did you mean 'learning_rate'?" in refusal(
        "train", recipe(tmp_path), "--learning_rat", "1", cwd=tmp_path
    )


def test_a_missing_recipe_and_one_that_is_no_mapping(tmp_path: Path, refusal: Callable[..., str]) -> None:
    sentence = "dual-distill train: there is no recipe 'nowhere.yaml'; give the path of a YAML file. (--debug"
    assert sentence in refusal("train", "nowhere.yaml", cwd=tmp_path)
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert "a recipe is a mapping" in refusal("train", "list.yaml", cwd=tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    assert "no valid YAML" in refusal("train", "broken.yaml", cwd=tmp_path)


def test_a_value_out_of_range_is_one_sentence_and_debug_shows_the_traceback(
    tmp_path: Path, refusal: Callable[..., str]
) -> None:
    words = ("train", recipe(tmp_path, temperature=0), "--output_dir", "out")
    assert "temperature is 0" in refusal(*words, cwd=tmp_path)
    with pytest.raises(ValueError, match="temperature is 0"):  # which Python shows with its traceback
        main([*words, "--debug"])


def test_unknown_task_and_missing_data(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert "did you mean 'scenes'?" in refusal("train", recipe(tmp_path, task="scene", data_options=None), cwd=tmp_path)
    assert "Give path=" in refusal("train", recipe(tmp_path, task="nlvr", data_options=None), cwd=tmp_path)


def test_a_trained_checkpoint_loads_in_another_process_and_holds_no_pickle(teacher: Path, processes) -> None:
    names = {file.name for file in teacher.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    code = (
        "import sys, dual_distill; from transformers import AutoModelForVisualQuestionAnswering as M, AutoProcessor "
        "as P;"
        "m = M.from_pretrained(sys.argv[1]); p = P.from_pretrained(sys.argv[1]);"
        "from PIL import Image; b = p(text='is there a circle?', images=Image.new('RGB', (36, 36)));"
        "print(type(m).__name__, type(p).__name__, tuple(m(**b).logits.shape) == (1, m.config.num_labels))"
    )
    [done] = processes((code, teacher))
    assert done.stdout.split() == ["FusionEncoderForQuestionAnswering", "DualDistillProcessor", "True"], done.stderr


def test_a_student_learns_from_the_teacher_and_is_evaluated(
    teacher: Path, refusal: Callable[..., str], printed: Callable[..., str]
) -> None:
    folder = teacher.parent
    student = recipe(folder, architecture="dual_encoder", init_from="teacher", teacher="teacher", output_dir="student")
    results = json.loads(printed("train", student, "--logging_steps", "2", "--json", cwd=folder))
    assert {"eval_attention_loss", "eval_soft_label_loss"} <= set(results)

    options = json.dumps(TINY["data_options"])
    words = ("evaluate", "student", "--task", "scenes", "--data-options", options)
    result = json.loads(printed(*words, "--json", cwd=folder))
    assert result["rows"] == 30
    assert set(result["accuracy_by_group"]) == {"exist", "count", "colour", "shape", "relation", "comparison"}
    # Each type has the same number of questions, so the overall share is the mean over the types.
    assert result["accuracy"] == pytest.approx(sum(result["accuracy_by_group"].values()) / 6)
    table = printed(*words, cwd=folder)
    assert "question-only baseline" in table
    assert f"{100 * result['accuracy']:.1f} %" in table
    assert "no split 'dev'" in refusal(*words, "--split", "dev", cwd=folder)


def test_a_pair_that_cannot_be_compared_is_refused_before_training(teacher: Path, refusal: Callable[..., str]) -> None:
    words = ("train", recipe(teacher.parent, architecture="dual_encoder", teacher="teacher", num_attention_heads=4))
    sentence = refusal(*words, "--output_dir", "never", cwd=teacher.parent)
    assert "the teacher has 2 attention heads, the student 4; set relation_heads" in sentence


def test_an_interrupted_run_continues_from_its_last_checkpoint(tmp_path: Path, command) -> None:
    # Plain SGD: AdamW would blow rounding up to whole steps where a gradient is nearly zero.
    fields = {
        "architecture": "fusion_encoder",
        "save_steps": 2,
        "hidden_dropout_prob": 0.1,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    whole = command("train", recipe(tmp_path, **fields), "--output_dir", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "half").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "half" / "checkpoint-2")
    resumed = command("train", recipe(tmp_path, **fields), "--output_dir", "half", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    # Two processes: matrix products may round differently with the alignment of their memory, nothing else may differ.
    # (tests/trainer resumes in one process, bit for bit.)
    whole_weights, half_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "half"))
    torch.testing.assert_close(whole_weights, half_weights, atol=2e-5, rtol=0)
    start = load_file(tmp_path / "half" / "checkpoint-2" / "model.safetensors")
    assert max((whole_weights[name] - start[name]).abs().max() for name in start) > 1e-3
