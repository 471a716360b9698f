"""The record of a run: what it refuses, and where its numbers come from."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    ObjectiveRecord,
    Origin,
    RunRecord,
    Speed,
    origin_of,
    read_run,
    write_run,
)

DATA = DataOrigin("scenes", {"train": 60})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunRecord(
        ObjectiveRecord("DiDEObjective", {"attention_weight": 1.0}, {"url": "https://a.b"}),
        DATA,
        teacher=Origin("me/teacher", "a" * 40, on_hub=True),
        settings={"max_steps": 3},
        seed=0,
        measurements=(Measurement("accuracy", 0.5, "test", "dual-distill evaluate", groups={"count": 0.25}),),
        speed=Speed(1.0, 2.0, "a processor", "dual-distill benchmark"),
    )
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run


def test_numbers_without_source_split_or_value_are_refused() -> None:
    for fields, message in (
        (("accuracy", 0.5, "test", ""), "accuracy on test is 0.5 without a source"),
        (("accuracy", 0.5, "", "a command"), "accuracy is 0.5 without a split"),
        (("accuracy", float("nan"), "test", "a command"), "holds nan; give finite numbers"),
        (("accuracy", 0.5, "test", "a command", None, "0.9"), "holds '0.9'; give finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Measurement(*fields)
    with pytest.raises(ValueError, match="the speed has no source or no device"):
        Speed(1.0, 2.0, "a processor", "")
    with pytest.raises(ValueError, match="the checkpoint 'me/teacher' has no revision"):
        Origin("me/teacher", "", on_hub=True)


def test_a_newer_format_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    for content, message in (
        ({"format": 3}, "has format 3, this version of dual_distill reads 2; take the version that wrote it"),
        ({"format": 1, "method": "labels"}, "has format 1, .* delete the file and let the run write it again"),
        ({"format": 2, "data": {"name": "a"}, "mood": 1}, "is no record of a run"),
    ):
        (tmp_path / "run.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)


def test_a_folder_is_known_by_its_weights_and_the_hub_by_its_commit(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    expected = hashlib.sha256(digest).hexdigest()
    assert origin_of(folder) == Origin(folder.name, f"sha256:{expected}", on_hub=False)
    (folder / "objective.safetensors").write_bytes(b"of the run, not of the model")
    assert origin_of(folder).revision == f"sha256:{expected}"
    write_run(folder, RunRecord(data=DATA))
    record = read_run(folder)
    assert record is not None
    assert record.weights == f"sha256:{expected}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no safetensors weights to know it by"):
        origin_of(tmp_path / "empty")
    with pytest.raises(ValueError, match="was not loaded from the Hub on this machine"):
        origin_of("nobody/nothing")


def test_a_record_holds_addresses_without_credentials(make_folder: Callable[..., Path]) -> None:
    source = {"path": "https://ada:s3cret@example.org/{0..9}.tar?token=abc", "kind": "webdataset"}
    file = write_run(make_folder(), RunRecord(settings={"data_options": {"sources": [source]}}))
    assert "https://example.org/{0..9}.tar?token=..." in file.read_text()
    assert not re.search("ada|s3cret|abc", file.read_text())
