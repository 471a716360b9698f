"""What a run records of itself, whoever started it, and the card that is made of it."""

import time
from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard

from dual_distill.hub_cards import origin_of, read_run, write_run
from dual_distill.objectives import DiDEObjective
from dual_distill.trainer import DistillationTrainer, differing_fields


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def measured(build, make_rows, tmp_path):
    """A run with a teacher that was saved, from Python, trained and evaluated."""

    def run(**fields):
        return build(eval_rows=make_rows(11), compute_metrics=accuracy, **{"label_weight": 0.5, **fields})

    return run


def test_a_run_from_python_gives_a_full_card(measured, make_teacher, tmp_path):
    make_teacher().save_pretrained(tmp_path / "teacher")
    trainer = measured(teacher=type(make_teacher()).from_pretrained(tmp_path / "teacher"))
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card(
        language="de",
        license="mit",
        tags="shop",
        model_name="Clerk",
        finetuned_from="me/base",
        tasks="visual-question-answering",
        dataset_tags="me/shop",
        dataset="Shop",
        dataset_args="plain",
    )
    record = read_run(tmp_path / "out")
    assert record.objective.name == "DiDEObjective"
    used = {name: weight for name, weight in record.objective.weights.items() if weight}
    assert used == {"attention_weight": 1.0, "soft_label_weight": 1.0, "label_weight": 0.5}
    assert record.teacher == origin_of(tmp_path / "teacher")
    assert record.weights == origin_of(tmp_path / "out").revision
    assert record.data.rows == {"train": 20, "validation": 11}
    assert (record.seed, record.steps) == (7, 6)
    assert record.train_seconds > 0
    assert {"torch", "transformers", "python"} <= record.versions.keys()
    assert record.settings["label_weight"] == 0.5
    assert not {"use_cpu", "accelerator_config", "report_to", "output_dir", "temperature"} & record.settings.keys()
    found = {one.metric: one for one in record.measurements}
    assert found.keys() == {"loss", "accuracy", "attention_loss", "soft_label_loss", "label_loss"}
    assert found["accuracy"].value == metrics["eval_accuracy"]
    assert (found["accuracy"].split, found["accuracy"].rows) == ("validation", 11)
    assert found["accuracy"].source == "DistillationTrainer.evaluate"

    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "# Clerk",
        "| teacher | teacher (not on the Hub), weights `sha256:",
        "| weights started from | [me/base](https://huggingface.co/me/base) |",
        "Distilled by cross-modal attention distillation (DiDE)",
        "to look where the teacher looks and from the labels themselves",
        "| data | [Shop](https://huggingface.co/datasets/me/shop) (plain), 20 train rows, 11 validation rows |",
        "| accuracy | validation | 11 |",
        "@inproceedings{wang2022distilled",
        "Licence of the weights: mit.",
    ):
        assert words in card, words
    data = ModelCard(card).data
    assert (data.language, data.license, data.base_model, data.datasets) == ("de", "mit", "me/base", ["me/shop"])
    assert (data.model_name, data.pipeline_tag) == ("Clerk", "visual-question-answering")
    assert {"shop", "distillation"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_config, result.metric_type) == ("Shop", "plain", "accuracy")
    assert result.task_type == "visual-question-answering"


def test_a_run_without_a_teacher_says_so_and_names_its_start(build, make_student, tmp_path):
    make_student().save_pretrained(tmp_path / "start")
    trainer = build(type(make_student()).from_pretrained(tmp_path / "start"), teacher=None)
    trainer.train()
    trainer.create_model_card()
    record = read_run(tmp_path / "out")
    assert (record.objective, record.teacher, record.measurements) == (None, None, ())
    assert record.start == origin_of(tmp_path / "start")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained without a teacher." in card
    assert "No evaluation was noted beside these weights" in card


def test_a_teacher_that_was_never_saved_is_known_by_its_parameters(build, make_teacher, tmp_path):
    records = []
    for seed in (1, 1, 2):
        trainer = build(teacher=make_teacher(seed=seed), max_steps=1)
        trainer.train()
        trainer.save_model()
        records.append(read_run(tmp_path / "out").teacher)
    assert records[0] == records[1] != records[2]
    assert records[0].name == "FusionEncoderForQuestionAnswering"
    assert records[0].revision.startswith("parameters:")


