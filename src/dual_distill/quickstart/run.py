"""`dual-distill quickstart`: on generated images, on a laptop, from nothing to a distilled dual encoder.

Stages: scenes, a tokenizer, a fusion teacher; three dual encoders with equal steps: one with an interaction layer on
hard labels, one distilled with the paper's interaction of pooled vectors, one distilled with the layer, which starts as
the first does and imitates the teacher's last hidden states too; evaluation, latency, attention image, report. Each
trained stage leaves a folder and a `stage.json`; a second start of the same command skips the stages whose folders are
complete. Stages train side by side, each in a process of one thread: at these widths a second thread gains a fifth of
the time, a second process half.
"""

import os
import platform
import shutil
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from dual_distill.data import DistillationCollator, decode_image, get_task, load_task
from dual_distill.hub_cards import Speed, add_evaluation, read_run, write_run
from dual_distill.inference import PairShape, attention_maps, draw_attention_picture, measure_answering
from dual_distill.modeling import DualDistillProcessor
from dual_distill.runs import DataArguments, ModelArguments, build_processor, make_run, processor_of_run, train
from dual_distill.sealed import locked, read_json, write_json
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainingArguments, EvaluationReport, predict_answers, report_answers

from .report import STAGES, write_report

# What the teacher is asked first: about one thing each. It learns to see before it learns to count, relate and compare.
_FIRST_TYPES = ("exist", "colour", "shape")
_LATENCY_ROWS = 64
_WORDS_IN_IMAGE = 10  # two bands of the attention image
_RULE = (
    f"the first test question of at most {_WORDS_IN_IMAGE} words that teacher and distilled student answer right and "
    "the student on hard labels wrong"
)
_SOURCE = "dual-distill quickstart"
_DATA = DataArguments(task="scenes")
# Fields of a preset that are fields of a model too.
_SHAPE = {one.name for one in fields(ModelArguments)}


@dataclass(frozen=True)
class Preset:
    """How much is generated and trained; the sizes of teacher and student are equal."""

    train_scenes: int
    validation_scenes: int
    test_scenes: int
    hidden_size: int
    num_hidden_layers: int
    teacher_steps: int
    student_steps: int
    teacher_batch_size: int = 64
    teacher_learning_rate: float = 1.5e-3
    student_batch_size: int = 64
    student_learning_rate: float = 2e-3
    muon_learning_rate: float = 5e-3
    # What the layer makes of the text against the teacher's, for the student that is distilled with one.
    interaction_hidden_weight: float = 1.0
    # Share of the teacher's steps that see only questions of _FIRST_TYPES.
    teacher_first_share: float = 0.14
    num_attention_heads: int = 4
    # Wide enough that queries and keys of this width tell tokens apart from the start.
    initializer_range: float = 0.12
    embedding_initializer_range: float = 0.5


PRESETS = {
    "smoke": Preset(200, 20, 40, 32, 2, teacher_steps=30, student_steps=20),
    "default": Preset(10_000, 300, 1_000, 96, 4, teacher_steps=1_600, student_steps=1_400),
    "thorough": Preset(40_000, 500, 2_000, 128, 4, teacher_steps=6_000, student_steps=6_000),
}
"""Name -> how much is generated and trained."""


def quickstart(preset: str, seed: int, student_start: Literal["random", "teacher"], output_dir: Path) -> dict[str, Any]:
    """Run all stages that are not finished; return the report.

    Args:
        preset: one of `PRESETS`.
        seed: of scenes, weights and order.
        student_start: whether both students start from the same random weights, or from the teacher's.
        output_dir: where everything is written; continued, if it holds a quickstart of these settings.

    Raises:
        ValueError: the folder holds something else, or another process writes into it.
    """
    size = PRESETS[preset]
    settings = {"preset": preset, "seed": seed, "student_start": student_start, **asdict(size)}
    with locked(output_dir):
        _claim(output_dir, settings)
        return _run_stages(size, settings, output_dir)


