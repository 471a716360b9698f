"""Evaluations that are added to the record of a run: of which model, on which data, beside which teacher."""

from dataclasses import replace

import pytest

from dual_distill.hub_cards import DataOrigin, Measurement, Origin, RunRecord, add_evaluation

TEACHER = Origin("teacher", "sha256:" + "b" * 64, on_hub=False)
RUN = RunRecord(data=DataOrigin("vqa", {"train": 60}, task="vqa"), teacher=TEACHER)


def test_an_evaluation_is_added_beside_its_teacher_s_and_replaces_an_earlier_one() -> None:
    mine = {
        "task": "vqa", "split": "test", "rows": 30, "accuracy": 0.4, "vqa_score": 0.5, "text_only": 0.3,
        "majority": 0.2,
        "vqa_score_by_group": {"number": 0.1}, "consistency": None,
    }  # fmt: skip
    run = add_evaluation(RUN, mine, "evaluate", {**mine, "vqa_score": 0.6})
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
    run = RunRecord(data=RUN.data, weights=student, teacher=teacher)
    same = ({**found, "weights": student}, "evaluate", {**found, "weights": teacher.revision})
    assert len(add_evaluation(run, *same).measurements) == 1
    assert len(add_evaluation(run, found, "by hand").measurements) == 1  # weights that it does not name
    with pytest.raises(
        ValueError, match="'runs/student' was measured on weights sha256:cccccccccccc, but the run is ab"
    ):
        add_evaluation(run, {**found, "weights": "sha256:" + "c" * 64}, "evaluate")
    with pytest.raises(ValueError, match="weights sha256:aaaaaaaaaaaa, but the run is about sha256:bbbbbbbbbbbb"):
        add_evaluation(run, same[0], "evaluate", {**found, "weights": student})
    on_hub = replace(run, teacher=Origin("me/teacher", "c" * 40, on_hub=True))
    assert len(add_evaluation(on_hub, same[0], "evaluate", {**found, "weights": "c" * 40}).measurements) == 1
    with pytest.raises(ValueError, match=r"was measured on weights d{19}, but the run is about c{19};"):
        add_evaluation(on_hub, same[0], "evaluate", {**found, "weights": "d" * 40})
    with pytest.raises(ValueError, match="the run names no teacher, so 'runs/student' is none that is known; leave"):
        add_evaluation(replace(run, teacher=None), *same)


def test_weights_that_are_known_otherwise_are_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    """The Hub's commit may hold these very weights; a teacher in memory and a store are known by their parameters."""
    found = {"model": "me/student", "task": "vqa", "split": "test", "rows": 30, "accuracy": 0.5}
    student, commit, in_memory = "sha256:" + "a" * 64, "d" * 40, "parameters:" + "b" * 64
    for mine, its, known in ((commit, student, in_memory), (student, student, commit), (student, commit, in_memory)):
        caplog.clear()
        run = replace(RUN, weights=student, teacher=Origin("teacher", known, on_hub=False))
        run = add_evaluation(run, {**found, "weights": mine}, "evaluate", {**found, "model": "t", "weights": its})
        assert [one.teacher for one in run.measurements] == [0.5]
        wrong = [f"of 't' was measured on weights {its[:19]}, but the run is about {known[:19]}; it is not"]
        wrong = [*(["of 'me/student' was measured on weights ddd"] if mine == commit else []), *wrong]
        assert [part in one for part, one in zip(wrong, caplog.messages, strict=True)] == [True] * len(wrong)


def test_a_number_on_other_data_takes_no_place_of_the_run_s_own() -> None:
    own = Measurement("accuracy", 0.61, "validation", "trainer", rows=1000)
    loss = Measurement("loss", 1.5, "validation", "trainer", rows=1000)
    run = replace(RUN, measurements=(own, loss))
    found = {"task": "gqa", "split": "validation", "rows": 30, "accuracy": 0.31}
    run = add_evaluation(run, found, "evaluate")
    assert run.measurements[:2] == (own, loss)
    run = add_evaluation(run, {**found, "accuracy": 0.32}, "evaluate")
    assert [(one.value, one.task) for one in run.measurements] == [(0.61, None), (1.5, None), (0.32, "gqa")]
    # The run's own data may be called by another name.
    run = replace(run, data=DataOrigin("VQA v2", task="vqa"))
    run = add_evaluation(run, {**found, "task": "vqa", "accuracy": 0.62}, "evaluate")
    assert {(one.value, one.task) for one in run.measurements} == {(1.5, None), (0.32, "gqa"), (0.62, None)}