def test_an_objective_of_ones_own_is_recorded_with_its_paper(build, tmp_path):
    class Ours(DiDEObjective):
        paper = None

    trainer = build(objective=Ours(attention_weight=0.25), max_steps=1)
    trainer.train()
    trainer.create_model_card()
    assert read_run(tmp_path / "out").objective.weights["attention_weight"] == 0.25
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Distilled with the objective `Ours`: it learned" in card
    assert "## Citation" not in card


def test_each_evaluation_is_noted_by_its_dataset_or_prefix(measured, make_rows, tmp_path):
    trainer = measured(max_steps=1)
    trainer.eval_dataset = {"near": make_rows(4), "far": make_rows(7)}
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(make_rows(5), metric_key_prefix="test")
    trainer.save_model()
    record = read_run(tmp_path / "out")
    rows = {one.split: one.rows for one in record.measurements if one.metric == "accuracy"}
    assert rows == {"near": 4, "far": 7, "test": 5}
    assert record.data.rows == {"train": 20, "near": 4, "far": 7}


def test_other_rows_take_no_place_of_the_validation_rows(measured, make_rows, caplog):
    trainer = measured()
    value = trainer.evaluate()["eval_accuracy"]
    trainer.evaluate(make_rows(5))
    assert "nothing was noted: these rows are not the trainer's and have no split" in caplog.text
    trainer.evaluate(Dataset.from_list(make_rows(4), split="validation").with_format("torch"))
    trainer.evaluate(Dataset.from_list(make_rows(3), split="test").with_format("torch"))
    found = {one.split: one for one in trainer.run_record().measurements if one.metric == "accuracy"}
    assert {split: one.rows for split, one in found.items()} == {"validation": 11, "test": 3}
    assert found["validation"].value == value

    trainer.eval_dataset = {"near": make_rows(4)}
    trainer.evaluate("near")
    assert {one.rows for one in trainer.run_record().measurements if one.split == "near"} == {4}


