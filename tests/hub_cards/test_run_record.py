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
    add_evaluation,
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


def test_an_evaluation_is_added_beside_its_teacher_s_and_replaces_an_earlier_one() -> None:
    mine = {
        "task": "vqa", "split": "test", "rows": 30, "accuracy": 0.4, "vqa_score": 0.5, "text_only": 0.3,
        "majority": 0.2,
        "vqa_score_by_group": {"number": 0.1}, "consistency": None,
    }  # fmt: skip
    run = add_evaluation(RunRecord(data=DATA), mine, "evaluate", {**mine, "vqa_score": 0.6})
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
    # Two editions of the official script are two metrics; a card names the one.
    mine["vqa_score_edition"] = "2021"
    assert add_evaluation(run, mine, "evaluate").measurements[0].edition == "2021"
    with pytest.raises(
        ValueError, match="the teacher was evaluated with vqa_score_edition '2017', the model with '2021'"
    ):
        add_evaluation(run, mine, "evaluate", {**mine, "vqa_score_edition": "2017"})
    with pytest.raises(ValueError, match="the teacher was evaluated with rows 29, the model with 30"):
        add_evaluation(run, mine, "evaluate", {**mine, "rows": 29})
    with pytest.raises(ValueError, match=r"notes\.json has no 'split'"):
        add_evaluation(run, {"task": "vqa"}, "notes.json")


def test_an_evaluation_of_other_weights_is_refused() -> None:
    """A checkpoint that was trained further keeps no number that was measured before."""
    found = {"model": "runs/student", "task": "vqa", "split": "test", "rows": 30, "accuracy": 0.5}
    student, teacher = "sha256:" + "a" * 64, Origin("teacher", "sha256:" + "b" * 64, on_hub=False)
    run = RunRecord(data=DATA, weights=student, teacher=teacher)
    same = ({**found, "weights": student}, "evaluate", {**found, "weights": teacher.revision})
    assert len(add_evaluation(run, *same).measurements) == 1
    assert len(add_evaluation(run, found, "by hand").measurements) == 1  # weights that it does not name
    with pytest.raises(
        ValueError, match="'runs/student' was measured on weights sha256:cccccccccccc, but the run is ab"
    ):
        add_evaluation(run, {**found, "weights": "sha256:" + "c" * 64}, "evaluate")
    with pytest.raises(ValueError, match="weights sha256:aaaaaaaaaaaa, but the run is about sha256:bbbbbbbbbbbb"):
        add_evaluation(run, same[0], "evaluate", {**found, "weights": student})


def test_caption_scores_are_added_as_they_are() -> None:
    found = {"task": "coco_captioning", "split": "test", "rows": 30, "cider": 1.1, "bleu_4": 0.3}
    run = add_evaluation(RunRecord(data=DataOrigin("coco_captioning")), found, "dual-distill evaluate")
    assert [(one.metric, one.value, one.rows) for one in run.measurements] == [("cider", 1.1, 30), ("bleu_4", 0.3, 30)]


def test_recall_and_median_rank_are_added_both_ways_and_none_of_another_model() -> None:
    def directions(share: float) -> dict[str, dict[str, float]]:
        both = {"text_to_image": share, "image_to_text": share / 2}
        return {way: {"recall@1": value, "median_rank": 2.0, "num_queries": 9} for way, value in both.items()}

    found = {"task": "coco_retrieval", "split": "test", "rows": 30, "whole": {"dual": directions(0.5)}}
    run = add_evaluation(RunRecord(data=DATA), found, "evaluate", {**found, "whole": {"dual": directions(0.75)}})
    assert {one.metric: (one.value, one.teacher) for one in run.measurements} == {
        "text_to_image_recall@1": (0.5, 0.75),
        "text_to_image_median_rank": (2.0, 2.0),
        "image_to_text_recall@1": (0.25, 0.375),
        "image_to_text_median_rank": (2.0, 2.0),
    }
    found["whole"]["reranked"] = directions(1.0)
    own = {one.metric: one.value for one in add_evaluation(run, found, "evaluate").measurements}
    assert (own["reranked_text_to_image_recall@1"], own["text_to_image_recall@1"], len(own)) == (1.0, 0.5, 8)
    assert len(add_evaluation(run, {**found, "rerank": "runs/teacher"}, "evaluate").measurements) == 4


def test_an_evaluation_without_a_number_is_refused() -> None:
    found = {"task": "scenes", "split": "test", "rows": 30, "text_only": 0.5, "accuracy": None}
    with pytest.raises(ValueError, match=r"notes\.json gave no number that a card has; give what `evaluate"):
        add_evaluation(RunRecord(data=DATA), found, "notes.json")


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
