"""`dual-distill quickstart`: on generated pictures, in minutes on a laptop, from nothing to a distilled dual encoder.

Stages: scenes, a tokenizer, a fusion teacher, a dual encoder alone, a dual encoder with distillation (equal start,
equal steps), evaluation, latency, picture, report. Each trained stage leaves a folder and a `stage.json`; a second
start of the same command skips the stages whose folders are complete.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import DatasetDict

from dual_distill.data import DistillationCollator, Task, decode_image, get_task, load_task
from dual_distill.hub_cards import Speed, add_evaluation, read_run, write_run
from dual_distill.inference import PairLatency, draw_attention_picture, measure_pair_latency, word_attention
from dual_distill.modeling import DualDistillProcessor
from dual_distill.runs import DataArguments, ModelArguments, build_processor, make_run, train
from dual_distill.teachers import load_model
from dual_distill.trainer import DistillationTrainingArguments, EvaluationReport, predict_answers, report_answers

from .report import write_report

# What the teacher is asked first: about one thing each. It learns to see before it learns to count, relate and compare.
_FIRST_TYPES = ("exist", "colour", "shape")
_LATENCY_ROWS = 64
_WORDS_IN_PICTURE = 10  # two bands of the picture


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
    student_batch_size: int = 128
    student_learning_rate: float = 2e-3
    # Share of the teacher's steps that see only questions of _FIRST_TYPES.
    teacher_first_share: float = 0.14
    num_attention_heads: int = 4
    # Wide enough that queries and keys of this width tell tokens apart from the start.
    initializer_range: float = 0.12
    embedding_initializer_range: float = 0.5


PRESETS = {
    "smoke": Preset(200, 20, 40, hidden_size=32, num_hidden_layers=2, teacher_steps=30, student_steps=20),
    "default": Preset(
        10_000, 300, 1_000, hidden_size=96, num_hidden_layers=4, teacher_steps=5_000, student_steps=1_000
    ),
    "thorough": Preset(
        40_000, 500, 2_000, hidden_size=128, num_hidden_layers=4, teacher_steps=12_000, student_steps=8_000
    ),
}

# name of the folder -> what the report calls it
STAGES = {
    "teacher": "teacher (fusion encoder)",
    "alone": "dual encoder alone (hard labels)",
    "distilled": "dual encoder, distilled",
}


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of this verb."""
    parser = argparse.ArgumentParser(
        prog="dual-distill quickstart",
        description="Generate pictures with questions, train a fusion encoder (teacher), a dual encoder alone and a dual "
        "encoder that is distilled from the teacher, and show accuracy, speed, and where each of them looks.",
        epilog="A second start of the same command continues after the last finished stage.",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="smoke: under a minute, learns nothing; default: minutes on two cores; thorough: hours (default: default)",
    )
    parser.add_argument(
        "--student-start",
        choices=("random", "teacher"),
        default="random",
        help="both students start from the same random weights, or from the teacher's (default: random)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order (default: 0)")
    parser.add_argument(
        "--output-dir", type=Path, help="where everything is written (default: quickstart-PRESET-seedSEED)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON line last on stdout, everything else on stderr"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(words: Sequence[str]) -> None:
    """Run all stages and print the table."""
    options = make_parser().parse_args(words)
    output_dir = options.output_dir or Path(f"quickstart-{options.preset}-seed{options.seed}")
    with redirect_stdout(sys.stderr):
        settings = {"preset": options.preset, "seed": options.seed, "student_start": options.student_start}
        report, table = quickstart(PRESETS[options.preset], settings, output_dir)
    print(
        json.dumps(report)
        if options.json
        else f"\n{table}\n\nwritten to {output_dir}: report.md, attention.png, checkpoints"
    )


def quickstart(preset: Preset, settings: dict[str, Any], output_dir: Path) -> tuple[dict[str, Any], str]:
    """Run all stages; return the report as JSON and its table as text."""
    seed, settings = settings["seed"], {**settings, **asdict(preset)}
    _claim(output_dir, settings)
    start = time.perf_counter()
    task = get_task("scenes")
    _say("scenes and tokenizer")
    data = load_task(
        "scenes",
        num_scenes={"train": preset.train_scenes, "validation": preset.validation_scenes, "test": preset.test_scenes},
        seed=seed,
    )
    model_arguments = {
        "teacher": _model(preset, "fusion_encoder"),
        "alone": _model(preset, "dual_encoder"),
        "distilled": _model(preset, "dual_encoder"),
    }
    model_arguments["distilled"].teacher = str(output_dir / "teacher")
    if settings["student_start"] == "teacher":
        for student in ("alone", "distilled"):
            model_arguments[student].init_from = str(output_dir / "teacher")
    processor = build_processor(model_arguments["teacher"], data["train"][task.text_column])
    stages = {}
    for stage, title in STAGES.items():
        role = "teacher" if stage == "teacher" else "student"
        training = _training(settings, role)
        stages[stage] = _finished(output_dir / stage) or _train_stage(
            output_dir / stage,
            f"{title}, {training['max_steps']:,} steps",
            model_arguments[stage],
            training,
            _in_teaching_order(data, preset, seed) if stage == "teacher" else data,
            processor,
        )
    _say("evaluation on the test split")
    evaluations = _evaluate(task, data, processor, output_dir)
    _say("latency")
    models = {stage: load_model(output_dir / stage).model for stage in STAGES}
    label_names = [models["teacher"].config.id2label[index] for index in range(models["teacher"].config.num_labels)]
    batch = DistillationCollator(processor, task, label_names)(
        [data["test"][index] for index in range(min(_LATENCY_ROWS, len(data["test"])))]
    )
    latency = measure_pair_latency(models["teacher"], models["distilled"], batch)
    _say("attention picture")
    _draw(models, processor, task, data, evaluations, output_dir / "attention.png")
    # A stage that an earlier start finished took its seconds then.
    seconds = time.perf_counter() - start + sum(stage["seconds"] for stage in stages.values() if stage["earlier"])
    reports = {stage: evaluation for stage, (evaluation, _) in evaluations.items()}
    for stage in STAGES:
        _complete_record(output_dir, stage, reports, latency)
    return write_report(
        output_dir, settings, STAGES, reports, {stage: stages[stage]["seconds"] for stage in stages}, latency, seconds
    )


def _say(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)


def _claim(output_dir: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a new folder; refuse one that belongs to other settings."""
    file = output_dir / "settings.json"
    if file.is_file():
        found = json.loads(file.read_text())
        if found != settings:
            differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            raise ValueError(
                f"{str(output_dir)!r} holds a quickstart with other settings ({', '.join(differing)} differ); choose "
                f"another "
                "--output-dir, or delete the folder."
            )
        return
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"{str(output_dir)!r} is not empty and holds no quickstart; choose another --output-dir.")
    output_dir.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _finished(folder: Path) -> dict[str, Any] | None:
    file = folder / "stage.json"
    if not file.is_file():
        return None
    print(f"== {folder.name}: finished earlier, kept", file=sys.stderr, flush=True)
    return {**json.loads(file.read_text()), "earlier": True}


def _model(preset: Preset, architecture: Literal["fusion_encoder", "dual_encoder"]) -> ModelArguments:
    return ModelArguments(
        architecture=architecture,
        hidden_size=preset.hidden_size,
        num_hidden_layers=preset.num_hidden_layers,
        num_attention_heads=preset.num_attention_heads,
        intermediate_size=2 * preset.hidden_size,
        initializer_range=preset.initializer_range,
        embedding_initializer_range=preset.embedding_initializer_range,
        image_height=36,
        image_width=36,
        patch_size=12,
        resize="fixed",
        max_text_length=24,
    )


def _in_teaching_order(data: DatasetDict, preset: Preset, seed: int) -> DatasetDict:
    """The training rows of all of the teacher's steps, in the order in which it sees them.

    First questions of `_FIRST_TYPES` alone, then all; within each part every row once before any row twice.
    """
    rng = np.random.default_rng([seed, preset.teacher_steps])
    types = np.array(data["train"]["question_type"])
    first = np.flatnonzero(np.isin(types, _FIRST_TYPES))
    first_steps = round(preset.teacher_first_share * preset.teacher_steps)
    parts = []
    for rows, steps in ((first, first_steps), (np.arange(len(types)), preset.teacher_steps - first_steps)):
        wanted = steps * preset.teacher_batch_size
        epochs = -(-wanted // len(rows))
        parts.append(np.concatenate([rng.permutation(rows) for _ in range(epochs)])[:wanted])
    return DatasetDict({**data, "train": data["train"].select(np.concatenate(parts))})


def _training(settings: dict[str, Any], role: str) -> dict[str, Any]:
    steps = settings[f"{role}_steps"]
    return {
        "max_steps": steps,
        "per_device_train_batch_size": settings[f"{role}_batch_size"],
        "per_device_eval_batch_size": 512,
        "learning_rate": settings[f"{role}_learning_rate"],
        "seed": settings["seed"],
        "logging_steps": max(steps // 10, 1),
        # The teacher's rows lie in their order already.
        "train_sampling_strategy": "sequential" if role == "teacher" else "random",
        "save_strategy": "no",
        "disable_tqdm": False,
    }


def _train_stage(
    folder: Path,
    title: str,
    model_arguments: ModelArguments,
    training: dict[str, Any],
    data: DatasetDict,
    processor: DualDistillProcessor,
) -> dict[str, Any]:
    _say(title)
    arguments = DistillationTrainingArguments(output_dir=str(folder), **training)
    prepared = make_run(model_arguments, DataArguments(task="scenes"), arguments, data=data, processor=processor)
    prepared.trainer.describe_run(command="dual-distill quickstart")
    metrics = train(prepared)
    stage = {"seconds": metrics["train_runtime"], "steps": arguments.max_steps}
    # Written last: a folder without it is trained again.
    (folder / "stage.json").write_text(json.dumps(stage) + "\n")
    return {**stage, "earlier": False}


def _evaluate(
    task: Task, data: DatasetDict, processor: DualDistillProcessor, output_dir: Path
) -> dict[str, tuple[EvaluationReport, list[str]]]:
    results = {}
    for stage in STAGES:
        model = load_model(output_dir / stage).model
        label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        collator = DistillationCollator(processor, task, label_names)
        answers = predict_answers(model, data["test"], collator, batch_size=512, description=stage)
        # The baselines are the same for all three, so they are computed once.
        results[stage] = (
            report_answers(answers, data["test"], task, data["train"] if stage == "teacher" else None),
            answers,
        )
    return results


def _complete_record(output_dir: Path, stage: str, reports: dict[str, EvaluationReport], latency: PairLatency) -> None:
    """Add test accuracy, speed and picture to a stage's folder: what its model card shows."""
    folder, source = output_dir / stage, "dual-distill quickstart"
    record = read_run(folder)
    if record is None:
        raise ValueError(f"{str(folder)!r} has no run.json; delete the folder, so that the stage is trained again.")
    rows = {"task": "scenes", "split": "test"}
    teacher = {**rows, **reports["teacher"].to_dict()}
    baselines = {name: teacher[name] for name in ("text_only", "majority")}
    found = {**rows, **reports[stage].to_dict(), **baselines}
    record = add_evaluation(record, found, source, None if stage == "teacher" else teacher)
    if stage == "distilled":  # the student that was timed
        threads = torch.get_num_threads()
        device = f"{platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'}"
        speed = Speed(latency.student, latency.teacher, latency.student_stored_images, device, source)
        record = replace(record, speed=speed)
    write_run(folder, record)
    shutil.copyfile(output_dir / "attention.png", folder / "attention.png")


def _draw(
    models: dict[str, Any],
    processor: DualDistillProcessor,
    task: Task,
    data: DatasetDict,
    evaluations: dict[str, tuple[EvaluationReport, list[str]]],
    file: Path,
) -> None:
    """Draw the first short relation question that teacher and distilled student get right; else the first test row."""
    test = data["test"]
    chosen = 0
    columns = (test[task.text_column], test[task.label_column], test[task.group_column])
    for index, (question, label, kind) in enumerate(zip(*columns, strict=True)):
        right = all(evaluations[stage][1][index] == label for stage in ("teacher", "distilled"))
        if right and kind == "relation" and len(question.split()) <= _WORDS_IN_PICTURE:
            chosen = index
            break
    row = test[chosen]
    image = decode_image(row[task.image_columns[0]], f"test {chosen}")
    words: list[str] = []
    maps = {}
    for stage, title in STAGES.items():
        words, maps[title] = word_attention(models[stage], processor, image, row[task.text_column])
    picture = draw_attention_picture(
        image,
        words,
        maps,
        question=row[task.text_column],
        answers={title: evaluations[stage][1][chosen] for stage, title in STAGES.items()},
        right_answer=row[task.label_column],
        shared_scale=True,  # a word that looks everywhere alike stays dark
    )
    picture.save(file)