def test_the_run_s_own_data_are_those_whose_content_is_the_same() -> None:
    """A task may be read from any folder, and one set of data be called by several names."""
    here, there = "60 rows [aaaaaaaaaaaa]", "60 rows [bbbbbbbbbbbb]"
    own = Measurement("accuracy", 0.61, "test", "trainer")
    run = replace(RUN, data=DataOrigin("custom", task="custom", content=here), measurements=(own,))
    found = {"task": "custom", "split": "test", "rows": 30, "accuracy": 0.31}
    of_others = add_evaluation(run, {**found, "data": there}, "evaluate").measurements
    assert [(one.value, one.task) for one in of_others] == [(0.61, None), (0.31, f"custom (train: {there})")]
    for same in ({"data": here}, {"data": here, "task": "easy_vqa"}, {"data": None}, {}):
        [number] = add_evaluation(run, {**found, **same}, "evaluate").measurements
        assert (number.value, number.task) == (0.31, None), same
    [_, number] = add_evaluation(run, {**found, "data": there, "task": "easy_vqa"}, "evaluate").measurements
    assert number.task == "easy_vqa"
    with pytest.raises(ValueError, match=r"evaluated with data '60 rows \[bbb.*, the model with '60 rows \[aaa"):
        add_evaluation(run, {**found, "data": here}, "evaluate", {**found, "data": there})
    assert add_evaluation(run, {**found, "data": here}, "evaluate", found).measurements[0].teacher == 0.31


def test_the_evaluated_rows_themselves_say_it_where_both_sides_know_them() -> None:
    """Other rows of train, or an option of the reader that changes none of test, are no other test data."""
    own = Measurement("accuracy", 0.61, "test", "trainer")
    run = replace(RUN, data=DataOrigin("custom", task="custom", content="a", splits={"test": "c"}), measurements=(own,))
    found = {"task": "custom", "split": "test", "rows": 30, "accuracy": 0.31, "data": "b", "split_data": "c"}
    [number] = add_evaluation(run, found, "evaluate", {**found, "data": "a"}).measurements
    assert (number.value, number.task, number.teacher) == (0.31, None, 0.31)
    [_, number] = add_evaluation(run, {**found, "data": "a", "split_data": "d"}, "evaluate").measurements
    assert number.task == "custom (test: d)"
    with pytest.raises(ValueError, match="evaluated with split_data 'd', the model with 'c'"):
        add_evaluation(run, found, "evaluate", {**found, "split_data": "d"})


@pytest.mark.parametrize("origin", [DataOrigin("custom", task="custom"), DataOrigin("VQA v2"), DataOrigin()])
def test_a_run_that_does_not_know_its_data_takes_an_evaluation_for_its_own(origin: DataOrigin) -> None:
    """Columns alone say no task; a record of before, or one that was told a name, says which data by no task."""
    found = {"task": "easy_vqa", "split": "test", "rows": 30, "accuracy": 0.31, "data": "60 rows [aaaaaaaaaaaa]"}
    [number] = add_evaluation(replace(RUN, data=origin), found, "evaluate").measurements
    assert number.task is None


def test_caption_scores_are_added_as_they_are() -> None:
    found = {"task": "coco_captioning", "split": "test", "rows": 30, "cider": 1.1, "bleu_4": 0.3}
    run = add_evaluation(RunRecord(data=DataOrigin("coco_captioning")), found, "dual-distill evaluate")
    assert [(one.metric, one.value, one.rows) for one in run.measurements] == [("cider", 1.1, 30), ("bleu_4", 0.3, 30)]


def test_recall_and_median_rank_are_added_both_ways_and_none_of_another_model() -> None:
    def directions(share: float) -> dict[str, dict[str, float]]:
        both = {"text_to_image": share, "image_to_text": share / 2}
        return {way: {"recall@1": value, "median_rank": 2.0, "num_queries": 9} for way, value in both.items()}

    found = {"task": "coco_retrieval", "split": "test", "rows": 30, "whole": {"dual": directions(0.5)}}
    run = replace(RUN, data=DataOrigin("coco_retrieval"))
    run = add_evaluation(run, found, "evaluate", {**found, "whole": {"dual": directions(0.75)}})
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
        add_evaluation(RUN, found, "notes.json")
