"""`dual-distill card`: what it writes, adds and refuses."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dual_distill.cli.options import run_command

run = partial(run_command, "card")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained checkpoint as `dual-distill train` leaves it."""
    folder = tmp_path / "student"
    folder.mkdir()
    shape = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "max_position_embeddings": 8}
    labels = {"id2label": {"0": "yes", "1": "no"}, "image_size": 8, "patch_size": 4}
    config = {"architectures": ["FusionEncoderForQuestionAnswering"], **shape, **labels}
    (folder / "config.json").write_text(json.dumps(config))
    measured = {"metric": "accuracy", "value": 0.5, "split": "validation", "source": "dual-distill train"}
    record = {"format": 2, "data": {"name": "scenes"}, "seed": 0, "steps": 4, "measurements": [measured]}
    record["teacher"] = {"name": "teacher", "revision": "sha256:0123", "on_hub": False}
    (folder / "run.json").write_text(json.dumps(record))
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_evaluations_are_added_to_the_record_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = {"model": "runs/student", "task": "scenes", "split": "test", "rows": 30, "accuracy": 0.75, "text_only": 0.25}
    (folder.parent / "mine.json").write_text(json.dumps(mine))
    (folder.parent / "teacher.json").write_text(json.dumps({**mine, "accuracy": 0.875}))
    words = [
        "--evaluation",
        str(folder.parent / "mine.json"),
        "--teacher-evaluation",
        str(folder.parent / "teacher.json"),
    ]
    run([str(folder), *words, "--json"])
    assert json.loads(capsys.readouterr().out) == {"card": str(folder / "README.md")}
    card = (folder / "README.md").read_text()
    source = "`dual-distill evaluate --task scenes --split test`"
    assert f"| accuracy | test | 30 | 75.0 % | 87.5 % | 25.0 % | {source} |" in card
    assert "| accuracy | validation |  | 50.0 % |" in card
    assert len(json.loads((folder / "run.json").read_text())["measurements"]) == 2
    run([str(folder)])
    assert (folder / "README.md").read_text() == card
    assert capsys.readouterr().out.strip() == f"written: {folder / 'README.md'}"


def test_refusals(folder: Path) -> None:
    with pytest.raises(ValueError, match="--teacher-evaluation was given without --evaluation"):
        run([str(folder), "--teacher-evaluation", "a.json"])
    with pytest.raises(ValueError, match=r"there is no file 'a\.json'"):
        run([str(folder), "--evaluation", "a.json"])
    (folder / "run.json").unlink()
    with pytest.raises(ValueError, match=r"has no run\.json, so it is not known"):
        run([str(folder), "--evaluation", str(folder / "config.json")])
