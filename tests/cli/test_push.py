"""`dual-distill push`: what it prints and refuses before any network; `tests/hub` pushes for real."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dual_distill.cli.options import run_command
from dual_distill.cli.push import table
from dual_distill.hub_cards import PUBLISHED, PushError, PushReport

run = partial(run_command, "push")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without a processor."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    shape = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "max_position_embeddings": 8}
    config = {"architectures": ["FusionEncoderModel"], **shape, "image_size": 8, "patch_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trainer_state.json").write_text("{}")
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_dry_run_lists_files_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(folder), "me/model", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["model.safetensors", str((folder / "model.safetensors").stat().st_size), "bytes"]
    assert lines[-2:] == ["stays here: trainer_state.json", "dry run: nothing was sent to me/model"]
    run([str(folder), "me/model", "--dry-run", "--json", "--license", "mit"])
    report = json.loads(capsys.readouterr().out)
    assert (report["commit"], report["left_out"]) == (None, ["trainer_state.json"])
    assert set(report["files"]) == {"README.md", "config.json", "model.safetensors"}


def test_what_a_push_says_afterwards() -> None:
    report = PushReport(
        "me/model", None, {"config.json": 2_000}, (), ("model-00001-of-00002.safetensors",), "abc", "http://hub/abc"
    )
    assert table(report).splitlines() == [
        "config.json           2,000 bytes",
        "in all                2,000 bytes",
        "deleted there, weights of an earlier push: model-00001-of-00002.safetensors",
        "pushed in one commit: http://hub/abc",
    ]
    same = PushReport("me/model", None, {"config.json": 2}, (), changed=False)
    assert table(same).endswith("me/model held all of this already; no commit was made")


def test_refusals_come_before_the_network(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no processor_config\.json"):
        run([str(folder), "me/model", "--with-code"])
    with pytest.raises(PushError, match="give it as owner/name"):
        run([str(folder), "not a name"])
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):  # as everywhere in the tests
        run([str(folder), "me/model"])
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="is a pickle"):
        run([str(folder), "me/model"])


def test_help_names_what_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["--help"])
    printed = capsys.readouterr().out
    for name in PUBLISHED:
        assert name in printed
