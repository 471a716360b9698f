"""The record of a run: what it refuses, and where its numbers come from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dual_distill.hub_cards import (
    DataOrigin,
    Measurement,
    Origin,
    RunRecord,
    Speed,
    add_evaluation,
    differing_fields,
    origin_of,
    read_run,
    write_run,
)

DATA = DataOrigin("scenes", {"train": 60})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunRecord(
        "dide",
        DATA,
        teacher=Origin("me/teacher", "a" * 40, on_hub=True),
        settings={"max_steps": 3},
        seed=0,
        measurements=(Measurement("accuracy", 0.5, "test", "dual-distill evaluate", groups={"count": 0.25}),),
        speed=Speed(1.0, 2.0, None, "a processor", "dual-distill benchmark"),
    )
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run


def test_numbers_without_source_split_or_value_are_refused() -> None:
    for measurement, message in (
        (Measurement("accuracy", 0.5, "test", ""), "accuracy on test is 0.5 without a source"),
        (Measurement("accuracy", 0.5, "", "a command"), "accuracy is 0.5 without a split"),
        (Measurement("accuracy", float("nan"), "test", "a command"), "holds nan; give finite numbers"),
        (Measurement("accuracy", 0.5, "test", "a command", teacher="0.9"), "holds '0.9'; give finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            RunRecord("labels", DATA, measurements=(measurement,))
    with pytest.raises(ValueError, match="the speed has no source or no device"):
        RunRecord("labels", DATA, speed=Speed(1.0, 2.0, None, "a processor", ""))
    with pytest.raises(ValueError, match="the teacher 'me/teacher' has no revision"):
        RunRecord("dide", DATA, teacher=Origin("me/teacher", "", on_hub=True))
    with pytest.raises(ValueError, match="the method of a run is 'magic'; give one of labels, dide"):
        RunRecord("magic", DATA)


def test_a_newer_format_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    for content, message in (
        ({"format": 2}, "has format 2, this version of dual_distill reads 1; update the package"),
        ({"format": 1, "method": "labels", "data": {"name": "a"}, "mood": 1}, "is no record of a run"),
        ({"format": 1, "method": "labels"}, "is no record of a run"),
    ):
        (tmp_path / "run.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)


def test_results_of_train_stand_in_for_a_record(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    results = {
        "task": "scenes",
        "seed": 1,
        "steps": 4,
        "eval_accuracy": 0.25,
        "eval_loss": 1.0,
        "eval_attention_loss": 0.5,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = read_run(tmp_path)
    assert run is not None
    assert (run.method, run.seed, run.steps) == ("dide", 1, 4)
    [accuracy] = run.measurements
    assert (accuracy.metric, accuracy.value, accuracy.split) == ("accuracy", 0.25, "validation")
    assert "results.json" in accuracy.source


def test_an_evaluation_is_added_beside_its_teacher_s_and_replaces_an_earlier_one() -> None:
    mine = {
        "task": "vqa", "split": "test", "rows": 30, "accuracy": 0.4, "vqa_score": 0.5, "text_only": 0.3, "majority": 0.2,
        "vqa_score_by_group": {"number": 0.1}, "consistency": None,
    }  # fmt: skip
    run = add_evaluation(RunRecord("dide", DATA), mine, "evaluate", {**mine, "vqa_score": 0.6})
    [score] = run.measurements
    assert (score.metric, score.value, score.teacher, score.text_only, score.majority) == (
        "vqa_score",
        0.5,
        0.6,
        0.3,
        0.2,
    )
    assert score.groups == {"number": 0.1}
    [score] = add_evaluation(run, {**mine, "vqa_score": 0.55}, "evaluate").measurements
    assert (score.value, score.teacher) == (0.55, None)
    with pytest.raises(ValueError, match="the teacher was evaluated with rows 29, the model with 30"):
        add_evaluation(run, mine, "evaluate", {**mine, "rows": 29})
    with pytest.raises(ValueError, match=r"notes\.json has no 'split'"):
        add_evaluation(run, {"task": "vqa"}, "notes.json")


def test_caption_scores_are_added_as_they_are() -> None:
    found = {"task": "coco_captioning", "split": "test", "rows": 30, "cider": 1.1, "bleu_4": 0.3}
    run = add_evaluation(RunRecord("distillvlm", DataOrigin("coco_captioning")), found, "dual-distill evaluate")
    assert [(one.metric, one.value, one.rows) for one in run.measurements] == [("cider", 1.1, 30), ("bleu_4", 0.3, 30)]


def test_results_tell_the_two_methods_apart(tmp_path: Path) -> None:
    for terms, method in (({"eval_hidden_loss": 1.0, "eval_attention_loss": 0.1}, "distillvlm"), ({}, "labels")):
        (tmp_path / "results.json").write_text(json.dumps({"task": "coco_captioning", **terms}))
        record = read_run(tmp_path)
        assert record is not None
        assert record.method == method


def test_a_folder_is_known_by_its_weights_and_the_hub_by_its_commit(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    expected = hashlib.sha256(digest).hexdigest()
    assert origin_of(folder) == Origin(folder.name, f"sha256:{expected}", on_hub=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no safetensors weights to know it by"):
        origin_of(tmp_path / "empty")
    with pytest.raises(ValueError, match="was not loaded from the Hub on this machine"):
        origin_of("nobody/nothing")


def test_settings_are_what_differs_and_name_no_place() -> None:
    @dataclass
    class Arguments:
        output_dir: str = "out"
        hub_token: str | None = None
        max_steps: int = 1
        layer_map: dict[int, int] | None = None

    given = Arguments("/somewhere/else", "hf_secret", 5, {-1: -1})
    assert differing_fields((given, Arguments())) == {"max_steps": 5, "layer_map": {"-1": -1}}
