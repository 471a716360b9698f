"""`dual-distill quickstart`: on generated images, on a laptop, from nothing to a distilled dual encoder.

Stages: scenes, a tokenizer, a fusion teacher; three dual encoders with equal steps: one with an interaction layer on
hard labels, one distilled with the paper's interaction of pooled vectors, one distilled with the layer, which starts as
the first does, imitates the teacher's attention there and its last hidden states too, and learns from hard labels
beside all that; evaluation, latency, attention image, report. Each trained stage leaves a folder and a `stage.json`; a
second start of the same command skips the stages whose folders are complete.
"""

import platform
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset

from dual_distill.data import DistillationCollator, decode_image, get_task, load_task
from dual_distill.hub_cards import Speed, add_evaluation, read_run, write_run
from dual_distill.inference import PairShape, attention_maps, draw_attention_picture, measure_answering
from dual_distill.runs import ModelArguments, build_processor, processor_of_run
from dual_distill.sealed import locked, read_json, write_json
from dual_distill.teachers import load_model
from dual_distill.trainer import EvaluationReport

from .report import STAGES, write_report
from .training import SOURCE, say, start_processes, train_all

_LATENCY_ROWS = 64
_WORDS_IN_IMAGE = 10  # two bands of the attention image
_RULE = (
    f"the first test question of at most {_WORDS_IN_IMAGE} words that teacher and distilled student answer right and "
    "the student on hard labels wrong"
)
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
    # Of the student distilled with a layer: where it looks and what it makes of the text, against the teacher's; and
    # hard labels, which are worth a point to it and nothing to the paper's.
    interaction_attention_weight: float = 1.0
    interaction_hidden_weight: float = 1.0
    label_weight: float = 1.0
    # Share of the teacher's steps that see only questions of _FIRST_TYPES.
    teacher_first_share: float = 0.14
    num_attention_heads: int = 4
    # Wide enough that queries and keys of this width tell tokens apart from the start.
    initializer_range: float = 0.12
    embedding_initializer_range: float = 0.5


PRESETS = {
    "smoke": Preset(200, 20, 40, 32, 2, teacher_steps=30, student_steps=20),
    "default": Preset(10_000, 300, 1_000, 96, 4, teacher_steps=1_800, student_steps=1_100),
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
    task, teacher = get_task("scenes"), str(output_dir / "teacher")
    student = {"architecture": "dual_encoder", "init_from": teacher if settings["student_start"] == "teacher" else None}
    arguments = {
        "teacher": _model(size, architecture="fusion_encoder"),
        "hard_labels": _model(size, **student, interaction_layers=1),
        "distilled_pooled": _model(size, **student, teacher=teacher),
        "distilled": _model(size, **student, interaction_layers=1, teacher=teacher),
    }
    with start_processes(output_dir) as pool:
        say("scenes and tokenizer")
        num_scenes = {"train": size.train_scenes, "validation": size.validation_scenes, "test": size.test_scenes}
        data = load_task("scenes", num_scenes=num_scenes, seed=seed)
        # The word pieces that the teacher was trained on, not such as would be made of the same texts today.
        processor = processor_of_run(teacher) or build_processor(arguments["teacher"], data["train"][task.text_column])
        stages, answers, reports = train_all(pool, output_dir, arguments, settings, data, processor)

    say("latency")
    models = {stage: load_model(output_dir / stage).model for stage in STAGES}
    collator = DistillationCollator(processor, task, task.label_names or ())
    batch = collator(list(data["test"].select(range(min(_LATENCY_ROWS, len(data["test"]))))))
    [timed, tokens], [height, width] = batch["input_ids"].shape, batch["pixel_values"].shape[-2:]
    shape = PairShape(timed, tokens, tokens, (height, width))
    named = {"teacher": models["teacher"], "student": models["distilled"], "pooled": models["distilled_pooled"]}
    names = {"fusion_encoder": "{}", "dual_encoder": "{}", "image_stored": "{}_stored_images"}
    ways = [row for row in measure_answering(named, shape, repeats=5) if row["way"] in names]
    latency = {names[row["way"]].format(row["model"]): row["latency_ms"] for row in ways}

    say("attention image")
    example = _draw(models, processor, data["test"], answers, output_dir)

    # A stage that an earlier start finished took its seconds then.
    seconds = time.perf_counter() - start + sum(stage["seconds"] for stage in stages.values() if stage["earlier"])
    for stage in STAGES:
        _complete_record(output_dir / stage, reports, latency)
    return write_report(output_dir, settings, reports, stages, {"ms_per_pair": latency, "example": example}, seconds)


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


def _complete_record(folder: Path, reports: dict[str, EvaluationReport], latency: dict[str, float]) -> None:
    """Add test accuracy, speed and attention image to a stage's folder: what its model card shows."""
    stage, record = folder.name, read_run(folder)
    if record is None:
        raise ValueError(f"{str(folder)!r} has no run.json; delete the folder, so that the stage is trained again.")

    teacher = {"task": "scenes", "split": "test", **reports["teacher"].to_dict()}
    found = {**teacher, **reports[stage].to_dict(), **{name: teacher[name] for name in ("text_only", "majority")}}
    record = add_evaluation(record, found, SOURCE, teacher if record.teacher else None)

    if stage == "distilled":  # the student that was timed
        threads = torch.get_num_threads()
        device = f"{platform.machine()}, {threads} {'thread' if threads == 1 else 'threads'}"
        student, taught, stored = (latency[name] for name in ("student", "teacher", "student_stored_images"))
        record = replace(record, speed=Speed(student, taught, device, SOURCE, stored))
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