def _run_stages(size: Preset, settings: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    start, seed = time.perf_counter(), settings["seed"]
    _say("scenes and tokenizer")
    task = get_task("scenes")
    num_scenes = {"train": size.train_scenes, "validation": size.validation_scenes, "test": size.test_scenes}
    data = load_task("scenes", num_scenes=num_scenes, seed=seed)
    teacher = str(output_dir / "teacher")
    student = {"architecture": "dual_encoder", "init_from": teacher if settings["student_start"] == "teacher" else None}
    arguments = {
        "teacher": _model(size, architecture="fusion_encoder"),
        "hard_labels": _model(size, **student, interaction_layers=1),
        "distilled_pooled": _model(size, **student, teacher=teacher),
        "distilled": _model(size, **student, interaction_layers=1, teacher=teacher),
    }
    # The word pieces that the teacher was trained on, not such as would be made of the same texts today.
    processor = processor_of_run(teacher) or build_processor(arguments["teacher"], data["train"][task.text_column])

    stages = _train_all(output_dir, arguments, settings, data, processor)

    _say("evaluation on the test split")
    models = {stage: load_model(output_dir / stage).model for stage in STAGES}
    collator = DistillationCollator(processor, task, task.label_names or ())
    answers = {stage: predict_answers(model, data["test"], collator, 512, stage) for stage, model in models.items()}
    # The baselines are the same for all three, so they are computed once.
    reports = {
        stage: report_answers(said, data["test"], task, data["train"] if stage == "teacher" else None)
        for stage, said in answers.items()
    }

    _say("latency")
    batch = collator(list(data["test"].select(range(min(_LATENCY_ROWS, len(data["test"]))))))
    [timed, tokens], [height, width] = batch["input_ids"].shape, batch["pixel_values"].shape[-2:]
    shape = PairShape(timed, tokens, tokens, (height, width))
    named = {"teacher": models["teacher"], "student": models["distilled"], "pooled": models["distilled_pooled"]}
    names = {"fusion_encoder": "{}", "dual_encoder": "{}", "image_stored": "{}_stored_images"}
    ways = [row for row in measure_answering(named, shape) if row["way"] in names]
    latency = {names[row["way"]].format(row["model"]): row["latency_ms"] for row in ways}

    _say("attention image")
    example = _draw(models, processor, data["test"], answers, output_dir)

    # A stage that an earlier start finished took its seconds then.
    seconds = time.perf_counter() - start + sum(stage["seconds"] for stage in stages.values() if stage["earlier"])
    for stage in STAGES:
        _complete_record(output_dir / stage, reports, latency)
    return write_report(output_dir, settings, reports, stages, {"ms_per_pair": latency, "example": example}, seconds)


def _say(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)


def _claim(output_dir: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a new folder; refuse one that belongs to other settings."""
    file = output_dir / "settings.json"
    if file.is_file():
        found = read_json(file)
        if differing := sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key)):
            holds = f"holds a quickstart with other settings ({', '.join(differing)} differ)"
            raise ValueError(f"{str(output_dir)!r} {holds}; choose another --output-dir, or delete the folder.")
        return

    if any(not path.name.startswith(".") for path in output_dir.iterdir()):
        raise ValueError(f"{str(output_dir)!r} is not empty and holds no quickstart; choose another --output-dir.")
    write_json(file, settings)


def _model(size: Preset, **fields: Any) -> ModelArguments:
    shape = {name: value for name, value in asdict(size).items() if name in _SHAPE}
    images: dict[str, Any] = {"image_height": 36, "image_width": 36, "patch_size": 12, "resize": "fixed"}
    return ModelArguments(**shape, **images, intermediate_size=2 * size.hidden_size, max_text_length=24, **fields)


def _in_teaching_order(data: DatasetDict, settings: dict[str, Any]) -> DatasetDict:
    """The training rows of all of the teacher's steps, in the order in which it sees them.

    First questions of `_FIRST_TYPES` alone, then all; within each part every row once before any row twice.
    """
    steps = settings["teacher_steps"]
    rng = np.random.default_rng([settings["seed"], steps])
    types = np.array(data["train"]["question_type"])
    first = np.flatnonzero(np.isin(types, _FIRST_TYPES))
    first_steps = round(settings["teacher_first_share"] * steps)

    parts = []
    for rows, num_steps in ((first, first_steps), (np.arange(len(types)), steps - first_steps)):
        wanted = num_steps * settings["teacher_batch_size"]
        epochs = -(-wanted // len(rows))
        parts.append(np.concatenate([rng.permutation(rows) for _ in range(epochs)])[:wanted])
    return DatasetDict({**data, "train": data["train"].select(np.concatenate(parts))})


def _train_all(output_dir: Path, models: dict[str, ModelArguments], *given: Any) -> dict[str, dict[str, Any]]:
    """Train every stage, as many side by side as torch has threads; what learns from the teacher follows it."""
    num_processes = min(torch.get_num_threads(), len(STAGES) - 1)
    if num_processes == 1:
        return {stage: _train(output_dir / stage, models[stage], *given) for stage in STAGES}

    with ProcessPoolExecutor(num_processes, get_context("spawn"), _begin_process) as pool:
        jobs = {"teacher": pool.submit(_train, output_dir / "teacher", models["teacher"], *given)}
        waiting = [stage for stage in reversed(STAGES) if stage not in jobs]
        # Who needs no teacher begins beside it; the last of the table has the longest steps.
        waiting.sort(key=lambda stage: bool(models[stage].teacher or models[stage].init_from))
        for stage in waiting:
            if models[stage].teacher or models[stage].init_from:
                jobs["teacher"].result()
            jobs[stage] = pool.submit(_train, output_dir / stage, models[stage], *given)
        return {stage: jobs[stage].result() for stage in STAGES}


def _begin_process() -> None:
    """One thread; ends with the process that started it, however that ends."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class _Progress(TrainerCallback):
    """A line at each log, which names the stage: several write into one terminal."""

    def __init__(self, stage: str):
        self.stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **given: Any) -> None:
        """Print step and loss."""
        if logs and "loss" in logs:
            print(
                f"   {self.stage}: step {state.global_step:,} of {state.max_steps:,}, loss {logs['loss']:.3f}",
                file=sys.stderr,
                flush=True,
            )


def _train(
    folder: Path, model: ModelArguments, settings: dict[str, Any], data: DatasetDict, processor: DualDistillProcessor
) -> dict[str, Any]:
    """Train one model, unless an earlier start has finished it."""
    done = folder / "stage.json"
    if done.is_file():
        _say(f"{folder.name}: finished earlier, kept")
        return {**read_json(done), "earlier": True}

    role = "teacher" if folder.name == "teacher" else "student"
    steps = settings[f"{role}_steps"]
    _say(f"{STAGES[folder.name]}, {steps:,} steps")
    arguments = DistillationTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings[f"{role}_batch_size"],
        per_device_eval_batch_size=512,
        learning_rate=settings[f"{role}_learning_rate"],
        muon_learning_rate=settings["muon_learning_rate"],
        seed=settings["seed"],
        interaction_hidden_weight=settings["interaction_hidden_weight"] if folder.name == "distilled" else 0.0,
        logging_steps=max(steps // 10, 1),
        # The teacher's rows lie in their order already.
        train_sampling_strategy="sequential" if role == "teacher" else "random",
        save_strategy="no",
        preflight=False,  # the report says more
        disable_tqdm=True,
    )
    rows = _in_teaching_order(data, settings) if role == "teacher" else data
    trainer = make_run(model, _DATA, arguments, data=rows, processor=processor)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(folder.name))
    trainer.describe_run(command=_SOURCE)
    metrics = train(trainer)

    # Written last: a folder without it is trained again.
    stage = {"seconds": metrics["train_runtime"], "steps": steps}
    write_json(done, stage)
    return {**stage, "earlier": False}