def test_workers_that_outlive_an_evaluation_read_the_rows_that_are_asked_for(measured, make_rows):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain, trainer = measured(), measured(**workers)
    for rows in (None, make_rows(5), make_rows(16)[11:], None):
        found, expected = (one.evaluate(rows, metric_key_prefix="test") for one in (trainer, plain))
        assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-6)
    trainer.eval_dataset = plain.eval_dataset = make_rows(3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    trainer._end_workers()


def test_rows_that_an_evaluation_leaves_out_are_not_counted(measured, caplog):
    trainer = measured(dataloader_drop_last=True, per_device_eval_batch_size=4)
    assert trainer.evaluate()["eval_samples_per_second"] > 0
    assert {one.rows for one in trainer.run_record().measurements} == {8}
    assert trainer.predict(trainer.eval_dataset).predictions.shape[0] == 8
    assert "nothing was measured" not in caplog.text
    assert "eval_loss" not in measured(dataloader_drop_last=True, per_device_eval_batch_size=12).evaluate()
    assert "nothing was measured: dataloader_drop_last leaves out all rows" in caplog.text


def test_a_checkpoint_has_the_numbers_of_its_own_weights(measured, tmp_path):
    trainer = measured(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=1, max_steps=4)
    trainer.train()
    logged = {entry["step"]: entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry}
    for step in (1, 2, 3, 4):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        record = read_run(folder)
        assert (record.steps, record.weights) == (step, origin_of(folder).revision)
        values = [one.value for one in record.measurements if one.metric == "accuracy"]
        assert values == ([logged[step]] if step in logged else [])


def test_the_numbers_of_the_best_checkpoint_go_with_its_weights(measured, tmp_path):
    fields = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 2.0,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_attention_loss", "greater_is_better": True}
    trainer = measured(**fields, **best)
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    trainer.save_model()
    record = read_run(tmp_path / "out")
    assert record.steps == trainer.state.best_global_step
    [value] = [one.value for one in record.measurements if one.metric == "attention_loss"]
    assert value == trainer.state.best_metric


def test_a_second_training_counts_the_steps_and_seconds_of_the_first(measured, tmp_path):
    trainer = measured(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    seconds = trainer.run_record().train_seconds
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    record = read_run(tmp_path / "out")
    assert record.steps == 4
    assert record.train_seconds > seconds
    assert "accuracy" in {one.metric for one in record.measurements}

    # Refused before it begins, and resumed within.
    with pytest.raises(ValueError, match="checkpoint-9"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))
    assert replace(trainer.run_record(), weights=record.weights) == record
    trainer.evaluate(metric_key_prefix="test")  # which is written: the weights lie there
    assert "test" in {one.split for one in read_run(tmp_path / "out").measurements}
    resumed = measured(max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert resumed.run_record().steps == 5
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert resumed.run_record().steps == 5


def test_the_clock_of_a_training_that_was_stopped_stands(measured, monkeypatch):
    trainer = measured(max_steps=2)
    monkeypatch.setattr(trainer, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    seconds = trainer.run_record().train_seconds
    time.sleep(0.01)
    assert trainer.run_record().train_seconds == seconds


def test_what_was_measured_before_a_resume_goes_with_its_weights(measured, tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 2.0}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_attention_loss", "greater_is_better": True}
    measured(max_steps=2, **steps, **best).train()
    resumed = measured(max_steps=3, **steps, **best)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step <= 2
    [value] = [one.value for one in resumed.run_record().measurements if one.metric == "attention_loss"]
    assert value == resumed.state.best_metric
    stopped = measured(max_steps=2, **steps)
    stopped.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert "accuracy" in {one.metric for one in stopped.run_record().measurements}


def test_a_resumed_run_counts_the_seconds_before(build, tmp_path):
    build(save_strategy="steps", save_steps=2, max_steps=2).train()
    file = tmp_path / "out" / "checkpoint-2" / "run.json"
    write_run(file.parent, replace(read_run(file.parent), train_seconds=1000.0))
    resumed = build(save_strategy="no", max_steps=3)
    resumed.train(resume_from_checkpoint=str(file.parent))
    resumed.save_model()
    record = read_run(tmp_path / "out")
    assert record.steps == 3
    assert 1000 < record.train_seconds < 1100


def test_training_on_makes_the_card_of_an_earlier_save_stale(measured, tmp_path):
    trainer = measured(max_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    trainer.model.save_pretrained(tmp_path / "out")  # the same weights: the record is about them still
    assert "## Results" in (tmp_path / "out" / "README.md").read_text()
    with torch.no_grad():
        trainer.model.classifier[0].bias.add_(1)
    trainer.model.save_pretrained(tmp_path / "out")
    assert read_run(tmp_path / "out").weights != origin_of(tmp_path / "out").revision


def test_a_model_init_makes_the_model_and_each_run_of_a_search_its_objective(
    build, arguments, make_student, make_teacher
):
    made = []

    def init():
        made.append(make_student())
        return made[-1]

    trainer = DistillationTrainer(
        model_init=init, args=arguments(), teacher=make_teacher(), train_dataset=[], eval_dataset=None
    )
    first = trainer.distillation_objective
    reference = build()
    trainer.train_dataset, trainer.data_collator = reference.train_dataset, reference.data_collator
    trainer.args.attention_weight = 0.5  # as a search sets it
    trainer.objective = 0.125  # what transformers' hyperparameter search writes
    trainer.train()
    assert len(made) == 2
    assert trainer.model is made[1]
    assert trainer.distillation_objective is not first
    assert trainer.distillation_objective.attention_weight == 0.5
    assert trainer.state.global_step == 6


def test_settings_are_what_differs_and_name_no_place() -> None:
    @dataclass
    class Arguments:
        output_dir: str = "out"
        hub_token: str | None = None
        max_steps: int = 1
        layer_map: dict[int, int] | None = None
        data_options: dict | None = None
        match_weight: float | None = None
        lists: list[int] | None = None
        is_shuffled: bool | None = None

    options = {"sources": [{"path": "/data/a.tar", "kind": "webdataset"}], "split": "train"}
    given = Arguments("/somewhere/else", "hf_secret", 5, {-1: -1}, options, 0.0, [], False)
    assert differing_fields(given) == {
        "max_steps": 5,
        "layer_map": {"-1": -1},
        "data_options": {"sources": [{"kind": "webdataset"}], "split": "train"},
        "match_weight": 0.0,
    }
    assert differing_fields(Arguments(max_steps=True)) == {}