def _complete_record(folder: Path, reports: dict[str, EvaluationReport], latency: dict[str, float]) -> None:
    """Add test accuracy, speed and attention image to a stage's folder: what its model card shows."""
    stage, record = folder.name, read_run(folder)
    if record is None:
        raise ValueError(f"{str(folder)!r} has no run.json; delete the folder, so that the stage is trained again.")

    teacher = {"task": "scenes", "split": "test", **reports["teacher"].to_dict()}
    found = {**teacher, **reports[stage].to_dict(), **{name: teacher[name] for name in ("text_only", "majority")}}
    record = add_evaluation(record, found, _SOURCE, None if stage == "teacher" else teacher)

    if stage == "distilled":  # the student that was timed
        threads = torch.get_num_threads()
        device = f"{platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'}"
        student, taught, stored = (latency[name] for name in ("student", "teacher", "student_stored_images"))
        record = replace(record, speed=Speed(student, taught, device, _SOURCE, stored))
    write_run(folder, record)
    shutil.copyfile(folder.with_name("attention.png"), folder / "attention.png")


def choose_example(test: Dataset, answers: dict[str, list[str]]) -> tuple[int, str]:
    """Return the first short question that shows what distillation is for, else the first of all, and the rule."""
    said = (answers[stage] for stage in ("teacher", "distilled", "hard_labels"))
    rows = zip(test["question"], test["answer"], *said, strict=True)
    for index, (question, label, taught, distilled, plain) in enumerate(rows):
        if taught == distilled == label != plain and len(question.split()) <= _WORDS_IN_IMAGE:
            return index, _RULE
    return 0, f"the first of all, for none is {_RULE}"


def _draw(
    models: dict[str, Any], processor: Any, test: Dataset, answers: dict[str, list[str]], output_dir: Path
) -> dict[str, str]:
    """Draw what each model answers to one question and where it looks; write its image by itself too, to be asked.

    Returned are that image's file, the question, the right answer, and the rule by which the question was chosen.
    """
    chosen, rule = choose_example(test, answers)
    row = test[chosen]
    image = decode_image(row["image"], f"test {chosen}")

    maps = {}
    for stage, model in models.items():
        words, maps[STAGES[stage]] = attention_maps(model, processor, image, row["question"])
    said = {STAGES[stage]: one[chosen] for stage, one in answers.items()}
    texts = {"question": row["question"], "answers": said, "right_answer": row["answer"]}
    # One scale, so that a word that looks everywhere alike stays dark.
    draw_attention_picture(image, words, maps, **texts, shared_scale=True).save(output_dir / "attention.png")

    image.save(output_dir / "example.png")
    return {"image": "example.png", "question": row["question"], "answer": row["answer"], "rule": rule}
